"""Resamples of patients, and the 95 % intervals built on them.

Which interval was chosen by simulation: studies of 120 to 300 patients with one to six alike images
each, where the true value is known (`tests/test_evaluation_intervals.py` repeats a short form).
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import expit, logit, stdtrit

CONFIDENCE_LEVEL = 0.95
TAIL = (1 - CONFIDENCE_LEVEL) / 2
# Where more resamples than this leave a metric undefined, the rest no longer describe its spread.
MAX_UNDEFINED_SHARE = 0.05
MAX_BLOCK_WEIGHTS = 2_000_000  # 16 MB an array

# A scale's link, its inverse, and the link's slope.
SCALES: dict[str, tuple[Callable, Callable, Callable]] = {
    "linear": (lambda v: v, lambda x: x, lambda v: 1.0),
    "log": (np.log, np.exp, lambda v: 1 / v),
    "logit": (logit, expit, lambda v: 1 / (v * (1 - v))),
    "fisher": (np.arctanh, np.tanh, lambda v: 1 / (1 - v**2)),
}


def resample_weights(
    patient_ids: np.ndarray, num_resamples: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Bootstrap resamples of patients, as the number of times each image is drawn.

    A resample draws as many patients as there are, with replacement, and takes all images of each
    (cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8).

    Args:
        patient_ids: str (N,).
        num_resamples: 0 or more.
        seed: of the draws.

    Yields:
        float64 (r, N) blocks of whole numbers, `num_resamples` rows in all; the block size bounds
        the memory and changes no draw.

    Raises:
        ValueError: a negative `num_resamples`.
    """
    if num_resamples < 0:
        raise ValueError(f"num_resamples is {num_resamples}; give 0 or more.")
    patients, patient_index = np.unique(patient_ids, return_inverse=True)
    rng = np.random.default_rng(seed)
    block_rows = max(1, MAX_BLOCK_WEIGHTS // len(patient_ids))
    for start in range(0, num_resamples, block_rows):
        rows = min(block_rows, num_resamples - start)
        drawn = rng.integers(len(patients), size=(rows, len(patients)))
        drawn += np.arange(rows)[:, None] * len(patients)
        counts = np.bincount(drawn.ravel(), minlength=rows * len(patients))
        yield counts.reshape(rows, -1)[:, patient_index].astype(np.float64)


def interval(value: float, resampled: np.ndarray, num_patients: int, scale: str) -> dict:
    """The 95 % interval of a metric: `{"low", "high"}`, both None with a `reason` if there is none.

    `scale` names the link on which the interval is value +- t * standard error, the bootstrap's
    standard error carried over by the link's slope, Student's t with a degree of freedom a patient
    less one: "logit" for a share, "fisher" (atanh) for a correlation, "log" for a loss, "linear"
    for a difference. In simulation that is at least as close to 95 % as the percentile and the
    BCa interval are, most of all near 1, and stays within the metric's range. "percentile" takes
    the bootstrap's own 2.5 % and 97.5 % points: for what is read off a ROC curve at a fixed rate,
    whose standard error says less.

    Args:
        value: the metric on the sample itself.
        resampled: float64 (R,), NaN where a resample leaves the metric undefined.
        num_patients: of the sample.
        scale: a key of `SCALES`, or "percentile".
    """
    reason = no_interval(resampled, num_patients)
    if reason:
        return {"low": None, "high": None, "reason": reason}
    defined = resampled[~np.isnan(resampled)]
    if scale == "percentile":
        low, high = np.quantile(defined, [TAIL, 1 - TAIL])
    else:
        link, inverse, slope = SCALES[scale]
        # A bootstrap of P patients understates the variance by (P - 1) / P.
        error = defined.std() * np.sqrt(num_patients / (num_patients - 1))
        half_width = stdtrit(num_patients - 1, 1 - TAIL) * error * slope(value)
        low, high = inverse(link(value) - half_width), inverse(link(value) + half_width)
    return {"low": float(low), "high": float(high)}


def no_interval(resampled: np.ndarray, num_patients: int) -> str | None:
    """Why these resamples, (R,) or (R, B), give no interval; None where they do."""
    if len(resampled) == 0:
        return "no resamples were drawn"
    undefined = int(np.isnan(resampled).reshape(len(resampled), -1).any(axis=1).sum())
    if num_patients < 2:
        return "an interval needs at least two patients"
    if undefined > MAX_UNDEFINED_SHARE * len(resampled):
        return f"undefined in {undefined} of {len(resampled)} resamples"
    # Equal but for rounding.
    if (np.nanmax(resampled, axis=0) - np.nanmin(resampled, axis=0)).max() < 1e-12:
        return "every resample gives the same value"
    return None


def mean_entries(
    values: np.ndarray, patient_ids: np.ndarray, num_resamples: int, seed: int
) -> list[dict]:
    """The mean of each column over the images where it is defined, with its interval.

    Args:
        values: float64 (N, M), NaN where undefined.
        patient_ids: str (N,).
        num_resamples: of patients; 0 leaves the intervals out.
        seed: of the resamples.

    Returns:
        For each column `{"value", "low", "high", "n"}`, n counting the images where it is defined;
        one defined in no image is `{"value": None, "reason", "n": 0}`.
    """
    defined = ~np.isnan(values)
    filled, counted = np.where(defined, values, 0), defined.astype(np.float64)
    means, entries = np.empty((0, values.shape[1])), []
    for weights in resample_weights(patient_ids, num_resamples, seed):
        size = weights @ counted
        block = np.divide(weights @ filled, size, out=np.full(size.shape, np.nan), where=size > 0)
        means = np.concatenate([means, block])
    for k, found in enumerate(defined.T):
        number = int(found.sum())
        if number == 0:
            entries.append({"value": None, "reason": "undefined in every image", "n": 0})
            continue
        value, patients = float(values[found, k].mean()), len(np.unique(patient_ids[found]))
        bounds = interval(value, means[:, k], patients, "linear")
        entries.append({"value": value, **bounds, "n": number})
    return entries


def calibration_error(gaps: np.ndarray, resampled: np.ndarray, num_patients: int) -> dict:
    """The expected calibration error of binned gaps: its value, debiased value and interval.

    The plug-in value, the sum of the bins' |gap|, is biased upward, since noise adds to every
    bin's |gap| (Brocker 2012; Kumar et al. 2019), and a bootstrap adds the same noise once more:
    its percentile interval never covers the 0 of a calibrated model. So the noise is modelled
    instead. With e* = resampled - observed gaps, a population whose gaps are t times the observed
    ones would give plug-in values sum |t * gaps + e*|; `low` and `high` are the population's
    errors that leave the observed value at the 97.5 % and 2.5 % point of that distribution (an
    interval by test inversion), `debiased` the one that leaves it at the median. The interval is
    one for the error of the population in these bins; the plug-in value may lie above it.

    Args:
        gaps: float64 (B,), each bin's share of the images times mean(p - y).
        resampled: float64 (R, B), the same of the bootstrap's resamples; NaN as in `interval`.
        num_patients: of the sample.
    """
    value = np.abs(gaps).sum()
    entry = {"value": float(value), "debiased": None}
    reason = no_interval(resampled, num_patients)
    if reason is None and value == 0:
        reason = "no bin has a gap"
    if reason:
        return entry | {"low": None, "high": None, "reason": reason}
    noise = resampled[~np.isnan(resampled).any(axis=1)] - gaps

    def share_below(scale: float) -> float:
        return (np.abs(scale * gaps + noise).sum(axis=1) <= value).mean()

    # No scale beyond this one leaves any resample at or below the value.
    largest = 1 + np.abs(noise).sum(axis=1).max() / value

    def error_at(share: float) -> float:
        if share_below(0) <= share:
            return 0.0
        below, above = 0.0, largest
        for _ in range(30):
            middle = (below + above) / 2
            below, above = (middle, above) if share_below(middle) > share else (below, middle)
        return float(below * value)

    return entry | {"debiased": error_at(0.5), "low": error_at(1 - TAIL), "high": error_at(TAIL)}
