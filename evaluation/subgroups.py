"""Metrics by subgroup: of images that the extra columns of a predictions file tell apart."""

from collections.abc import Sequence

import numpy as np

from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions

SUBGROUP_METRICS = ("auroc", "accuracy", "sensitivity", "specificity")
MIN_GROUP = 10
MAX_CATEGORIES = 10


def subgroups(
    predictions: Predictions,
    columns: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Metrics of each group of images that the extra columns tell apart, ready for JSON.

    A column of numbers with more than `MAX_CATEGORIES` values is cut into thirds, whose bounds are
    the groups' names; any other is grouped by its values. Images with an empty cell are the group
    "unknown". `original_pixels` is `original_width` times `original_height`, where both are.

    A group with images of one class only (bacteria: all pneumonia) has no AUROC of its own. In a
    binary task it is compared with all images of the other class; its row then says so in
    `against`, and its other metrics stay its own.

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
        `SUBGROUP_METRICS` as an entry of `compute_metrics`.

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
        grouped = {name: _groups(cells) for name, cells in available.items() if name not in hidden}
        grouped = {name: groups for name, groups in grouped.items() if groups and len(groups) > 1}
    else:
        for name in columns:
            if name not in available:
                raise ValueError(f"no column {name!r} to group by; there is {sorted(available)}.")
        grouped = {name: _groups(available[name]) for name in columns}
    rows = []
    for name, groups in grouped.items():
        if groups is None:
            raise ValueError(f"column {name!r} is empty or free text; it makes no groups.")
        small = np.zeros(len(predictions.image_id), dtype=bool)
        num_small = 0
        for value, members in groups.items():
            if members.sum() >= MIN_GROUP:
                found = _group_metrics(predictions, members, num_resamples, seed)
                rows.append(_row(predictions, name, value, members) | found)
            else:
                small |= members
                num_small += 1
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


def _groups(cells: np.ndarray) -> dict[str, np.ndarray] | None:
    """{group: bool (N,)}, or None for a column that is empty or free text."""
    values, numbers = np.unique(cells[cells != ""]), _numbers(cells)
    unknown = cells == ""
    if 0 < len(values) <= MAX_CATEGORIES:
        if numbers is not None:
            values = sorted(values, key=float)
        groups = {str(value): cells == value for value in values}
    elif numbers is not None and not np.isnan(numbers).all():
        groups, unknown = _thirds(numbers), np.isnan(numbers)
    else:
        return None
    return groups | {"unknown": unknown} if unknown.any() else groups


def _thirds(numbers: np.ndarray) -> dict[str, np.ndarray]:
    # Rounded first, so that the bounds in the names are the very ones that cut.
    low, high = (float(f"{cut:.4g}") for cut in np.nanquantile(numbers, [1 / 3, 2 / 3]))
    groups = {
        f"up to {_plain(low)}": numbers <= low,
        f"{_plain(low)} to {_plain(high)}": (numbers > low) & (numbers <= high),
        f"above {_plain(high)}": numbers > high,
    }
    return {name: members for name, members in groups.items() if members.any()}


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:g}"


def _row(predictions: Predictions, column: str, value: str, members: np.ndarray) -> dict:
    patients = len(np.unique(predictions.patient_id[members]))
    return {"column": column, "value": value, "n": int(members.sum()), "patients": patients}


def _group_metrics(
    predictions: Predictions, members: np.ndarray, num_resamples: int, seed: int
) -> dict:
    report = compute_metrics(predictions.take(members), num_resamples, seed)
    several = {"value": None, "reason": "a task of several classes has one a class"}
    metrics = {name: report.get(name, several) for name in SUBGROUP_METRICS}
    classes = np.unique(predictions.labels[members])
    if report["task"] != "binary" or len(classes) == 2:
        return {"metrics": metrics}
    other = predictions.labels != classes[0]
    if not other.any():
        return {"metrics": metrics}
    wider = compute_metrics(predictions.take(members | other), num_resamples, seed)
    against = f"all {other.sum()} images of {predictions.class_names[1 - classes[0]]}"
    return {"against": against, "metrics": metrics | {"auroc": wider["auroc"]}}
