"""Metrics by subgroup: of images that the extra columns of a predictions file tell apart."""

from collections.abc import Sequence

import numpy as np

from evaluation.bootstrap import interval
from evaluation.metrics import (
    CALIBRATION_ERRORS,
    Bootstrap,
    Key,
    bootstrap_statistics,
    compute_metrics,
    metrics_of,
)
from evaluation.predictions import Predictions

SUBGROUP_METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "ece")
UNKNOWN = "unknown"  # the group of images with an empty cell
MIN_GROUP = 10
MAX_CATEGORIES = 10
# Years; those of Seyyed-Kalantari et al., Nature Medicine 27:2176, 2021.
AGE_BANDS = (0, 20, 40, 60, 80, np.inf)


def subgroups(
    predictions: Predictions,
    columns: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Metrics of each group of images that the extra columns tell apart, ready for JSON.

    A column of numbers with more than `MAX_CATEGORIES` values is cut into thirds, whose bounds are
    the groups' names, and `age` into bands of twenty years, where it fills two; any other is
    grouped by its values. Images with an empty cell are the group "unknown". `original_pixels` is
    `original_width` times `original_height`, where both are.

    A group with images of one class only (bacteria: all pneumonia) has no AUROC of its own. In a
    binary task it is compared with all images of the other class; its row then says so in
    `against`, and its other metrics stay its own.

    Each known group stands against the largest of its column: `gap` holds its metrics minus those
    of that one, of more classes, or multi-label, the mean over those that both have. The two are
    taken as independent, which makes the interval wide rather than narrow where patients are in
    both.

    Groups below `MIN_GROUP` images are left out, and counted in one row of their column without
    metrics.

    Args:
        predictions: of one split, at their operating point.
        columns: of `predictions.extra`, or "original_pixels"; None takes every column that makes at
            least two groups, but free text and the width and height behind `original_pixels`.
        num_resamples: bootstrap resamples; 0 leaves the intervals out.
        seed: of the resamples.

    Returns:
        A dict a group: `column`, `value` (the group), `n`, `patients`, and `metrics` with each of
        `SUBGROUP_METRICS` as an entry of `compute_metrics`: of more classes, or multi-label, the
        mean over them, and those of each class in `classes`. `gap` is `{"against": the largest
        group, "metrics"}`, with an entry of each; the largest has none, nor has "unknown".

    Raises:
        ValueError: an unknown column, or one asked for that is empty or holds free text.
    """
    available = dict(predictions.extra)
    sides = [_numbers(available.get(side)) for side in ("original_width", "original_height")]
    if all(side is not None for side in sides):
        pixels = sides[0] * sides[1]
        available["original_pixels"] = np.where(np.isnan(pixels), "", pixels.astype(str))
    if columns is None:
        hidden = {"original_width", "original_height"} if "original_pixels" in available else set()
        shown = {name: cells for name, cells in available.items() if name not in hidden}
        grouped = {name: _groups(name, cells) for name, cells in shown.items()}
        grouped = {name: groups for name, groups in grouped.items() if groups and len(groups) > 1}
    else:
        for name in columns:
            if name not in available:
                raise ValueError(f"no column {name!r} to group by; there is {sorted(available)}.")
        grouped = {name: _groups(name, available[name]) for name in columns}
    rows = []
    for name, groups in grouped.items():
        if groups is None:
            raise ValueError(f"column {name!r} is empty or free text; it makes no groups.")
        small = np.zeros(len(predictions.image_id), dtype=bool)
        num_small, found = 0, {}
        for value, members in groups.items():
            if members.sum() >= MIN_GROUP:
                part = predictions.take(members)
                own = bootstrap_statistics(part, num_resamples, seed, micro=False)
                metrics = _group_metrics(predictions, members, own)
                found[value] = _row(predictions, name, value, members) | metrics, own
            else:
                small |= members
                num_small += 1
        known = [value for value in found if value != UNKNOWN]
        largest = max(known, key=lambda value: found[value][0]["n"], default=None)
        for value, (row, own) in found.items():
            if value in known and value != largest:
                row["gap"] = {"against": largest, "metrics": _gaps(own, found[largest][1])}
            rows.append(row)
        if num_small:
            reason = f"fewer than {MIN_GROUP} images a group"
            nothing = {metric: {"value": None, "reason": reason} for metric in SUBGROUP_METRICS}
            value = f"left out: {num_small} of {len(groups)} groups"
            rows.append(_row(predictions, name, value, small) | {"metrics": nothing})
    return rows


def _numbers(cells: np.ndarray | None) -> np.ndarray | None:
    """float64 (N,), NaN for an empty cell; None where a cell is no number or all are empty."""
    if cells is None or (cells == "").all():
        return None
    try:
        numbers = np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        return None
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _groups(name: str, cells: np.ndarray) -> dict[str, np.ndarray] | None:
    """{group: bool (N,)}, or None for a column that is empty or free text."""
    values, numbers = np.unique(cells[cells != ""]), _numbers(cells)
    unknown = cells == ""
    if 0 < len(values) <= MAX_CATEGORIES:
        if numbers is not None:
            values = sorted(values, key=float)
        groups = {str(value): cells == value for value in values}
    elif numbers is not None and not np.isnan(numbers).all():
        groups, unknown = _thirds(numbers), np.isnan(numbers)
        if name == "age" and len(bands := _age_bands(numbers)) > 1:
            groups = bands
    else:
        return None
    return groups | {UNKNOWN: unknown} if unknown.any() else groups


def _thirds(numbers: np.ndarray) -> dict[str, np.ndarray]:
    # Rounded first, so that the bounds in the names are the very ones that cut.
    low, high = (float(f"{cut:.4g}") for cut in np.nanquantile(numbers, [1 / 3, 2 / 3]))
    groups = {
        f"up to {_plain(low)}": numbers <= low,
        f"{_plain(low)} to {_plain(high)}": (numbers > low) & (numbers <= high),
        f"above {_plain(high)}": numbers > high,
    }
    return {name: members for name, members in groups.items() if members.any()}


def _age_bands(years: np.ndarray) -> dict[str, np.ndarray]:
    groups = {
        f"{low} to {high - 1}" if np.isfinite(high) else f"{low} and over": (
            (low <= years) & (years < high)
        )
        for low, high in zip(AGE_BANDS, AGE_BANDS[1:])
    }
    return {name: members for name, members in groups.items() if members.any()}


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:g}"


def _row(predictions: Predictions, column: str, value: str, members: np.ndarray) -> dict:
    patients = len(np.unique(predictions.patient_id[members]))
    return {"column": column, "value": value, "n": int(members.sum()), "patients": patients}


def _group_metrics(predictions: Predictions, members: np.ndarray, own: Bootstrap) -> dict:
    report = metrics_of(own)
    # Of several exclusive classes, the accuracy is that of the one decision.
    means = {name: report.get(name, report.get("macro", {}).get(name)) for name in SUBGROUP_METRICS}
    found = {"metrics": means}
    if report["task"] != "binary":
        keys = ("n", "patients", "prevalence", *SUBGROUP_METRICS)
        classes = report["classes"].items()
        return found | {"classes": {k: {key: one[key] for key in keys} for k, one in classes}}
    classes = np.unique(predictions.labels[members])
    other = predictions.labels != classes[0]
    if len(classes) == 2 or not other.any():
        return found
    wider = compute_metrics(predictions.take(members | other), own.num_resamples, own.seed)
    against = f"all {other.sum()} images of {predictions.class_names[1 - classes[0]]}"
    found["metrics"]["auroc"] = wider["auroc"]
    return {"against": against, **found}


def _gaps(one: Bootstrap, other: Bootstrap) -> dict[str, dict]:
    """Metrics of one group minus those of another, see `subgroups`."""
    found = {}
    for name in SUBGROUP_METRICS:
        keys = [key for key in one.values if key[1] == name and isinstance(key[0], int)]
        # Of several exclusive classes, the accuracy is that of the one decision.
        whole = (None, name, None)
        keys = [whole] if name == "accuracy" and whole in one.values else keys
        shared = [
            key
            for key in keys
            if not any(np.isnan(group.values[key]).any() for group in (one, other))
        ]
        absent = [one.predictions.class_names[key[0]] for key in keys if key not in shared]
        found[name] = _gap(one, other, shared) | ({"without": absent} if absent and shared else {})
    return found


def _gap(one: Bootstrap, other: Bootstrap, keys: list[Key]) -> dict:
    """The mean difference in some statistics, `{"value", "low", "high"}`."""
    if not keys:
        return {"value": None, "reason": "the two groups have none to compare"}
    # None is negative, and a calibration error is the sum over its bins.
    sizes = [np.mean([np.abs(group.values[key]).sum() for key in keys]) for group in (one, other)]
    value = float(sizes[0] - sizes[1])
    if keys[0][1] in CALIBRATION_ERRORS:
        reason = "the bias of the two calibration errors differs"
        return {"value": value, "low": None, "high": None, "reason": reason}
    # One seed draws both groups alike: a resample stands against the next one's.
    resampled = [one.resampled[key] - np.roll(other.resampled[key], 1) for key in keys]
    patients = min(len(np.unique(group.predictions.patient_id)) for group in (one, other))
    return {"value": value, **interval(value, np.mean(resampled, axis=0), patients, "linear")}
