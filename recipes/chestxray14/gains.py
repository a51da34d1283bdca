"""Mean AUROC of models on our test part of ChestX-ray14, and by how much they are above the floors.

    python -m recipes.chestxray14.gains results/chestxray14

The folder holds report/predictions.csv, made by validate.py with the column `view`, and
floor_predictions.csv, made by floor.py; it gets gains.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from evaluation.compare import align, compare_bootstraps
from evaluation.metrics import bootstrap_statistics, compute_metrics, metrics_of
from evaluation.predictions import Predictions, read_predictions_by_model, write_text

METADATA, METADATA_OF_ALL, GREY = FLOORS = (
    "view, sex, age: our train to our test",
    "view, sex, age: all other patients to our test",
    "grey statistics: our train to our test",
)


def measure(
    models: dict[str, Predictions], floors: dict[str, Predictions], num_resamples: int
) -> dict:
    """Of each model its mean AUROC, `auroc`, that within PA, `pa`, and `gains` over each floor.

    Args:
        models: of the same images in the same order, with the extra column view.
        floors: of the same images, by the names of FLOORS.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: other images, labels or patients in the floors than in the models, or no view.
    """
    first = next(iter(models.values()))
    if "view" not in first.extra:
        raise ValueError("the predictions have no column view; validate.py writes it of this set.")
    frontal = np.flatnonzero(first.extra["view"] == "PA")
    below = {
        name: bootstrap_statistics(align(first, floors[name]), num_resamples) for name in FLOORS
    }
    found = {}
    for name, own in models.items():
        scored = bootstrap_statistics(own, num_resamples)
        found[name] = {
            "auroc": metrics_of(scored)["auroc"],
            "pa": compute_metrics(own.take(frontal), num_resamples)["auroc"],
            "gains": {
                floor: compare_bootstraps(scored, of_floor)["differences"]["auroc"]
                for floor, of_floor in below.items()
            },
        }
    return {"n": len(first.image_id), "pa": len(frontal), "models": found}


def main() -> None:
    """Writes gains.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results/chestxray14")
    parser.add_argument("--num_resamples", type=int, default=2000, help="of the bootstrap")
    options = parser.parse_args()
    try:
        found = measure(
            read_predictions_by_model(options.folder / "report" / "predictions.csv"),
            read_predictions_by_model(options.folder / "floor_predictions.csv"),
            options.num_resamples,
        )
        write_text(options.folder / "gains.json", json.dumps(found, indent=2) + "\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
