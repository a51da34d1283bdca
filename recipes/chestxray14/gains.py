"""Mean AUROC of arms on our test part of ChestX-ray14, and by how much they are above the floors.

    python -m recipes.chestxray14.gains results/chestxray14

The folder holds report/predictions.csv, made by validate.py with the column `view`, and
floor_predictions.csv, made by floor.py; it gets gains.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from evaluation.compare import align
from evaluation.predictions import Predictions, read_predictions_by_model, write_text
from recipes.seeds import measure_seeds, read_arms

METADATA, METADATA_OF_ALL, GREY = FLOORS = (
    "view, sex, age: our train to our test",
    "view, sex, age: all other patients to our test",
    "grey statistics: our train to our test",
)


def measure(arms: dict[str, list[Predictions]], floors: dict[str, Predictions]) -> dict:
    """Of each arm its AUROC, `auroc`, that within PA, `pa`, and `gains` over each floor.

    Args:
        arms: of each the runs, a seed each, of the same images, with the extra column view.
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


def main() -> None:
    """Writes gains.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results/chestxray14")
    options = parser.parse_args()
    try:
        found = measure(
            read_arms(options.folder / "report" / "predictions.csv"),
            read_predictions_by_model(options.folder / "floor_predictions.csv"),
        )
        write_text(options.folder / "gains.json", json.dumps(found, indent=2) + "\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
