"""Chest X-ray sets from any source in one schema: `load_cxr_dataset(source, path, **options) ->
DatasetDict`. `SOURCES`:

    phantom     synthetic chests, made on the spot
    kermany     the Kaggle or Mendeley download of Kermany et al. 2018, a folder or zip
    folder      split/class/file or class/file, with an optional metadata.csv
    hub         a data set of the Hub
    manifest    a CSV file with a row an image

`PERTURBATIONS` alter decoded images, to see what a model keeps without its shortcuts.
"""

import difflib
import importlib
import inspect
import re
from pathlib import Path

from datasets import DatasetDict

from .perturb import PERTURBATIONS
from .pixels import fingerprint, open_row, read_pixels
from .schema import age_range, check_usable, class_names, label_sets
from .splits import LeakError, check_leaks, content_hashes, describe, regroup

__all__ = [
    "LeakError",
    "PERTURBATIONS",
    "SOURCES",
    "age_range",
    "check_leaks",
    "class_names",
    "content_hashes",
    "describe",
    "fingerprint",
    "label_sets",
    "load_cxr_dataset",
    "open_row",
    "read_pixels",
    "regroup",
    "source_options",
]

SOURCES = ("phantom", "kermany", "folder", "hub", "manifest")
PLACES = {"kermany": "folder or zip", "manifest": "CSV file"}  # what else than a folder a path is


def source_options(source: str) -> dict[str, inspect.Parameter]:
    """The options of a source: the parameters of its `load` besides the path."""
    parameters = inspect.signature(importlib.import_module(f".{source}", __name__).load).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "path"}


def recognise(source: str, path: str | Path | None) -> tuple[str, str | Path | None]:
    """(module name, path or id) for a source name, a path, or a Hub id given as `source`."""
    # imported here, because `python -m datasets_scripts.kermany` runs a module not yet imported
    from . import kermany, parquet

    if source in SOURCES:
        return source, path
    place = Path(source).expanduser()
    if path is None and place.is_dir():
        if parquet.is_export(place):
            return "parquet", place
        return ("kermany" if kermany.is_kermany(place) else "folder"), place
    if path is None and place.is_file():
        if place.suffix.lower() == ".zip":
            return "kermany", place
        if place.suffix.lower() == ".csv":
            return "manifest", place
        raise ValueError(
            f"{source} is a file: give a folder of images, a CSV file that lists them, or the "
            "Kermany zip"
        )
    if path is None and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return "hub", source
    if path is None and "/" in source:
        raise FileNotFoundError(
            f"{source} does not exist: give an existing folder or zip, or a CSV file"
        )
    near = difflib.get_close_matches(source, SOURCES, n=2, cutoff=0.7)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(
        f"unknown dataset {source!r}{hint}: use {', '.join(SOURCES)}, an existing folder, zip "
        "or CSV file, or a Hub id org/name"
    )


def load_cxr_dataset(source: str, path: str | Path | None = None, **options) -> DatasetDict:
    """A chest X-ray set with the splits train, validation and test (those there are) in the
    project's schema.

    `source` is one of `SOURCES` with the `path` it reads (kermany, folder: a folder or zip; hub: an
    id; manifest: a CSV file; phantom: none), or itself a path or Hub id, which is then recognised.
    `options` are those of the source's `load`. Raises ValueError or OSError with one sentence for
    an unknown source or option, a missing path, and a set with too little to learn.
    """
    source, path = recognise(str(source), path)
    known = source_options(source)
    for name in options:
        if name not in known:
            raise ValueError(
                f"unknown option {name!r} of dataset {source}: it takes "
                f"{', '.join(known) or 'none'}"
            )
    load = importlib.import_module(f".{source}", __name__).load
    if source == "phantom":
        if path is not None:
            raise ValueError(
                f"dataset phantom is generated and takes no path, but {path} was given"
            )
        return check_usable(load(**options), "phantom")
    if path is None:
        raise ValueError(f"dataset {source} needs a {'Hub id' if source == 'hub' else 'path'}")
    if source != "hub" and not Path(path).exists():
        raise FileNotFoundError(
            f"{path} does not exist: give the {PLACES.get(source, 'folder')} of {source}"
        )
    return check_usable(load(path, **options), str(path))
