"""Reliability diagram: what the probabilities are worth."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from evaluation.bootstrap import CONFIDENCE_LEVEL
from evaluation.figures.style import (
    COLORS,
    GREY,
    MARKERS,
    STYLE,
    Series,
    check_models,
    class_series,
    grid_of_panels,
    is_binary,
    legend_below,
    look,
    metric_text,
    note,
    save,
    title_of,
)
from evaluation.metrics import ECE_BINS
from evaluation.predictions import Predictions

Z = 1.959964  # the standard normal's 97.5 % quantile


class Reliability(NamedTuple):
    """The bins of a reliability diagram that hold an image, each field (B,).

    Attributes:
        predicted: mean probability in the bin.
        observed: share of positives in the bin.
        low, high: Wilson's 95 % interval of `observed` (JASA 22:209, 1927), which takes images
            as independent.
        count: int64 number of images.
        edges: the bin's lower edge.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    edges: np.ndarray


def reliability_bins(
    positive: np.ndarray, probability: np.ndarray, num_bins: int = ECE_BINS
) -> Reliability:
    """Bins of equal width, as in the ECE of `compute_metrics`.

    The ECE is their sum of `count / n * |observed - predicted|`.

    Args:
        positive: bool (N,).
        probability: float (N,) in [0, 1].
        num_bins: between 0 and 1, empty ones included.
    """
    index = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    totals = np.bincount(index, minlength=num_bins)
    used = totals > 0
    n = totals[used]
    predicted = np.bincount(index, probability, num_bins)[used] / n
    observed = np.bincount(index, positive, num_bins)[used] / n
    centre = (observed + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(observed * (1 - observed) / n + Z**2 / (4 * n**2))
    edges = np.flatnonzero(used) / num_bins
    return Reliability(predicted, observed, centre - half, centre + half, n, edges)


@matplotlib.rc_context(STYLE)
def plot_reliability(
    models: dict[str, Predictions], metrics: dict[str, dict], path: str | Path
) -> None:
    """Share of positives against predicted probability, over a histogram of the predictions.

    Points are `reliability_bins` with Wilson's 95 % intervals; under them, how many images each
    bin holds. A panel a class (binary: one), all models in each. Binary: the legend carries the
    ECE and the 95 % interval of the error without the ECE's upward bias, which may lie below it.

    Args:
        models: name -> predictions of one task.
        metrics: name -> what `compute_metrics` gives for it.
        path: of the PNG; the SVG goes beside it.

    Raises:
        ValueError: no model, models of different classes, or `path` not ending in .png.
        OSError: a file cannot be written.
    """
    single = is_binary(check_models(models))
    columns = list(zip(*map(class_series, models.values())))
    figure, stacks = grid_of_panels(len(columns), (3.9, 1.3) if single else (2.2, 1.0))
    for (curve_axes, count_axes), column in zip(stacks, columns):
        curve_axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for k, one in enumerate(column):
            _draw_reliability(curve_axes, count_axes, k, one)
        curve_axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="Observed share")
        count_axes.set(xlim=(-0.02, 1.02), xlabel="Probability", ylabel="Images")
        count_axes.set_yscale("log")
        count_axes.set_ylim(bottom=0.7)
        count_axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
        count_axes.yaxis.set_minor_locator(NullLocator())
        curve_axes.tick_params(labelbottom=False)
        curve_axes.set_title(column[0].name)
        note(curve_axes, column[0].missing)
    if single:
        count_axes.set_xlabel(f"Predicted p({column[0].name})")
        curve_axes.set_title(title_of("Reliability", models))
    entries = {}
    for k, name in enumerate(models):
        if single:
            name += f": {metric_text(metrics[name]['ece'])}"
        entries[name] = Line2D([], [], **look(k), marker=MARKERS[k % len(MARKERS)], markersize=5)
    title = f"ECE [{CONFIDENCE_LEVEL * 100:.0f} % CI of the true error]" if single else None
    legend_below(figure, entries, title=title)
    save(figure, path)


def _draw_reliability(curve_axes: Axes, count_axes: Axes, k: int, one: Series) -> None:
    bins = reliability_bins(one.positive, one.probability)
    color = COLORS[k % len(COLORS)]
    curve_axes.vlines(bins.predicted, bins.low, bins.high, color=color, linewidth=1, alpha=0.6)
    marker = MARKERS[k % len(MARKERS)]
    curve_axes.plot(bins.predicted, bins.observed, **look(k), linewidth=0.8, alpha=0.7)
    curve_axes.plot(
        bins.predicted, bins.observed, marker, color=color, markersize=5, clip_on=False, zorder=3
    )
    counts = np.zeros(ECE_BINS)
    counts[np.round(bins.edges * ECE_BINS).astype(int)] = bins.count
    edges = np.linspace(0, 1, ECE_BINS + 1)
    count_axes.stairs(counts, edges, color=color, linestyle=look(k)["linestyle"], linewidth=1.3)
