"""From logits to calibrated probabilities and decisions, as fitted on the validation split.

The maps act on log-odds: of class 1 in a two-class model, of each class in a multi-label one; more
exclusive classes share a temperature. They are those of `CxrConfig`.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from .arrays_cxr import Array, cast, like, namespace

METHODS = ("temperature", "platt", "isotonic", "operating_point")


def calibrate(logits: Array, calibration: dict | None, multi_label: bool) -> Array:
    """Calibrated logits.

    Args:
        logits: float (B, K), an array or a tensor.
        calibration: see `CxrConfig`; None leaves the logits as they are.
        multi_label: whether each class is told by itself.

    Returns:
        float64 (B, K), or float32 on a device without float64; with a map of class 1 alone, the
        columns 0 and the log-odds.
    """
    # An isotonic map can be steep: float32 would not tell its knots apart.
    logits = cast(logits, "float32" if str(logits.device).startswith("mps") else "float64")
    if calibration is None:
        return logits
    if calibration["method"] == "temperature":
        return logits / calibration["temperature"]
    log_odds = logits if multi_label else logits[:, 1:] - logits[:, :1]
    if calibration["method"] == "platt":
        log_odds = like(logits, calibration["scale"]) * log_odds + like(logits, calibration["bias"])
    elif calibration["method"] == "operating_point":
        log_odds = _centre(log_odds, like(logits, calibration["threshold"]))
    else:
        knots = zip(log_odds.T, calibration["log_odds"], calibration["calibrated"])
        log_odds = namespace(logits).stack([_piecewise_linear(*knot) for knot in knots], 1)
    return log_odds if multi_label else log_odds * like(logits, [0, 1])


def _piecewise_linear(x: Array, knots: Sequence[float], values: Sequence[float]) -> Array:
    """Linear between the knots, flat outside: the first value plus every segment's share of rise.

    Clips alone, so that it exports to ONNX and has a gradient.
    """
    xp, knots, values = namespace(x), like(x, knots), like(x, values)
    shares = ((x[:, None] - knots[:-1]) / xp.diff(knots)).clip(0, 1)
    return values[0] + (shares * xp.diff(values)).sum(1)


def _centre(log_odds: Array, threshold: Array) -> Array:
    """Log-odds of probabilities scaled so that the threshold becomes 0.5.

    Below the threshold t, p / 2t; above, 1 - (1 - p) / 2(1 - t): TorchXRayVision's `op_norm`.
    """
    xp, half = namespace(log_odds), math.log(0.5)
    zero = 0 * log_odds
    # Logarithms of the new p and of 1 - it, each on its own side, where it is at most that of 0.5.
    below = (-xp.logaddexp(zero, -log_odds) - xp.log(2 * threshold)).clip(max=half)
    above = (-xp.logaddexp(zero, log_odds) - xp.log(2 * (1 - threshold))).clip(max=half)
    return xp.where(
        log_odds < xp.log(threshold / (1 - threshold)),
        below - xp.log1p(-xp.exp(below)),
        xp.log1p(-xp.exp(above)) - above,
    )


def to_probabilities(
    calibrated: Array,
    multi_label: bool,
    old: Sequence[float] | None = None,
    new: float | Sequence[float] | None = None,
) -> Array:
    """Softmax or sigmoid of calibrated logits, at another prevalence if one is given.

    Bayes' rule for classes that look alike in both places: each probability times new / old,
    renormalised (Saerens, Latinne and Decaestecker 2002, equation 2.4); in a multi-label model the
    odds of each class.

    Args:
        calibrated: float (B, K), see `calibrate`.
        multi_label: a sigmoid each, not a softmax over the classes.
        old: share of each class where the model was calibrated, (K,).
        new: the same where the images come from, or the share of class 1 of two; None leaves the
            probabilities at the old prevalence.

    Returns:
        (B, K) in [0, 1]; float32 of a tensor, the array's own dtype else.

    Raises:
        ValueError: the old prevalence is unknown, or the new one does not fit.
    """
    if new is not None:
        if old is None:
            raise ValueError(
                "prevalence needs a model that knows its own: config.prevalence is None; calibrate "
                "the model first, or leave prevalence out."
            )
        if isinstance(new, Real):
            new = [1 - new, new] if len(old) == 2 and not multi_label else [new]
        new = [float(share) for share in new]
        check_prevalence(new, len(old), multi_label)
        calibrated = calibrated + like(calibrated, _log_ratio(new, old))
        if multi_label:
            absent = [[1 - share for share in shares] for shares in (new, old)]
            calibrated = calibrated - like(calibrated, _log_ratio(*absent))
    xp = namespace(calibrated)
    if xp is not np:
        return (calibrated.sigmoid() if multi_label else calibrated.softmax(-1)).float()
    if multi_label:
        return np.exp(-np.logaddexp(0, -calibrated))
    powers = np.exp(calibrated - calibrated.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _log_ratio(new: Sequence[float], old: Sequence[float]) -> list[float]:
    return [math.log(a / b) for a, b in zip(new, old)]


def decide(
    probabilities: Array,
    thresholds: Sequence[float] | None,
    abstention: Sequence[Sequence[float]] | None,
    multi_label: bool,
) -> Array:
    """Decisions at the operating point.

    Args:
        probabilities: float (B, K), calibrated, an array or a tensor.
        thresholds: see `CxrConfig`.
        abstention: see `CxrConfig`.
        multi_label: decide for each class by itself, not for one of them.

    Returns:
        int64 (B,) class indices, or (B, K) of 1 and 0 when `multi_label`; -1 in a band.
    """
    if not multi_label and probabilities.shape[1] > 2:
        return probabilities.argmax(1)
    reported = probabilities if multi_label else probabilities[:, 1:]
    if thresholds is None:
        decided = reported > 0.5
    else:
        decided = reported >= like(reported, thresholds)
    decided = cast(decided, "int64")
    if abstention is not None:
        low, high = like(reported, abstention).T
        decided = namespace(reported).where((reported >= low) & (reported <= high), -1, decided)
    return decided if multi_label else decided[:, 0]


# ------------------------------------------------------------------- what a configuration may say


def check_operation(
    calibration: dict | None,
    thresholds: Sequence[float] | None,
    abstention: Sequence[Sequence[float]] | None,
    prevalence: Sequence[float] | None,
    num_labels: int,
    multi_label: bool,
) -> None:
    """Refuses what `calibrate`, `to_probabilities` and `decide` could not use.

    Raises:
        ValueError: a wrong shape or value, named.
    """
    exclusive = not multi_label and num_labels != 2
    count = num_labels if multi_label else 1
    if calibration is not None:
        _check_calibration(calibration, count, exclusive)
    for name, given in (("thresholds", thresholds), ("abstention", abstention)):
        if given is not None and exclusive:
            raise ValueError(
                f"{name} is {given}; it is for two classes or a multi-label model, and None for "
                f"{num_labels} exclusive classes."
            )
    if thresholds is not None and not (
        _are_numbers(thresholds, count) and all(0 <= value <= 1 for value in thresholds)
    ):
        raise ValueError(f"thresholds is {thresholds}; it takes {count} in [0, 1].")
    if abstention is not None and not (
        _is_list(abstention, count)
        and all(_are_numbers(band, 2) and 0 <= band[0] <= band[1] <= 1 for band in abstention)
    ):
        raise ValueError(f"abstention is {abstention}; it takes {count} of [low, high] in [0, 1].")
    if prevalence is not None:
        check_prevalence(prevalence, num_labels, multi_label)


def check_prevalence(prevalence: Sequence[float], num_labels: int, multi_label: bool) -> None:
    """Refuses what is not one share a class.

    Raises:
        ValueError: another number of shares, one outside (0, 1), or a sum other than 1 (within
            0.001) for exclusive classes.
    """
    fits = _are_numbers(prevalence, num_labels) and all(0 < share < 1 for share in prevalence)
    if not fits or not (multi_label or abs(sum(prevalence) - 1) < 1e-3):
        total = "" if multi_label else ", that add up to 1"
        raise ValueError(
            f"prevalence is {prevalence}; it takes {num_labels} shares between 0 and 1{total}."
        )


def _check_calibration(calibration: Any, count: int, exclusive: bool) -> None:
    method = calibration.get("method") if isinstance(calibration, dict) else None
    if method not in METHODS:
        raise ValueError(
            f"calibration is {calibration!r}; it takes a dict with the method {', '.join(METHODS)}."
        )
    if exclusive and method != "temperature":
        raise ValueError(
            f"calibration is by {method!r}; more than two exclusive classes take 'temperature'."
        )
    if method == "temperature":
        given = calibration.get("temperature")
        if not _are_numbers([given], 1) or given <= 0:
            raise ValueError(f"calibration's temperature is {given!r}; it takes a number above 0.")
    elif method == "platt":
        scale, bias = calibration.get("scale"), calibration.get("bias")
        if not (_are_numbers(scale, count) and min(scale) > 0 and _are_numbers(bias, count)):
            raise ValueError(
                f"calibration's scale and bias are {scale} and {bias}; it takes {count} numbers "
                "each, the scales above 0."
            )
    elif method == "operating_point":
        given = calibration.get("threshold")
        if not (_are_numbers(given, count) and 0 < min(given) and max(given) < 1):
            raise ValueError(
                f"calibration's threshold is {given}; it takes {count} numbers between 0 and 1."
            )
    else:
        maps = [calibration.get("log_odds"), calibration.get("calibrated")]
        if not all(_is_list(part, count) for part in maps) or not all(map(_is_rising, *maps)):
            raise ValueError(
                f"calibration's log_odds and calibrated take {count} lists of as many knots each, "
                "finite, the first rising and the second not falling."
            )


def _is_rising(knots: Any, values: Any) -> bool:
    if not _is_list(knots) or not knots:
        return False
    if not (_are_numbers(knots, len(knots)) and _are_numbers(values, len(knots))):
        return False
    rising = all(a < b for a, b in zip(knots, knots[1:]))
    return rising and all(a <= b for a, b in zip(values, values[1:]))


def _is_list(given: Any, length: int | None = None) -> bool:
    return isinstance(given, (list, tuple)) and (length is None or len(given) == length)


def _are_numbers(given: Any, length: int) -> bool:
    return _is_list(given, length) and all(
        isinstance(value, Real) and math.isfinite(value) for value in given
    )
