"""Training curves, from the history files of runs."""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from evaluation.figures.style import COLORS, GREY, STYLE, WIDTH, legend_below, look, save

_COLUMNS = ("epoch", "train_loss", "validation_loss", "validation_auroc")


@matplotlib.rc_context(STYLE)
def plot_training_curves(
    histories: dict[str, str | Path | Sequence[str | Path]], path: str | Path
) -> None:
    """Training and validation loss, and validation AUROC with each model's best epoch starred.

    Args:
        histories: model name -> history.csv, or the histories of several seeds of one model, which
            share its colour and dash. A history has a row an epoch with the columns epoch,
            train_loss, validation_loss and validation_auroc; an empty cell leaves a gap.
        path: of the PNG; the SVG goes beside it.

    Raises:
        ValueError: no model, a history without a row or a column or with a cell that is not a
            number, or `path` not ending in .png.
        OSError: a file that cannot be read or written.
    """
    if not histories:
        raise ValueError("there is no history to draw; give at least one.")
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    loss_axes, auroc_axes = figure.subplots(2, 1, sharex=True)
    entries = {
        "Training loss": Line2D([], [], color=GREY, linewidth=0.9),
        "Validation": Line2D([], [], color=GREY, marker="o"),
    }
    for k, (name, files) in enumerate(histories.items()):
        files = [files] if isinstance(files, str | Path) else list(files)
        width = 1.8 if len(files) == 1 else 1.1
        bests = []
        for history in map(_read_history, files):
            epoch, auroc = history["epoch"], history["validation_auroc"]
            loss_axes.plot(epoch, history["train_loss"], **look(k), linewidth=width / 2)
            for axes, values in ((loss_axes, history["validation_loss"]), (auroc_axes, auroc)):
                axes.plot(epoch, values, **look(k), marker="o", linewidth=width)
            if not np.isnan(auroc).all():
                best = np.nanargmax(auroc)
                bests.append((f"{auroc[best]:.4f}", f"{epoch[best]:g}"))
                auroc_axes.plot(
                    epoch[best],
                    auroc[best],
                    "*",
                    markersize=14,
                    color=COLORS[k % len(COLORS)],
                    markeredgecolor="white",
                    clip_on=False,
                    zorder=3,
                )
        label = f"{name}, no validation AUROC"
        if bests:
            label = "{}, best AUROC {} in epoch {}".format(name, *map(", ".join, zip(*bests)))
        entries[label] = Line2D([], [], **look(k))
    loss_axes.set_title("Loss")
    loss_axes.set_ylim(bottom=0)
    auroc_axes.set_title("Validation AUROC")
    auroc_axes.set_xlabel("Epoch")
    auroc_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, entries)
    save(figure, path)


def _read_history(path: str | Path) -> dict[str, np.ndarray]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames, list(reader)
    if not rows:
        raise ValueError(f"{path} is empty; a history has a header and a row an epoch.")
    history = {}
    for column in _COLUMNS:
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; its columns are {columns}.")
        try:
            history[column] = np.array([float(row[column] or "nan") for row in rows])
        except ValueError as error:
            raise ValueError(f"{path} has a {column} that is not a number: {error}.") from None
    return history
