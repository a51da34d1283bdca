"""The command line of a source, `python -m datasets_scripts.SOURCE`.

It converts a set, prints what it holds, and writes it as Parquet or pushes it.
"""

import argparse
import logging
import sys
from pathlib import Path

from datasets_scripts.leaks import check_leaks, describe, regroup
from datasets_scripts.parquet import drop_unreadable, push, write
from datasets_scripts.pixels import MAX_UNREADABLE
from datasets_scripts.registry import load_cxr_dataset, source_options, sources


def make_parser(source: str) -> argparse.ArgumentParser:
    """The arguments of a source: its path, what to do with the set, the options of its `load`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m datasets_scripts.{source}",
        description="Convert a chest X-ray set to one schema and print what it holds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if sources()[source].path_help:
        parser.add_argument("path", help=sources()[source].path_help)
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
        "--publish_ids", action="store_true", help="push names of files and patients, not hashes"
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
    for name, (default, kind, meaning) in source_options(source).items():
        options.add_argument(f"--{name}", type=kind, default=default, help=meaning)
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
        local = path and not sources()[source].remote
        name = Path(path).resolve().name if local else path or ""
        if given.output:
            print(f"written to {write(dataset, given.output, source, name)}")
        if given.push_to_hub:
            public = given.private, given.publish_ids
            print(f"pushed to {push(dataset, given.push_to_hub, source, name, *public)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
