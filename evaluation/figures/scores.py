"""How scores spread by class."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evaluation.figures.style import (
    COLORS,
    STYLE,
    Series,
    class_series,
    grid_of_panels,
    is_binary,
    legend_below,
    save,
    title_of,
)
from evaluation.predictions import Predictions

# Decades from 0 and 1 that get a tick, and the log-odds at which an axis ends at the latest.
SCORE_DECADES = (1, 2, 4, 6)
MAX_LOG_ODDS = 13.816  # p = 1 - 10^-6
SCORE_BINS = 40


@matplotlib.rc_context(STYLE)
def plot_scores(predictions: Predictions, path: str | Path) -> None:
    """How the images of a class, and those without it, spread over its predicted probability.

    Histograms on a log-odds scale, each of its own total; the outermost bins hold what lies
    beyond. A panel a class (binary: one). The vertical line is the operating threshold, which a
    multi-class task has not.

    Raises:
        ValueError: `path` does not end in .png.
        OSError: a file cannot be written.
    """
    series = class_series(predictions)
    single = is_binary(predictions)
    figure, stacks = grid_of_panels(len(series), (3.6 if single else 2.3,))
    for (axes,), one in zip(stacks, series):
        _draw_scores(axes, one, small=not single)
        axes.set(xlabel="Probability", ylabel="Share of group (%)" if single else "Share (%)")
        axes.set_title(one.name)
    groups = ("without the class", "with the class")
    if single:
        positive = series[0].positive
        axes.set_title(title_of("Scores by class", {"": predictions}))
        axes.set_xlabel(f"Predicted p({series[0].name}), log-odds scale")
        groups = [
            f"{name} (n = {count})"
            for name, count in zip(predictions.class_names, ((~positive).sum(), positive.sum()))
        ]
    entries = {group: Patch(**_fill(k)) for k, group in enumerate(groups)}
    threshold = series[0].threshold
    if threshold is not None:
        label = f"Operating threshold {threshold:.3g}" if single else "Operating threshold"
        entries[label] = Line2D([], [], color="black", linewidth=1)
    legend_below(figure, entries)
    save(figure, path)


def _draw_scores(axes: Axes, one: Series, small: bool) -> None:
    end = min(MAX_LOG_ODDS, max(3, np.abs(one.log_odds).max()))
    edges = np.linspace(-end, end, SCORE_BINS + 1)
    for k, group in enumerate((~one.positive, one.positive)):
        scores = np.clip(one.log_odds[group], -end, end)
        shares = 100 * np.histogram(scores, edges)[0] / max(1, group.sum())
        axes.stairs(shares, edges, fill=True, **_fill(k))
    if one.threshold is not None and 0 < one.threshold < 1:
        axes.axvline(_logit(one.threshold), color="black", linewidth=1)
    decades = ((3,) if end > 7 else (1,)) if small else SCORE_DECADES
    above = [1 - 10.0**-k for k in decades]
    ticks = sorted([*(1 - p for p in above), 0.5, *above])
    ticks = [p for p in ticks if abs(_logit(p)) <= end]
    axes.set_xticks([_logit(p) for p in ticks], [f"{p:.6f}".rstrip("0") for p in ticks])
    axes.set(xlim=(-end, end), ylim=(0, None))


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def _fill(k: int) -> dict:
    """Two groups told apart by colour and, in grey, by a fill against a hatch."""
    color = matplotlib.colors.to_rgb(COLORS[k])
    # A browser applies the opacity of a filled hatch to its lines too: hatch on no fill at all.
    face, hatch = ((*color, 0.55), None) if k == 0 else ("none", "////")
    return {"facecolor": face, "edgecolor": color, "hatch": hatch, "linewidth": 1.2}
