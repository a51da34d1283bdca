"""ROC and precision-recall curves with bootstrap bands."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evaluation.bootstrap import CONFIDENCE_LEVEL, TAIL, resample_weights
from evaluation.metrics import compute_metrics, cumulative_counts
from evaluation.plots_style import (
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
from evaluation.predictions import Predictions

BAND_GRID = np.linspace(0, 1, 201)
MAX_BANDS = 3  # more of them cover each other

Points = tuple[np.ndarray, np.ndarray]


@matplotlib.rc_context(STYLE)
def plot_roc(
    models: dict[str, Predictions], path: str | Path, num_resamples: int = 2000, seed: int = 0
) -> None:
    """ROC of each model, its AUROC [95 % interval] in the legend.

    Binary: the models share one panel; each curve has a marker where its decisions lie and, up to
    3 models, a pointwise 95 % band of sensitivity from the patient-clustered bootstrap. More
    classes, or multi-label: a panel a model, a curve a class against the rest, no bands. A class
    without positives or negatives has no curve, and the legend says why.

    Args:
        models: name -> predictions of one task.
        num_resamples: of the intervals and bands; the same number and seed as in
            `compute_metrics` give the same intervals.

    Raises:
        ValueError: no model, models of different classes, or `path` not ending in .png.
        OSError: a file cannot be written.
    """
    figure = _draw("auroc", roc_points, models, num_resamples, seed)
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, zorder=1.5)
        axes.set(xlabel="1 - specificity", ylabel="Sensitivity")
        axes.set_title(f"ROC{axes.get_title(loc='left')}")
    save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_pr(
    models: dict[str, Predictions], path: str | Path, num_resamples: int = 2000, seed: int = 0
) -> None:
    """Precision (PPV) against recall (sensitivity), AUPRC [95 % interval] in the legend.

    Panels, bands, markers, arguments and errors as in `plot_roc`. The dotted line of a binary task
    is the prevalence, the precision of chance.
    """
    figure = _draw("auprc", pr_points, models, num_resamples, seed)
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


def roc_points(tp: np.ndarray, fp: np.ndarray) -> Points:
    """(1 - specificity, sensitivity) at the corners of the ROC; empty without one of the groups.

    Args:
        tp, fp: (T + 1,), a row of `cumulative_counts`.
    """
    if not tp[-1] or not fp[-1]:
        return np.empty(0), np.empty(0)
    # On the counts, which are whole numbers, a straight line is exactly straight.
    bends = (np.diff(tp, 2) != 0) | (np.diff(fp, 2) != 0)
    corners = np.r_[True, bends, True]
    return fp[corners] / fp[-1], tp[corners] / tp[-1]


def pr_points(tp: np.ndarray, fp: np.ndarray) -> Points:
    """(recall, precision) as steps; empty without a positive.

    A step ends at a threshold that adds a true positive, and has its precision: the area under
    the steps is the average precision that `compute_metrics` gives as AUPRC.

    Args:
        tp, fp: (T + 1,), a row of `cumulative_counts`.
    """
    if not tp[-1]:
        return np.empty(0), np.empty(0)
    adds = np.flatnonzero(np.diff(tp)) + 1
    recall, precision = tp[adds] / tp[-1], tp[adds] / (tp[adds] + fp[adds])
    return np.r_[0, np.repeat(recall, 2)[:-1]], np.repeat(precision, 2)


def _draw(
    metric: str,
    points: Callable[[np.ndarray, np.ndarray], Points],
    models: dict[str, Predictions],
    num_resamples: int,
    seed: int,
) -> Figure:
    binary = is_binary(check_models(models))
    panels = [models] if binary else [{name: models[name]} for name in models]
    figure = Figure(figsize=(WIDTH, 4.85 * len(panels)), layout="constrained")
    for axes, shown in zip(figure.subplots(len(panels), squeeze=False).ravel(), panels):
        axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
        reports = {name: compute_metrics(p, num_resamples, seed) for name, p in shown.items()}
        title = f"{metric.upper()} [{CONFIDENCE_LEVEL * 100:.0f} % CI]"
        if binary:
            entries = _draw_models(axes, metric, points, shown, reports)
            title += " and band" if axes.collections else ""
        else:
            ((name, predictions),) = shown.items()
            entries = _draw_classes(axes, metric, points, predictions, reports[name])
            title += f" of {name}"
        axes.set_title(title_of("", shown))
        legend_below(figure, axes, title=title, entries=entries)
    return figure


def _draw_models(
    axes: Axes, metric: str, points: Callable, models: dict[str, Predictions], reports: dict
) -> dict[str, Line2D]:
    entries = {}
    for k, (name, predictions) in enumerate(models.items()):
        (series,), report = class_series(predictions), reports[name]
        axes.plot(*_points(points, series), **look(k), clip_on=False, zorder=3)
        if report[metric].get("low") is not None and len(models) <= MAX_BANDS:
            low, high = _band(points, series, predictions.patient_id, report)
            color = COLORS[k % len(COLORS)]
            axes.fill_between(BAND_GRID, low, high, color=color, alpha=0.16, linewidth=0)
        label, handle = f"{name}: {metric_text(report[metric])}", Line2D([], [], **look(k))
        shown = ("sensitivity", "specificity") if metric == "auroc" else ("sensitivity", "ppv")
        values = [report[key]["value"] for key in shown]
        if None not in values:
            sensitivity, other = values
            place = (1 - other, sensitivity) if metric == "auroc" else (sensitivity, other)
            mark(axes, k, *place)
            handle.set(**marker_look(k))
            label += f"\nat p \u2265 {series.threshold:.3g}: sensitivity {sensitivity:.3f}, "
            label += f"{shown[1].replace('ppv', 'PPV')} {other:.3f}"
        entries[label] = handle
    return entries


def _draw_classes(
    axes: Axes, metric: str, points: Callable, predictions: Predictions, report: dict
) -> dict[str, Line2D]:
    entries = {}
    for k, series in enumerate(class_series(predictions)):
        (line,) = axes.plot(*_points(points, series), **look(k), linewidth=1.4, clip_on=False)
        entries[f"{series.name}: {metric_text(report['classes'][series.name][metric])}"] = line
    if metric in report:
        entries[f"Mean of the classes: {metric_text(report[metric])}"] = Line2D([], [], alpha=0)
    return entries


def _points(points: Callable, series: Series) -> Points:
    tp, fp = cumulative_counts(series.positive, series.log_odds, np.ones((1, len(series.positive))))
    return points(tp[0], fp[0])


def _band(points: Callable, series: Series, patient_id: np.ndarray, report: dict) -> np.ndarray:
    """Bounds (2, G) of the curve's height over `BAND_GRID`, from resamples that have a curve."""
    curves = []
    for weights in resample_weights(patient_id, report["num_resamples"], report["seed"]):
        for row in zip(*cumulative_counts(series.positive, series.log_odds, weights)):
            x, y = points(*row)
            if len(x):
                curves.append(np.interp(BAND_GRID, x, y))
    return np.quantile(curves, [TAIL, 1 - TAIL], axis=0)
