"""The one schema every source is converted to, and what a set must hold to be of use."""

from collections.abc import Iterator

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

SPLITS = ("train", "validation", "test", "unlabelled")
SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
UNLABELLED = -1  # the label of an image that has none
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SOURCE_AGES = {"kermany": [1.0, 5.0]}  # Kermany et al. 2018, STAR Methods
REQUIRED = ("image", "label", "labels", "image_id", "patient_id", "source")
OPTIONAL = {
    "subtype": Value("string"),
    "view": Value("string"),
    "age": Value("float32"),  # years
    "sex": Value("string"),
    "lung_mask": Image(),
    "original_width": Value("int32"),  # pixels, before any resizing
    "original_height": Value("int32"),
    "boxes": List(List(Value("int32"))),  # pixels, [x0, y0, x1, y1], half-open
    "weight": Value("float32"),  # how often training draws the image, beside others
}


def make_features(
    classes: list[str], multi_label: bool = False, optional: tuple[str, ...] = ()
) -> Features:
    """The columns of a set: image, label (or labels), image_id, patient_id, source and some of
    `OPTIONAL`; an optional column of any other name is text.
    """
    kind = ClassLabel(names=list(classes))
    labels = {"labels": List(kind)} if multi_label else {"label": kind}
    ids = {name: Value("string") for name in ("image_id", "patient_id", "source")}
    more = {name: OPTIONAL.get(name, Value("string")) for name in optional}
    return Features({"image": Image(), **labels, **ids, **more})


def build(rows: list[dict], splits: list[str], features: Features) -> DatasetDict:
    """Rows, each with every column of `features`, put into the split named beside each."""
    parts = {name: [row for row, split in zip(rows, splits) if split == name] for name in SPLITS}
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {column: [row[column] for row in part] for column in features}, features=features
            )
            for name, part in parts.items()
            if part
        }
    )


def class_names(dataset: Dataset) -> list[str]:
    """Names of the classes, in the order of their indices."""
    features = dataset.features
    return (features["labels"].feature if "labels" in features else features["label"]).names


def label_sets(dataset: Dataset) -> list[tuple[int, ...]]:
    """The class indices of each image: one for a single-label set (none where the image is
    unlabelled), any number for a multi-label one.
    """
    if "labels" in dataset.features:
        return [tuple(labels) for labels in dataset["labels"]]
    return [() if label == UNLABELLED else (label,) for label in dataset["label"]]


def age_range(dataset: Dataset) -> list[float] | None:
    """The youngest and oldest in whole years, without the outermost hundredths, which hold slips of
    the pen; of a source without ages what its paper says; else None.
    """
    if "age" in dataset.features:
        ages = sorted(age for age in dataset["age"] if age is not None)
        if ages:
            margin = len(ages) // 100
            return [float(int(ages[margin])), float(int(ages[-1 - margin]))]
    return SOURCE_AGES.get(dataset["source"][0])


def encoded_images(dataset: Dataset) -> Iterator[bytes | str]:
    """Each image as it is stored: its file's bytes where they are embedded, else its path."""
    stored = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    for row in stored:
        yield row["image"]["path"] if row["image"]["bytes"] is None else row["image"]["bytes"]


def check_usable(dataset: DatasetDict, name: str) -> DatasetDict:
    """The set itself, or ValueError where a split cannot be trained or measured on: one image, or
    one class. A set of a test split alone may hold one class: it trains nothing.
    """
    if not dataset:
        raise ValueError(f"{name} holds no images")
    first = next(iter(dataset.values()))
    names, single_label = class_names(first), "label" in first.features
    everywhere = set()
    for split, part in dataset.items():
        if len(part) < 2:
            raise ValueError(f"split '{split}' of {name} has {len(part)} image: it needs 2 or more")
        found = {index for labels in label_sets(part) for index in labels}
        everywhere |= found
        if single_label and len(found) == 1 and split not in ("test", "unlabelled"):
            raise ValueError(
                f"split '{split}' of {name} holds only the class {names[found.pop()]!r}: a "
                "classifier needs images of two"
            )
    if len(everywhere) < (1 if set(dataset) == {"test"} else 1 + single_label):
        only = f"the class {names[everywhere.pop()]!r}" if everywhere else "images without a label"
        raise ValueError(f"{name} holds only {only}: a classifier needs images of two classes")
    return dataset
