"""Forest plot: one measure over data sets, subgroups or models."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from evaluation.figures.style import COLORS, STYLE, WIDTH, printable, save
from evaluation.metrics import format_metric

NAME_CHARACTERS = 24

Row = tuple[str, dict | None, int | None]


@matplotlib.rc_context(STYLE)
def plot_forest(rows: Sequence[Row], path: str | Path, title: str, label: str) -> None:
    """A row a group: its name, a marker with its 95 % interval, the numbers, and n.

    Args:
        rows: (name, entry of `compute_metrics`, number of images), drawn from the top. A row
            whose entry is None is a heading over those that follow. An undefined entry is written
            as such, without a marker; one without an interval has a marker alone.
        path: of the PNG; the SVG goes beside it.
        title: of the figure.
        label: of the axis, e.g. "AUROC".

    Raises:
        ValueError: no row, or `path` not ending in .png.
        OSError: a file cannot be written.
    """
    if not rows:
        raise ValueError(f"the forest plot {title!r} has no row; give at least one.")
    names = ["\n".join(textwrap.wrap(printable(_name(row)), NAME_CHARACTERS)) for row in rows]
    lines = max(name.count("\n") for name in names) + 1
    height = 1.0 + (0.12 + 0.15 * lines) * len(rows)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    texts, defined = [], False
    for place, (_, entry, _) in enumerate(rows):
        texts.append("" if entry is None else format_metric(entry))
        if entry is not None:
            axes.axhline(place, color="#E4E4E4", linewidth=0.7, zorder=1)
        if entry is None or entry["value"] is None:
            continue
        defined = True
        if entry["low"] is not None:
            bounds = [entry["low"], entry["high"]]
            axes.plot(bounds, [place, place], "|-", color=COLORS[0], markersize=7, clip_on=False)
        axes.plot(entry["value"], place, "s", color=COLORS[0], markersize=6, clip_on=False)
    low, high = axes.get_xlim()
    if low < 0 < high:
        axes.axvline(0, color="black", linewidth=1, zorder=1)
    figure.suptitle(textwrap.fill(title, 46), x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(4) if defined else NullLocator())
    numbers = axes.twinx()
    for side, labels in ((axes, names), (numbers, texts)):
        side.set(ylim=(len(rows) - 0.4, -0.6))
        side.set_yticks(range(len(rows)), labels)
        side.tick_params(axis="y", length=0)
        side.spines[["left", "right"]].set_visible(False)
    axes.grid(axis="y", visible=False)
    numbers.grid(False)
    for tick, (_, entry, _) in zip(axes.get_yticklabels(), rows):
        tick.set_fontweight("bold" if entry is None else "normal")
    save(figure, path)


def _name(row: Row) -> str:
    name, _, n = row
    return name if n is None else f"{name}, n\u00a0=\u00a0{n}"
