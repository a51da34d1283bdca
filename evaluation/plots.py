"""Figures of a run, from its files alone: PNG in one style, colour-blind safe, fit for print."""

import csv
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.metrics import (
    CONFIDENCE_LEVEL,
    compute_metrics,
    confusion_matrix,
    cumulative_counts,
    format_metric,
    resample_weights,
)
from evaluation.predictions import Predictions

DPI = 150
# Okabe and Ito's palette, told apart with any colour vision; dashes reuse it for many classes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)))
GREY = "#6B6B6B"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@matplotlib.rc_context(STYLE)
def plot_training_curves(history_csv: str | Path, path: str | Path) -> None:
    """Training and validation loss, and validation AUROC with its best epoch marked.

    Args:
        history_csv: a row an epoch, with the columns epoch, train_loss, validation_loss and
            validation_auroc; an empty cell leaves a gap.

    Raises:
        ValueError: a missing column, no row, or a cell that is not a number.
        OSError: a file that cannot be read or written.
    """
    history = _read_history(history_csv)
    epoch, auroc = history["epoch"], history["validation_auroc"]
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    loss_axes, auroc_axes = figure.subplots(1, 2)
    for column, color, name in (
        ("train_loss", COLORS[0], "Training"),
        ("validation_loss", COLORS[1], "Validation"),
    ):
        marker = "o" if name == "Training" else "s"
        loss_axes.plot(epoch, history[column], marker=marker, color=color, label=name)
    loss_axes.set(title="Loss", xlabel="Epoch")
    loss_axes.set_ylim(bottom=0)
    loss_axes.legend()
    auroc_axes.plot(epoch, auroc, "s-", color=COLORS[1])
    if not np.isnan(auroc).all():
        best = np.nanargmax(auroc)
        auroc_axes.plot(
            epoch[best],
            auroc[best],
            "*",
            markersize=15,
            color=COLORS[2],
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
            label=f"Best: {auroc[best]:.4f}, epoch {epoch[best]:g}",
        )
        auroc_axes.legend(loc="lower right")
    auroc_axes.set(title="Validation AUROC", xlabel="Epoch")
    for axes in (loss_axes, auroc_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_confusion_matrix(predictions: Predictions, path: str | Path) -> None:
    """Counts with the share of their row (the true class); multi-label: a 2x2 panel a class.

    Raises:
        OSError: `path` cannot be written.
    """
    counts = confusion_matrix(predictions)
    names = predictions.class_names
    if predictions.multi_label:
        panels = [(name, counts[k], ("absent", "present")) for k, name in enumerate(names)]
    else:
        panels = [(f"{predictions.split.capitalize()} (n = {counts.sum()})", counts, names)]
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    side = 2.6 if predictions.multi_label else max(4.0, 1.0 + 0.85 * len(names))
    figure = Figure(figsize=(columns * side, rows * side), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, matrix, ticks) in zip(grid, panels):
        _draw_matrix(axes, matrix, ticks)
        axes.set_title(title)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_roc(
    predictions: Predictions, path: str | Path, num_resamples: int = 1000, seed: int = 0
) -> None:
    """ROC with AUROC [95 % interval] in the legend; a curve a class where there are more than two.

    A binary task's curve carries a pointwise 95 % band of sensitivity from the patient-clustered
    bootstrap, and a marker where its decisions lie.

    Raises:
        OSError: `path` cannot be written.
    """
    report = compute_metrics(predictions, num_resamples, seed)
    binary = report["task"] == "binary"
    wide = 0 if binary else 3.2
    figure = Figure(figsize=(4.8 + wide, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="Chance")
    if binary:
        positive, scores = predictions.labels == 1, predictions.log_odds[:, 1]
        _draw_binary_roc(axes, report, positive, scores)
        if report["auroc"].get("low") is not None:
            grid = np.linspace(0, 1, 501)
            low, high = _roc_band(predictions, grid, num_resamples, seed)
            label = f"{CONFIDENCE_LEVEL * 100:.0f} % band"
            axes.fill_between(grid, low, high, color=COLORS[0], alpha=0.18, lw=0, label=label)
    else:
        for k, name in enumerate(predictions.class_names):
            labels = predictions.labels
            positive = labels[:, k] if predictions.multi_label else labels == k
            text = f"{name}: {format_metric(report['classes'][name]['auroc'])}"
            style = DASHES[k // len(COLORS) % len(DASHES)]
            fpr, tpr = _roc(positive, predictions.log_odds[:, k])
            color = COLORS[k % len(COLORS)]
            axes.plot(fpr, tpr, color=color, linestyle=style, linewidth=1.4, label=text)
        axes.plot([], [], " ", label=f"Macro: {format_metric(report['auroc'])}")
    axes.set(
        title=f"ROC, {predictions.split} (n = {report['n']})",
        xlabel="1 - specificity",
        ylabel="Sensitivity",
        xlim=(-0.015, 1),
        ylim=(0, 1.015),
        aspect="equal",
    )
    if binary:
        axes.legend(loc="lower right")
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="AUROC [95 % CI]")
    _save(figure, path)


def _draw_matrix(axes: Axes, matrix: np.ndarray, ticks: tuple[str, ...]) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    rates = matrix / np.maximum(totals, 1)
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1.15)
    size, small = (15, 10) if len(ticks) == 2 else (10, 8.5)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if rates[row, column] > 0.7 else "black"
        rate = f"{rates[row, column]:.1%}" if totals[row, 0] else "no image"
        axes.text(column, row - 0.08, f"{count}", ha="center", color=color, size=size, va="center")
        axes.text(column, row + 0.2, rate, ha="center", color=color, size=small, va="center")
    places = range(len(ticks))
    crowded = len(ticks) > 3
    axes.set_xticks(
        places, ticks, rotation=35 if crowded else 0, ha="right" if crowded else "center"
    )
    axes.set_yticks(places, ticks, rotation=0 if crowded else 90, va="center")
    axes.set(xlabel="Predicted", ylabel="True")
    axes.grid(False)
    edges = np.arange(len(ticks) - 1) + 0.5
    axes.hlines(edges, -0.5, len(ticks) - 0.5, color="white", linewidth=2)
    axes.vlines(edges, -0.5, len(ticks) - 0.5, color="white", linewidth=2)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_binary_roc(axes: Axes, report: dict, positive: np.ndarray, scores: np.ndarray) -> None:
    fpr, tpr = _roc(positive, scores)
    label = f"AUROC {format_metric(report['auroc'])}"
    axes.plot(fpr, tpr, color=COLORS[0], label=label, clip_on=False)
    sensitivity, specificity = report["sensitivity"]["value"], report["specificity"]["value"]
    if sensitivity is not None and specificity is not None:
        axes.plot(
            1 - specificity,
            sensitivity,
            "o",
            color=COLORS[1],
            markersize=7,
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
            label=f"Decision: sens. {sensitivity:.3f}, spec. {specificity:.3f}",
        )


def _roc(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(fpr, tpr), each (T + 1,); empty where one of the two groups is."""
    tp, fp = cumulative_counts(positive, scores, np.ones((1, len(scores))))
    if tp[0, -1] == 0 or fp[0, -1] == 0:
        return np.empty(0), np.empty(0)
    return fp[0] / fp[0, -1], tp[0] / tp[0, -1]


def _roc_band(
    predictions: Predictions, grid: np.ndarray, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of sensitivity at each 1 - specificity of `grid`, over resamples of both classes."""
    positive, scores = predictions.labels == 1, predictions.log_odds[:, 1]
    curves = []
    for weights in resample_weights(predictions.patient_id, num_resamples, seed):
        tp, fp = cumulative_counts(positive, scores, weights)
        for row_tp, row_fp in zip(tp, fp):
            if row_tp[-1] and row_fp[-1]:
                curves.append(np.interp(grid, row_fp / row_fp[-1], row_tp / row_tp[-1]))
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low, high = np.quantile(curves, [tail, 1 - tail], axis=0)
    return low, high


def _read_history(path: str | Path) -> dict[str, np.ndarray]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames, list(reader)
    if not rows:
        raise ValueError(f"{path} is empty; a history has a header and a row an epoch.")
    history = {}
    for column in ("epoch", "train_loss", "validation_loss", "validation_auroc"):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; its columns are {columns}.")
        try:
            history[column] = np.array([float(row[column] or "nan") for row in rows])
        except ValueError as error:
            raise ValueError(f"{path} has a {column} that is not a number: {error}.") from None
    return history


def _save(figure: Figure, path: str | Path) -> None:
    # No "Software" entry: the file's bytes are then a function of the figure alone.
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
