"""One CSV file of every chest X-ray in a data folder that a NORMAL / PNEUMONIA model may train on.

    python -m recipes.gpu.manifest DATA runs/gpu/manifest.csv
    accelerate launch train.py --dataset runs/gpu/manifest.csv --dataset_options root=DATA ...

DATA holds `chest_xray` and `kermany_extra` (Kermany et al. 2018), `chestxray14` with its
`split.csv` (Wang et al. 2017) and `adults` with its `manifest.csv` (COVID-19 Radiography Database
and others). No test image of theirs is listed.
"""

import argparse
import csv
import sys
from hashlib import sha256
from pathlib import Path

import pandas as pd
from datasets import Image

from datasets_scripts import class_names, load_cxr_dataset

COLUMNS = (
    *("file", "label", "patient", "split", "source", "view", "age", "sex"),
    *("original_width", "original_height", "weight"),
)
# The RSNA challenge's normals are of the hospital of ChestX-ray14, which has no other normals here.
HOSPITALS = {"kermany": ("kermany",), "nih": ("chestxray14", "rsna")}
VALIDATION_SHARE = 0.1
# A teacher's opinion of them is heard half as often as the labels.
UNLABELLED_SHARE = 0.5


def kermany(data: Path) -> list[dict]:
    """Official train part, the original sizes beside the stretched images."""
    splits = load_cxr_dataset("kermany", data / "chest_xray", extra=str(data / "kermany_extra"))
    rows = []
    for split in ("train", "validation"):
        names = class_names(splits[split])
        for row in splits[split].cast_column("image", Image(decode=False)):
            rows.append(
                {
                    "file": Path(row["image"]["path"]).resolve().relative_to(data).as_posix(),
                    "label": names[row["label"]],
                    "patient": f"kermany/{row['patient_id']}",
                    "split": split,
                    "source": "kermany",
                    "original_width": row["original_width"],
                    "original_height": row["original_height"],
                }
            )
    return rows


def chestxray14(data: Path) -> list[dict]:
    """Pneumonia of train and validation.

    Left out: the repository muhammedtalo's No Findings, whose grey values give them away, and the
    images of 64 pixels, nearly all without Pneumonia, as resolution would tell the class.
    """
    table = pd.read_csv(data / "chestxray14" / "split.csv", dtype=str, keep_default_na=False)
    chosen = table[
        table["split"].isin(["train", "validation"])
        & (table["pixels"] != "64")
        & table["labels"].str.split("|").map(lambda labels: "Pneumonia" in labels)
    ]
    return [
        {
            "file": f"chestxray14/{row.file}",
            "label": "PNEUMONIA",
            "patient": f"chestxray14/{row.patient_id}",
            "split": row.split,
            "source": "chestxray14",
            "view": row.view,
            "age": row.age,
            "sex": row.sex,
        }
        for row in chosen.itertuples()
    ]


def adults(data: Path) -> list[dict]:
    """Normals of the RSNA challenge; COVID-19, tuberculosis and its normals without a label.

    The latter have no place in these two classes, or a source that tells the label.
    """
    rows = []
    table = pd.read_csv(data / "adults" / "manifest.csv", dtype=str)
    for file in table["file"]:
        folder = file.split("/")[0]
        row = {"file": f"adults/{file}", "patient": f"adults/{file}", "source": folder}
        if folder == "normal_rsna":
            held_out = int(sha256(file.encode()).hexdigest(), 16) % 1000 < 1000 * VALIDATION_SHARE
            split = "validation" if held_out else "train"
            row |= {"label": "NORMAL", "split": split, "source": "rsna"}
        else:
            row |= {"label": "", "split": "unlabelled"}
        rows.append(row)
    return rows


def add_weights(rows: list[dict]) -> None:
    """Writes `weight`, with a mean of 1: each class of a hospital is drawn as often as the other.

    A hospital's share is the square root of the size of its rarer class, so that few images are
    not drawn too often. The unlabelled ones share half of what the labelled ones are drawn.
    """
    cells = {}
    for row in rows:
        if row["split"] == "train":
            cells.setdefault((row["source"], row["label"]), []).append(row)
    for sources in HOSPITALS.values():
        parts = [cell for (source, _), cell in cells.items() if source in sources]
        mass = min(map(len, parts)) ** 0.5
        for cell in parts:
            for row in cell:
                row["weight"] = mass / len(cell)
    unlabelled = [row for row in rows if row["split"] == "unlabelled"]
    labelled = [row for cell in cells.values() for row in cell]
    total = sum(row["weight"] for row in labelled)
    for row in unlabelled:
        row["weight"] = UNLABELLED_SHARE * total / len(unlabelled)
    scale = len(labelled) / total
    for row in rows:
        # Validation rows are not drawn.
        row["weight"] = f"{row.get('weight', 0) * scale:.6g}"


def write_manifest(data: Path, output: Path) -> list[dict]:
    """Writes the CSV file; its rows are returned.

    Raises:
        OSError: a part of the data is missing, or the file cannot be written.
        ValueError: a part of the data is not as described.
    """
    data = data.resolve()
    rows = kermany(data) + chestxray14(data) + adults(data)
    add_weights(rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def main() -> None:
    """Writes the manifest and prints how many images each source has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("output", type=Path, help="the CSV file")
    options = parser.parse_args()
    try:
        rows = write_manifest(options.data, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    table = pd.DataFrame(rows)
    print(table.groupby(["split", "source", "label"]).size().to_string())


if __name__ == "__main__":
    main()
