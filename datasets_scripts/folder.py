"""Your own images: any `split/class/file` or `class/file` tree, with or without metadata files."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from datasets_scripts.files import IMAGE_SUFFIXES, IMAGES, contents, find_images, subfolders
from datasets_scripts.labels import holds_lists, is_negative, label_key, read_column, text_of
from datasets_scripts.schema import Source, assemble
from datasets_scripts.splits import read_split_and_class, read_splits
from datasets_scripts.tables import read_metadata

logger = logging.getLogger(__name__)

SOURCE = Source(
    name="folder",
    title="images of the folder `{path}`",
    path_help="a folder with class/file or split/class/file",
)


def load(path: str | Path, **options: Any) -> DatasetDict:
    """A tree of images in the one schema.

    Splits given as folders stay; train then gives a part where there is no validation folder;
    `class/file` is split by both shares. Always by patient and content.

    Metadata files (see `tables.read_metadata`) may give patients, splits, columns of the schema,
    and labels: then folders mean no class, but may not contradict a single one. A column `labels`
    or `unknown`, or lists in any, makes the set multi-label. Masks of lungs beside the images
    become `lung_mask`.

    Args:
        path: of the folder.
        **options: of `assemble`.

    Raises:
        ValueError: folders that are no such tree, or metadata that do not fit the images.
        FileNotFoundError: a file that is listed, or that a link names, is not there.
    """
    root = Path(path).resolve()
    images, lungs, masks = find_images(root)
    if not images:
        raise ValueError(
            f"{root} {contents(root)}: expected class/file or split/class/file with "
            f"{', '.join(IMAGE_SUFFIXES)} or DICOM files."
        )
    if masks:
        logger.warning(
            "%d masks under %s, or images like them, are of no lungs or of no image, as %s: left "
            "out.",
            len(masks),
            root,
            masks[0].relative_to(root),
        )
    metadata = read_metadata(root)
    columns = list(next(iter(metadata.values()), {}))
    if "label" in columns:
        records = _listed(root, images, metadata)
    else:
        records = _tree(root, images, options)
    _join_splits(root, records, metadata)
    multi_label = "label" in columns and (
        "unknown" in columns or holds_lists(row["label"] for row in metadata.values())
    )
    given = [
        column for column in columns if column not in ("label", "unknown", "patient_id", "split")
    ]
    for record in records:
        file = Path(record["image"])
        row = metadata.get(file, {})
        if multi_label and row["label"] is None:
            raise ValueError(
                f"metadata of {root} gives {record['path']} no labels: write [] where there is no "
                "finding, or leave the image out."
            )
        record["patient_id"] = text_of(row.get("patient_id"))
        if "patient_id" in columns and not record["patient_id"]:
            raise ValueError(
                f"metadata of {root} gives {record['path']} no patient_id: give each image one."
            )
        record |= {"image": str(file), "source": root.name}
        record |= {column: row.get(column) for column in given}
        if lungs:
            record["lung_mask"] = record.get("lung_mask") or (
                str(lungs[file]) if file in lungs else None
            )
    return assemble(records, str(root), multi_label, **options)


def _listed(root: Path, images: list[Path], metadata: dict[Path, dict]) -> list[dict]:
    """The images of metadata with labels; folders of splits are kept, others mean nothing."""
    places = {file: file.relative_to(root) for file in metadata}
    splits = read_splits({part for path in places.values() for part in path.parts[:-1]})
    labels = read_column((row["label"] for row in metadata.values()), f"metadata of {root}")
    keys = {file: set(map(label_key, own)) for file, own in zip(metadata, labels)}
    several = holds_lists(row["label"] for row in metadata.values())
    known = {key for own in keys.values() for key in own if not several and not key.isdecimal()}
    records = []
    for file, row in metadata.items():
        path = places[file]
        for part in path.parts[:-1]:
            if (key := label_key(part)) in known and key not in keys[file]:
                raise ValueError(
                    f"metadata of {root} gives {path} the label {row['label']!r}, but its folder "
                    f"is {part!r}: correct one of them."
                )
        records.append(
            {
                "image": file,
                "label": row["label"],
                "unknown": row.get("unknown"),
                "name": file.name,
                "path": path.as_posix(),
                "split": next((splits[part] for part in path.parts[:-1] if splits[part]), None),
            }
        )
    if unlisted := len(set(images) - set(metadata)):
        logger.warning("%d images under %s are not in its metadata: left out.", unlisted, root)
    return records


def _join_splits(root: Path, records: list[dict], metadata: dict[Path, dict]) -> None:
    """Gives each image the split that metadata say, where no folder says another."""
    said = {
        record["path"]: text_of(metadata.get(record["image"], {}).get("split"))
        for record in records
    }
    folders = {record["split"] for record in records if record["split"]}
    splits = read_splits({*filter(None, said.values()), *folders})
    for record in records:
        text, folder = said[record["path"]], record["split"]
        split = splits[text] if text else folder
        if text and not split:
            raise ValueError(
                f"metadata of {root} gives {record['path']} the split {text!r}: use train, "
                "validation or test."
            )
        if folder and split != folder:
            raise ValueError(
                f"metadata of {root} gives {record['path']} the split {text!r}, but its folder "
                f"says {folder}: correct one of them."
            )
        record["split"] = split
    without = [record["path"] for record in records if record["split"] is None]
    if 0 < len(without) < len(records):
        raise ValueError(
            f"metadata of {root} lists images in and outside split folders, or with and without "
            f"a split: give {without[0]} one too."
        )


def _tree(root: Path, images: list[Path], options: dict) -> list[dict]:
    """The images of a class tree: class/file, or split/class/file or class/split/file by names."""
    top = root
    while len(folders := subfolders(top)) == 1 and _holds_set(folders[0]):
        top = folders[0]
    inner = {folder: subfolders(folder) for folder in folders}
    splits = read_splits(folder.name for folder in folders)
    below = {folder: read_splits(child.name for child in inner[folder]) for folder in folders}
    if any(splits.values()):
        for folder in folders:
            if not splits[folder.name]:
                raise ValueError(
                    f"{folder} stands beside split folders but is none of train, validation and "
                    "test: name it so, or move it away."
                )
        classes = {
            child: (child.name, splits[folder.name])
            for folder in folders
            for child in inner[folder]
        }
    elif folders and all(names and all(names.values()) for names in below.values()):
        classes = {
            child: (folder.name, below[folder][child.name])
            for folder in folders
            for child in inner[folder]
        }
    elif (named := _splits_in_names(folders)) is not None:
        classes = named
    else:
        _check_level(top, inner, options)
        classes = {folder: (folder.name, None) for folder in folders}
    records, empty = [], set(classes)
    for file in images:
        folder = next((parent for parent in file.parents if parent in classes), None)
        if folder is None:
            raise ValueError(
                f"{file} stands in no class folder: expected split/class/file or class/file, or a "
                "metadata file with a column label or labels."
            )
        empty.discard(folder)
        label, split = classes[folder]
        inside = [part for part in file.relative_to(folder).parts if not IMAGES.fullmatch(part)]
        records.append(
            {
                "image": file,
                "label": (label,),
                "name": "/".join(inside),
                "path": file.relative_to(root).as_posix(),
                "split": split,
            }
        )
    if empty:
        folder = min(empty)
        raise ValueError(
            f"class folder {folder} {contents(folder)}: put images in it or remove it."
        )
    return records


def _holds_set(folder: Path) -> bool:
    """Whether a folder wraps a set.

    The folders in it are named like splits, or one like the negative class and the folder is no
    split itself; or all of it is another folder that wraps a set.
    """
    inner = subfolders(folder)
    names = [child.name for child in inner]
    split = read_splits([folder.name])[folder.name]
    if any(read_splits(names).values()):
        return True
    only = len(inner) == 1 and _holds_set(inner[0])
    return not split and (_names_classes(names) or only)


def _splits_in_names(folders: list[Path]) -> dict[Path, tuple[str, str]] | None:
    """The class and split of each folder named by both, as train_NORMAL; None where none is.

    One split alone may be a word of the classes, as in test_positive and test_negative.
    """
    found = {folder: read_split_and_class(folder.name) for folder in folders}
    if len({pair[0] for pair in found.values() if pair}) < 2:
        return None
    for folder, pair in found.items():
        if pair is None:
            raise ValueError(
                f"{folder} stands beside folders named by split and class, but names no split: "
                "name it so, or move it away."
            )
    return {folder: (pair[1], pair[0]) for folder, pair in found.items()}


def _names_classes(names: Iterable[str]) -> bool:
    """Whether folders are named like classes, one of them the negative one; 0 may be a patient."""
    return any(is_negative(name) and not name.isdecimal() for name in names)


def _check_level(root: Path, folders: dict[Path, list[Path]], options: dict) -> None:
    """Refuses folders that may be sites or other parts, with the classes in each of them."""
    beside = {folder.name for folder in folders}
    for folder, children in folders.items():
        if not options.get("classes") and len({c.name for c in children} & beside) > 1:
            raise ValueError(
                f"{folder} stands beside classes but holds folders of their names: move it away, "
                "or its images to the classes."
            )
    below = [{child.name for child in children} for children in folders.values()]
    if len(folders) < 2 or options.get("classes") or any(is_negative(f.name) for f in folders):
        return
    classes = [_names_classes(names) for names in below]
    same = len(below[0]) > 1 and all(names == below[0] for names in below)
    if sum(classes) > 1 or (same and not options.get("patient_regex")):
        raise ValueError(
            f"the folders {', '.join(sorted(f.name for f in folders))} of {root} hold the same "
            f"folders, as {', '.join(sorted(set.union(*below))[:2])}: where those are the classes, "
            "move them up to split/class or class; where they are not, name the classes with "
            "classes=A,B."
        )


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)
