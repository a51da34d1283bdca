"""Metrics with patient-clustered bootstrap intervals, from a predictions file's content alone.

Each statistic is written once, for image weights of shape (R, N): a row of ones gives its value,
the rows of `resample_weights` its bootstrap distribution, without a loop over resamples.
"""

from collections.abc import Iterator

import numpy as np

from evaluation.predictions import Predictions

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "ECE",
    "log_loss": "Log loss",
}

ECE_BINS = 15
CONFIDENCE_LEVEL = 0.95
# Where more resamples than this leave a metric undefined, the rest no longer describe its spread.
MAX_UNDEFINED_SHARE = 0.05
MAX_BLOCK_WEIGHTS = 2_000_000  # 16 MB an array

_NEEDS = {
    "auroc": "needs images with and without {name}",
    "auprc": "needs an image of {name}",
    "sensitivity": "needs an image of {name}",
    "specificity": "needs an image without {name}",
    "ppv": "needs an image predicted as {name}",
    "npv": "needs an image not predicted as {name}",
    "f1": "needs an image of {name} or predicted as it",
}


def compute_metrics(predictions: Predictions, num_resamples: int = 1000, seed: int = 0) -> dict:
    """Metrics of one predictions file, ready for JSON (no NaN, no NumPy type).

    Binary: the class with index 1 is the positive one, and the result holds its `prevalence`, the
    counts `tn`, `fp`, `fn`, `tp` and each metric of `METRIC_NAMES`. More classes, or multi-label:
    the same for every class against the rest under `classes`, and at the top the macro `auroc`
    (unweighted mean over classes) and, for single-label, `accuracy` and `confusion_matrix` (rows:
    true class). The decision is `Predictions.decisions`.

    A metric is `{"value", "low", "high"}`, `low` to `high` being the percentile 95 % interval of a
    bootstrap over patients. A metric that the sample leaves undefined is `{"value": None,
    "reason"}`; one without an interval has `low` and `high` None and a `reason`. The ECE of
    a small sample is biased upward and the bootstrap adds to it: for a well calibrated model its
    interval covers the true ECE far less often than 95 %.

    Args:
        num_resamples: bootstrap resamples; 0 leaves the intervals out.
        seed: two models on the same images get the same resamples from the same seed.
    """
    if num_resamples < 0:
        raise ValueError(f"num_resamples is {num_resamples}; give 0 or more.")
    num_images = len(predictions.image_id)
    num_patients = len(np.unique(predictions.patient_id))
    values = _statistics(predictions, np.ones((1, num_images)))
    blocks = [
        _statistics(predictions, weights)
        for weights in resample_weights(predictions.patient_id, num_resamples, seed)
    ]

    def entry(key):
        name, metric = key
        if np.isnan(values[key][0]):
            return {"value": None, "reason": _NEEDS[metric].format(name=name or "each class")}
        resampled = np.concatenate([block[key] for block in blocks]) if blocks else np.empty(0)
        return {"value": float(values[key][0]), **_interval(resampled, num_patients)}

    report = {
        "split": predictions.split,
        "task": _task(predictions),
        "n": num_images,
        "patients": num_patients,
        "class_names": list(predictions.class_names),
        "num_resamples": num_resamples,
        "seed": seed,
    }
    classes = {}
    for name, positive, decided, _ in _one_vs_rest(predictions):
        counts = _cells(positive, decided).sum(axis=0).tolist()
        classes[name] = {"prevalence": float(positive.mean())}
        classes[name] |= dict(zip(("tn", "fp", "fn", "tp"), counts))
        classes[name] |= {metric: entry((name, metric)) for metric in METRIC_NAMES}
    if report["task"] == "binary":
        ((name, metrics),) = classes.items()
        return report | {"positive_class": name} | metrics
    report |= {metric: entry((name, metric)) for name, metric in values if name is None}
    if report["task"] == "multi_class":
        report["confusion_matrix"] = confusion_matrix(predictions).tolist()
    return report | {"classes": classes}


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """int64 counts (K, K), rows the true class, columns the decision.

    Multi-label: (K, 2, 2), for each class absent before present.
    """
    num_classes = len(predictions.class_names)
    if predictions.multi_label:
        cells = [_cells(p, d).sum(axis=0) for _, p, d, _ in _one_vs_rest(predictions)]
        return np.reshape(cells, (num_classes, 2, 2))
    pairs = predictions.labels * num_classes + predictions.decisions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def resample_weights(
    patient_ids: np.ndarray, num_resamples: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Bootstrap resamples of patients, as the number of times each image is drawn.

    A resample draws as many patients as there are, with replacement, and takes all images of each
    (cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8).

    Args:
        patient_ids: str (N,).

    Yields:
        float64 (r, N) blocks of whole numbers, `num_resamples` rows in all; the block size bounds
        the memory and changes no draw.
    """
    patients, patient_index = np.unique(patient_ids, return_inverse=True)
    rng = np.random.default_rng(seed)
    block_rows = max(1, MAX_BLOCK_WEIGHTS // len(patient_ids))
    for start in range(0, num_resamples, block_rows):
        rows = min(block_rows, num_resamples - start)
        drawn = rng.integers(len(patients), size=(rows, len(patients)))
        drawn += np.arange(rows)[:, None] * len(patients)
        counts = np.bincount(drawn.ravel(), minlength=rows * len(patients))
        yield counts.reshape(rows, -1)[:, patient_index].astype(np.float64)


def cumulative_counts(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives as the threshold falls: the points of ROC and PR curves.

    Args:
        positive: bool (N,).
        scores: float (N,), larger for more positive; equal scores pass the threshold together.
        weights: float (R, N), how often each image counts.

    Returns:
        (tp, fp), each float64 (R, T + 1) for T distinct scores, from no image above the threshold
        to all of them.
    """
    order = np.argsort(-scores)
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    weights = weights[:, order]
    counts = []
    for group in (positive[order], ~positive[order]):
        passed = np.add.reduceat(weights * group, starts, axis=1).cumsum(axis=1)
        counts.append(np.pad(passed, ((0, 0), (1, 0))))
    return counts[0], counts[1]


def format_metric(entry: dict, digits: int = 3) -> str:
    """A metric of `compute_metrics` as text: "0.957 [0.940, 0.972]", "1.000" or "undefined"."""
    if entry["value"] is None:
        return "undefined"
    text = f"{entry['value']:.{digits}f}"
    if entry["low"] is None:
        return text
    return f"{text} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def _task(predictions: Predictions) -> str:
    if predictions.multi_label:
        return "multi_label"
    return "binary" if len(predictions.class_names) == 2 else "multi_class"


def _one_vs_rest(predictions: Predictions) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, positive, decided, log-odds) of each class to report; of a binary task, class 1."""
    indices = [1] if _task(predictions) == "binary" else range(len(predictions.class_names))
    labels, decisions, log_odds = predictions.labels, predictions.decisions, predictions.log_odds
    found = []
    for k in indices:
        positive = labels[:, k] if predictions.multi_label else labels == k
        decided = decisions[:, k] if predictions.multi_label else decisions == k
        found.append((predictions.class_names[k], positive, decided, log_odds[:, k]))
    return found


def _statistics(
    predictions: Predictions, weights: np.ndarray
) -> dict[tuple[str | None, str], np.ndarray]:
    """Every (class or None, metric) for weights (R, N), each float64 (R,), NaN where undefined."""
    found = {}
    for name, positive, decided, log_odds in _one_vs_rest(predictions):
        for metric, values in _class_statistics(positive, decided, log_odds, weights).items():
            found[name, metric] = values
    aurocs = [values for (_, metric), values in found.items() if metric == "auroc"]
    found[None, "auroc"] = np.mean(aurocs, axis=0)
    if not predictions.multi_label:
        right = predictions.labels == predictions.decisions
        found[None, "accuracy"] = weights @ right / weights.sum(axis=1)
    return found


def _class_statistics(
    positive: np.ndarray, decided: np.ndarray, log_odds: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    total = weights.sum(axis=1)
    tn, fp, fn, tp = (weights @ _cells(positive, decided)).T
    above_tp, above_fp = cumulative_counts(positive, log_odds, weights)
    area = (np.diff(above_fp) * (above_tp[:, 1:] + above_tp[:, :-1])).sum(axis=1) / 2
    # Precision is undefined where no drawn image passes the threshold; no recall is added there.
    precision = np.nan_to_num(_ratio(above_tp, above_tp + above_fp))[:, 1:]
    recalled = (np.diff(above_tp) * precision).sum(axis=1)
    probability = np.exp(-np.logaddexp(0, -log_odds))
    error = probability - positive
    # Naeini et al. 2015, on the probability of the positive class: a bin's n_bin / n times
    # |mean(y) - mean(p)| is |sum(y - p)| / n, so one product gives all bins of all resamples.
    bins = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)
    binned_error = error[:, None] * (bins[:, None] == np.arange(ECE_BINS))
    return {
        "auroc": _ratio(area, (tp + fn) * (tn + fp)),
        "auprc": _ratio(recalled, tp + fn),
        "accuracy": (tp + tn) / total,
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "brier": weights @ error**2 / total,
        "ece": np.abs(weights @ binned_error).sum(axis=1) / total,
        "log_loss": weights @ np.logaddexp(0, np.where(positive, -log_odds, log_odds)) / total,
    }


def _cells(positive: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """int64 (N, 4) indicators of tn, fp, fn, tp."""
    return ((2 * positive + decided)[:, None] == np.arange(4)).astype(np.int64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    undefined = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _interval(resampled: np.ndarray, num_patients: int) -> dict:
    defined = resampled[~np.isnan(resampled)]
    undefined = len(resampled) - len(defined)
    if len(resampled) == 0:
        reason = "no resamples were drawn"
    elif num_patients < 2:
        reason = "an interval needs at least two patients"
    elif undefined > MAX_UNDEFINED_SHARE * len(resampled):
        reason = f"undefined in {undefined} of {len(resampled)} resamples"
    elif defined.min() == defined.max():
        reason = "every resample gives the same value"
    else:
        tail = (1 - CONFIDENCE_LEVEL) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return {"low": float(low), "high": float(high)}
    return {"low": None, "high": None, "reason": reason}
