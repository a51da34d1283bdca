"""Metrics against scikit-learn, and what a sample leaves undefined."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from evaluation.metrics import METRIC_NAMES, compute_metrics, confusion_matrix, format_metric
from evaluation.predictions import Predictions

CALIBRATION_ERRORS = ("ece", "ece_mass")


def make(labels, logits, patients=None, names=None, multi_label=False, thresholds=None):
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    return Predictions(
        image_id=ids,
        patient_id=ids if patients is None else np.asarray(patients).astype(str),
        labels=labels,
        logits=logits,
        class_names=tuple(names or [f"C{k}" for k in range(logits.shape[1])]),
        split="test",
        multi_label=multi_label,
        thresholds=thresholds,
    )


def binary(num_images, separation=1.5, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(num_images) < 0.6).astype(int)
    scores = rng.normal(size=num_images) + separation * (labels - 0.5)
    if ties:
        scores = np.round(scores, 1)
    logits = np.stack([-scores / 2, scores / 2], axis=1)
    patients = rng.integers(num_images // 2, size=num_images)
    return make(labels, logits, patients, ["NORMAL", "PNEUMONIA"])


def binned_gap(labels, probability, bins):
    total = 0
    for one in np.unique(bins):
        inside = bins == one
        total += inside.mean() * abs(labels[inside].mean() - probability[inside].mean())
    return total


def sklearn_metrics(labels, log_odds):
    probability = 1 / (1 + np.exp(-log_odds))
    decided = log_odds > 0
    (tn, fp), (fn, _) = sk.confusion_matrix(labels, decided, labels=[0, 1])
    width_bins = np.floor(probability * 15)
    mass_bins = [np.mean(log_odds < one) * 15 // 1 for one in log_odds]
    return {
        "auroc": sk.roc_auc_score(labels, log_odds),
        "auprc": sk.average_precision_score(labels, log_odds),
        "accuracy": sk.accuracy_score(labels, decided),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, decided),
        "sensitivity": sk.recall_score(labels, decided),
        "specificity": tn / (tn + fp),
        "ppv": sk.precision_score(labels, decided),
        "npv": tn / (tn + fn),
        "f1": sk.f1_score(labels, decided),
        "mcc": sk.matthews_corrcoef(labels, decided),
        "brier": sk.brier_score_loss(labels, probability),
        "ece": binned_gap(labels, probability, width_bins),
        "ece_mass": binned_gap(labels, probability, np.array(mass_bins)),
        "log_loss": sk.log_loss(labels, probability),
    }


@pytest.mark.parametrize("ties", [False, True])
def test_binary_metrics_equal_scikit_learn(ties):
    predictions = binary(624, ties=ties)
    report = compute_metrics(predictions, num_resamples=0)
    expected = sklearn_metrics(predictions.labels, predictions.log_odds[:, 1])
    assert set(expected) == set(METRIC_NAMES)
    for name, value in expected.items():
        assert report[name]["value"] == pytest.approx(value, abs=1e-12), name
    counts = sk.confusion_matrix(predictions.labels, predictions.decisions)
    assert [report[key] for key in ("tn", "fp", "fn", "tp")] == counts.ravel().tolist()
    np.testing.assert_array_equal(confusion_matrix(predictions), counts)
    assert report["prevalence"] == predictions.labels.mean()
    assert (report["n"], report["patients"]) == (624, len(set(predictions.patient_id)))
    assert report["positive_class"] == "PNEUMONIA"


def test_a_worked_example_by_hand():
    # Scores 2, 1, 1, -1 with truth 1, 1, 0, 0: of 4 pairs 3 are right and 1 is a tie.
    report = compute_metrics(make([1, 1, 0, 0], [[0, 2], [0, 1], [0, 1], [0, -1]]), 0)
    assert report["auroc"]["value"] == 0.875
    assert report["auprc"]["value"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert [report[key] for key in ("tn", "fp", "fn", "tp")] == [1, 1, 0, 2]
    assert report["ppv"]["value"] == 2 / 3
    assert report["f1"]["value"] == 0.8


def test_saturated_probabilities_still_rank_and_score():
    # Each probability rounds to 1, the log-odds do not.
    report = compute_metrics(make([0, 1, 1], [[0, 800], [0, 900], [0, 1000]]), 0)
    assert report["auroc"]["value"] == 1
    assert report["log_loss"]["value"] == pytest.approx(800 / 3)


def test_multi_class_metrics_equal_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=500)
    logits = rng.normal(size=(500, 4)) + 1.2 * np.eye(4)[labels]
    predictions = make(labels, logits)
    report = compute_metrics(predictions, num_resamples=0)
    macro = sk.roc_auc_score(labels, predictions.probabilities, multi_class="ovr")
    decided = logits.argmax(axis=1)
    matrix = sk.confusion_matrix(labels, decided)
    assert report["task"] == "multi_class"
    assert report["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, decided))
    assert report["confusion_matrix"] == matrix.tolist()
    aurocs = []
    for k, name in enumerate(predictions.class_names):
        entry = report["classes"][name]
        expected = sk.roc_auc_score(labels == k, predictions.log_odds[:, k])
        assert entry["auroc"]["value"] == pytest.approx(expected, abs=1e-12)
        assert entry["sensitivity"]["value"] == matrix[k, k] / matrix[k].sum()
        others = np.delete(matrix, k, axis=0)
        assert entry["specificity"]["value"] == 1 - others[:, k].sum() / others.sum()
        aurocs.append(expected)
    assert report["auroc"]["value"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert report["auroc"]["value"] == pytest.approx(macro, abs=1e-12)
    recall = sk.balanced_accuracy_score(labels, decided)
    assert report["macro"]["sensitivity"]["value"] == pytest.approx(recall, abs=1e-12)
    assert "micro" not in report


def test_multi_label_metrics_equal_scikit_learn():
    rng = np.random.default_rng(2)
    labels = rng.random((400, 3)) < [0.1, 0.3, 0.5]
    logits = rng.normal(size=(400, 3)) + labels
    predictions = make(labels, logits, multi_label=True)
    report = compute_metrics(predictions, num_resamples=50)
    assert report["task"] == "multi_label"
    assert "accuracy" not in report
    for k in range(3):
        expected = sklearn_metrics(labels[:, k], logits[:, k])
        for metric, value in expected.items():
            assert report["classes"][f"C{k}"][metric]["value"] == pytest.approx(value, abs=1e-12)
    decided = logits > 0
    for average in ("macro", "micro"):
        for metric, value in {
            "auroc": sk.roc_auc_score(labels, logits, average=average),
            "auprc": sk.average_precision_score(labels, logits, average=average),
            "f1": sk.f1_score(labels, decided, average=average),
            "sensitivity": sk.recall_score(labels, decided, average=average),
            "ppv": sk.precision_score(labels, decided, average=average),
        }.items():
            entry = report[average][metric]
            assert entry["value"] == pytest.approx(value, abs=1e-12), (average, metric)
            assert entry["low"] < entry["value"] < entry["high"]
    micro = sklearn_metrics(labels.ravel(), logits.ravel())
    for metric, value in micro.items():
        assert report["micro"][metric]["value"] == pytest.approx(value, abs=1e-12), metric
        mean = np.mean([entry[metric]["value"] for entry in report["classes"].values()])
        assert report["macro"][metric]["value"] == pytest.approx(mean, abs=1e-12), metric
    assert report["auroc"] == report["macro"]["auroc"]


@pytest.mark.parametrize(
    ("labels", "logits", "undefined"),
    [
        (
            [1, 1],
            [[0, 1], [1, 0]],
            {"auroc": "needs images with and without C1", "specificity": ""},
        ),
        ([0, 0], [[0, 1], [1, 0]], {"auroc": "", "auprc": "an image of C1", "sensitivity": ""}),
        ([0, 1], [[1, 0], [1, 0]], {"ppv": "needs an image predicted as C1"}),
        ([0, 1], [[0, 1], [0, 1]], {"npv": "needs an image not predicted as C1"}),
        ([0, 0], [[1, 0], [1, 0]], {"f1": "of C1 or predicted as it", "ppv": ""}),
    ],
)
def test_an_undefined_metric_gives_its_reason_and_never_nan(labels, logits, undefined):
    report = compute_metrics(make(labels, logits), num_resamples=20)
    for name, reason in undefined.items():
        assert set(report[name]) == {"value", "reason"}
        assert report[name]["value"] is None
        assert reason in report[name]["reason"]
        assert format_metric(report[name]) == "undefined"
    assert 0 <= report["accuracy"]["value"] <= 1
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_missing_class_is_left_out_of_the_mean_and_named():
    logits = np.random.default_rng(0).normal(size=(30, 3))
    report = compute_metrics(make(np.arange(30) % 2, logits), num_resamples=50)
    classes = {name: entry["auroc"] for name, entry in report["classes"].items()}
    assert classes["C2"] == {"value": None, "reason": "needs images with and without C2"}
    mean = (classes["C0"]["value"] + classes["C1"]["value"]) / 2
    assert report["auroc"] == report["macro"]["auroc"]
    assert report["auroc"]["value"] == pytest.approx(mean, abs=1e-12)
    assert report["auroc"]["low"] < mean < report["auroc"]["high"]
    assert report["auroc"]["without"] == ["C2"]
    assert "without" not in report["macro"]["brier"] and "without" not in report["accuracy"]
    json.dumps(report, allow_nan=False)


def test_a_set_of_one_class_has_no_mean():
    logits = np.random.default_rng(0).normal(size=(30, 3))
    report = compute_metrics(make(np.zeros(30, int), logits), num_resamples=50)
    assert report["auroc"] == {
        "value": None,
        "reason": "needs images with and without one class at least",
    }


def test_fewer_resamples_than_classes_are_drawn_too():
    logits = np.random.default_rng(0).normal(size=(60, 5))
    report = compute_metrics(make(np.arange(60) % 5, logits), num_resamples=3)
    assert report["num_resamples"] == 3 and report["auroc"]["value"] is not None


def test_a_negative_number_of_resamples_is_an_error():
    with pytest.raises(ValueError, match="num_resamples is -1"):
        compute_metrics(binary(20), num_resamples=-1)


def test_equal_mass_bins_equal_scikit_learns_quantile_bins_and_keep_ties_together():
    predictions = binary(600)
    shown = calibration_curve(
        predictions.labels, predictions.probabilities[:, 1], n_bins=15, strategy="quantile"
    )
    report = compute_metrics(predictions, num_resamples=0)
    assert report["ece_mass"]["value"] == pytest.approx(np.abs(shown[0] - shown[1]).mean())
    # Images of one probability are one bin: its gap is that of the means, whatever their order.
    tied = make([1, 0, 0, 1, 0, 0], [[0, 0]] * 6)
    assert compute_metrics(tied, 0)["ece_mass"]["value"] == pytest.approx(1 / 6)


def test_rates_at_a_fixed_rate_equal_scikit_learns_curve():
    predictions = binary(624, ties=True)
    fpr, tpr, _ = sk.roc_curve(
        predictions.labels, predictions.log_odds[:, 1], drop_intermediate=False
    )
    report = compute_metrics(
        predictions, 0, specificities=(0.8, 0.9, 1), sensitivities=(0.95, 0.5, 0)
    )
    for text, entry in report["sensitivity_at_specificity"].items():
        assert entry["value"] == tpr[1 - fpr >= float(text) - 1e-12].max(), text
    for text, entry in report["specificity_at_sensitivity"].items():
        assert entry["value"] == pytest.approx(1 - fpr[tpr >= float(text)].min(), abs=1e-12), text
    # 0.1 of 10 negatives is 1 of them, though 1 - 0.9 is a little less than 0.1.
    ten = make([0] * 10 + [1], [[0, k] for k in (*range(10), 8.5)])
    assert compute_metrics(ten, 0)["sensitivity_at_specificity"]["0.9"]["value"] == 1


def test_predictive_values_at_a_prevalence_follow_bayes_rule():
    predictions = binary(300)
    prevalence = float(predictions.labels.mean())
    report = compute_metrics(predictions, 100, prevalences=(prevalence, 0.1))
    own, screening = report["ppv_at_prevalence"].values()
    assert own["value"] == pytest.approx(report["ppv"]["value"])
    own_npv = next(iter(report["npv_at_prevalence"].values()))
    assert own_npv["value"] == pytest.approx(report["npv"]["value"])
    sensitivity, specificity = report["sensitivity"]["value"], report["specificity"]["value"]
    expected = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))
    assert screening["value"] == pytest.approx(expected)
    assert screening["low"] < expected < screening["high"] < own["low"]


def test_decisions_follow_the_predictions_thresholds():
    free = binary(300)
    held = make(free.labels, free.logits, free.patient_id, free.class_names, thresholds=(0.2,))
    report = compute_metrics(held, 20)
    decided = free.probabilities[:, 1] >= 0.2
    assert report["sensitivity"]["value"] == sk.recall_score(free.labels, decided)
    assert report["mcc"]["value"] == pytest.approx(sk.matthews_corrcoef(free.labels, decided))
    assert report["auroc"] == compute_metrics(free, 20)["auroc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specificities": (90,)}, "90 is no sensitivity or specificity"),
        ({"sensitivities": (float("nan"),)}, "nan is no sensitivity"),
        ({"prevalences": (0,)}, "0 is no prevalence"),
    ],
)
def test_a_target_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(binary(20), 0, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": np.array([[0, np.nan], [0, 1.0]])},
        {"image_id": np.array(["a", "a"])},
        {"labels": np.array([0, 2])},
        {key: np.empty((0, 2) if key == "logits" else 0) for key in ("logits", "labels")}
        | {key: np.empty(0, dtype=str) for key in ("image_id", "patient_id")},
    ],
    ids=["nan", "duplicate", "label", "empty"],
)
def test_what_metrics_cannot_score_never_becomes_predictions(change):
    columns = {
        "image_id": np.array(["a", "b"]),
        "patient_id": np.array(["a", "b"]),
        "labels": np.array([0, 1]),
        "logits": np.zeros((2, 2)),
    }
    with pytest.raises(ValueError):
        Predictions(**columns | change, class_names=("N", "P"), split="test")
