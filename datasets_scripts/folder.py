"""Your own images: any `split/class/file` or `class/file` tree, with an optional `metadata.csv` at
its root.
"""

import csv
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets import DatasetDict

from .schema import IMAGE_SUFFIXES, OPTIONAL, SPLIT_NAMES, build, make_features
from .splits import complete_splits, content_hash, group_ids

logger = logging.getLogger(__name__)

METADATA = ("patient_id", "subtype", "view", "age", "sex", "labels")


def patient_finder(patient_regex: str) -> Callable[[str], str]:
    """A function from an image's name to its patient: the first group of the regular expression,
    found anywhere.
    """
    try:
        pattern = re.compile(patient_regex)
    except re.error as error:
        raise ValueError(
            f"patient_regex {patient_regex!r} is not a regular expression: {error}"
        ) from error
    if not pattern.groups:
        raise ValueError(
            f"patient_regex {patient_regex!r} has no group: put the patient's part in parentheses"
        )

    def patient(name: str) -> str:
        found = pattern.search(name)
        if not found or not found[1]:
            raise ValueError(
                f"patient_regex {patient_regex!r} finds no patient in the file name {name!r}"
            )
        return found[1]

    return patient


class Found(NamedTuple):
    """An image: its file, its split where folders name one, its classes, its name in the class."""

    file: Path
    split: str | None
    labels: list[str]
    name: str


def _subfolders(folder: Path) -> list[Path]:
    children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    return [child for child in children if child.name[0] != "." and child.name != "__MACOSX"]


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
    )


def _read_metadata(root: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The known columns of metadata.csv and its rows by file_name; both empty without the file."""
    path = root / "metadata.csv"
    if not path.is_file():
        return [], {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if "file_name" not in header:
            raise ValueError(f"{path} has no column file_name: its columns are {', '.join(header)}")
        rows: dict[str, dict[str, str]] = {}
        for row in reader:
            name = row["file_name"]
            if name in rows or not (root / name).is_file():
                wrong = "twice" if name in rows else f"but no such file is under {root}"
                raise ValueError(f"{path} lists {name!r} {wrong}: each file needs one row")
            rows[name] = row
    return [column for column in METADATA if column in header], rows


def _listed(root: Path, metadata: dict[str, dict[str, str]]) -> list[Found]:
    """The images of a multi-label metadata.csv; split folders are kept, others mean nothing."""
    found = []
    for name, row in metadata.items():
        folders = PurePosixPath(name).parts[:-1]
        split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
        labels = [label for label in row["labels"].split("|") if label]
        found.append(Found(root / name, split, labels, PurePosixPath(name).name))
    if len({image.split is None for image in found}) == 2:
        raise ValueError(f"{root / 'metadata.csv'} lists images in and outside split folders")
    unlisted = len(set(_images(root.rglob("*"))) - {image.file for image in found})
    if unlisted:
        logger.warning("%d images under %s are not in metadata.csv: left out", unlisted, root)
    return found


def _scan(root: Path) -> list[Found]:
    """The images of a class tree: split/class/file where folders are named like splits."""
    folders = _subfolders(root)
    splits = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in folders}
    if any(splits.values()):
        for folder, split in splits.items():
            if not split:
                raise ValueError(
                    f"{folder} stands beside split folders but is none of {', '.join(SPLIT_NAMES)}"
                )
        classes = [(child, splits[folder]) for folder in folders for child in _subfolders(folder)]
    else:
        classes = [(folder, None) for folder in folders]
    for folder in [root, *(folder for folder in folders if splits[folder])]:
        if loose := _images(folder.glob("*")):
            raise ValueError(f"{loose[0]} stands in no class folder: expected split/class/file")
    found = []
    for folder, split in classes:
        images = _images(folder.rglob("*"))
        if not images:
            raise ValueError(f"class folder {folder} is empty: put images in it or remove it")
        found += [
            Found(file, split, [folder.name], file.relative_to(folder).as_posix())
            for file in images
        ]
    return found


def load(
    path: str | Path,
    patient_regex: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 42,
) -> DatasetDict:
    """A tree of images in the one schema. Splits given as folders stay; train then gives
    `validation_share` of its images where there is no validation folder; `class/file` is split by
    both shares. Always by patient and content.

    Patients come from `patient_regex` where it is given, else from metadata.csv, else each file is
    its own. With a `labels` column (names joined by |, empty for none) the set is multi-label and
    needs no class folders.
    """
    root = Path(path).resolve()
    columns, metadata = _read_metadata(root)
    multi_label = "labels" in columns
    found = _listed(root, metadata) if multi_label else _scan(root)
    if not found:
        raise ValueError(
            f"{root} holds no images: expected class/file or split/class/file with "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    find_patient = patient_finder(patient_regex) if patient_regex else None
    if not find_patient and "patient_id" not in columns:
        logger.warning(
            "%s names no patients: each of %d files counts as its own patient (set patient_regex "
            "where names carry one)",
            root,
            len(found),
        )
    classes = sorted({label for image in found for label in image.labels})
    optional = tuple(column for column in columns if column in OPTIONAL)
    names = {image.name for image in found}
    rows = []
    for image in found:
        inside = image.file.relative_to(root).as_posix()
        extra = metadata.get(inside, {})
        if find_patient:
            patient = find_patient(image.name)
        else:
            patient = extra.get("patient_id") if "patient_id" in columns else inside
        if not patient:
            raise ValueError(f"metadata.csv gives {inside} no patient_id: give each image one")
        image_id = image.name if len(names) == len(found) else inside
        ids = {"image_id": image_id, "patient_id": patient, "source": root.name}
        indices = [classes.index(label) for label in image.labels]
        label = {"labels": indices} if multi_label else {"label": indices[0]}
        known = {column: _value(column, extra.get(column)) for column in optional}
        rows.append({"image": str(image.file), **label, **ids, **known})
    patients = [row["patient_id"] for row in rows]
    groups = group_ids(patients, [content_hash(row["image"]) for row in rows])
    labels = [tuple(row["labels"]) if multi_label else (row["label"],) for row in rows]
    given = [image.split for image in found] if found[0].split else None
    splits = complete_splits(given, groups, labels, validation_share, test_share, seed)
    return build(rows, splits, make_features(classes, multi_label, optional))


def _value(column: str, text: str | None) -> str | float | None:
    if not text or column != "age":
        return text or None
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(
            f"metadata.csv gives the age {text!r}: a number of years is needed"
        ) from error


if __name__ == "__main__":
    from .cli import main

    main("folder")
