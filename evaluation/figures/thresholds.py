"""What another threshold would do: its sweep, and the decision curve."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from evaluation.figures.style import (
    GREY,
    STYLE,
    check_models,
    class_series,
    grid_of_panels,
    legend_below,
    look,
    mark,
    marker_look,
    note,
    save,
    title_of,
)
from evaluation.predictions import Predictions

THRESHOLD_GRID = np.linspace(0, 1, 101)
_UNDEFINED = {
    "Sensitivity": "no image of {name}",
    "Specificity": "no image without {name}",
    "PPV": "none called {name}",
    "NPV": "all called {name}",
    "F1": "no image of {name} or called so",
}


@matplotlib.rc_context(STYLE)
def plot_threshold_sweep(predictions: Predictions, path: str | Path) -> None:
    """Sensitivity, specificity, PPV, NPV and F1 against the threshold on the probability.

    The operating threshold is a vertical line, with a marker on each curve. Binary: one panel,
    its values in the legend. Multi-label: a panel a class. A quantity has a gap where it is
    undefined: PPV where nothing is called positive, specificity where no image is negative.

    Raises:
        ValueError: a multi-class task, which has no threshold; `path` not ending in .png.
        OSError: a file cannot be written.
    """
    series = class_series(predictions)
    if series[0].threshold is None:
        raise ValueError(
            f"the {len(series)} classes {predictions.class_names} are decided by the largest "
            "probability; a threshold sweep needs a binary or a multi-label task."
        )
    figure, stacks = grid_of_panels(len(series), (3.6 if len(series) == 1 else 2.3,))
    for (axes,), one in zip(stacks, series):
        curves = threshold_sweep(one.positive, one.probability, THRESHOLD_GRID)
        chosen = threshold_sweep(one.positive, one.probability, np.array([one.threshold]))
        axes.axvline(one.threshold, color=GREY, linewidth=1)
        entries = {}
        for k, (name, values) in enumerate(curves.items()):
            axes.plot(THRESHOLD_GRID, values, **look(k), clip_on=False)
            value = chosen[name][0]
            if not np.isnan(value):
                mark(axes, k, one.threshold, value)
            if len(series) == 1:
                reason = f" undefined, {_UNDEFINED[name].format(name=one.name)}"
                name += reason if np.isnan(value) else f" {value:.3f}"
            entries[name] = Line2D([], [], **look(k), **marker_look(k))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Threshold")
        axes.set_title(one.name)
    if len(series) == 1:
        axes.set_xlabel(f"Threshold on p({one.name})")
        axes.set_title(title_of("Threshold sweep", {"": predictions}))
    title = f"At p \u2265 {one.threshold:.3g}" if len(series) == 1 else "Line: operating threshold"
    legend_below(figure, entries, title=title)
    save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_decision_curve(models: dict[str, Predictions], path: str | Path) -> None:
    """Net benefit against the threshold probability, beside treating all and treating none.

    Vickers and Elkin, Med Decis Making 26:565, 2006. A panel a class (binary: one), all models
    in each, with a marker at the operating threshold unless it lies far below zero; the legend of a
    single panel has its net benefit. Net benefit takes the probabilities and the prevalence of the
    sample at their word: calibrate first, and read it for such a population.

    Raises:
        ValueError: no model, models of different classes, or `path` not ending in .png.
        OSError: a file cannot be written.
    """
    check_models(models)
    columns = list(zip(*map(class_series, models.values())))
    figure, stacks = grid_of_panels(len(columns), (3.6 if len(columns) == 1 else 2.5,))
    grid = THRESHOLD_GRID[1:-1]
    entries = {
        "Treat all": Line2D([], [], color=GREY, linewidth=1),
        "Treat none": Line2D([], [], color="black", linewidth=1),
    }
    for (axes,), column in zip(stacks, columns):
        top = max(one.positive.mean() for one in column) or 0.1
        bottom = -0.15 * top
        axes.axhline(0, color="black", linewidth=1)
        for prevalence in sorted({float(one.positive.mean()) for one in column}):
            treat_all = prevalence - (1 - prevalence) * grid / (1 - grid)
            axes.plot(grid, treat_all, color=GREY, linewidth=1)
        for k, (name, one) in enumerate(zip(models, column)):
            benefit = net_benefit(one.positive, one.probability, grid)
            axes.plot(grid, benefit, **look(k))
            handle = Line2D([], [], **look(k))
            if one.threshold is not None and one.threshold < 1:
                at = net_benefit(one.positive, one.probability, np.array([one.threshold]))[0]
                if at > -0.5 * top:
                    mark(axes, k, one.threshold, at)
                    bottom = min(bottom, 1.1 * at)
                handle.set(**marker_look(k))
                if len(columns) == 1:
                    name += f": {at:.3f} at p \u2265 {one.threshold:.3g}"
            entries[name] = handle
        axes.set(xlim=(0, 1), ylim=(bottom, 1.08 * top))
        axes.set(xlabel="Threshold", ylabel="Net benefit")
        axes.set_title(column[0].name)
        note(axes, column[0].missing)
    if len(columns) == 1:
        axes.set_xlabel(f"Threshold on p({column[0].name})")
        axes.set_title(title_of("Decision curve", models))
    legend_below(figure, entries)
    save(figure, path)


def threshold_sweep(
    positive: np.ndarray, probability: np.ndarray, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Sensitivity, specificity, PPV, NPV, F1, each (T,), NaN where undefined; positive is p >= t.

    Args:
        positive: bool (N,).
        probability: float (N,) in [0, 1].
        thresholds: float (T,).
    """
    tp, fp = _called(positive, probability, thresholds)
    fn, tn = positive.sum() - tp, (~positive).sum() - fp
    ratios = {
        "Sensitivity": (tp, tp + fn),
        "Specificity": (tn, tn + fp),
        "PPV": (tp, tp + fp),
        "NPV": (tn, tn + fn),
        "F1": (2 * tp, 2 * tp + fp + fn),
    }
    undefined = np.full(len(thresholds), np.nan)
    return {
        name: np.divide(above, below, out=undefined.copy(), where=below > 0)
        for name, (above, below) in ratios.items()
    }


def net_benefit(
    positive: np.ndarray, probability: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """TP / n - FP / n * t / (1 - t) of treating where p >= t, float64 (T,); Vickers and Elkin 2006.

    Args:
        positive: bool (N,).
        probability: float (N,) in [0, 1].
        thresholds: float (T,) in [0, 1).

    Raises:
        ValueError: a threshold outside [0, 1).
    """
    outside = (thresholds < 0) | (thresholds >= 1)
    if outside.any():
        raise ValueError(f"threshold {thresholds[outside][0]} has no net benefit; give 0 <= t < 1.")
    tp, fp = _called(positive, probability, thresholds)
    return (tp - fp * thresholds / (1 - thresholds)) / len(positive)


def _called(
    positive: np.ndarray, probability: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at p >= t, each int64 (T,)."""
    counts = [
        len(group) - np.searchsorted(np.sort(group), thresholds, side="left")
        for group in (probability[positive], probability[~positive])
    ]
    return counts[0], counts[1]
