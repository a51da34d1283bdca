"""How often the 95 % intervals hold the truth: `python benchmarks/coverage.py [STUDIES]`.

Simulated studies whose population values are known from the normal densities; a line a metric, the
share of studies whose interval holds the truth in each setting. 1,000 studies take some minutes.
"""

import math
import sys

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from tqdm import tqdm

from evaluation.metrics import METRIC_NAMES, compute_metrics
from evaluation.predictions import Predictions

# Patients, separation of the classes in standard deviations (1.5 is an AUROC of .856, 2.33 of .950,
# 3.64 of .995), and the factor on the logits, 1 being calibrated.
SETTINGS = ((120, 1.5, 1), (300, 2.33, 1), (200, 2.33, 1.5), (300, 3.64, 1), (120, 3.64, 2))


def simulated_truth(separation: float, scale: float) -> dict[str, float]:
    """Population values of studies as `simulated` draws them, from the normal densities alone."""
    half, grid = separation / 2, np.linspace(-8, separation + 8, 20001)
    with_it, without_it = norm.pdf(grid - separation), norm.pdf(grid)
    density = with_it + without_it
    z = scale * separation * (grid - half)
    p, rate = expit(z), with_it / density
    right = norm.cdf(half)
    precision = norm.sf(grid - separation) / (norm.sf(grid - separation) + norm.sf(grid))

    def mean(values: np.ndarray, weights: np.ndarray) -> float:
        return (values * weights).sum() / weights.sum()

    def binned(bins: np.ndarray) -> float:
        gaps = (p - rate) * density / density.sum()
        return sum(abs(gaps[bins == one].sum()) for one in range(15))

    return {
        "auroc": norm.cdf(separation / math.sqrt(2)),
        "auprc": mean(precision, with_it),
        **dict.fromkeys(("accuracy", "balanced_accuracy", "sensitivity", "specificity"), right),
        **dict.fromkeys(("ppv", "npv", "f1"), right),
        "mcc": 2 * right - 1,
        "brier": mean(rate * (1 - p) ** 2 + (1 - rate) * p**2, density),
        "log_loss": mean(np.logaddexp(0, z) - rate * z, density),
        "ece": binned(np.minimum(p * 15, 14).astype(int)),
        "ece_mass": binned((np.cumsum(density) / density.sum() * 14.999).astype(int)),
        "sensitivity_at_specificity": norm.cdf(separation - norm.ppf(0.9)),
        "specificity_at_sensitivity": norm.cdf(separation - norm.ppf(0.95)),
        "ppv_at_prevalence": 0.1 * right / (0.1 * right + 0.9 * (1 - right)),
        "npv_at_prevalence": 0.9 * right / (0.9 * right + 0.1 * (1 - right)),
    }


def simulated(
    rng: np.random.Generator, separation: float, scale: float, num_patients: int = 120
) -> Predictions:
    """A study of patients with 1 to 6 images; half the scores' variance is the patient's.

    Scores are N(separation * y, 1); a `scale` of 1 makes the logits calibrated.
    """
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 7, size=num_patients))
    labels = (rng.random(num_patients) < 0.5).astype(int)[patients]
    noise = rng.normal(size=num_patients)[patients] + rng.normal(size=len(patients))
    scores = separation * labels + noise * math.sqrt(0.5)
    scores = scale * separation * (scores - separation / 2)
    return Predictions(
        image_id=np.arange(len(labels)).astype(str),
        patient_id=patients.astype(str),
        labels=labels,
        logits=np.stack([np.zeros_like(scores), scores], axis=1),
        class_names=("NORMAL", "PNEUMONIA"),
        split="test",
    )


def coverage(
    studies: int, num_patients: int, separation: float, scale: float, num_resamples: int, seed: int
) -> dict[str, float]:
    """Metric: share of the studies whose interval holds the population's value."""
    truth, rng = simulated_truth(separation, scale), np.random.default_rng(seed)
    covered, counted = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for study in tqdm(range(studies), unit="study", leave=False):
        predictions = simulated(rng, separation, scale, num_patients)
        report = compute_metrics(predictions, num_resamples, seed=study)
        for name, value in truth.items():
            entry = report[name] if name in METRIC_NAMES else next(iter(report[name].values()))
            if entry["low"] is not None:
                counted[name] += 1
                covered[name] += entry["low"] - 1e-12 <= value <= entry["high"] + 1e-12
    return {name: covered[name] / counted[name] for name in truth}


if __name__ == "__main__":
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    found = [coverage(studies, *setting, num_resamples=1000, seed=10) for setting in SETTINGS]
    print(f"{'patients, separation, scale':28}", *SETTINGS, sep="  ")
    for name in found[0]:
        cells = (f"{shares[name]:.3f}".rjust(len(str(s))) for shares, s in zip(found, SETTINGS))
        print(f"{name:28}", *cells, sep="  ")
