"""Does heat outside the lungs predict errors? A row an image, and what the rows say.

    python -m recipes.lungs.heat measure CLASSIFIER SEGMENTER OUTPUT.csv --dataset ...
    python -m recipes.lungs.heat report results/lungs

Each image's Grad-CAM, that of the class which an answer shows, is laid over the lungs that the
segmenter finds in it.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from datasets import DatasetDict

from datasets_scripts import PERTURBATIONS, class_names, load_cxr_dataset
from evaluation.bootstrap import mean_entries
from evaluation.metrics import compute_metrics
from evaluation.pages.markdown import Notes, table
from evaluation.predictions import Predictions, write_text
from evaluation.saliency import measure_heatmap
from modeling import load_model, load_segmenter
from training.arguments import add_dataset, settle_dataset
from training.data import decode_splits

COLUMNS = ("image_id", "patient_id", "wrong", "certainty", "heat_in_lungs", "lung_area")
SETS = {
    "heat_validation": "Kermany, validation",
    "heat_shift": "Kermany, validation, shifted",
    "heat_actualmed": "Actualmed",
    "heat_covid_cxnet": "COVID-CXNet",
    "heat_openist": "OpenIST",
}
# What may tell an error, the lower the likelier.
SIGNS = {
    "heat_in_lungs": "share of the heat inside the lungs",
    "gain": "that share less the lungs' share of the image",
    "certainty": "distance of the log-odds from the threshold",
}


@torch.no_grad()
def measure(args: argparse.Namespace) -> None:
    """Writes the table.

    Raises:
        ValueError: models that see images otherwise, or a classifier of other than two classes.
        OSError: a file cannot be read or written.
    """
    model, processor = load_model(args.classifier)
    segmenter, own = load_segmenter(args.segmenter)
    if model.config.num_labels != 2 or processor.geometry != own.geometry:
        raise ValueError(
            f"{args.classifier} has {model.config.num_labels} classes and the geometry "
            f"{processor.geometry}; needed are two, and {own.geometry}, as {args.segmenter} has."
        )
    if processor.windowed:
        raise ValueError(
            f"{args.classifier} is shown images cut to the lungs or masked, which "
            f"{args.segmenter} is not; give a classifier of whole images."
        )
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    part = DatasetDict({args.split: dataset[args.split]})
    seen, lungs = (
        decode_splits(part, each, args.cache_dir, 0, args.variant)[args.split]
        for each in (processor, own)
    )
    names = class_names(part[args.split])
    positive = np.array([names[label] == model.config.id2label[1] for label in seen.labels])
    cut = (model.config.thresholds or [0.5])[0]
    rows = []
    for start in tqdm(range(0, len(seen), 16), desc="heat", unit="batch"):
        images = slice(start, start + 16)
        output = model.explain(processor.normalize(np.asarray(seen.pixels[images])))
        masks = segmenter.segment(own.normalize(np.asarray(lungs.pixels[images])), largest=2)
        masks = F.interpolate(masks[:, None], output.heatmaps.shape[1:], mode="bilinear")[:, 0]
        log_odds = torch.logit(output.probabilities[:, 1].double(), eps=1e-9)
        distance = (log_odds - torch.logit(torch.tensor(cut).double())).numpy()
        for k, (heat, mask) in enumerate(zip(output.heatmaps.numpy(), masks.numpy() > 0.5)):
            found = measure_heatmap(heat.clip(0, 1), mask)
            row = (
                seen.image_ids[start + k],
                seen.patient_ids[start + k],
                int((distance[k] >= 0) != positive[start + k]),
                float(abs(distance[k])),
                found["energy_in_lungs"],
                found["lung_area"],
            )
            rows.append(dict(zip(COLUMNS, row)))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(args.output, text.getvalue())


def read_heat(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table; NaN where an image has no lungs or no heat.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS[:2]}
    for name in COLUMNS[2:]:
        columns[name] = np.array([float(row[name]) if row[name] else np.nan for row in rows])
    columns["gain"] = columns["heat_in_lungs"] - columns["lung_area"]
    return columns


def summarize_heat(columns: dict[str, np.ndarray], num_resamples: int = 2000) -> dict:
    """What the rows of a set say.

    Returns:
        `n`, `without` (images without lungs or heat, left out), `errors`, the means
        `heat_in_lungs` and `lung_area`, and for each of `SIGNS` the AUROC with which a low value
        tells the errors from the rest, with its 95 % interval of a bootstrap over patients.
    """
    known = ~np.isnan(columns["heat_in_lungs"])
    columns = {name: values[known] for name, values in columns.items()}
    patients, wrong = columns["patient_id"], columns["wrong"].astype(int)
    means = np.stack([columns["heat_in_lungs"], columns["lung_area"]], axis=1)
    found = {"n": len(wrong), "without": int((~known).sum()), "errors": int(wrong.sum())}
    entries = mean_entries(means, patients, num_resamples, 0)
    found |= dict(zip(("heat_in_lungs", "lung_area"), entries))
    for sign in SIGNS:
        scores = np.stack([columns[sign], -columns[sign]], axis=1) / 2
        predictions = Predictions(
            columns["image_id"], patients, wrong, scores, ("right", "wrong"), "heat"
        )
        auroc = compute_metrics(predictions, num_resamples=num_resamples)["auroc"]
        found[f"{sign}_auroc"] = auroc
    return found


def report(results: Path) -> None:
    """Writes heat.json and heat.md of the tables in a folder.

    Raises:
        OSError: a table cannot be read, or the page written.
    """
    found = {name: summarize_heat(read_heat(results / f"{name}.csv")) for name in SETS}
    write_text(results / "heat.json", json.dumps(found, indent=2) + "\n")
    notes = Notes()
    keys = ("heat_in_lungs", "lung_area", *(f"{sign}_auroc" for sign in SIGNS))
    rows = [
        [SETS[name], str(entry["n"]), str(entry["errors"]), *(notes.cell(entry[k]) for k in keys)]
        for name, entry in found.items()
    ]
    header = ["Images of", "n", "Errors", "Heat in the lungs", "Lungs' share of the image"]
    header += [f"AUROC: {title}" for title in SIGNS.values()]
    page = f"""# Heat outside the lungs

{table(header, rows, notes=notes)}

Heat is the Grad-CAM of the class that an answer of cxr-densenet121 shows; lungs are those that
cxr-lungs finds. An AUROC says how well a low value tells wrong decisions from right ones; 0.5 is
chance. Values and 95 % intervals of a bootstrap over patients.
"""
    write_text(results / "heat.md", page)


def main(argv: Sequence[str]) -> None:
    """Measures, or reports."""
    parser = argparse.ArgumentParser(prog="python -m recipes.lungs.heat", description=__doc__)
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("measure").add_argument
    add("classifier", help="folder or Hub id")
    add("segmenter", help="folder or Hub id")
    add("output", help="the table, a CSV file")
    add_dataset(add)
    add("--split", default="test", help="which images (default: %(default)s)")
    add("--variant", choices=sorted(PERTURBATIONS), help="images altered so")
    add("--cache_dir", default="~/.cache/cxr-classification")
    commands.add_parser("report").add_argument("results", type=Path)
    args = parser.parse_args(argv)
    if hasattr(args, "results"):
        report(args.results)
    else:
        settle_dataset(args)
        measure(args)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
