"""ROC and precision-recall curves with bootstrap bands."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evaluation.bootstrap import CONFIDENCE_LEVEL
from evaluation.curves import BAND_GRID, CURVES
from evaluation.figures.style import (
    COLORS,
    GREY,
    STYLE,
    WIDTH,
    Series,
    check_models,
    class_series,
    is_binary,
    legend_below,
    look,
    mark,
    marker_look,
    metric_text,
    save,
    title_of,
)
from evaluation.metrics import cumulative_counts
from evaluation.predictions import Predictions

MAX_BANDS = 3  # more of them cover each other
AREAS = {"roc": "auroc", "pr": "auprc"}

Bands = dict[str, dict[str, np.ndarray]]


@matplotlib.rc_context(STYLE)
def plot_roc(
    models: dict[str, Predictions],
    metrics: dict[str, dict],
    path: str | Path,
    bands: Bands | None = None,
) -> None:
    """ROC of each model, its AUROC [95 % interval] in the legend.

    Binary: the models share one panel; each curve has a marker where its decisions lie and, up to
    3 models, the pointwise band of sensitivity where `bands` has one. More classes, or multi-label:
    a panel a model, a curve a class against the rest, no bands. A class without positives or
    negatives has no curve, and the legend says why.

    Args:
        models: name -> predictions of one task.
        metrics: name -> what `compute_metrics` gives for it.
        path: of the PNG; the SVG goes beside it.
        bands: name -> what `curve_bands` gives for it.

    Raises:
        ValueError: no model, models of different classes, or `path` not ending in .png.
        OSError: a file cannot be written.
    """
    figure = _draw("roc", models, metrics, bands)
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, zorder=1.5)
        axes.set(xlabel="1 - specificity", ylabel="Sensitivity")
        axes.set_title(f"ROC{axes.get_title(loc='left')}")
    save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_pr(
    models: dict[str, Predictions],
    metrics: dict[str, dict],
    path: str | Path,
    bands: Bands | None = None,
) -> None:
    """Precision (PPV) against recall (sensitivity), AUPRC [95 % interval] in the legend.

    Panels, bands, markers, arguments and errors as in `plot_roc`. The dotted line of a binary task
    is the prevalence, the precision of chance.
    """
    figure = _draw("pr", models, metrics, bands)
    for axes in figure.axes:
        axes.set(xlabel="Recall (sensitivity)", ylabel="Precision (PPV)")
        axes.set_title(f"Precision-recall{axes.get_title(loc='left')}")
    if is_binary(check_models(models)):
        for prevalence in sorted({float((p.labels == 1).mean()) for p in models.values()}):
            axes.axhline(prevalence, color=GREY, linestyle=":", linewidth=1, zorder=1.5)
            place, side = (prevalence + 0.01, "bottom") if prevalence < 0.9 else (prevalence, "top")
            text = f"Prevalence {prevalence:.3f}"
            axes.text(0, place, text, color=GREY, fontsize=9, verticalalignment=side)
    save(figure, path)


def _draw(
    curve: str, models: dict[str, Predictions], metrics: dict[str, dict], bands: Bands | None
) -> Figure:
    binary = is_binary(check_models(models))
    panels = [models] if binary else [{name: models[name]} for name in models]
    figure = Figure(figsize=(WIDTH, 4.85 * len(panels)), layout="constrained")
    for axes, shown in zip(figure.subplots(len(panels), squeeze=False).ravel(), panels):
        axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
        title = f"{AREAS[curve].upper()} [{CONFIDENCE_LEVEL * 100:.0f} % CI]"
        if binary:
            drawn = bands if bands and len(models) <= MAX_BANDS else {}
            entries = _draw_models(axes, curve, shown, metrics, drawn)
            title += " and band" if axes.collections else ""
        else:
            ((name, predictions),) = shown.items()
            entries = _draw_classes(axes, curve, predictions, metrics[name])
            title += f" of {name}"
        axes.set_title(title_of("", shown))
        legend_below(figure, entries, axes, title)
    return figure


def _draw_models(
    axes: Axes, curve: str, models: dict[str, Predictions], metrics: dict[str, dict], bands: Bands
) -> dict[str, Line2D]:
    entries, area = {}, AREAS[curve]
    for k, (name, predictions) in enumerate(models.items()):
        (series,), report = class_series(predictions), metrics[name]
        axes.plot(*_points(curve, series), **look(k), clip_on=False, zorder=3)
        band = bands.get(name, {}).get(curve)
        if report[area].get("low") is not None and band is not None:
            color = COLORS[k % len(COLORS)]
            axes.fill_between(BAND_GRID, *band, color=color, alpha=0.16, linewidth=0)
        label, handle = f"{name}: {metric_text(report[area])}", Line2D([], [], **look(k))
        shown = ("sensitivity", "specificity") if curve == "roc" else ("sensitivity", "ppv")
        values = [report[key]["value"] for key in shown]
        if None not in values:
            sensitivity, other = values
            place = (1 - other, sensitivity) if curve == "roc" else (sensitivity, other)
            mark(axes, k, *place)
            handle.set(**marker_look(k))
            label += f"\nat p \u2265 {series.threshold:.3g}: sensitivity {sensitivity:.3f}, "
            label += f"{shown[1].replace('ppv', 'PPV')} {other:.3f}"
        entries[label] = handle
    return entries


def _draw_classes(
    axes: Axes, curve: str, predictions: Predictions, report: dict
) -> dict[str, Line2D]:
    entries, area = {}, AREAS[curve]
    for k, series in enumerate(class_series(predictions)):
        (line,) = axes.plot(*_points(curve, series), **look(k), linewidth=1.4, clip_on=False)
        entries[f"{series.name}: {metric_text(report['classes'][series.name][area])}"] = line
    if area in report:
        entries[f"Mean of the classes: {metric_text(report[area])}"] = Line2D([], [], alpha=0)
    return entries


def _points(curve: str, series: Series) -> tuple[np.ndarray, np.ndarray]:
    tp, fp = cumulative_counts(series.positive, series.log_odds, np.ones((1, len(series.positive))))
    return CURVES[curve](tp[0], fp[0])
