"""Mean AUROC of arms on our test part of ChestX-ray14, and by how much they are above the floors.

    python -m recipes.chestxray14.gains results/chestxray14

The folder holds report/predictions.csv and report/context.json, made by validate.py with the
column `view`, and floor_predictions.csv, made by floor.py; it gets gains.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from evaluation.calibration import apply_operation
from evaluation.compare import align
from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions, read_predictions_by_model, write_text
from evaluation.table import read_json
from recipes.seeds import NUM_RESAMPLES, group_arms, measure_seeds

METADATA, METADATA_OF_ALL, GREY = FLOORS = (
    "view, sex, age: our train to our test",
    "view, sex, age: all other patients to our test",
    "grey statistics: our train to our test",
)
METRICS = ("auroc", "auprc", "f1", "sensitivity", "specificity")


def measure(arms: dict[str, list[Predictions]], floors: dict[str, Predictions]) -> dict:
    """Of each arm its AUROC, `auroc`, that within PA, `pa`, and `gains` over each floor.

    Args:
        arms: of each the runs, a seed each, of the same images in the same order, with the extra
            column view.
        floors: of the same images, by the names of FLOORS.

    Raises:
        ValueError: other images, labels or patients in the floors than in the arms, or no view.
    """
    first = next(iter(arms.values()))[0]
    if "view" not in first.extra:
        raise ValueError("the predictions have no column view; validate.py writes it of this set.")
    frontal = np.flatnonzero(first.extra["view"] == "PA")
    below = {name: measure_seeds([align(first, floors[name])]) for name in FLOORS}
    found = {}
    for arm, runs in arms.items():
        measured = measure_seeds(runs)
        found[arm] = {
            "auroc": measured.entry(),
            "pa": measure_seeds([run.take(frontal) for run in runs]).entry(),
            "gains": {floor: measured.gain(of_floor) for floor, of_floor in below.items()},
        }
    return {"n": len(first.image_id), "pa": len(frontal), "arms": found}


def by_finding(predictions: Predictions, operation: dict) -> dict[str, dict]:
    """{finding: count, prevalence and `METRICS`} of a run at its operating point."""
    classes = compute_metrics(apply_operation(predictions, operation), NUM_RESAMPLES)["classes"]
    return {
        finding: {
            "n": metrics["tp"] + metrics["fn"],
            **{name: metrics[name] for name in ("prevalence", *METRICS)},
        }
        for finding, metrics in classes.items()
    }


def main() -> None:
    """Writes gains.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results/chestxray14")
    options = parser.parse_args()
    try:
        report = options.folder / "report"
        context = read_json(report / "context.json", ("dataset", "models"), "validate.py")
        predictions = read_predictions_by_model(report / "predictions.csv")
        floors = read_predictions_by_model(options.folder / "floor_predictions.csv")
        found = measure(group_arms(predictions), floors)
        found["dataset"] = context["dataset"]
        found["runs"] = {
            name: by_finding(run, context["models"][name]["operation"])
            for name, run in predictions.items()
        }
        write_text(options.folder / "gains.json", json.dumps(found, indent=2) + "\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
