"""Arms of a study, each trained with a few seeds, compared on the same images."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from evaluation.bootstrap import interval, mean_entries
from evaluation.metrics import bootstrap_statistics
from evaluation.predictions import Predictions, read_predictions_by_model

NUM_RESAMPLES = 1000


def read_arms(*files: Path) -> dict[str, list[Predictions]]:
    """The predictions of each arm, a seed each, see `group_arms`.

    Raises:
        ValueError, OSError: a table is missing or damaged.
    """
    found: dict[str, list[Predictions]] = {}
    for file in files:
        for arm, runs in group_arms(read_predictions_by_model(file)).items():
            found.setdefault(arm, []).extend(runs)
    return found


def group_arms(models: Mapping[str, Predictions]) -> dict[str, list[Predictions]]:
    """The predictions of each arm, of models that are called ARM-SEED."""
    found: dict[str, list[Predictions]] = {}
    for name, predictions in models.items():
        found.setdefault(name.rpartition("-")[0], []).append(predictions)
    return found


class SeedsAuroc(NamedTuple):
    """The AUROC of each seed of an arm, the mean over the findings where there are several.

    `resampled` is the seeds' mean on each resample of patients, float (NUM_RESAMPLES,).
    """

    seeds: list[float]
    resampled: np.ndarray
    num_patients: int

    @property
    def value(self) -> float:
        """The mean of the seeds."""
        return float(np.mean(self.seeds))

    def entry(self) -> dict:
        """`value`, `low` and `high`, a 95 % interval over patients, and `seeds`."""
        bounds = interval(self.value, self.resampled, self.num_patients, "logit")
        return {"value": self.value, **bounds, "seeds": self.seeds}

    def gain(self, other: Self) -> dict:
        """`value`, `low` and `high` of what it is above another arm on the same images."""
        value = self.value - other.value
        bounds = interval(value, self.resampled - other.resampled, self.num_patients, "linear")
        return {"value": value, **bounds}


def measure_seeds(runs: list[Predictions]) -> SeedsAuroc:
    """The AUROC of an arm, of runs on the same images."""
    stored = [bootstrap_statistics(run, NUM_RESAMPLES, micro=False) for run in runs]
    found = [key for key in stored[0].values if key[1] == "auroc"]
    key = next((key for key in found if key[0] is None), found[0])  # one class has no mean
    return SeedsAuroc(
        [float(one.values[key][0]) for one in stored],
        np.mean([one.resampled[key] for one in stored], axis=0),
        len(np.unique(runs[0].patient_id)),
    )


def compare_arms(
    arms: Mapping[str, list[Predictions]], pairs: Mapping[str, str]
) -> dict[str, dict]:
    """Mean AUROC of each arm, and what it gains on another.

    Args:
        arms: of the same images.
        pairs: {arm: the arm it is compared with}.

    Returns:
        Of each arm what `SeedsAuroc.entry` gives and, of those in `pairs`, `gain`.
    """
    measured = {arm: measure_seeds(runs) for arm, runs in arms.items()}
    found = {arm: own.entry() for arm, own in measured.items()}
    for arm, other in pairs.items():
        found[arm]["gain"] = measured[arm].gain(measured[other])
    return found


def heat_in_lungs(files: list[Path], reference: str) -> dict[str, dict]:
    """Of each arm the share of heat in the lungs, their share of the image, and the gain.

    Args:
        files: the saliency.csv of reports on the same images.
        reference: the arm that the gain in the share is on.

    Returns:
        Of each arm `energy`, `area` and `gain`, see `mean_entries`.
    """
    rows: dict[str, dict[tuple[str, str], list]] = {}
    for file in files:
        with open(file, newline="") as stored:
            for row in csv.DictReader(stored):
                arm = rows.setdefault(row["model"].rpartition("-")[0], {})
                numbers = [float(row[key] or "nan") for key in ("energy_in_lungs", "lung_area")]
                arm.setdefault((row["image_id"], row["patient_id"]), []).append(numbers)
    keys = list(rows[reference])
    means = {arm: np.array([np.mean(rows[arm][key], 0) for key in keys]) for arm in rows}
    patients, found = np.array([patient for _, patient in keys]), {}
    for arm, values in means.items():
        columns = np.column_stack([values, values[:, 0] - means[reference][:, 0]])
        entries = mean_entries(columns, patients, NUM_RESAMPLES, 0)
        found[arm] = dict(zip(("energy", "area", "gain"), entries))
    return found
