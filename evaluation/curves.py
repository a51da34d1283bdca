"""ROC and precision-recall curves as numbers, with their bootstrap bands."""

from collections.abc import Callable

import numpy as np

from evaluation.bootstrap import TAIL, resample_weights
from evaluation.metrics import cumulative_counts
from evaluation.predictions import Predictions

BAND_GRID = np.linspace(0, 1, 201)

Points = tuple[np.ndarray, np.ndarray]


def roc_points(tp: np.ndarray, fp: np.ndarray) -> Points:
    """(1 - specificity, sensitivity) at the corners of the ROC; empty without one of the groups.

    Args:
        tp: (T + 1,), true positives, a row of `cumulative_counts`.
        fp: false positives, likewise.
    """
    if not tp[-1] or not fp[-1]:
        return np.empty(0), np.empty(0)
    # On the counts, which are whole numbers, a straight line is exactly straight.
    bends = (np.diff(tp, 2) != 0) | (np.diff(fp, 2) != 0)
    corners = np.r_[True, bends, True]
    return fp[corners] / fp[-1], tp[corners] / tp[-1]


def pr_points(tp: np.ndarray, fp: np.ndarray) -> Points:
    """(recall, precision) as steps; empty without a positive.

    A step ends at a threshold that adds a true positive, and has its precision: the area under
    the steps is the average precision that `compute_metrics` gives as AUPRC.

    Args:
        tp: (T + 1,), true positives, a row of `cumulative_counts`.
        fp: false positives, likewise.
    """
    if not tp[-1]:
        return np.empty(0), np.empty(0)
    adds = np.flatnonzero(np.diff(tp)) + 1
    recall, precision = tp[adds] / tp[-1], tp[adds] / (tp[adds] + fp[adds])
    return np.r_[0, np.repeat(recall, 2)[:-1]], np.repeat(precision, 2)


CURVES: dict[str, Callable[[np.ndarray, np.ndarray], Points]] = {
    "roc": roc_points,
    "pr": pr_points,
}


def curve_bands(
    predictions: Predictions, num_resamples: int = 2000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Pointwise 95 % bands of a binary task's curves, from the bootstrap over patients.

    Returns:
        Of "roc" and "pr" each the bounds, float64 (2, 201), of the curve's height over `BAND_GRID`;
        one that no resample has a curve for is left out, and all of more classes than two.
    """
    if predictions.multi_label or len(predictions.class_names) > 2:
        return {}
    heights = {name: [] for name in CURVES}
    positive, scores = predictions.labels == 1, predictions.log_odds[:, 1]
    for weights in resample_weights(predictions.patient_id, num_resamples, seed):
        for counts in zip(*cumulative_counts(positive, scores, weights)):
            for name, points in CURVES.items():
                x, y = points(*counts)
                if len(x):
                    heights[name].append(np.interp(BAND_GRID, x, y))
    return {
        name: np.quantile(found, [TAIL, 1 - TAIL], axis=0)
        for name, found in heights.items()
        if found
    }
