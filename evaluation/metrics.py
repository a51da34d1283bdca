"""Metrics with patient-clustered bootstrap intervals, from a predictions file's content alone.

Each statistic is written once, for image weights of shape (R, N): a row of ones gives its value,
the rows of `resample_weights` its bootstrap distribution, without a loop over resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.bootstrap import calibration_error, interval, resample_weights
from evaluation.predictions import Predictions

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "ece": "ECE",
    "ece_mass": "ECE (equal-mass bins)",
    "log_loss": "Log loss",
}
CALIBRATION_ERRORS = ("ece", "ece_mass")

ECE_BINS = 15

_TWO_GROUPS = "needs images with and without {name}"
_NEEDS = {
    "auroc": _TWO_GROUPS,
    "auprc": "needs an image of {name}",
    "balanced_accuracy": _TWO_GROUPS,
    "sensitivity": "needs an image of {name}",
    "specificity": "needs an image without {name}",
    "ppv": "needs an image predicted as {name}",
    "npv": "needs an image not predicted as {name}",
    "f1": "needs an image of {name} or predicted as it",
    "mcc": _TWO_GROUPS + ", both in truth and as predicted",
    "sensitivity_at_specificity": _TWO_GROUPS,
    "specificity_at_sensitivity": _TWO_GROUPS,
    "ppv_at_prevalence": _TWO_GROUPS + ", and one predicted as it",
    "npv_at_prevalence": _TWO_GROUPS + ", and one not predicted as it",
}
_SCALES = {
    "mcc": "fisher",
    "log_loss": "log",
    "sensitivity_at_specificity": "percentile",
    "specificity_at_sensitivity": "percentile",
}

# (index of a class, "macro", "micro" or None for the top; metric; target or None)
Key = tuple[int | str | None, str, str | None]


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Every statistic of a predictions file, as it is and on resamples of its patients.

    Attributes:
        values: see `statistics`, for weights of one.
        resampled: the same for each of R resamples; empty where none was drawn.
    """

    predictions: Predictions
    values: dict[Key, np.ndarray]
    resampled: dict[Key, np.ndarray]
    num_resamples: int
    seed: int


def bootstrap_statistics(
    predictions: Predictions,
    num_resamples: int = 2000,
    seed: int = 0,
    *,
    specificities: Sequence[float] = (0.9,),
    sensitivities: Sequence[float] = (0.95,),
    prevalences: Sequence[float] = (0.1,),
) -> Bootstrap:
    """What `metrics_of` and `compare_bootstraps` work on, so that each bootstrap runs once.

    Arguments and errors are those of `compute_metrics`.
    """
    targets = checked_targets(specificities, sensitivities, prevalences)
    num_images, num_classes = predictions.logits.shape
    # In as many pieces as classes: the micro average has a column an image and class.
    pieces = [
        statistics(predictions, rows, targets)
        for weights in resample_weights(predictions.patient_id, num_resamples, seed)
        for rows in np.array_split(weights, num_classes)
    ]
    values = statistics(predictions, np.ones((1, num_images)), targets)
    resampled = {
        key: np.concatenate([piece[key] for piece in pieces]) if pieces else np.empty(0)
        for key in values
    }
    return Bootstrap(predictions, values, resampled, num_resamples, seed)


def compute_metrics(
    predictions: Predictions,
    num_resamples: int = 2000,
    seed: int = 0,
    *,
    specificities: Sequence[float] = (0.9,),
    sensitivities: Sequence[float] = (0.95,),
    prevalences: Sequence[float] = (0.1,),
) -> dict:
    """Metrics of one predictions file, ready for JSON (no NaN, no NumPy type).

    Binary: the class with index 1 is the positive one, and the result holds its `prevalence`, the
    counts `tn`, `fp`, `fn`, `tp`, each metric of `METRIC_NAMES`, and, an entry a target, such as
    `{"0.9": entry}`: `sensitivity_at_specificity` and `specificity_at_sensitivity` (the best over
    all thresholds that keep at least the target), `ppv_at_prevalence` and `npv_at_prevalence`
    (Bayes' rule on the sensitivity and specificity of the decisions). More classes, or
    multi-label: the same for every class against the rest under `classes`; their unweighted mean
    under `macro`, over the classes that have one, the others named by `without` (`macro`'s
    sensitivity is what multi-class work calls balanced accuracy); for multi-label under `micro`
    the metrics of all (image, class) pairs together; at the top the macro `auroc` and, for
    single-label, `accuracy` and `confusion_matrix` (rows: true class). The decision is
    `Predictions.decisions`.

    A metric is `{"value", "low", "high"}`, with the 95 % interval of `bootstrap.interval` over
    patients; one that the sample leaves undefined is `{"value": None, "reason"}`; one without an
    interval has `low` and `high` None and a `reason`. In 1,000 simulated studies each of 120 to
    300 patients (AUROC .86 and .95, calibrated and overconfident) the interval holds the true
    value in 93-97 %, for every metric. With an AUROC of .995 that AUROC, AUPRC and log loss are
    held in 92 % and an overconfident model's ECE in 99 %: they hang on a few images.

    The two calibration errors differ: `value` is the usual plug-in ECE (15 bins on the
    probability of the class, of equal width or holding equal numbers of images, ties in one bin),
    which is biased upward; `debiased` and the interval are for the true error in those bins, see
    `bootstrap.calibration_error`.

    Args:
        predictions: of one split.
        num_resamples: bootstrap resamples; 0 leaves the intervals out.
        seed: two models on the same images get the same resamples from the same seed.
        specificities: rates in [0, 1] that are held, for `sensitivity_at_specificity`.
        sensitivities: likewise, for `specificity_at_sensitivity`.
        prevalences: shares in (0, 1) of the positive class.

    Raises:
        ValueError: a negative `num_resamples`, or a target outside its range.
    """
    return metrics_of(
        bootstrap_statistics(
            predictions,
            num_resamples,
            seed,
            specificities=specificities,
            sensitivities=sensitivities,
            prevalences=prevalences,
        )
    )


def metrics_of(bootstrap: Bootstrap) -> dict:
    """What `compute_metrics` gives, of statistics that are there already."""
    predictions = bootstrap.predictions
    num_patients = len(np.unique(predictions.patient_id))

    def entry(key: Key) -> dict:
        group, metric, _ = key
        value, resampled = bootstrap.values[key][0], bootstrap.resampled[key]
        if metric in CALIBRATION_ERRORS:
            return calibration_error(value, resampled, num_patients)
        if np.isnan(value):
            return {"value": None, "reason": needs(predictions, group, metric)}
        scale = _SCALES.get(metric, "logit")
        absent = left_out(bootstrap, key)
        mean_of_some = {"without": absent} if absent else {}
        return {
            "value": float(value),
            **interval(value, resampled, num_patients, scale),
            **mean_of_some,
        }

    report = {
        "split": predictions.split,
        "task": _task(predictions),
        "n": len(predictions.image_id),
        "patients": num_patients,
        "class_names": list(predictions.class_names),
        "num_resamples": bootstrap.num_resamples,
        "seed": bootstrap.seed,
    }
    entries = nested({key: entry(key) for key in bootstrap.values})
    classes = {}
    for k, positive, decided, _ in one_vs_rest(predictions):
        counts = dict(zip(("tn", "fp", "fn", "tp"), _cells(positive, decided).sum(axis=0).tolist()))
        prevalence = {"prevalence": float(positive.mean())}
        classes[predictions.class_names[k]] = prevalence | counts | entries.pop(k)
    if report["task"] == "binary":
        ((name, metrics),) = classes.items()
        return report | {"positive_class": name} | metrics
    report |= entries.pop(None)
    if report["task"] == "multi_class":
        report["confusion_matrix"] = confusion_matrix(predictions).tolist()
    return report | entries | {"classes": classes}


def left_out(bootstrap: Bootstrap, key: Key) -> list[str]:
    """The classes that a mean over classes leaves out, as the sample does not define theirs."""
    group, metric, target = key
    names = bootstrap.predictions.class_names
    if group not in ("macro", None) or (0, metric, target) not in bootstrap.values:
        return []
    values = (bootstrap.values[k, metric, target] for k in range(len(names)))
    return [name for name, value in zip(names, values) if np.isnan(value).any()]


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """int64 counts (K, K), rows the true class, columns the decision.

    Multi-label: (K, 2, 2), for each class absent before present.
    """
    num_classes = len(predictions.class_names)
    if predictions.multi_label:
        cells = [_cells(p, d).sum(axis=0) for _, p, d, _ in one_vs_rest(predictions)]
        return np.reshape(cells, (num_classes, 2, 2))
    pairs = predictions.labels * num_classes + predictions.decisions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


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
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    weights = weights[:, order]
    counts = []
    for group in (positive[order], ~positive[order]):
        passed = np.zeros((len(weights), len(ends) + 1))
        passed[:, 1:] = (weights * group).cumsum(axis=1)[:, ends]
        counts.append(passed)
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


def one_vs_rest(
    predictions: Predictions,
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(index, positive, decided, log-odds) of each class to report; of a binary task, class 1.

    The arrays are (N,): two bool, one float64.
    """
    indices = [1] if _task(predictions) == "binary" else range(len(predictions.class_names))
    labels, decisions, log_odds = predictions.labels, predictions.decisions, predictions.log_odds
    found = []
    for k in indices:
        positive = labels[:, k] if predictions.multi_label else labels == k
        decided = decisions[:, k] if predictions.multi_label else decisions == k
        found.append((k, positive, decided, log_odds[:, k]))
    return found


def statistics(
    predictions: Predictions, weights: np.ndarray, targets: dict[str, Sequence[float]]
) -> dict[Key, np.ndarray]:
    """Every metric for weights (R, N), each float64 (R,), NaN where undefined.

    A calibration error is (R, B) instead: the gaps of its bins, whose absolute values add up to it.

    Args:
        predictions: of N images.
        weights: float64 (R, N), how often each image counts.
        targets: the rates to hold, under "sensitivity_at_specificity",
            "specificity_at_sensitivity" and "at_prevalence".
    """
    found, whole, one_class = {}, {}, {}
    for k, *of_class in one_vs_rest(predictions):
        one_class = _class_statistics(*of_class, weights, targets)
        found |= {(k, *key): values for key, values in one_class.items()}
        for key, values in _class_statistics(*of_class, np.ones_like(weights[:1]), targets).items():
            whole[k, *key] = values[0]
    if _task(predictions) == "binary":
        return found
    indices = range(len(predictions.class_names))
    for metric, target in one_class:
        # A resample may lack what the sample has, and is then left out; what the sample lacks is
        # left out of the mean.
        has = [k for k in indices if not np.isnan(whole[k, metric, target]).any()]
        values = [found[k, metric, target] for k in has or indices]
        if metric in CALIBRATION_ERRORS:
            # Bins of all classes, side by side: the sum over them is the mean over classes.
            found["macro", metric, target] = np.concatenate(values, axis=1) / len(indices)
        else:
            found["macro", metric, target] = np.mean(values, axis=0)
    found[None, "auroc", None] = found["macro", "auroc", None]
    if predictions.multi_label:
        pairs = (predictions.labels, predictions.decisions, predictions.log_odds)
        weights = weights.repeat(len(indices), axis=1)
        micro = _class_statistics(*(pair.ravel() for pair in pairs), weights, targets)
        found |= {("micro", *key): values for key, values in micro.items()}
    else:
        right = predictions.labels == predictions.decisions
        found[None, "accuracy", None] = weights @ right / weights.sum(axis=1)
    return found


def checked_targets(
    specificities: Sequence[float], sensitivities: Sequence[float], prevalences: Sequence[float]
) -> dict[str, Sequence[float]]:
    """The `targets` of `statistics`.

    Raises:
        ValueError: a rate outside [0, 1], or a prevalence that is not between 0 and 1.
    """
    for rate in (*specificities, *sensitivities):
        if not 0 <= rate <= 1:
            raise ValueError(f"{rate} is no sensitivity or specificity; give one in [0, 1].")
    for prevalence in prevalences:
        if not 0 < prevalence < 1:
            raise ValueError(f"{prevalence} is no prevalence; give one between 0 and 1.")
    return {
        "sensitivity_at_specificity": specificities,
        "specificity_at_sensitivity": sensitivities,
        "at_prevalence": prevalences,
    }


def needs(predictions: Predictions, group: int | str | None, metric: str) -> str:
    """What a metric lacks where `statistics` gives NaN."""
    if isinstance(group, int):
        name = predictions.class_names[group]
    else:
        name = "any class" if group == "micro" else "one class at least"
    return _NEEDS[metric].format(name=name)


def nested(flat: dict[Key, dict]) -> dict[int | str | None, dict]:
    """{group: {metric: entry, or {target: entry}}} of {(group, metric, target): entry}."""
    found = {}
    for (group, metric, target), entry in flat.items():
        entries = found.setdefault(group, {})
        if target is None:
            entries[metric] = entry
        else:
            entries.setdefault(metric, {})[target] = entry
    return found


def _class_statistics(
    positive: np.ndarray,
    decided: np.ndarray,
    log_odds: np.ndarray,
    weights: np.ndarray,
    targets: dict[str, Sequence[float]],
) -> dict[tuple[str, str | None], np.ndarray]:
    total = weights.sum(axis=1)
    tn, fp, fn, tp = (weights @ _cells(positive, decided)).T
    positives, negatives = tp + fn, tn + fp
    sensitivity, specificity = _ratio(tp, positives), _ratio(tn, negatives)
    above_tp, above_fp = cumulative_counts(positive, log_odds, weights)
    area = (np.diff(above_fp) * (above_tp[:, 1:] + above_tp[:, :-1])).sum(axis=1) / 2
    # Precision is undefined where no drawn image passes the threshold; no recall is added there.
    precision = np.nan_to_num(_ratio(above_tp, above_tp + above_fp))[:, 1:]
    recalled = (np.diff(above_tp) * precision).sum(axis=1)
    probability = np.exp(-np.logaddexp(0, -log_odds))
    error = probability - positive
    loss = np.logaddexp(0, np.where(positive, -log_odds, log_odds))
    # In this order a perfect table gives exactly 1: the root of a rounded square is exact.
    margins = ((tp + fp) * positives) * ((tn + fn) * negatives)
    # Naeini et al. 2015, on the probability of the positive class: a bin's n_bin / n times
    # |mean(y) - mean(p)| is |sum(y - p)| / n, so one product gives all bins of all resamples.
    width_bins = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)
    below = np.searchsorted(np.sort(log_odds), log_odds)  # equal for ties, so they share a bin
    mass_bins = below * ECE_BINS // len(log_odds)
    gaps = [
        weights @ (error[:, None] * (bins[:, None] == np.arange(ECE_BINS))) / total[:, None]
        for bins in (width_bins, mass_bins)
    ]
    found = {
        "auroc": _ratio(area, positives * negatives),
        "auprc": _ratio(recalled, positives),
        "accuracy": (tp + tn) / total,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": _ratio(tp * tn - fp * fn, np.sqrt(margins)),
        "brier": weights @ error**2 / total,
        "ece": gaps[0],
        "ece_mass": gaps[1],
        "log_loss": weights @ loss / total,
    }
    found = {(metric, None): values for metric, values in found.items()}
    rows = np.arange(len(weights))
    both = (positives > 0) & (negatives > 0)
    # 1e-9 of an image: a target times a count need not be whole where it should be.
    for target in targets["sensitivity_at_specificity"]:
        allowed = (1 - target) * negatives[:, None] + 1e-9
        last = (above_fp <= allowed).sum(axis=1) - 1
        reached = np.where(both, above_tp[rows, last], np.nan)
        found["sensitivity_at_specificity", f"{target:g}"] = _ratio(reached, positives)
    for target in targets["specificity_at_sensitivity"]:
        first = (above_tp < target * positives[:, None] - 1e-9).sum(axis=1)
        kept = np.where(both, negatives - above_fp[rows, first], np.nan)
        found["specificity_at_sensitivity", f"{target:g}"] = _ratio(kept, negatives)
    for target in targets["at_prevalence"]:
        true_positive, false_positive = target * sensitivity, (1 - target) * (1 - specificity)
        true_negative, false_negative = (1 - target) * specificity, target * (1 - sensitivity)
        ppv = _ratio(true_positive, true_positive + false_positive)
        npv = _ratio(true_negative, true_negative + false_negative)
        found["ppv_at_prevalence", f"{target:g}"] = ppv
        found["npv_at_prevalence", f"{target:g}"] = npv
    return found


def _cells(positive: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """int64 (N, 4) indicators of tn, fp, fn, tp."""
    return ((2 * positive + decided)[:, None] == np.arange(4)).astype(np.int64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    undefined = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
