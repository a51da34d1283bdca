"""One look for all figures: colours and dashes, sizes, legends, and how a figure is saved."""

import math
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from anyascii import anyascii
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation

from evaluation.metrics import format_metric, one_vs_rest
from evaluation.predictions import Predictions

DPI = 200
# Inches. On a phone, 390 pixels wide, the 9 point text of a figure this wide is 10 pixels tall.
WIDTH = 5.0
# Okabe and Ito's palette, told apart with any colour vision, dark enough for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Five dashes against seven colours: 35 lines look different, and the first five do in grey.
DASHES = ("-", (0, (5, 1.8)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 1.2, 2.5, 1.2)))
MARKERS = ("o", "s", "^", "D", "v")
GREY = "#6B6B6B"
LEGEND_CHARACTERS = 52
STYLE = {
    "font.family": "sans-serif",
    # The SVG names them all. Where a browser has not the first, the others are no wider.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 10,
    "text.parse_math": False,
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
    "xtick.labelsize": 9,
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.handlelength": 2.6,
    # Text stays text: small files that can be searched. Ids come from the content alone.
    "svg.fonttype": "none",
    "svg.hashsalt": "cxr",
}


class Series(NamedTuple):
    """One class against the rest.

    Attributes:
        name: of the class.
        positive: bool (N,), of the images for which the class is known.
        log_odds: float64 (N,), of the class's probability.
        threshold: on the probability in [0, 1]; None where the largest probability decides.
    """

    name: str
    positive: np.ndarray
    log_odds: np.ndarray
    threshold: float | None

    @property
    def probability(self) -> np.ndarray:
        """float64 (N,) in [0, 1]."""
        return np.exp(-np.logaddexp(0, -self.log_odds))

    @property
    def missing(self) -> str:
        """Either "no image of NAME" or "no image without NAME", or "" where both are there."""
        if not self.positive.any():
            return f"no image of {self.name}"
        return f"no image without {self.name}" if self.positive.all() else ""


def class_series(predictions: Predictions) -> list[Series]:
    """A series a class that is known of any image; of a binary task, class 1 alone."""
    classes = one_vs_rest(predictions)
    multi_class = not predictions.multi_label and len(classes) > 1
    thresholds = predictions.thresholds or [None if multi_class else 0.5] * len(classes)
    return [
        Series(predictions.class_names[k], one.positive, one.log_odds, threshold)
        for (k, one), threshold in zip(classes.items(), thresholds)
        if len(one.image)
    ]


def is_binary(predictions: Predictions) -> bool:
    """Whether one class alone, the second, is drawn."""
    return not predictions.multi_label and len(predictions.class_names) == 2


def check_models(models: dict[str, Predictions]) -> Predictions:
    """The first of the models, all of which must share one task.

    Raises:
        ValueError: no model, or two models with different classes or kinds of label.
    """
    if not models:
        raise ValueError("there is no model to draw; give at least one.")
    (name, first), *others = models.items()
    for other, predictions in others:
        for field in ("class_names", "multi_label"):
            mine, its = getattr(first, field), getattr(predictions, field)
            if mine != its:
                raise ValueError(
                    f"{name} has {field} {mine} and {other} {its}; draw them apart from each other."
                )
    return first


def title_of(title: str, models: dict[str, Predictions]) -> str:
    """The title with what all the models have in common, as "ROC, test (n = 624)"."""
    splits = {predictions.split for predictions in models.values()}
    sizes = {len(predictions.image_id) for predictions in models.values()}
    title += f", {splits.pop()}" if len(splits) == 1 else ""
    return title + (f" (n = {sizes.pop()})" if len(sizes) == 1 else "")


def look(k: int) -> dict:
    """Colour and dash of the k-th line."""
    return {"color": COLORS[k % len(COLORS)], "linestyle": DASHES[k % len(DASHES)]}


def metric_text(entry: dict) -> str:
    """An entry of `compute_metrics` with its interval, or why it is undefined."""
    if entry["value"] is None:
        return f"undefined, {entry['reason']}"
    return format_metric(entry)


def marker_look(k: int) -> dict:
    """The k-th line's marker of its operating point."""
    marker = MARKERS[k % len(MARKERS)]
    return {"marker": marker, "markersize": 7.5, "markeredgecolor": "white"}


def mark(axes: Axes, k: int, x: float, y: float) -> None:
    """Mark the operating point of the k-th line."""
    color = COLORS[k % len(COLORS)]
    axes.plot(x, y, linestyle="", color=color, **marker_look(k), clip_on=False, zorder=4)


def note(axes: Axes, text: str) -> None:
    """A remark in the middle of the axes, or none if `text` is empty."""
    text = "\n".join(textwrap.wrap(text, 24))
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    if text:
        axes.text(0.5, 0.45, text, color=GREY, bbox=paper, **place)


def grid_of_panels(count: int, heights: tuple[float, ...]) -> tuple[Figure, list[list[Axes]]]:
    """`count` panels, two side by side where there are several, each a stack of axes.

    Args:
        count: of the panels.
        heights: inches of each axes of a panel, from the top.
    """
    columns = min(2, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, rows * sum(heights)), layout="constrained")
    axes = figure.subplots(
        rows * len(heights), columns, squeeze=False, height_ratios=heights * rows
    )
    stacks = axes.reshape(rows, len(heights), columns).transpose(0, 2, 1).reshape(-1, len(heights))
    for unused in stacks[count:].ravel():
        unused.remove()
    return figure, stacks[:count].tolist()


def legend_below(
    figure: Figure,
    entries: dict[str, Artist],
    axes: Axes | None = None,
    title: str | None = None,
) -> None:
    """A legend under `axes`, or under the whole figure, which grows by its height.

    Args:
        figure: holds the axes.
        entries: label -> handle.
        axes: to put the legend under; None for the whole figure.
        title: of the legend.
    """
    labels = [_wrap(label) for label in entries]
    handles: list[Artist] = list(entries.values())
    lines = sum(label.count("\n") for label in labels)
    height = 0.15 + 0.15 * lines + 0.19 * (len(labels) + (title is not None))
    figure.set_figheight(figure.get_figheight() + height)
    if axes is None:
        figure.legend(handles, labels, title=title, alignment="left", loc="outside lower left")
        return
    below_labels = ScaledTranslation(0, -0.52, figure.dpi_scale_trans)
    axes.legend(
        handles,
        labels,
        title=title,
        loc="upper left",
        bbox_to_anchor=(-0.02, 0),
        bbox_transform=axes.transAxes + below_labels,
        borderaxespad=0,
        alignment="left",
    )


def printable(text: str) -> str:
    """`text` with what DejaVu Sans has no glyph for (Chinese, Devanagari, ...) in Latin letters.

    That font comes with matplotlib; another one would make a figure depend on the machine.
    """
    drawn = _glyphs()
    return "".join(c if ord(c) in drawn or c == "\n" else anyascii(c) for c in text)


@cache
def _glyphs() -> frozenset[int]:
    """The characters that DejaVu Sans has, plain as well as bold."""
    files = (font_manager.findfont(f"DejaVu Sans:{weight}") for weight in ("regular", "bold"))
    plain, bold = (set(font_manager.get_font(file).get_charmap()) for file in files)
    return frozenset(plain & bold)


def save(figure: Figure, path: str | Path) -> None:
    """Write the PNG to `path` and the SVG beside it; equal figures give equal bytes.

    Every text but tick labels, which their formatter makes anew, is made `printable`.

    Raises:
        ValueError: `path` does not end in .png.
        OSError: a file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"figure path {str(path)!r} must end in .png; the SVG goes beside it.")
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))
    # No version of a program and no date: the bytes are then a function of the figure alone.
    for file, metadata in (
        (path, {"Software": None}),
        (path.with_suffix(".svg"), {"Date": None, "Creator": None}),
    ):
        figure.savefig(file, dpi=DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.08)


def _wrap(label: str) -> str:
    lines = [textwrap.wrap(line, LEGEND_CHARACTERS) or [""] for line in label.split("\n")]
    return "\n".join(part for line in lines for part in line)
