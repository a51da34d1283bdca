"""What little is enough on ChestX-ray14: view, sex and age alone, and grey statistics alone.

    python -m recipes.chestxray14.floor runs/chestxray14.data results/chestxray14

DATA holds `Data_Entry_2017_v2020.csv`, the official `train_val_list.txt` and `test_list.txt`,
`arnoweng_train_list.txt.gz` and `arnoweng_test_list.txt.gz` of arnoweng/CheXNet, and the images and
`split.csv` of shrink.py. A model that is not above this floor has learnt no medicine.
Three test sets, never mixed: the official one, that of the lists, and ours. RESULTS gets
floor.json, floor.md and, of ours, floor_predictions.csv, with which a model can be compared image
by image.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datasets_scripts.chestxray14 import FINDINGS, OFFICIAL, read_list
from evaluation.metrics import compute_metrics, format_metric
from evaluation.predictions import Predictions, write_predictions_by_model, write_text
from evaluation.table import markdown_table
from modeling import CxrImageProcessor
from recipes.grey import grey_statistics

TABLE = "Data_Entry_2017_v2020.csv"
LISTS = {
    "official": OFFICIAL,
    "chexnet": {split: f"arnoweng_{split}_list.txt.gz" for split in ("train", "test")},
}


def read_table(data: Path) -> pd.DataFrame:
    """All images by name: labels, patient, ap, male, age (years), follow_up, official, chexnet.

    Labels are a set, the last two the part of the official split and of CheXNet's kind of split
    that an image is in: "train", "test", or "" for none.

    Raises:
        ValueError: a table of another set.
        OSError: a file is missing.
    """
    table = pd.read_csv(data / TABLE, dtype={"Patient ID": str}).set_index("Image Index")
    parts = {}
    for kind, lists in LISTS.items():
        parts[kind] = pd.Series("", table.index)
        for split, name in lists.items():
            images = pd.Index(read_list(data / name)[0])
            lost = images.difference(table.index)
            if len(lost):
                raise ValueError(f"{data / TABLE} does not list {lost[0]}; give the whole table.")
            parts[kind][images] = split
    return pd.DataFrame(
        {
            "labels": table["Finding Labels"].str.split("|").map(frozenset),
            "patient": table["Patient ID"],
            "ap": (table["View Position"] == "AP").astype(float),
            "male": (table["Patient Gender"] == "M").astype(float),
            "age": table["Patient Age"].astype(float),
            "follow_up": table["Follow-up #"].astype(float),
            **parts,
        }
    )


def learn(
    features: np.ndarray, table: pd.DataFrame, train: np.ndarray, test: np.ndarray
) -> Predictions:
    """A logistic regression a finding, from some images to others.

    Args:
        features: float (N, F), of the images of the table.
        table: `labels` and `patient` of N images by name.
        train: bool (N,).
        test: bool (N,).

    Raises:
        ValueError: all or none of the images to learn from have a finding.
    """
    truth = np.array([[name in row for name in FINDINGS] for row in table["labels"]])
    margins = []
    for name, present in zip(FINDINGS, truth.T):
        if len(np.unique(present[train])) < 2:
            raise ValueError(f"{train.sum()} images are too few to learn {name} from.")
        model = make_pipeline(StandardScaler(), LogisticRegression())
        margins.append(model.fit(features[train], present[train]).decision_function(features[test]))
    return Predictions(
        table.index[test].to_numpy(str),
        table["patient"][test].to_numpy(str),
        truth[test],
        np.stack(margins, axis=1),
        FINDINGS,
        "test",
        multi_label=True,
    )


def floors(data: Path) -> dict[str, Predictions]:
    """Predictions of each floor, named by what it sees, learns from, and is tested on."""
    table = read_table(data)
    split = pd.read_csv(data / "split.csv", dtype=str).set_index("image_index")
    ours = table.loc[split.index]
    tested = split["split"] == "test"
    # All that is known of other patients: more than a model trained on our part has seen.
    others = ~table["patient"].isin(ours["patient"][tested])
    asked = table.index.isin(split.index[tested])
    official, chexnet = ([table[kind] == part for part in ("train", "test")] for kind in LISTS)
    metadata = ["ap", "male", "age"]
    known = table[metadata], table
    more = table[metadata].assign(follow_up=np.log1p(table["follow_up"]))
    processor = CxrImageProcessor(224, geometry="crop")
    grey = grey_statistics(processor.read(data / file) / 65535 for file in split["file"])
    here = split["split"] == "train"
    found = {
        "view, sex, age: official train to official test": (*known, *official),
        "view, sex, age, follow-up: official train to official test": (more, table, *official),
        "view, sex, age: CheXNet's train to CheXNet's test": (*known, *chexnet),
        "view, sex, age: all other patients to our test": (*known, others, asked),
        "view, sex, age: our train to our test": (ours[metadata], ours, here, tested),
        "grey statistics: our train to our test": (grey, ours, here, tested),
    }
    return {
        name: learn(np.asarray(features), table, np.asarray(train), np.asarray(test))
        for name, (features, table, train, test) in found.items()
    }


def by_image(predictions: Predictions) -> Predictions:
    """The same in the order of the images' names."""
    return predictions.take(predictions.image_id.argsort())


def main() -> None:
    """Writes the three files and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of ChestX-ray14")
    parser.add_argument("results", type=Path, help="folder for floor.json, floor.md, ...")
    parser.add_argument("--num_resamples", type=int, default=2000, help="of the bootstrap")
    options = parser.parse_args()
    try:
        predictions = floors(options.data)
        scores = {}
        for name, floor in predictions.items():
            metrics = compute_metrics(floor, options.num_resamples)
            scores[name] = {
                "n": metrics["n"],
                "patients": metrics["patients"],
                "mean_auroc": metrics["auroc"],
                "auroc": {finding: metrics["classes"][finding]["auroc"] for finding in FINDINGS},
            }
        header = ["Finding", *(f"{name} (n = {floor['n']:,})" for name, floor in scores.items())]
        rows = [["Mean", *(format_metric(floor["mean_auroc"]) for floor in scores.values())]]
        for finding in FINDINGS:
            cells = (format_metric(floor["auroc"][finding]) for floor in scores.values())
            rows.append([finding, *cells])
        options.results.mkdir(parents=True, exist_ok=True)
        write_text(options.results / "floor.json", json.dumps(scores, indent=2) + "\n")
        text = markdown_table(header, rows)
        write_text(options.results / "floor.md", f"{text}\n")
        ours = [name for name in predictions if name.endswith("our test")]
        aligned = {name: by_image(predictions[name]) for name in ours}
        write_predictions_by_model(options.results / "floor_predictions.csv", aligned)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text)


if __name__ == "__main__":
    main()
