"""Several sets as one: the findings of all, unknown where a set does not annotate them."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

from datasets import Dataset, DatasetDict, Features, concatenate_datasets

from datasets_scripts.labels import is_negative, label_key
from datasets_scripts.schema import (
    REQUIRED,
    SPLITS,
    check_conflicts,
    class_names,
    content_hashes,
    label_sets,
    make_features,
    make_table,
    unknown_sets,
)


def merge(
    sets: Sequence[DatasetDict], names: Sequence[str], people: Callable[[str], str | None]
) -> DatasetDict:
    """The sets as one multi-label set in the schema, their splits joined.

    Its classes are the findings of all sets, in the order in which they come; two that differ in
    spelling alone are one. A class that names the absence of findings, as NORMAL, is none. What a
    set has no class for is unknown of its images. An image_id that two sets have is joined to the
    source's name.

    Args:
        sets: in the schema, of one label an image or of several.
        names: of each, for messages.
        people: from an image's source, the name of the group of patients among which a patient_id
            means the same person; None where nothing is known, and a patient is one of the set.

    Raises:
        ValueError: two sets hold images of the same group of patients, and one does not say whose,
            or too many identical images have labels that contradict.
    """
    findings: dict[str, str] = {}
    for dataset in sets:
        for name in class_names(next(iter(dataset.values()))):
            if not is_negative(name):
                findings.setdefault(label_key(name), name)
    classes = list(findings.values())
    optional = list(
        dict.fromkeys(
            column
            for dataset in sets
            for column in next(iter(dataset.values())).features
            if column not in REQUIRED
        )
    )
    features = make_features(classes, True, ["unknown", *optional])
    _check_people(sets, names, people)
    ids = Counter(
        chain.from_iterable(
            {image for part in dataset.values() for image in part["image_id"][:]}
            for dataset in sets
        )
    )
    taken = {image for image, count in ids.items() if count > 1}
    parts: dict[str, list[Dataset]] = {}
    for number, dataset in enumerate(sets, 1):
        for split, part in dataset.items():
            converted = _convert(part, features, number, people, taken)
            parts.setdefault(split, []).append(converted)
    merged = DatasetDict(
        {split: concatenate_datasets(parts[split]) for split in SPLITS if split in parts}
    )
    _warn_of_conflicts(merged, " and ".join(names))
    return merged


def _check_people(
    sets: Sequence[DatasetDict], names: Sequence[str], people: Callable[[str], str | None]
) -> None:
    """Refuses a set without patients beside another one of the same people."""
    groups = []
    for dataset in sets:
        sources = {source for part in dataset.values() for source in part["source"][:]}
        groups.append({people(source) for source in sources} - {None})
    for dataset, name, group in zip(sets, names, groups):
        shared = [other for other, its in zip(names, groups) if other != name and its & group]
        alone = all(part["patient_id"][:] == part["image_id"][:] for part in dataset.values())
        if shared and alone:
            raise ValueError(
                f"{name} and {shared[0]} hold images of the same people, but {name} does not say "
                "which are whose: leave one out, or add the file that names its patients."
            )


def _convert(
    part: Dataset,
    features: Features,
    number: int,
    people: Callable[[str], str | None],
    taken: set[str],
) -> Dataset:
    """A split with the columns of the merged set."""
    classes = features["labels"].feature.names
    index = {label_key(name): position for position, name in enumerate(classes)}
    places = [index.get(label_key(name)) for name in class_names(part)]
    missing = sorted(set(range(len(classes))) - set(places))
    single_label = "label" in part.features
    labels = [
        [places[label] for label in row if places[label] is not None] for row in label_sets(part)
    ]
    unknown = [
        [*missing, *(places[label] for label in row if places[label] is not None)]
        for row in unknown_sets(part)
    ]
    if single_label:  # an image without its one label says nothing
        everything = list(range(len(classes)))
        unknown = [row if given else everything for row, given in zip(unknown, label_sets(part))]
    sources = part["source"][:]
    groups = {source: people(source) or f"{number}-{source}" for source in set(sources)}
    columns = {
        "labels": labels,
        "image_id": [
            f"{source}/{image}" if image in taken else image
            for source, image in zip(sources, part["image_id"][:])
        ],
        "patient_id": [
            f"{groups[source]}/{patient}" for source, patient in zip(sources, part["patient_id"][:])
        ],
        "unknown": unknown,
    }
    if "objects" in part.features:
        columns["objects"] = [_objects(row, places) for row in part["objects"][:]]
    for column in features:
        if column not in (*columns, *part.features):
            columns[column] = [None] * len(part)
    kept = [column for column in part.features if column in features and column not in columns]
    table = make_table(columns, Features({name: features[name] for name in columns}))
    stored = part.select_columns(kept)
    return concatenate_datasets([stored, table], axis=1).select_columns(list(features))


def _objects(row: dict | None, places: list[int | None]) -> dict | None:
    """Boxes with the categories of the merged set; those of no finding are left out."""
    if row is None:
        return None
    kept = [
        (box, places[category])
        for box, category in zip(row["bbox"], row["category"])
        if places[category] is not None
    ]
    return {"bbox": [box for box, _ in kept], "category": [category for _, category in kept]}


def _warn_of_conflicts(dataset: DatasetDict, name: str) -> None:
    hashes, labels, unknown, images = [], [], [], []
    for part in dataset.values():
        classes = class_names(part)
        hashes += content_hashes(part)
        labels += [[classes[index] for index in row] for row in label_sets(part)]
        unknown += [[classes[index] for index in row] for row in unknown_sets(part)]
        images += part["image_id"][:]
    check_conflicts(hashes, labels, images, name, unknown=unknown)
