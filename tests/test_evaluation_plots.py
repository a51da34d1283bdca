"""What all figures share: both files, equal bytes, wide tasks, missing classes, and refusals."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from PIL import Image
from plots_cases import by_hand, draw, legend, scored, simulated, svg_texts, texts, title

from evaluation.figures import (
    plot_confusion_matrix,
    plot_decision_curve,
    plot_forest,
    plot_pr,
    plot_reliability,
    plot_roc,
    plot_scores,
    plot_threshold_sweep,
    plot_training_curves,
)
from evaluation.metrics import compute_metrics

HEADER = (
    "epoch,train_loss,validation_loss,validation_auroc,learning_rate,images_per_second,seconds\n"
)
OF_MODELS = {
    "roc": lambda models, path: plot_roc(models, *scored(models, path)),
    "pr": lambda models, path: plot_pr(models, *scored(models, path)),
    "reliability": lambda models, path: plot_reliability(models, *scored(models, path)[:2]),
    "decision_curve": plot_decision_curve,
}
OF_ONE = {
    "confusion_matrix": plot_confusion_matrix,
    "scores": plot_scores,
    "threshold_sweep": plot_threshold_sweep,
}
ALL = OF_MODELS | {
    name: lambda models, path, plot=plot: plot(models["A"], path) for name, plot in OF_ONE.items()
}


@pytest.mark.parametrize("name", ALL)
def test_png_and_svg_are_written_small_and_the_same_each_time(tmp_path, name):
    models = {"A": simulated(), "B": simulated(seed=1)}
    before = dict(matplotlib.rcParams)
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        ALL[name](models, tmp_path / folder / "figure.png")
    for file in ("figure.png", "figure.svg"):
        first, second = ((tmp_path / f / file).read_bytes() for f in ("first", "second"))
        assert first == second
        assert len(first) < 200_000
    with Image.open(tmp_path / "first" / "figure.png") as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        # Narrow enough for a phone: text of 9 points is at least 9 pixels where the figure has 390.
        assert image.width / 200 <= 390 / 72
    svg = (tmp_path / "first" / "figure.svg").read_text()
    assert "<image" not in svg and "base64" not in svg
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("label", [0, 1])
def test_a_missing_class_is_named_and_no_text_is_nan(tmp_path, name, label):
    models = {"A": by_hand([label] * 4, [0.2, 0.4, 0.6, 0.8])}
    ALL[name](models, tmp_path / "figure.png")
    shown = " ".join(svg_texts(tmp_path / "figure.png"))
    assert "nan" not in shown.lower()
    missing = ("PNEUMONIA", "NORMAL")[label]
    # Wrapped legends may break a sentence at any word.
    expected = {
        "roc": "undefined, needs images with and without PNEUMONIA",
        "pr": "undefined, needs an image of PNEUMONIA" if label == 0 else "1.000",
        "reliability": ("no image of PNEUMONIA", "no image without PNEUMONIA")[label],
        "decision_curve": ("no image of PNEUMONIA", "no image without PNEUMONIA")[label],
        "confusion_matrix": "no image",
        "scores": f"{missing} (n = 0)",
        "threshold_sweep": (
            "Sensitivity undefined, no image of PNEUMONIA",
            "Specificity undefined, no image without PNEUMONIA",
        )[label],
    }
    assert expected[name] in shown


@pytest.mark.parametrize("name", ["decision_curve", "scores", "threshold_sweep"])
def test_a_multi_label_task_has_a_panel_a_class(tmp_path, name):
    saved = simulated(3, multi_label=True, thresholds=(0.2, 0.5, 0.7))
    figure = draw(ALL[name], {"A": saved}, tmp_path / "figure.png")
    assert [title(axes) for axes in figure.axes if title(axes)] == list(saved.class_names)


@pytest.mark.parametrize("name", ["reliability", "scores"])
def test_a_multi_class_task_has_a_panel_a_class_and_no_threshold(tmp_path, name):
    saved = simulated(3)
    figure = draw(ALL[name], {"A": saved}, tmp_path / "figure.png")
    assert [title(axes) for axes in figure.axes if title(axes)] == list(saved.class_names)
    assert not any("threshold" in entry.lower() for entry in legend(figure))


def test_a_class_name_with_markup_is_shown_as_it_is(tmp_path):
    saved = dataclasses.replace(by_hand([0, 1], [0.3, 0.6]), class_names=("A<b>&", "$x_1$ & y"))
    plot_confusion_matrix(saved, tmp_path / "figure.png")
    assert {"A<b>&", "$x_1$ & y"} <= set(svg_texts(tmp_path / "figure.png"))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("正常", "肺炎"), "FeiYan"),
        (("सामान्य", "निमोनिया"), "nimoniya"),
        (("норма", "пневмония"), "пневмония"),  # the font has these
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_script_that_the_font_has_not_is_written_in_latin_letters(tmp_path, names, shown):
    saved = dataclasses.replace(simulated(), class_names=names)
    for name, plot in ALL.items():
        plot({"A": saved, names[1]: saved}, tmp_path / f"{name}.png")
        assert shown in " ".join(svg_texts(tmp_path / f"{name}.png"))
    history = tmp_path / "one.csv"
    history.write_text(HEADER + "1,.7,.6,.81,1,1,1\n")
    plot_training_curves({names[0]: history}, tmp_path / "training.png")
    entry = {"value": 0.9, "low": 0.85, "high": 0.95}
    plot_forest([(names[1], entry, 4)], tmp_path / "forest.png", names[0], "AUROC")
    assert f"{shown}, n\u00a0=\u00a04" in svg_texts(tmp_path / "forest.png")


@pytest.mark.parametrize("plot", OF_MODELS.values(), ids=OF_MODELS)
def test_models_that_cannot_share_a_figure_are_refused(tmp_path, plot):
    path = tmp_path / "figure.png"
    with pytest.raises(ValueError, match="no model to draw"):
        plot({}, path)
    with pytest.raises(ValueError, match=r"A has class_names \(.*draw them apart"):
        plot({"A": simulated(2), "B": simulated(3)}, path)
    with pytest.raises(ValueError, match="multi_label False and B True"):
        plot({"A": simulated(3), "B": simulated(3, multi_label=True)}, path)


def test_a_path_that_is_no_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"figure\.svg' must end in \.png"):
        plot_scores(simulated(), tmp_path / "figure.svg")
    with pytest.raises(OSError, match="No such file"):
        plot_scores(simulated(), tmp_path / "missing" / "figure.png")


def test_training_curves_show_each_history_and_its_best_epoch(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(HEADER + "1,.7,.6,.81,1,1,1\n2,.5,.4,.93,1,1,1\n3,.3,.5,,1,1,1\n")
    two.write_text(HEADER + "1,.8,.7,,1,1,1\n2,.6,.5,,1,1,1\n")
    path = tmp_path / "curves.png"
    figure = draw(plot_training_curves, {"CNN": one, "DenseNet": [one, str(one)], "X": two}, path)
    loss, auroc = figure.axes
    drawn = [line.get_ydata().tolist() for line in loss.lines]
    assert drawn[:2] == [[0.7, 0.5, 0.3], [0.6, 0.4, 0.5]]
    assert drawn[2:] == [*drawn[:2], *drawn[:2], [0.8, 0.6], [0.7, 0.5]]
    np.testing.assert_array_equal(auroc.lines[0].get_ydata(), [0.81, 0.93, np.nan])
    stars = [line for line in auroc.lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars] == [(2, 0.93)] * 3
    assert legend(figure)[2:] == [
        "CNN, best AUROC 0.9300 in epoch 2",
        "DenseNet, best AUROC 0.9300, 0.9300 in epoch 2, 2",
        "X, no validation AUROC",
    ]
    assert loss.lines[0].get_color() != loss.lines[2].get_color()
    assert loss.lines[0].get_linestyle() != loss.lines[2].get_linestyle()
    assert "NAN" not in path.with_suffix(".svg").read_text().upper()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        (HEADER, "is empty"),
        ("epoch,train_loss,validation_loss\n1,2,3\n", "no column 'validation_auroc'"),
        (HEADER + "1,low,.6,.8,1,1,1\n", "train_loss that is not a number"),
    ],
)
def test_a_wrong_history_is_refused(tmp_path, text, sentence):
    history = tmp_path / "history.csv"
    history.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        plot_training_curves({"CNN": history}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="no history"):
        plot_training_curves({}, tmp_path / "curves.png")


def test_forest_has_a_row_a_group_with_marker_interval_and_numbers(tmp_path):
    rows = [
        ("DenseNet", None, None),
        ("official test", {"value": 0.9, "low": 0.85, "high": 0.95}, 624),
        ("view = PA", {"value": 1.0, "low": None, "high": None, "reason": "one value"}, 4),
        ("a long name that does not fit in one line", {"value": None, "reason": "no class"}, 1),
    ]
    path = tmp_path / "forest.png"
    figure = draw(plot_forest, rows, path, "By subgroup", "AUROC")
    axes = figure.axes[0]
    drawn = {line.get_marker(): [] for line in axes.lines}
    for line in axes.lines:
        drawn[line.get_marker()].append((*line.get_xdata(), *line.get_ydata()))
    assert drawn["s"] == [(0.9, 1), (1.0, 2)]
    assert drawn["|"] == [(0.85, 0.95, 1, 1)]
    shown = svg_texts(path)
    for text in ("By subgroup", "AUROC", "DenseNet", "0.900 [0.850, 0.950]", "1.000", "undefined"):
        assert text in shown
    assert "official test, n\u00a0=\u00a0624" in shown
    assert max(map(len, shown)) < 30


def test_forest_of_differences_marks_zero_and_one_of_nothing_has_no_scale(tmp_path):
    difference = {"value": 0.01, "low": -0.02, "high": 0.04}
    figure = draw(plot_forest, [("a - b", difference, 9)], tmp_path / "d.png", "t", "Difference")
    assert [0, 0] in [list(line.get_xdata()) for line in figure.axes[0].lines]
    undefined = {"value": None, "reason": "no class"}
    figure = draw(plot_forest, [("a", undefined, 0)], tmp_path / "u.png", "t", "AUROC")
    assert list(figure.axes[0].get_xticks()) == []
    with pytest.raises(ValueError, match="forest plot 'AUROC by x' has no row"):
        plot_forest([], tmp_path / "e.png", "AUROC by x", "AUROC")


def test_confusion_matrix_shows_counts_and_row_rates_at_the_operating_threshold(tmp_path):
    saved = by_hand([0] * 4 + [1] * 5, [0.1, 0.1, 0.1, 0.7, 0.4, 0.7, 0.7, 0.7, 0.7])
    path = tmp_path / "matrix.png"
    (axes,) = draw(plot_confusion_matrix, saved, path).axes
    assert texts(axes) == ["3", "75.0%", "1", "25.0%", "1", "20.0%", "4", "80.0%"]
    assert title(axes) == "Test (n = 9)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["NORMAL", "PNEUMONIA"]
    assert axes.get_xlabel() == "Predicted"
    moved = dataclasses.replace(saved, thresholds=(0.35,))
    (axes,) = draw(plot_confusion_matrix, moved, path).axes
    assert texts(axes)[4:] == ["0", "0.0%", "5", "100.0%"]
    assert "Predicted (at p \u2265 0.35)" in svg_texts(path)


def test_confusion_matrix_of_a_multi_label_task_has_a_panel_a_class(tmp_path):
    saved = simulated(5, multi_label=True)
    figure = draw(plot_confusion_matrix, saved, tmp_path / "matrix.png")
    assert [title(axes) for axes in figure.axes] == list(saved.class_names)
    report = compute_metrics(saved, num_resamples=0)
    for axes, entry in zip(figure.axes, report["classes"].values(), strict=True):
        assert texts(axes)[::2] == [str(entry[key]) for key in ("tn", "fp", "fn", "tp")]
