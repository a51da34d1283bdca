"""Figures: what they draw, that they are PNGs of the stated size, and the same bytes each time."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from evaluation.metrics import compute_metrics, format_metric, resample_weights
from evaluation.plots import plot_confusion_matrix, plot_roc, plot_training_curves
from evaluation.predictions import read_predictions, write_predictions

HEADER = (
    "epoch,train_loss,validation_loss,validation_auroc,learning_rate,images_per_second,seconds\n"
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    figures, save = [], Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def predictions(tmp_path):
    def build(num_classes, multi_label=False, num_images=120):
        rng = np.random.default_rng(num_classes)
        labels = rng.integers(num_classes, size=num_images)
        truth = np.eye(num_classes)[labels]
        if multi_label:
            labels = truth = rng.random((num_images, num_classes)) < 0.4
        logits = rng.normal(size=truth.shape) + 1.5 * truth - 0.5
        names = [f"FINDING {k}" for k in range(num_classes)]
        patients = rng.integers(num_images // 2, size=num_images)
        path = tmp_path / "predictions.csv"
        ids = range(num_images)
        write_predictions(path, ids, patients, labels, logits, names, "test", multi_label)
        return read_predictions(path)

    return build


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_training_curves_show_the_history_and_its_best_epoch(tmp_path, drawn):
    history = tmp_path / "history.csv"
    history.write_text(HEADER + "1,.7,.6,.81,1,1,1\n2,.5,.4,.93,1,1,1\n3,.3,.5,,1,1,1\n")
    plot_training_curves(history, tmp_path / "curves.png")
    loss, auroc = drawn[0].axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[0.7, 0.5, 0.3], [0.6, 0.4, 0.5]]
    assert legend(loss) == ["Training", "Validation"]
    assert legend(auroc) == ["Best: 0.9300, epoch 2"]
    np.testing.assert_array_equal(auroc.lines[0].get_ydata(), [0.81, 0.93, np.nan])
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


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
        plot_training_curves(history, tmp_path / "curves.png")


def test_confusion_matrix_shows_counts_and_row_rates(tmp_path, drawn):
    path = tmp_path / "p.csv"
    labels, decided = [0] * 4 + [1] * 5, [0, 0, 0, 1, 1, 1, 1, 1, 0]
    names = ["NORMAL", "PNEUMONIA"]
    write_predictions(path, range(9), range(9), labels, np.eye(2)[decided], names, "test")
    plot_confusion_matrix(read_predictions(path), tmp_path / "matrix.png")
    (axes,) = drawn[0].axes
    assert texts(axes) == ["3", "75.0%", "1", "25.0%", "1", "20.0%", "4", "80.0%"]
    assert axes.get_title(loc="left") == "Test (n = 9)"
    assert [label.get_text() for label in axes.get_yticklabels()] == names


def test_confusion_matrix_of_a_multi_label_task_has_a_panel_a_class(tmp_path, predictions, drawn):
    saved = predictions(6, multi_label=True)
    plot_confusion_matrix(saved, tmp_path / "matrix.png")
    panels = [axes for axes in drawn[0].axes if axes.texts]
    assert [axes.get_title(loc="left") for axes in panels] == list(saved.class_names)
    report = compute_metrics(saved, num_resamples=0)
    for axes, entry in zip(panels, report["classes"].values(), strict=True):
        assert texts(axes)[::2] == [str(entry[key]) for key in ("tn", "fp", "fn", "tp")]


def test_roc_draws_scikit_learns_curve_the_interval_and_a_band_around_it(
    tmp_path, predictions, drawn
):
    saved = predictions(2)
    plot_roc(saved, tmp_path / "roc.png", num_resamples=200)
    (axes,) = drawn[0].axes
    report = compute_metrics(saved, 200)
    assert f"AUROC {format_metric(report['auroc'])}" in legend(axes)
    (curve,) = [line for line in axes.lines if line.get_label().startswith("AUROC")]
    fpr, tpr, _ = roc_curve(saved.labels, saved.log_odds[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(curve.get_xdata(), fpr, atol=1e-12)
    np.testing.assert_allclose(curve.get_ydata(), tpr, atol=1e-12)
    (marker,) = [line for line in axes.lines if line.get_label().startswith("Decision")]
    assert marker.get_ydata() == [report["sensitivity"]["value"]]
    assert marker.get_xdata() == [1 - report["specificity"]["value"]]
    (band,) = axes.collections
    points = band.get_paths()[0].vertices
    (weights,) = resample_weights(saved.patient_id, 200)
    for x in (0.1, 0.2, 0.5):
        heights = []
        for row in weights:
            drawn_images = np.repeat(np.arange(len(row)), row.astype(int))
            labels, scores = saved.labels[drawn_images], saved.log_odds[drawn_images, 1]
            heights.append(np.interp(x, *roc_curve(labels, scores, drop_intermediate=False)[:2]))
        at = points[np.isclose(points[:, 0], x), 1]
        bounds = np.quantile(heights, [0.025, 0.975])
        np.testing.assert_allclose([at.min(), at.max()], bounds, atol=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_roc_of_more_classes_has_a_curve_each(tmp_path, predictions, drawn, multi_label):
    saved = predictions(9, multi_label)
    plot_roc(saved, tmp_path / "roc.png", num_resamples=50)
    (axes,) = drawn[0].axes
    report = compute_metrics(saved, 50)
    for name in saved.class_names:
        assert f"{name}: {format_metric(report['classes'][name]['auroc'])}" in legend(axes)
    looks = {(line.get_color(), str(line.get_linestyle())) for line in axes.lines[1:-1]}
    assert len(looks) >= 7
    assert len({line.get_label() for line in axes.lines}) == 1 + 9 + 1


def test_one_class_only_is_drawn_without_a_curve(tmp_path, drawn):
    path = tmp_path / "p.csv"
    write_predictions(path, [1, 2], [1, 2], [1, 1], [[0, 1], [1, 0]], ["A", "B"], "test")
    saved = read_predictions(path)
    plot_roc(saved, tmp_path / "roc.png", num_resamples=10)
    plot_confusion_matrix(saved, tmp_path / "matrix.png")
    assert "AUROC undefined" in legend(drawn[0].axes[0])
    assert texts(drawn[1].axes[0])[:2] == ["0", "no image"]


def test_the_same_input_gives_the_same_bytes_and_leaves_matplotlib_as_it_was(tmp_path, predictions):
    saved, before = predictions(2), dict(matplotlib.rcParams)
    for name in ("a.png", "b.png"):
        plot_roc(saved, tmp_path / name, num_resamples=100)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(matplotlib.rcParams) == before
