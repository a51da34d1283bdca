"""`python -m datasets_scripts.SOURCE`: convert a set, print what it holds, write it as Parquet or
push it.
"""

import argparse
import logging
import sys
from pathlib import Path

from . import check_leaks, describe, load_cxr_dataset, regroup, source_options
from .parquet import drop_unreadable, push, write
from .pixels import MAX_UNREADABLE

PATHS = {
    "kermany": "the chest_xray folder, its parent, one of its splits, or the zip as downloaded",
    "folder": "a folder with class/file or split/class/file",
    "hub": "the id of a data set on the Hub, org/name",
    "manifest": "a CSV file with a row an image",
}
OPTION_HELP = {
    "cache_dir": "where a zip is unpacked",
    "columns": "further columns to keep as text, joined by commas",
    "config_name": "configuration of the data set on the Hub",
    "extra": "folder with manifest.csv and lung_masks/ that describe the images",
    "file_column": "column with the images' paths (found by its usual names)",
    "image_column": "column with the images (found where there is one)",
    "image_size": "pixels a side",
    "label_column": "column with the labels (found by its usual names)",
    "num_test": "images in the test split",
    "num_train": "images in the training split",
    "num_validation": "images in the validation split",
    "patient_column": "column with the patients (found by its usual names)",
    "patient_regex": "regular expression whose first group is the patient in a file name",
    "revision": "branch, tag or commit on the Hub",
    "root": "folder that the files are relative to (the CSV file's own)",
    "seed": "seed of what is drawn at random",
    "test_share": "share of the images for the test split where the source has none",
    "validation_share": "share of the training images held out, by patient, where there is no "
    "validation split",
    "where": "column=regex: rows to keep",
}


def make_parser(source: str) -> argparse.ArgumentParser:
    """The command line of a source: its path, what to do with the set, and the options of its
    `load`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m datasets_scripts.{source}",
        description="Convert a chest X-ray set to one schema and print what it holds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if source in PATHS:
        parser.add_argument("path", help=PATHS[source])
    parser.add_argument(
        "--output", metavar="DIR", help="write Parquet and a data card into this new folder"
    )
    parser.add_argument(
        "--push_to_hub", metavar="ID", help="push Parquet and a data card to this repository"
    )
    parser.add_argument(
        "--private", action="store_true", help="create the repository as a private one"
    )
    parser.add_argument(
        "--regroup", action="store_true", help="pool all splits and split again by patient"
    )
    parser.add_argument(
        "--max_unreadable",
        type=float,
        default=MAX_UNREADABLE,
        help="share of unreadable images that is left out",
    )
    options = parser.add_argument_group(f"options of {source}")
    for name, parameter in source_options(source).items():
        kind = str if parameter.default is None else type(parameter.default)
        options.add_argument(
            f"--{name}", type=kind, default=parameter.default, help=OPTION_HELP[name]
        )
    return parser


def main(source: str, arguments: list[str] | None = None) -> None:
    """Run a source's command line; a wrong input ends it with one sentence and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    for library in ("httpx", "httpx2"):  # the Hub client logs every request
        logging.getLogger(library).setLevel(logging.WARNING)
    given = make_parser(source).parse_args(arguments)
    try:
        options = {name: getattr(given, name) for name in source_options(source)}
        path = getattr(given, "path", None)
        dataset = load_cxr_dataset(source, path, **options)
        if given.regroup:
            dataset = regroup(dataset)
        print(describe(dataset))
        check_leaks(dataset)
        if given.output or given.push_to_hub:
            dataset = drop_unreadable(dataset, given.max_unreadable)
        name = Path(given.path).resolve().name if source in ("folder", "manifest") else path
        if given.output:
            print(f"written to {write(dataset, given.output, source, name)}")
        if given.push_to_hub:
            print(f"pushed to {push(dataset, given.push_to_hub, source, name, given.private)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
