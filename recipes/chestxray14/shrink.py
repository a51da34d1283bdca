"""Our part of ChestX-ray14 without what tells one repository from another.

    python -m recipes.chestxray14.shrink DATA runs/chestxray14.data

DATA holds `split.csv`, whose images come from repositories of two sizes, each with its own kind of
findings: a network that sees the size, or how sharp an image is, need not look at the chest. OUTPUT
gets the tables and lists of DATA, and a `split.csv` of what is left: every image at the smallest
one's size, written as that one's repository wrote it, and none of `is_left_out`.
"""

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from evaluation.predictions import write_text
from recipes.kermany.nih import read_split

TESTED = "jrzech"  # the one repository with images of all kinds, one a patient
COLUMNS = ("file", "labels", "pixels", "repository", "split")


def is_left_out(split: pd.DataFrame) -> pd.Series:
    """Of each row of split.csv whether it is unused, or brightness or repository tell its label.

    The No Findings of muhammedtalo are brighter than others, and its test images are all of
    Pneumonia: the test is that of one repository alone.
    """
    bright = (split["labels"] == "No Finding") & (split["repository"] == "muhammedtalo")
    others = (split["split"] == "test") & (split["repository"] != TESTED)
    return bright | others | ~split["split"].isin(["train", "validation", "test"])


def shrink(data: Path, output: Path) -> pd.DataFrame:
    """Writes the tables, the images and split.csv; the rows of the last are returned.

    Raises:
        OSError: a file is missing, damaged, or cannot be written.
        ValueError: split.csv has other columns, or nothing is left of it; the smallest image is no
            JPEG.
    """
    split = read_split(data, COLUMNS)
    split = split[~is_left_out(split)].copy()
    if split.empty:
        raise ValueError(f"{data / 'split.csv'} has no row that is not left out.")
    smallest = split.loc[split["pixels"].astype(int).idxmin()]
    with Image.open(data / smallest["file"]) as image:
        if image.format != "JPEG":
            raise ValueError(
                f"{data / smallest['file']} is no JPEG, as the smallest image has to be."
            )
        size, tables = image.size, image.quantization
    for file in split["file"]:
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(data / file) as image:
            if image.size == size:
                shutil.copyfile(data / file, output / file)
                continue
            # Of Pillow's filters the one whose spectrum is that of the small images.
            small = image.convert("L").resize(size, Image.Resampling.HAMMING)
            small.save(output / file, "JPEG", qtables=tables)
    split["pixels"] = str(size[0])
    for file in data.iterdir():
        if file.suffix in (".csv", ".txt", ".gz") and file.name != "split.csv":
            shutil.copyfile(file, output / file.name)
    write_text(output / "split.csv", split.to_csv(index=False))
    return split


def main() -> None:
    """Writes the folder and prints how many images each split and repository has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of ChestX-ray14 with split.csv")
    parser.add_argument("output", type=Path, help="the new folder")
    options = parser.parse_args()
    try:
        split = shrink(options.data, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(split.groupby(["split", "repository"]).size().to_string())


if __name__ == "__main__":
    main()
