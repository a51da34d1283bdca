"""The paediatric chest X-rays of Kermany et al. 2018 (Mendeley Data 10.17632/rscbjbr9sj, CC BY
4.0): 5,856 files in the folder layout of the Kaggle or Mendeley download, or its zip.

The official test split is kept whole. The 16 images of `val` are training data; validation is a
patient-grouped part of train.
"""

import os
import re
import shutil
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path, PurePosixPath

from datasets import DatasetDict

from .schema import IMAGE_SUFFIXES, SPLIT_NAMES, build, make_features
from .splits import complete_splits, content_hash, group_ids
from .tables import file_inside, pixels_or_none, read_table

CLASSES = ("NORMAL", "PNEUMONIA")
# columns of the schema and of the manifest beside the lung masks
EXTRA = {"lung_mask": "lung_mask", "original_width": "orig_w", "original_height": "orig_h"}
CACHE_DIR = "~/.cache/cxr-classification"
_KEY = re.compile(
    r"(?P<normal>(?:NORMAL2-)?IM-\d{4})-|person(?P<person>\d+)_(?P<kind>bacteria|virus)_"
)


def patient_key(file_name: str) -> tuple[str, str] | None:
    """(patient, subtype) of a Kermany file name, None for any other. `personN` restarts for
    bacteria and for virus.
    """
    found = _KEY.match(file_name)
    if not found:
        return None
    if found["normal"]:
        return found["normal"], "normal"
    return f"person{found['person']}_{found['kind']}", found["kind"]


def _is_image(path: PurePosixPath | Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES


def _split_folders(root: Path) -> list[Path]:
    """The split folders of a Kermany tree: those with a NORMAL or PNEUMONIA folder inside."""
    folders = [
        child
        for child in sorted(root.iterdir())
        if child.is_dir() and child.name.lower() in SPLIT_NAMES
    ]
    return [folder for folder in folders if any((folder / name).is_dir() for name in CLASSES)]


def find_splits(path: Path) -> list[Path]:
    """The split folders at `path`, which is the tree, its parent, or one of its splits; the
    outermost tree counts.
    """
    if path.name.lower() in SPLIT_NAMES and any((path / name).is_dir() for name in CLASSES):
        return [path]
    children = sorted(child for child in path.iterdir() if child.is_dir())
    for root in (path, *(child for child in children if child.name != "__MACOSX")):
        if folders := _split_folders(root):
            return folders
    return []


def is_kermany(path: Path) -> bool:
    """Whether the folder is a Kermany tree whose files are named as in the original."""
    files = [
        file
        for folder in find_splits(path.resolve())
        for file in folder.glob("*/*")
        if _is_image(file)
    ]
    return bool(files) and all(patient_key(file.name) for file in files)


def zip_members(path: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The images of a Kermany zip with their split/class/file; of nested trees the outermost."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [(info, PurePosixPath(info.filename)) for info in archive.infolist()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no readable zip file ({error}): download it again") from error
    trees: dict[tuple[str, ...], list[tuple[zipfile.ZipInfo, PurePosixPath]]] = {}
    for info, name in names:
        *tree, split, kind, _ = ("", "", *name.parts)
        if split.lower() in SPLIT_NAMES and kind in CLASSES and _is_image(name):
            if not {"__MACOSX", ".."} & set(tree):
                trees.setdefault(tuple(tree), []).append((info, PurePosixPath(*name.parts[-3:])))
    return trees[min(trees, key=lambda tree: (len(tree), tree))] if trees else []


def unzip(path: Path, cache_dir: str | Path = CACHE_DIR) -> Path:
    """The folder in `cache_dir` with the zip's images as split/class/file; extracted once, and
    never half.
    """
    members = zip_members(path)
    if not members:
        raise ValueError(
            f"{path} holds no train|val|test/NORMAL|PNEUMONIA images: unpack it and use --dataset "
            "folder"
        )
    contents = repr([(str(name), info.CRC, info.file_size) for info, name in members])
    digest = sha256(contents.encode()).hexdigest()[:16]
    target = Path(cache_dir).expanduser() / f"kermany-{digest}"
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(path) as archive:
            for info, name in members:  # split/class/file alone: nothing lands elsewhere
                file = partial / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, open(file, "wb") as sink:
                    shutil.copyfileobj(source, sink)
        if not target.is_dir():  # another process may have been faster
            os.rename(partial, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): download it again") from error
    except OSError as error:
        raise OSError(
            f"could not unpack {path} into {target.parent} ({error.strerror or error}): set "
            "cache_dir to a folder with room"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def read_extra(folder: Path) -> dict[str, dict[str, str | int | None]]:
    """Lung mask (a path) and original size of each Kermany image, by file name, from manifest.csv
    and lung_masks/ in the folder; None where unknown.

    Raises ValueError or OSError where the manifest is missing or of another set, or a mask is gone.
    """
    table = folder / "manifest.csv"
    if not table.is_file():
        raise FileNotFoundError(f"extra {folder} has no manifest.csv: give the folder that has it")
    header, rows = read_table(table)
    if missing := [name for name in ("name", *EXTRA.values()) if name not in header]:
        raise ValueError(
            f"{table} has no column {missing[0]!r}: it is not a manifest of the Kermany images"
        )
    known = {}
    for row in rows:
        mask, width, height = (row[column] for column in EXTRA.values())
        known[row["name"]] = {
            "lung_mask": str(file_inside(folder / "lung_masks", mask, table)) if mask else None,
            "original_width": pixels_or_none(width, "orig_w", table),
            "original_height": pixels_or_none(height, "orig_h", table),
        }
    return known


def load(
    path: str | Path,
    validation_share: float = 0.1,
    seed: int = 42,
    cache_dir: str | Path = CACHE_DIR,
    extra: str | Path | None = None,
) -> DatasetDict:
    """The splits found at `path` (folder or zip): test as it is; train, with val, cut into train
    and validation.

    `validation_share` of the training images is held out by patient with `seed`. The folder `extra`
    with manifest.csv (a row a file name) and lung_masks/ adds lung_mask, original_width and
    original_height. Raises ValueError for a tree that is not Kermany's, an empty class folder, a
    file whose name gives no patient, or one that the manifest of `extra` does not list.
    """
    path = Path(path)
    root = unzip(path, cache_dir) if path.is_file() else path
    folders = find_splits(root.resolve())
    if not folders:
        raise ValueError(
            f"{path} has no train, val or test folder with NORMAL and PNEUMONIA: use --dataset "
            "folder"
        )
    rows, splits = [], []
    for folder in folders:
        for label, name in enumerate(CLASSES):
            files = sorted(file for file in (folder / name).glob("*") if _is_image(file))
            if not files:
                raise ValueError(
                    f"class folder {folder / name} is empty: every split needs images of {CLASSES}"
                )
            splits += ["test" if folder.name.lower() == "test" else "train"] * len(files)
            for file in files:
                key = patient_key(file.name)
                if key is None:
                    raise ValueError(
                        f"{file} is not named like a Kermany image, so its patient is unknown: use "
                        "--dataset folder --dataset_path"
                    )
                ids = {"image_id": file.name, "patient_id": key[0], "source": "kermany"}
                rows.append({"image": str(file), "label": label, **ids, "subtype": key[1]})
    if extra is not None:
        known = read_extra(Path(extra).expanduser().resolve())
        if unlisted := [row["image_id"] for row in rows if row["image_id"] not in known]:
            raise ValueError(
                f"{extra}/manifest.csv does not list {len(unlisted)} of the {len(rows)} images, as "
                f"{unlisted[0]!r}: it belongs to another set"
            )
        rows = [row | known[row["image_id"]] for row in rows]
    optional = ("subtype",) if extra is None else ("subtype", *EXTRA)
    patients = [row["patient_id"] for row in rows]
    groups = group_ids(patients, [content_hash(row["image"]) for row in rows])
    labels = [(row["label"],) for row in rows]
    splits = complete_splits(splits, groups, labels, validation_share, seed=seed)
    return build(rows, splits, make_features(list(CLASSES), optional=optional))


if __name__ == "__main__":
    from .cli import main

    main("kermany")
