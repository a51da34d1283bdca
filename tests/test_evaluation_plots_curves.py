"""ROC and precision-recall: scikit-learn's points, the report's numbers, bands by brute force."""

import dataclasses

import numpy as np
import pytest
from plots_cases import by_hand, draw, legend, scored, simulated, svg_texts, texts, title
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from evaluation.bootstrap import resample_weights
from evaluation.curves import pr_points, roc_points
from evaluation.figures import plot_pr, plot_roc
from evaluation.figures.style import look, marker_look
from evaluation.metrics import (
    compute_metrics,
    cumulative_counts,
    format_metric,
)


def counts(labels, scores):
    labels, scores = np.array(labels, dtype=bool), np.array(scores, dtype=float)
    tp, fp = cumulative_counts(labels, scores, np.ones((1, len(scores))))
    return tp[0], fp[0]


def draw_curve(plot, models, path, *resampling):
    return draw(plot, models, *scored(models, path, *resampling))


def curves(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


def markers(axes):
    return [line for line in axes.lines if line.get_marker() in "os^Dv"]


@pytest.mark.parametrize("digits", [1, 12])
def test_roc_points_are_scikit_learns_with_and_without_ties(digits):
    saved = simulated(num_images=300)
    scores = saved.log_odds[:, 1].round(digits)
    fpr, tpr, _ = roc_curve(saved.labels, scores, drop_intermediate=True)
    x, y = roc_points(*counts(saved.labels, scores))
    assert len(x) <= len(fpr)
    for point in zip(x, y):
        assert np.isclose(point, np.column_stack([fpr, tpr]), atol=1e-12).all(axis=1).any()
    # Nothing was lost: the polygon holds the same area.
    assert auc(x, y) == pytest.approx(roc_auc_score(saved.labels, scores), abs=1e-12)


@pytest.mark.parametrize("digits", [1, 12])
def test_the_area_under_the_pr_steps_is_average_precision(digits):
    saved = simulated(num_images=300)
    scores = saved.log_odds[:, 1].round(digits)
    x, y = pr_points(*counts(saved.labels, scores))
    area = ((x[1:] - x[:-1]) * y[1:]).sum()
    assert area == pytest.approx(average_precision_score(saved.labels, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(saved.labels, scores)
    for point in zip(x[1::2], y[1::2]):
        assert np.isclose(point, np.column_stack([recall, precision]), atol=1e-12).all(1).any()


def test_points_by_hand():
    labels, scores = [1, 0, 1, 0], [4, 3, 2, 1]
    x, y = roc_points(*counts(labels, scores))
    assert list(zip(x, y)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    x, y = pr_points(*counts(labels, scores))
    assert list(zip(x, y)) == [(0, 1), (0.5, 1), (0.5, 2 / 3), (1, 2 / 3)]


@pytest.mark.parametrize(
    ("plot", "metric", "second"),
    [(plot_roc, "auroc", "specificity"), (plot_pr, "auprc", "ppv")],
)
def test_two_models_share_a_panel_with_intervals_bands_and_operating_points(
    tmp_path, plot, metric, second
):
    moved = dataclasses.replace(simulated(seed=1), thresholds=(0.3,))
    models, path = {"CNN": simulated(), "DenseNet": moved}, tmp_path / "figure.png"
    (axes,) = draw_curve(plot, models, path, 50, 3).axes
    shown = svg_texts(path)
    assert title(axes).endswith("test (n = 120)")
    for saved, name, marker in zip(models.values(), models, markers(axes), strict=True):
        report = compute_metrics(saved, 50, 3)
        assert f"{name}: {format_metric(report[metric])}" in shown
        sensitivity, other = report["sensitivity"]["value"], report[second]["value"]
        threshold = saved.thresholds[0] if saved.thresholds else 0.5
        word = second.replace("ppv", "PPV")
        text = f"at p \u2265 {threshold:g}: sensitivity {sensitivity:.3f}, {word} {other:.3f}"
        assert text in shown
        place = (1 - other, sensitivity) if metric == "auroc" else (sensitivity, other)
        assert (marker.get_xdata()[0], marker.get_ydata()[0]) == pytest.approx(place)
    first, second = curves(axes)
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert len(axes.collections) == 2


def test_the_operating_point_lies_on_the_curve(tmp_path):
    saved = by_hand([0, 0, 1, 1, 1], [0.1, 0.6, 0.4, 0.7, 0.9], thresholds=(0.5,))
    (axes,) = draw_curve(plot_roc, {"CNN": saved}, tmp_path / "roc.png", 0).axes
    (marker,) = markers(axes)
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == pytest.approx((0.5, 2 / 3))
    (curve,) = curves(axes)
    assert any(np.isclose(curve.get_xydata(), [0.5, 2 / 3]).all(axis=1))
    assert not axes.collections


def test_the_roc_band_is_that_of_scikit_learn_on_each_resample(tmp_path):
    saved = simulated()
    (axes,) = draw_curve(plot_roc, {"CNN": saved}, tmp_path / "roc.png", 100).axes
    points = axes.collections[0].get_paths()[0].vertices
    (weights,) = resample_weights(saved.patient_id, 100)
    for x in (0.1, 0.2, 0.5):
        heights = []
        for row in weights:
            drawn = np.repeat(np.arange(len(row)), row.astype(int))
            labels, scores = saved.labels[drawn], saved.log_odds[drawn, 1]
            # Half a step to the right of x, where a vertical step at x has ended.
            fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
            heights.append(np.interp(x + 1e-9, fpr, tpr))
        at = points[np.isclose(points[:, 0], x), 1]
        bounds = np.quantile(heights, [0.025, 0.975])
        np.testing.assert_allclose([at.min(), at.max()], bounds, atol=1e-6)


def test_the_pr_band_narrows_around_the_curve_and_chance_is_the_prevalence(tmp_path):
    widths = []
    for num_images in (60, 1500):
        saved = simulated(num_images=num_images)
        path = tmp_path / "pr.png"
        (axes,) = draw_curve(plot_pr, {"CNN": saved}, path, 60).axes
        points = axes.collections[0].get_paths()[0].vertices
        at = points[np.isclose(points[:, 0], 0.5), 1]
        (curve,) = curves(axes)
        height = np.interp(0.5, *curve.get_data())
        assert at.min() <= height <= at.max()
        widths.append(at.max() - at.min())
        prevalence = (saved.labels == 1).mean()
        assert texts(axes) == [f"Prevalence {prevalence:.3f}"]
        assert prevalence in [line.get_ydata()[0] for line in axes.lines]
    assert widths[1] < widths[0] / 2


def test_four_models_have_no_bands(tmp_path):
    models = {f"model {k}": simulated(seed=k) for k in range(4)}
    figure = draw_curve(plot_roc, models, tmp_path / "roc.png", 10)
    (axes,) = figure.axes
    assert not axes.collections
    assert len({line.get_color() for line in curves(axes)}) == 4
    assert axes.get_legend().get_title().get_text() == "AUROC [95 % CI]"


@pytest.mark.parametrize(
    ("plot", "metric", "multi_label"), [(plot_roc, "auroc", False), (plot_pr, "auprc", True)]
)
def test_more_classes_have_a_curve_each_and_a_panel_a_model(tmp_path, plot, metric, multi_label):
    models = {name: simulated(8, multi_label, 80, seed=k) for k, name in enumerate("AB")}
    figure = draw_curve(plot, models, tmp_path / "figure.png", 20)
    for axes, (name, saved) in zip(figure.axes, models.items(), strict=True):
        report = compute_metrics(saved, 20)
        assert axes.get_legend().get_title().get_text() == f"{metric.upper()} [95 % CI] of {name}"
        for class_name in saved.class_names:
            entry = report["classes"][class_name][metric]
            assert f"{class_name}: {format_metric(entry)}" in legend(axes)
        colors = [line.get_color() for line in curves(axes)]
        assert colors == [look(k)["color"] for k in range(8)]
    if metric == "auroc":
        assert f"Mean of the classes: {format_metric(report['auroc'])}" in legend(axes)


def test_lines_and_markers_of_many_series_differ():
    assert len({str(look(k)) for k in range(35)}) == 35
    for field in ("color", "linestyle"):
        assert len({str(look(k)[field]) for k in range(5)}) == 5
    assert len({marker_look(k)["marker"] for k in range(5)}) == 5


def test_models_on_other_images_share_a_panel_without_a_common_n(tmp_path):
    other = dataclasses.replace(simulated(num_images=80), split="external")
    figure = draw_curve(plot_roc, {"A": simulated(), "B": other}, tmp_path / "r.png", 5)
    assert title(figure.axes[0]) == "ROC"
