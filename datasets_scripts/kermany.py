"""The paediatric chest X-rays of Kermany et al. 2018.

5,856 files (Mendeley Data 10.17632/rscbjbr9sj, CC BY 4.0) in the folder layout of the Kaggle or
Mendeley download, or its zip. The official test split is kept whole. The 16 images of `val` are
training data; validation is a patient-grouped part of train.
"""

import os
import re
import shutil
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path, PurePath, PurePosixPath

from datasets import DatasetDict

from datasets_scripts.files import IMAGE_SUFFIXES, is_visible
from datasets_scripts.hashes import CACHE_DIR
from datasets_scripts.schema import Source, assemble
from datasets_scripts.splits import read_splits
from datasets_scripts.tables import file_inside, pixels_or_none, read_table

CLASSES = ("NORMAL", "PNEUMONIA")
SOURCE = Source(
    name="kermany",
    title="D. Kermany, K. Zhang, M. Goldbaum, Labeled Optical Coherence Tomography (OCT) and "
    "Chest X-Ray Images for Classification, Mendeley Data, 2018, doi:10.17632/rscbjbr9sj",
    path_help="the chest_xray folder, its parent, one of its splits, or the zip as downloaded",
    classes=CLASSES,
    citation="Kermany et al., Identifying Medical Diagnoses and Treatable Diseases by Image-Based "
    "Deep Learning, Cell 172, 2018, https://doi.org/10.1016/j.cell.2018.02.010",
    licence="cc-by-4.0",
    population="frontal X-rays of children aged 1 to 5 from routine care at one centre",
    limits=(
        "All images come from one paediatric centre (Guangzhou), from children aged 1 to 5: "
        "nothing here says how the model does on adults, in other hospitals or with other "
        "machines.",
        "Labels are what experts read in the image, and some are wrong; a third expert checked the "
        "official test images only.",
        "The classes also differ in image size, aspect ratio, exposure and corner markers, such as "
        "the letter R; a model can score well on such shortcuts.",
    ),
    out_of_scope=(
        "Adults, infants, and findings other than pneumonia: the training images show none of "
        "them.",
    ),
    ages=(1.0, 5.0),  # STAR Methods of the paper
    hub_ids=("keremberke/chest-xray-classification", "hf-vision/chest-xray-pneumonia"),
)
# columns of the schema and of the manifest beside the lung masks
EXTRA = {"lung_mask": "lung_mask", "original_width": "orig_w", "original_height": "orig_h"}
_KEY = re.compile(
    r"(?P<normal>(?:NORMAL2-)?IM-\d{4})-|person(?P<person>\d+)_(?P<kind>bacteria|virus)_"
    r"|(?P<mendeley>(?P<word>NORMAL|BACTERIA|VIRUS)-\d+)-\d+\."
)


def patient_key(file_name: str) -> tuple[str, str] | None:
    """(patient, subtype) of a Kermany file name, None for any other.

    `personN` restarts for bacteria and for virus. Mendeley's later releases name the same images
    otherwise, as BACTERIA-1135262-0001.jpeg, with other numbers for the patients.
    """
    found = _KEY.match(file_name)
    if not found:
        return None
    if found["mendeley"]:
        return found["mendeley"], found["word"].lower()
    if found["normal"]:
        return found["normal"], "normal"
    return f"person{found['person']}_{found['kind']}", found["kind"]


def read_name(path: str) -> dict[str, str] | None:
    """What the path of an image says: `label`, `patient_id`, `subtype` and `split`.

    None for one that is not named like a Kermany image below a folder whose name begins with train,
    val or test; the suffix does not count.
    """
    *folders, name = PurePosixPath(path).parts
    key = patient_key(name)
    splits = [found[1] for folder in folders if (found := re.match("(train|val|test)", folder))]
    if key is None or not splits:
        return None
    return {
        "label": CLASSES[key[1] != "normal"],
        "patient_id": key[0],
        "subtype": key[1],
        "split": "test" if splits[-1] == "test" else "train",
    }


def _is_image(path: PurePath) -> bool:
    return is_visible(path) and path.suffix.lower() in IMAGE_SUFFIXES


def _splits(folder: Path) -> dict[Path, str]:
    """The split folders in a folder, those with a NORMAL or PNEUMONIA folder, and their splits."""
    folders = [child for child in sorted(folder.iterdir()) if child.is_dir() and is_visible(child)]
    named = read_splits(child.name for child in folders)
    return {
        child: named[child.name]
        for child in folders
        if named[child.name] and any((child / name).is_dir() for name in CLASSES)
    }


def find_splits(path: Path) -> dict[Path, str]:
    """The split folders at `path`, which is the tree, its parent, or one of its splits.

    The outermost tree counts.
    """
    (own,) = read_splits([path.name]).values()
    if own and any((path / name).is_dir() for name in CLASSES):
        return {path: own}
    for root in (path, *(child for child in sorted(path.iterdir()) if child.is_dir())):
        if is_visible(root) and (found := _splits(root)):
            return found
    return {}


def recognise(path: Path) -> bool:
    """Whether it is a zip, or a Kermany tree whose files are named as in the original."""
    if path.is_file():
        return path.suffix.lower() == ".zip"
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
        raise ValueError(f"{path} is no readable zip file ({error}): download it again.") from error
    trees: dict[tuple[str, ...], list[tuple[zipfile.ZipInfo, PurePosixPath]]] = {}
    for info, name in names:
        *tree, split, kind, _ = ("", "", *name.parts)
        if any(read_splits([split]).values()) and kind in CLASSES and _is_image(name):
            if not {"__MACOSX", ".."} & set(tree):
                trees.setdefault(tuple(tree), []).append((info, PurePosixPath(*name.parts[-3:])))
    return trees[min(trees, key=lambda tree: (len(tree), tree))] if trees else []


def unzip(path: Path, cache_dir: str | Path = CACHE_DIR) -> Path:
    """The folder in `cache_dir` with the zip's images as split/class/file.

    They are extracted once, and never half.

    Raises:
        ValueError: the zip is damaged, or holds no Kermany tree.
        OSError: the images cannot be written.
    """
    members = zip_members(path)
    if not members:
        raise ValueError(
            f"{path} holds no train|val|test/NORMAL|PNEUMONIA images: unpack it and use --dataset "
            "folder."
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
        raise ValueError(f"{path} cannot be unpacked ({error}): download it again.") from error
    except OSError as error:
        raise OSError(
            f"could not unpack {path} into {target.parent} ({error.strerror or error}): set "
            "cache_dir to a folder with room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def read_extra(folder: Path) -> dict[str, dict[str, str | int | None]]:
    """Lung mask (a path) and original size of each Kermany image, by file name.

    They come from manifest.csv and lung_masks/ in the folder; None where unknown.

    Raises:
        ValueError: the manifest is of another set, or names a mask elsewhere or a wrong size.
        FileNotFoundError: the manifest or a mask is missing.
    """
    table = folder / "manifest.csv"
    if not table.is_file():
        raise FileNotFoundError(f"extra {folder} has no manifest.csv: give the folder that has it.")
    header, rows = read_table(table)
    if missing := [name for name in ("name", *EXTRA.values()) if name not in header]:
        raise ValueError(
            f"{table} has no column {missing[0]!r}: it is not a manifest of the Kermany images."
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
    *,
    validation_share: float = 0.1,
    seed: int = 42,
    cache_dir: str | Path = CACHE_DIR,
    extra: str | Path | None = None,
) -> DatasetDict:
    """The splits found at `path`: test as it is; train, with val, cut into train and validation.

    Args:
        path: folder or zip.
        validation_share: share of the training images held out, by patient
        seed: of the validation split
        cache_dir: where a zip is unpacked
        extra: folder with manifest.csv (a row a file name) and lung_masks/, which add lung_mask,
            original_width and original_height

    Raises:
        ValueError: a tree that is not Kermany's, an empty class folder, a file whose name gives no
            patient, or one that the manifest of `extra` does not list.
    """
    path = Path(path)
    root = unzip(path, cache_dir) if path.is_file() else path
    folders = find_splits(root.resolve())
    if not folders:
        raise ValueError(
            f"{path} has no train, val or test folder with NORMAL and PNEUMONIA: use --dataset "
            "folder."
        )
    known = {} if extra is None else read_extra(Path(extra).expanduser().resolve())
    records = []
    for folder, split in folders.items():
        for label in CLASSES:
            files = sorted(file for file in (folder / label).glob("*") if _is_image(file))
            if not files:
                raise ValueError(
                    f"class folder {folder / label} is empty: every split needs images of "
                    f"{' and '.join(CLASSES)}."
                )
            for file in files:
                key = patient_key(file.name)
                if key is None:
                    raise ValueError(
                        f"{file} is not named like a Kermany image, so its patient is unknown: use "
                        "--dataset folder --dataset_path."
                    )
                records.append(
                    {
                        "image": str(file),
                        "label": label,
                        "name": file.name,
                        "path": file.relative_to(folder.parent).as_posix(),
                        "split": "test" if split == "test" else "train",
                        "patient_id": key[0],
                        "source": SOURCE.name,
                        "subtype": key[1],
                        **known.get(file.name, {}),
                    }
                )
    unlisted = [record["name"] for record in records if record["name"] not in known]
    if extra is not None and unlisted:
        raise ValueError(
            f"{extra}/manifest.csv does not list {len(unlisted)} of the {len(records)} images, as "
            f"{unlisted[0]!r}: it belongs to another set."
        )
    return assemble(records, str(path), order=CLASSES, validation_share=validation_share, seed=seed)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)
