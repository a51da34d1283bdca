"""Reliability, scores, threshold sweep and net benefit against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest
from plots_cases import by_hand, draw, legend, scored, simulated, svg_texts, texts
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, precision_score, recall_score

from evaluation.figures import (
    plot_decision_curve,
    plot_reliability,
    plot_scores,
    plot_threshold_sweep,
)
from evaluation.figures.reliability import reliability_bins
from evaluation.figures.thresholds import net_benefit, threshold_sweep
from evaluation.metrics import compute_metrics, format_metric


def test_reliability_bins_by_hand():
    positive = np.array([False, True, True, True, False])
    bins = reliability_bins(positive, np.array([0.05, 0.15, 0.52, 0.58, 1.0]), num_bins=5)
    np.testing.assert_allclose(bins.predicted, [0.1, 0.55, 1.0])
    np.testing.assert_allclose(bins.observed, [0.5, 1.0, 0.0])
    assert bins.count.tolist() == [2, 2, 1]
    np.testing.assert_allclose(bins.edges, [0, 0.4, 0.8])


def test_reliability_bins_are_scikit_learns_and_add_up_to_the_reported_ece():
    saved = simulated(num_images=400)
    probability, positive = saved.probabilities[:, 1], saved.labels == 1
    bins = reliability_bins(positive, probability)
    observed, predicted = calibration_curve(positive, probability, n_bins=15)
    np.testing.assert_allclose(bins.observed, observed)
    np.testing.assert_allclose(bins.predicted, predicted)
    ece = (bins.count / 400 * np.abs(bins.observed - bins.predicted)).sum()
    assert ece == pytest.approx(compute_metrics(saved, 0)["ece"]["value"], abs=1e-12)


def test_reliability_intervals_are_wilsons_published_ones():
    # Newcombe, Statistics in Medicine 17:857, 1998, Table I, method 3.
    for positives, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        positive = np.arange(n) < positives
        bins = reliability_bins(positive, np.full(n, 0.5))
        assert [*bins.low, *bins.high] == pytest.approx([low, high], abs=5e-5)
    bins = reliability_bins(np.zeros(20, dtype=bool), np.full(20, 0.5))
    assert [*bins.low, *bins.high] == pytest.approx([0, 0.1611], abs=5e-5)


def test_reliability_draws_the_bins_the_counts_and_the_ece(tmp_path):
    models, path = {"CNN": simulated(), "DenseNet": simulated(seed=1)}, tmp_path / "r.png"
    curve_axes, count_axes = draw(plot_reliability, models, *scored(models, path, 30)[:2]).axes
    points = [line.get_xydata() for line in curve_axes.lines if line.get_marker() in "os"]
    for saved, drawn, stairs in zip(models.values(), points, count_axes.patches, strict=True):
        bins = reliability_bins(saved.labels == 1, saved.probabilities[:, 1])
        np.testing.assert_allclose(drawn, np.column_stack([bins.predicted, bins.observed]))
        assert stairs.get_data().values.sum() == 120
    for name, saved in models.items():
        entry = compute_metrics(saved, 30)["ece"]
        assert f"{name}: {format_metric(entry)}" in svg_texts(path)


def test_threshold_sweep_by_hand():
    positive = np.array([False, False, True, True, True])
    probability = np.array([0.1, 0.6, 0.4, 0.6, 0.9])
    found = threshold_sweep(positive, probability, np.array([0, 0.4, 0.6, 0.95]))
    np.testing.assert_allclose(found["Sensitivity"], [1, 1, 2 / 3, 0])
    np.testing.assert_allclose(found["Specificity"], [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(found["PPV"], [3 / 5, 3 / 4, 2 / 3, np.nan])
    np.testing.assert_allclose(found["NPV"], [np.nan, 1, 1 / 2, 2 / 5])
    np.testing.assert_allclose(found["F1"], [3 / 4, 6 / 7, 2 / 3, 0])


def test_threshold_sweep_agrees_with_scikit_learn():
    saved = simulated(num_images=200)
    probability, positive = saved.probabilities[:, 1], saved.labels == 1
    thresholds = np.array([0.2, 0.5, probability[7], 0.8])
    found = threshold_sweep(positive, probability, thresholds)
    for k, threshold in enumerate(thresholds):
        called = probability >= threshold
        expected = {
            "Sensitivity": recall_score(positive, called),
            "Specificity": recall_score(~positive, ~called),
            "PPV": precision_score(positive, called),
            "NPV": precision_score(~positive, ~called),
            "F1": f1_score(positive, called),
        }
        assert {name: values[k] for name, values in found.items()} == pytest.approx(expected)


def test_the_sweep_marks_the_operating_point_with_the_reports_numbers(tmp_path):
    saved, path = simulated(thresholds=(0.37,)), tmp_path / "sweep.png"
    figure = draw(plot_threshold_sweep, saved, path)
    (axes,), report = figure.axes, compute_metrics(saved, 0)
    keys = ("sensitivity", "specificity", "ppv", "npv", "f1")
    names = ("Sensitivity", "Specificity", "PPV", "NPV", "F1")
    values = [report[key]["value"] for key in keys]
    assert legend(figure) == [f"{name} {v:.3f}" for name, v in zip(names, values, strict=True)]
    marks = [line.get_xydata()[0] for line in axes.lines if line.get_marker() in "os^Dv"]
    np.testing.assert_allclose(marks, [(0.37, value) for value in values])
    assert "At p \u2265 0.37" in svg_texts(path)


def test_a_multi_label_sweep_marks_each_classs_own_threshold(tmp_path):
    saved = simulated(3, multi_label=True, thresholds=(0.2, 0.5, 0.7))
    figure = draw(plot_threshold_sweep, saved, tmp_path / "sweep.png")
    for axes, threshold in zip(figure.axes, saved.thresholds, strict=True):
        marks = [line for line in axes.lines if line.get_marker() in "os^Dv"]
        assert {line.get_xdata()[0] for line in marks} == {threshold}


def test_a_sweep_of_an_argmax_decision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 classes .* needs a binary or a multi-label task"):
        plot_threshold_sweep(simulated(3), tmp_path / "sweep.png")


def test_net_benefit_by_hand():
    # At 0.2: 3 true and 1 false positive of 5, 3/5 - 1/5 * 0.2/0.8; at 0.75: 1 true positive.
    positive = np.array([False, False, True, True, True])
    probability = np.array([0.1, 0.6, 0.4, 0.6, 0.9])
    found = net_benefit(positive, probability, np.array([0, 0.2, 0.6, 0.75]))
    np.testing.assert_allclose(found, [0.6, 0.55, 0.4 - 0.2 * 1.5, 0.2])


def test_net_benefit_of_certain_probabilities_is_treat_all_and_treat_none():
    positive, thresholds = np.arange(10) < 3, np.array([0.1, 0.3, 0.5])
    everyone = net_benefit(positive, np.ones(10), thresholds)
    expected = 0.3 - 0.7 * thresholds / (1 - thresholds)
    np.testing.assert_allclose(everyone, expected, atol=1e-12)
    # Treating everyone is worth nothing where the threshold is the prevalence.
    assert everyone[1] == pytest.approx(0)
    assert not net_benefit(positive, np.zeros(10), thresholds).any()


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_net_benefit_of_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold {threshold} has no net benefit"):
        net_benefit(np.array([True]), np.array([0.5]), np.array([0.5, threshold]))


def test_the_decision_curve_draws_models_treat_all_treat_none_and_thresholds(tmp_path):
    saved = simulated()
    moved = dataclasses.replace(simulated(seed=1), labels=saved.labels, thresholds=(0.25,))
    figure = draw(plot_decision_curve, {"CNN": saved, "DenseNet": moved}, tmp_path / "dc.png")
    (axes,), positive = figure.axes, saved.labels == 1
    none, everyone, first, _, second, mark = axes.lines
    assert set(none.get_ydata()) == {0}
    t = everyone.get_xdata()
    prevalence = positive.mean()
    np.testing.assert_allclose(everyone.get_ydata(), prevalence - (1 - prevalence) * t / (1 - t))
    for line, predictions in ((first, saved), (second, moved)):
        expected = net_benefit(positive, predictions.probabilities[:, 1], line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-12)
    at = net_benefit(positive, moved.probabilities[:, 1], np.array([0.25]))[0]
    assert mark.get_xydata().tolist() == [[0.25, at]]
    half = net_benefit(positive, saved.probabilities[:, 1], np.array([0.5]))[0]
    assert legend(figure) == [
        "Treat all",
        "Treat none",
        f"CNN: {half:.3f} at p \u2265 0.5",
        f"DenseNet: {at:.3f} at p \u2265 0.25",
    ]
    assert texts(axes) == []


def test_a_net_benefit_far_below_zero_is_stated_and_does_not_squeeze_the_curves(tmp_path):
    saved = by_hand([0, 1, 1, 1], [0.99, 0.5, 0.6, 0.7], thresholds=(0.98,))
    figure = draw(plot_decision_curve, {"CNN": saved}, tmp_path / "dc.png")
    assert legend(figure)[-1] == "CNN: -12.250 at p \u2265 0.98"
    assert figure.axes[0].get_ylim() == pytest.approx((-0.15 * 0.75, 1.08 * 0.75))


def test_scores_are_shares_of_each_class_and_hold_the_extremes(tmp_path):
    labels, probability = [0, 0, 0, 0, 1, 1], [1e-9, 0.02, 0.02, 0.4, 0.9, 1 - 1e-12]
    saved, path = by_hand(labels, probability, thresholds=(0.9,)), tmp_path / "scores.png"
    figure = draw(plot_scores, saved, path)
    (axes,) = figure.axes
    for stairs, largest in zip(axes.patches, (50, 50), strict=True):
        values = stairs.get_data().values
        assert values.sum() == pytest.approx(100)
        assert values.max() == pytest.approx(largest)
    assert axes.patches[0].get_data().values[0] == pytest.approx(25)
    assert axes.patches[1].get_data().values[-1] == pytest.approx(50)
    (line,) = axes.lines
    assert line.get_xdata()[0] == pytest.approx(np.log(9))
    expected = ["NORMAL (n = 4)", "PNEUMONIA (n = 2)", "Operating threshold 0.9"]
    assert legend(figure) == expected
    ticks = ["0.000001", "0.0001", "0.01", "0.1", "0.5", "0.9", "0.99", "0.9999", "0.999999"]
    assert [label for label in svg_texts(path) if label in ticks] == ticks
