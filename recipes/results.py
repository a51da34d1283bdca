"""RESULTS.md from the files of the studies: `python -m recipes.results results RESULTS.md`."""

import argparse
import os
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.predictions import write_text
from recipes.chestxray14 import results as chestxray14
from recipes.kermany import results as kermany

# What fills the holes of each study's RESULTS.md.jinja.
PARTS = {"kermany": kermany.collect, "chestxray14": chestxray14.collect}


def write_results(folder: str | Path, path: str | Path) -> None:
    """Write the page, a part a study.

    Args:
        folder: of the results, in it a folder a study; what has no folder is left out.
        path: of the page; links are relative to its folder.

    Raises:
        ValueError, OSError: a file is missing or damaged.
    """
    folder, path = Path(folder), Path(path)
    base = Path(os.path.relpath(folder, path.parent))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    parts = [
        environment.get_template(f"{name}/RESULTS.md.jinja").render(
            collect(folder / name, base / name)
        )
        for name, collect in PARTS.items()
        if (folder / name).is_dir()
    ]
    write_text(path, "\n".join(parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="of the results, in it a folder a study")
    parser.add_argument("path", help="the page to write")
    options = parser.parse_args()
    try:
        write_results(options.folder, options.path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
