"""The one schema every source is converted to, from records to a set that is of use."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    concatenate_datasets,
)

from datasets_scripts.hashes import hash_images
from datasets_scripts.labels import clean_labels, clean_order, order_classes, split_option
from datasets_scripts.splits import complete_splits, group_ids

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "unlabelled")
UNLABELLED = -1  # the label of an image that has none
IMAGES_AT_ONCE = 100  # held in memory
MAX_CONFLICTS = 0.01  # share of the images
NAMED = 5  # images or classes named in a message
REQUIRED = ("image", "label", "labels", "unknown", "image_id", "patient_id", "source")
OPTIONAL = {
    "subtype": Value("string"),
    "view": Value("string"),
    "age": Value("float32"),  # years
    "sex": Value("string"),
    "lung_mask": Image(),
    "original_width": Value("int32"),  # pixels, before any resizing
    "original_height": Value("int32"),
    "weight": Value("float32"),  # how often training draws the image, beside others
}
RECORD = ("image", "label", "unknown", "name", "path", "split", "patient_id", "source")


@dataclass(frozen=True)
class Source:
    """What is known of a source beside its images: a module of this package has one, as `SOURCE`.

    A run copies it into dataset.json, and the model card reads it there. Texts are plain.

    Attributes:
        name: of the module, and of the images in the column `source`.
        title: what it is; {path} stands for the path or Hub id that is given.
        path_help: what to give as path; empty where the source takes none.
        remote: the path is no file or folder of this machine.
        classes: in the order of their indices; empty where each set has its own.
        citation: of the paper.
        licence: its identifier on the Hub.
        population: who was imaged, where and how.
        limits, out_of_scope: sentences for the model card.
        ages: the youngest and oldest, years.
        hub_ids: copies on the Hub, of which the same holds.
        patients_of: the source whose patients these are, under its names, where that is another.
    """

    name: str
    title: str
    path_help: str = ""
    remote: bool = False
    classes: tuple[str, ...] = ()
    citation: str | None = None
    licence: str | None = None
    population: str | None = None
    limits: tuple[str, ...] = ()
    out_of_scope: tuple[str, ...] = ()
    ages: tuple[float, float] | None = None
    hub_ids: tuple[str, ...] = ()
    patients_of: str | None = None


def make_features(
    classes: Sequence[str], multi_label: bool = False, optional: Sequence[str] = ()
) -> Features:
    """The columns of a set: image, label or labels, image_id, patient_id, source, and `optional`.

    An optional column is `unknown`, the classes that are not annotated for an image of a
    multi-label set; `objects`, what is boxed in an image: `bbox`, [x, y, width, height] in pixels
    of the stored image, and `category`, a class each; one of `OPTIONAL`; or text.
    """
    kind = ClassLabel(names=list(classes))
    labels = {"labels": List(kind)} if multi_label else {"label": kind}
    ids = {name: Value("string") for name in ("image_id", "patient_id", "source")}
    objects = {"bbox": List(List(Value("float32"))), "category": List(kind)}
    known = {**OPTIONAL, "unknown": List(kind), "objects": objects}
    more = {name: known.get(name, Value("string")) for name in optional}
    return Features({"image": Image(), **labels, **ids, **more})


def build(columns: dict[str, list], splits: list[str], features: Features) -> DatasetDict:
    """The columns of `features`, each row put into its split."""
    return DatasetDict(
        {
            name: make_table(
                {
                    column: [cell for cell, split in zip(columns[column], splits) if split == name]
                    for column in features
                },
                features,
            )
            for name in SPLITS
            if name in splits
        }
    )


def make_table(columns: dict[str, list], features: Features) -> Dataset:
    """A table of columns; an image is a path, a dict of path and bytes, or None."""
    for column, kind in features.items():
        if isinstance(kind, Image):
            cells = columns[column]
            paths = [{"path": cell} if isinstance(cell, str) else cell for cell in cells]
            columns = {**columns, column: paths}
    # not from_dict, which looks at each cell in Python
    return Dataset(pa.Table.from_pydict(columns, schema=features.arrow_schema))


def assemble(
    records: list[dict],
    name: str,
    multi_label: bool = False,
    order: Sequence[str] = (),
    stored: Dataset | None = None,
    *,
    label_map: dict | str | None = None,
    classes: str | list[str] | None = None,
    positive: str | None = None,
    patient_regex: str | None = None,
    max_conflicts: float = MAX_CONFLICTS,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 42,
) -> DatasetDict:
    """The images that a source found, as a set in the schema.

    A record is a dict with

        image       a path, or a dict of path and bytes; not where `stored` has it
        label       what the source says of the class, see `labels.read_labels`; nothing in the
                    split unlabelled
        unknown     classes that may be there or not, written alike, in a multi-label set; may be
                    left out. A class that is both is there
        name        the file's name: the image_id, if no other image has it
        path        unique: the image_id otherwise, and the patient of an image without one
        split       or None for all: they are drawn. A part of train is held out where there is no
                    validation split
        patient_id  empty where the source does not say
        source      where the image comes from

    and the same further columns as every other record: some of `OPTIONAL`, `objects` (see
    `make_features`, with names as categories; None where nobody drew boxes), or text. Patients, and
    identical files, stay in one split. In a two-class set the finding is class 1.

    Args:
        records: of all images.
        name: of the set, for messages.
        multi_label: an image may have several labels, or none.
        order: the classes, where the source has an order of its own; otherwise they are sorted.
        stored: columns `image` and some of `OPTIONAL`, a row a record, that stay as they are.
        label_map: other names for labels, as {0: NORMAL, 1: PNEUMONIA}
        classes: all classes in their order, joined by commas
        positive: the finding, in a two-class set: it becomes class 1
        patient_regex: regular expression whose first group is the patient in a file's name or path
        max_conflicts: share of images that may have an identical twin under another label
        validation_share: share of the training images held out where there is no validation split
        test_share: share of the images for the test split where there are no splits; 1 for all
        seed: of what is drawn at random

    Raises:
        ValueError: an image has no label, options do not fit the data, too many identical images
            have two labels, or there are too few patients to split.
    """
    own, order, ordered = order, clean_order(order, label_map), split_option(classes)
    spelling = ordered or order
    labels, unknown, boxed = _class_names(records, spelling, own, label_map, multi_label, name)
    for record, row in zip(records, labels):
        if not row and not multi_label and record["split"] != "unlabelled":
            raise ValueError(f"{name} gives {record['path']!r} no label: give each image one.")
        if len(row) > 1 and not multi_label:
            raise ValueError(
                f"{name} gives {record['path']!r} the labels {', '.join(row)}: a set of one label "
                "an image is expected."
            )
    there = {label for row in [*labels, *unknown, *boxed] for label in row if label}
    known = order_classes(there, order, ordered, positive, multi_label, name)
    index = {label: number for number, label in enumerate(known)}
    indices = [tuple(index[label] for label in row) for row in labels]

    patients = _patients(records, patient_regex, name)
    unique = len({record["name"] for record in records}) == len(records)
    ids = [record["name"] if unique else record["path"] for record in records]
    if stored is None:
        images = (record["image"] for record in records)
        hashes = hash_images(one if isinstance(one, str) else one["bytes"] for one in images)
    else:
        hashes = content_hashes(stored)
    splits = [record["split"] for record in records]
    labelled = [row for row, split in enumerate(splits) if split != "unlabelled"]
    check_conflicts(
        [hashes[row] for row in labelled],
        [labels[row] for row in labelled],
        [records[row]["path"] for row in labelled],
        name,
        max_conflicts,
        [unknown[row] for row in labelled],
    )
    splits = complete_splits(
        None if None in splits else splits,
        group_ids(patients, hashes),
        indices,
        validation_share,
        test_share,
        seed,
    )

    optional = [column for column in records[0] if column not in RECORD]
    columns = {
        "image_id": ids,
        "patient_id": patients,
        **{name: [record[name] for record in records] for name in ("source", *optional)},
    }
    if multi_label:
        columns["labels"] = indices
    else:
        columns["label"] = [row[0] if row else UNLABELLED for row in indices]
    if any(unknown):
        optional = ["unknown", *optional]
        columns["unknown"] = [[index[label] for label in row] for row in unknown]
    if "objects" in optional:
        found = zip(columns["objects"], boxed)
        columns["objects"] = [_objects(objects, row, index) for objects, row in found]
    features = make_features(known, multi_label, optional)
    if stored is None:
        columns["image"] = [record["image"] for record in records]
        return build(columns, splits, features)
    del features["image"]
    table = make_table(columns, features)
    table = concatenate_datasets([stored.cast_column("image", Image()), table], axis=1)
    others = [column for column in stored.features if column != "image"]
    table = table.select_columns(["image", *features, *others])
    places = {name: [row for row, split in enumerate(splits) if split == name] for name in SPLITS}
    return DatasetDict({name: table.select(rows) for name, rows in places.items() if rows})


def _class_names(
    records: list[dict],
    order: Sequence[str],
    own: Sequence[str],
    label_map: dict | str | None,
    multi_label: bool,
    name: str,
) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """The classes of each image, those unknown of it, and one a box, "" for a class left out."""
    doubtful = [row for row, record in enumerate(records) if record.get("unknown")]
    if doubtful and not multi_label:
        raise ValueError(
            f"{name} gives {records[doubtful[0]]['path']!r} unknown labels: those are for a set of "
            "several labels an image."
        )
    boxes = [(record.get("objects") or {"category": []})["category"] for record in records]
    cells = [record["label"] for record in records]
    cells += [records[row]["unknown"] for row in doubtful]
    cells += [[category] for categories in boxes for category in categories]
    cleaned = iter(clean_labels(cells, order, label_map, name, own))
    labels = [next(cleaned) for _ in records]
    unknown: list[list[str]] = [[] for _ in records]
    for row in doubtful:
        unknown[row] = [label for label in next(cleaned) if label not in labels[row]]
    boxed = [["".join(next(cleaned)) for _ in categories] for categories in boxes]
    return labels, unknown, boxed


def _objects(objects: dict | None, names: list[str], index: dict[str, int]) -> dict | None:
    """The boxes of an image, those whose class is left out aside, with indices as categories."""
    if objects is None:
        return None
    kept = [(box, index[name]) for box, name in zip(objects["bbox"], names) if name]
    return {"bbox": [box for box, _ in kept], "category": [category for _, category in kept]}


def _patients(records: list[dict], patient_regex: str | None, name: str) -> list[str]:
    """The patient of each image: by the expression, else the source's, else each its own."""
    if patient_regex:
        find = patient_finder(patient_regex)
        return [find(record["name"], record["path"]) for record in records]
    if alone := sum(not record["patient_id"] for record in records):
        logger.warning(
            "%s names no patient for %d of %d images: each of these counts as its own patient (set "
            "patient_regex where names carry one).",
            name,
            alone,
            len(records),
        )
    return [record["patient_id"] or record["path"] for record in records]


def patient_finder(patient_regex: str) -> Callable[[str, str], str]:
    """A function from an image's name and path to its patient.

    That is the first group of the expression, found anywhere in the name, or else in the path.

    Raises:
        ValueError: it is no expression with a group, or, from the function, finds no patient.
    """
    try:
        pattern = re.compile(patient_regex)
    except re.error as error:
        raise ValueError(
            f"patient_regex {patient_regex!r} is not a regular expression: {error}."
        ) from error
    if not pattern.groups:
        raise ValueError(
            f"patient_regex {patient_regex!r} has no group: put the patient's part in parentheses."
        )

    def patient(name: str, path: str) -> str:
        found = pattern.search(name) or pattern.search(path)
        if not found or not found[1]:
            raise ValueError(
                f"patient_regex {patient_regex!r} finds no patient in the file name {name!r}."
            )
        return found[1]

    return patient


def check_conflicts(
    hashes: list[str],
    labels: list[list[str]],
    names: list[str],
    name: str,
    max_conflicts: float = MAX_CONFLICTS,
    unknown: list[list[str]] | None = None,
) -> None:
    """Warns of identical images under different labels.

    Where a label is unknown of an image, its twin may have it or not.

    Raises:
        ValueError: they are more than the share `max_conflicts` of the labelled images.
    """
    places: dict[str, dict[tuple[str, ...], list[str]]] = defaultdict(dict)
    doubtful: dict[str, set[str]] = defaultdict(set)
    for digest, row, image, unsure in zip(hashes, labels, names, unknown or [[]] * len(names)):
        places[digest].setdefault(tuple(sorted(row)), []).append(image)
        doubtful[digest].update(unsure)
    twins = [
        found
        for digest, found in places.items()
        if len({frozenset(row) - doubtful[digest] for row in found}) > 1
    ]
    if not twins:
        return
    count = sum(len(images) for found in twins for images in found.values())
    named = "; ".join(
        " and ".join(f"{images[0]} ({'|'.join(row) or 'none'})" for row, images in found.items())
        for found in twins[:NAMED]
    )
    more = f"; and {len(twins) - NAMED} more" if len(twins) > NAMED else ""
    message = (
        f"{count} of {len(names)} images of {name} have an identical twin under another label "
        f"({named}{more})"
    )
    if count > max_conflicts * len(names):
        raise ValueError(
            f"{message}: more than the {max_conflicts:.1%} that max_conflicts allows; leave one of "
            "each."
        )
    logger.warning("%s: both labels stay.", message)


def class_names(dataset: Dataset) -> list[str]:
    """Names of the classes, in the order of their indices."""
    features = dataset.features
    return (features["labels"].feature if "labels" in features else features["label"]).names


def label_sets(dataset: Dataset) -> list[tuple[int, ...]]:
    """The class indices of each image.

    One for a single-label set (none where the image is unlabelled), any number for a multi-label
    one.
    """
    if "labels" in dataset.features:
        return [tuple(labels) for labels in dataset["labels"][:]]
    return [() if label == UNLABELLED else (label,) for label in dataset["label"][:]]


def unknown_sets(dataset: Dataset) -> list[tuple[int, ...]]:
    """The indices of the classes that are not annotated for each image."""
    if "unknown" in dataset.features:
        return [tuple(unknown) for unknown in dataset["unknown"][:]]
    return [()] * len(dataset)


def encoded_images(dataset: Dataset, column: str = "image") -> Iterator[bytes | str]:
    """Each image as it is stored: its file's bytes where they are embedded, else its path."""
    stored = dataset.select_columns([column]).with_format("arrow")
    for table in stored.iter(IMAGES_AT_ONCE):
        for image in table[column].to_pylist():
            yield image["path"] if image["bytes"] is None else image["bytes"]


def content_hashes(dataset: Dataset) -> list[str]:
    """SHA-256 of each encoded image of a split."""
    return hash_images(encoded_images(dataset))


def check_usable(dataset: DatasetDict, name: str) -> DatasetDict:
    """The set itself, if each split can be trained or measured on.

    A warning names the classes that a split lacks. A set of a test split alone may hold one class:
    it trains nothing.

    Raises:
        ValueError: there are no images, a split has one image, or one class, or a class is unknown
            of every image.
    """
    if not dataset:
        raise ValueError(f"{name} holds no images.")
    first = next(iter(dataset.values()))
    names, single_label = class_names(first), "label" in first.features
    counts = {
        split: Counter(index for labels in label_sets(part) for index in labels)
        for split, part in dataset.items()
    }
    everywhere = set().union(*counts.values())
    unknown = Counter(
        index for part in dataset.values() for indices in unknown_sets(part) for index in indices
    )
    total = sum(len(part) for part in dataset.values())
    if nowhere := [names[index] for index, count in sorted(unknown.items()) if count == total]:
        raise ValueError(
            f"{name} says of no image whether it shows {', '.join(nowhere)}: leave that class out, "
            "or add images for which it is known."
        )
    for split, part in dataset.items():
        if len(part) < 2:
            raise ValueError(
                f"split '{split}' of {name} has {len(part)} image: it needs 2 or more."
            )
        if single_label and len(counts[split]) == 1 and split not in ("test", "unlabelled"):
            raise ValueError(
                f"split '{split}' of {name} holds only the class {names[min(counts[split])]!r}: a "
                "classifier needs images of two."
            )
        absent = [names[index] for index in sorted(everywhere - set(counts[split]))]
        if absent and split != "unlabelled":
            logger.warning("Split '%s' of %s has no image of %s.", split, name, ", ".join(absent))
    if len(everywhere) < (1 if set(dataset) == {"test"} else 1 + single_label):
        only = f"the class {names[everywhere.pop()]!r}" if everywhere else "images without a label"
        raise ValueError(f"{name} holds only {only}: a classifier needs images of two classes.")
    return dataset
