"""What stands in a folder of images: the images, the masks beside them, and what is neither."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path, PurePath

from PIL import Image

from modeling.own_files import is_own
from modeling.reading_cxr import FORMATS

logger = logging.getLogger(__name__)

# What the one reader reads.
IMAGE_SUFFIXES = tuple(
    sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)
)
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
# Files beside images that nobody misses.
OTHER_SUFFIXES = (
    *(".txt", ".csv", ".tsv", ".xlsx", ".xls", ".md", ".rst", ".pdf", ".html", ".json", ".jsonl"),
    *(".ndjson", ".parquet", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".db", ".log"),
    *(".py", ".ipynb", ".sh", ".bat", ".gz", ".lnk", ".url", ".bib", ".cff"),
)
# Folders, and endings of file names, that say their images are masks; those of lungs are known.
MASK = re.compile(
    r"(.*[\W_])?(\w*masks?|segmentations?)([\W_].*)?"
    r"|labels?|annotations?|overlays?|(heat|saliency)[\W_]*maps?|ground[\W_]*truths?|gt",
    re.IGNORECASE,
)
LUNG_MASK = re.compile(r"(lungs?[\W_]*)?masks?", re.IGNORECASE)
MASK_ENDING = re.compile(r"[\W_]+((?:lungs?[\W_]*)?masks?)$", re.IGNORECASE)
# What a file's name says beside another's, as x_seg, x-maskLeft or mask_x beside x.
_KIND = (
    r"(?:masks?|seg(?:s|mented|mentations?)?|lungs?|gt|ground[\W_]*truths?|labels?|contours?"
    r"|annotat(?:ed|ions?)|overlays?|heat[\W_]*maps?)"
)
_KINDS = rf"(?:left|right)?(?:[\W_]*{_KIND})+[\W_]*(?:left|right)?"
BESIDE = [
    re.compile(rf"(?P<stem>.+?)[\W_]*{_KINDS}", re.IGNORECASE),
    re.compile(rf"{_KINDS}[\W_]*(?P<stem>.+)", re.IGNORECASE),
]
# A folder that only says what its files are.
IMAGES = re.compile(r"images?|imgs?", re.IGNORECASE)


def is_visible(path: PurePath | os.DirEntry) -> bool:
    """Whether a file or folder is the user's own, see `modeling.own_files`."""
    return is_own(path.name)


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, or DICOM by its magic.

    The magic counts where a suffix says nothing, as in IM0001, 1.2.840.113619 or x.ima.
    """
    suffix = path.suffix.casefold()
    if suffix in IMAGE_SUFFIXES or suffix in DICOM_SUFFIXES:
        return True
    return suffix not in OTHER_SUFFIXES and path.is_file() and _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _children(folder: Path) -> list[tuple[Path, bool]]:
    """What is visible in a folder, in order, and whether it is a folder itself.

    Links to a folder above, which never end, are left out. Nothing is asked of the system for each
    file.
    """
    with os.scandir(folder) as entries:
        visible = sorted(filter(is_visible, entries), key=lambda entry: entry.name)
    found = [(Path(entry), entry.is_dir(), entry.is_symlink()) for entry in visible]
    return [
        (child, is_folder)
        for child, is_folder, is_link in found
        if not is_link or child.resolve() not in map(Path.resolve, child.parents)
    ]


def walk(folder: Path) -> Iterator[Path]:
    """The visible files below a folder, in order, through links."""
    for child, is_folder in _children(folder):
        if is_folder:
            yield from walk(child)
        else:
            yield child


def find_listed(
    root: Path, keys: Container[str], key: Callable[[Path], str] = lambda file: file.stem
) -> dict[str, Path]:
    """The images below a folder that a table lists, by what it calls them.

    Args:
        root: any folder below may hold them.
        keys: what the table calls its images.
        key: what it would call a file.

    Raises:
        ValueError: two files are one image of the table.
    """
    found: dict[str, Path] = {}
    masks: dict[Path, bool] = {}  # whether a folder says that its images are masks
    for file in walk(root):
        if file.suffix.casefold() not in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES):
            continue
        name, folder = key(file), file.parent
        if folder not in masks:
            masks[folder] = any(map(MASK.fullmatch, folder.relative_to(root).parts))
        if name not in keys or masks[folder]:
            continue
        if name in found:
            raise ValueError(
                f"{file} and {found[name]} are one image of the table: set images to the folder of "
                "one."
            )
        found[name] = file
    return found


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder that may hold images.

    Those of masks are left out, and of one called images its own are given.
    """
    found = []
    for child, is_folder in _children(folder):
        if is_folder and not MASK.fullmatch(child.name):
            found += subfolders(child) if IMAGES.fullmatch(child.name) else [child]
    return found


def find_images(root: Path) -> tuple[list[Path], dict[Path, Path], list[Path]]:
    """The images below a folder, sorted, and the masks beside them.

    Returns:
        The images; {image: lung mask} of those that have one, by place and name, as in images/x.png
        and masks/x.png or x.png and x_mask.png; masks of no lungs or of no image, and other
        images that only show what another does, as x_seg.png beside x.png.

    Raises:
        FileNotFoundError: an image is a link that leads nowhere.
    """
    images, masks, others = {}, {}, []
    left_out: Counter[str] = Counter()
    for file in walk(root):
        if not is_image(file):
            left_out[file.suffix.casefold()] += 1
            continue
        if not file.exists():
            raise FileNotFoundError(f"{file} is a link that leads nowhere: mend or remove it.")
        folders = file.relative_to(root).parts[:-1]
        ending = MASK_ENDING.search(file.stem)
        said = [name for name in folders if MASK.fullmatch(name)] + ([ending[1]] if ending else [])
        place = tuple(
            name for name in folders if not MASK.fullmatch(name) and not IMAGES.fullmatch(name)
        )
        key = (*place, MASK_ENDING.sub("", file.stem) if said else file.stem)
        if not said:
            images.setdefault(key, []).append(file)
        elif all(map(LUNG_MASK.fullmatch, said)) and key not in masks:
            masks[key] = file
        else:
            others.append(file)
    for key in [key for key in images if _is_beside(key, images)]:
        others += images.pop(key)
    if lost := {
        suffix: count
        for suffix, count in sorted(left_out.items())
        if suffix not in OTHER_SUFFIXES and not suffix.lstrip(".").isdecimal() and suffix
    }:
        logger.warning(
            "files under %s that are no images by suffix or content are left out: %s.",
            root,
            ", ".join(f"{count} {suffix}" for suffix, count in lost.items()),
        )
    paired = {files[0]: masks.pop(key) for key, files in images.items() if key in masks}
    found = sorted(file for files in images.values() for file in files)
    return found, paired, [*others, *masks.values()]


def _is_beside(key: tuple[str, ...], images: Container[tuple[str, ...]]) -> bool:
    """Whether an image, by its folders and stem, is named after another one, see `BESIDE`."""
    found = (pattern.fullmatch(key[-1]) for pattern in BESIDE)
    return any(match and (*key[:-1], match["stem"]) in images for match in found)


def contents(folder: Path) -> str:
    """What a folder without images holds, in a few words."""
    files = [file for file in sorted(folder.rglob("*")) if not file.is_dir()]
    if not files:
        return "is empty"
    named = ", ".join(
        f"{file.name} ({file.stat().st_size:,} bytes)"
        if file.exists()
        else f"{file.name} (a link that leads nowhere)"
        for file in files[:3]
    )
    return f"holds no images by suffix or content, but {len(files)} other files, as {named}"
