"""Confusion matrix."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from evaluation.figures.style import STYLE, grid_of_panels, is_binary, printable, save
from evaluation.metrics import confusion_matrix
from evaluation.predictions import Predictions


@matplotlib.rc_context(STYLE)
def plot_confusion_matrix(predictions: Predictions, path: str | Path) -> None:
    """Counts with the share of their row (the true class); multi-label: a 2x2 panel a class.

    Raises:
        ValueError: `path` does not end in .png.
        OSError: a file cannot be written.
    """
    counts, names = confusion_matrix(predictions), predictions.class_names
    if predictions.multi_label:
        panels = [(name, counts[k], ("absent", "present")) for k, name in enumerate(names)]
    else:
        title = f"{predictions.split.capitalize()} (n = {counts.sum()})"
        panels = [(title, counts, names)]
    figure, stacks = grid_of_panels(len(panels), (4.4 if len(panels) == 1 else 2.7,))
    if len(names) > 5 and not predictions.multi_label:
        figure.set_size_inches(1.6 + 0.62 * len(names), 1.6 + 0.62 * len(names))
    for (axes,), (title, matrix, ticks) in zip(stacks, panels):
        _draw_matrix(axes, matrix, ticks, small=len(panels) > 1 or len(ticks) > 3)
        axes.set_title(title)
        decided = predictions.thresholds if is_binary(predictions) else None
        axes.set_xlabel(f"Predicted (at p \u2265 {decided[0]:.3g})" if decided else "Predicted")
    save(figure, path)


def _draw_matrix(axes: Axes, matrix: np.ndarray, ticks: tuple[str, ...], small: bool) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    rates = matrix / np.maximum(totals, 1)
    places, ticks = np.arange(len(ticks)), [printable(tick) for tick in ticks]
    # Vector cells instead of an image: sharp at any size, and the SVG holds no embedded PNG.
    axes.pcolormesh(rates, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=2)
    count_size, rate_size, low = (10, 8.5, 0.68) if small else (16, 11, 0.62)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if rates[row, column] > 0.6 else "black"
        rate = f"{rates[row, column]:.1%}" if totals[row, 0] else "no image"
        for text, shift, size in ((f"{count}", 0.43, count_size), (rate, low, rate_size)):
            axes.text(
                column + 0.5, row + shift, text, size=size, color=color, ha="center", va="center"
            )
    crowded = len(ticks) > 3
    side = "right" if crowded else "center"
    axes.set_xticks(places + 0.5, ticks, rotation=35 if crowded else 0, ha=side)
    axes.set_yticks(places + 0.5, ticks, rotation=0 if crowded else 90, va="center")
    axes.set(ylabel="True", aspect="equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
