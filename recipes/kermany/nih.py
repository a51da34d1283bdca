"""A CSV file of adults of another hospital: ChestX-ray14's Pneumonia and No Finding.

    python -m recipes.kermany.nih CHESTXRAY14 runs/nih.csv

The folder holds split.csv; listed are its test images. Those of No Finding are of one repository,
jrzech, alone: others' grey values give them away. Beside the classes, views differ (the ill lie
down, AP), so that a figure to read is the one within PA.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

NEGATIVES = "jrzech"


def read_split(folder: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of split.csv, each cell a text.

    Raises:
        OSError: it cannot be read.
        ValueError: it lacks one of the columns.
    """
    table = pd.read_csv(folder / "split.csv", dtype=str, keep_default_na=False)
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{folder / 'split.csv'} has no column {missing[0]}.")
    return table


def list_images(folder: Path) -> pd.DataFrame:
    """A row an image: path in the folder, label, patient, split, source (nih-PA, ...), age, sex.

    Raises:
        OSError, ValueError: see `read_split`.
    """
    columns = ["file", "patient_id", "labels", "age", "sex", "view", "repository", "split"]
    table = read_split(folder, columns)
    table = table[table["split"] == "test"]
    findings = table["labels"].str.split("|").map(set)
    ill = findings.map(lambda found: "Pneumonia" in found)
    well = findings.map(lambda found: found == {"No Finding"}) & (table["repository"] == NEGATIVES)
    table = table.assign(label=ill.map({True: "PNEUMONIA", False: "NORMAL"}))[ill | well]
    return pd.DataFrame(
        {
            "file": table["file"],
            "label": table["label"],
            "patient": table["patient_id"],
            "split": "test",
            "source": "nih-" + table["view"],
            "age": table["age"],
            "sex": table["sex"],
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of ChestX-ray14, with split.csv")
    parser.add_argument("output", type=Path, help="the CSV file")
    options = parser.parse_args()
    try:
        images = list_images(options.folder)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        images.to_csv(options.output, index=False)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
