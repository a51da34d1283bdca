"""Arms of a study, each trained with a few seeds, compared on the same images."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evaluation.bootstrap import interval, mean_entries
from evaluation.metrics import bootstrap_statistics
from evaluation.predictions import Predictions, read_predictions_by_model

NUM_RESAMPLES = 1000


def read_arms(*files: Path) -> dict[str, list[Predictions]]:
    """The predictions of each arm, a seed each, of models that are called ARM-SEED.

    Raises:
        ValueError, OSError: a table is missing or damaged.
    """
    found: dict[str, list[Predictions]] = {}
    for file in files:
        for name, predictions in read_predictions_by_model(file).items():
            found.setdefault(name.rpartition("-")[0], []).append(predictions)
    return found


def mean_auroc(runs: list[Predictions]) -> tuple[list[float], np.ndarray]:
    """The AUROC of each seed, and the seeds' mean on each resample of patients, float (R,)."""
    stored = [bootstrap_statistics(run, NUM_RESAMPLES) for run in runs]
    (key,) = (key for key in stored[0].values if key[1] == "auroc")
    resampled = np.mean([one.resampled[key] for one in stored], axis=0)
    return [float(one.values[key][0]) for one in stored], resampled


def compare_arms(
    arms: Mapping[str, list[Predictions]], pairs: Mapping[str, str]
) -> dict[str, dict]:
    """Mean AUROC of each arm, and what it gains on another.

    Args:
        arms: of the same images.
        pairs: {arm: the arm it is compared with}.

    Returns:
        Of each arm `value`, `low`, `high`, `seeds` (the AUROC of each) and, of those in `pairs`,
        `gain`: `value`, `low` and `high`, with 95 % intervals over patients.
    """
    measured = {arm: mean_auroc(runs) for arm, runs in arms.items()}
    patients = {arm: len(np.unique(runs[0].patient_id)) for arm, runs in arms.items()}
    found = {}
    for arm, (seeds, resampled) in measured.items():
        value = float(np.mean(seeds))
        found[arm] = {"value": value, **interval(value, resampled, patients[arm], "logit")}
        found[arm]["seeds"] = seeds
        if arm in pairs:
            others, of_other = measured[pairs[arm]]
            gain = value - float(np.mean(others))
            bounds = interval(gain, resampled - of_other, patients[arm], "linear")
            found[arm]["gain"] = {"value": gain, **bounds}
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
