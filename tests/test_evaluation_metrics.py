"""Metrics against scikit-learn, the bootstrap against a plain loop, the intervals by simulation."""

import json
import math
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation import metrics as module
from evaluation.metrics import (
    METRIC_NAMES,
    compute_metrics,
    confusion_matrix,
    format_metric,
    resample_weights,
)
from evaluation.predictions import Predictions


def make(labels, logits, patients=None, names=None, multi_label=False):
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


def sklearn_metrics(labels, log_odds):
    probability = 1 / (1 + np.exp(-log_odds))
    decided = log_odds > 0
    (tn, fp), (fn, _) = sk.confusion_matrix(labels, decided, labels=[0, 1])
    ece = 0
    for low in np.arange(15) / 15:
        inside = (probability >= low) & (probability < low + 1 / 15)
        if inside.any():
            gap = abs(labels[inside].mean() - probability[inside].mean())
            ece += inside.mean() * gap
    return {
        "auroc": sk.roc_auc_score(labels, log_odds),
        "auprc": sk.average_precision_score(labels, log_odds),
        "accuracy": sk.accuracy_score(labels, decided),
        "sensitivity": sk.recall_score(labels, decided),
        "specificity": tn / (tn + fp),
        "ppv": sk.precision_score(labels, decided),
        "npv": tn / (tn + fn),
        "f1": sk.f1_score(labels, decided),
        "brier": sk.brier_score_loss(labels, probability),
        "ece": ece,
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


def test_multi_label_metrics_equal_scikit_learn():
    rng = np.random.default_rng(2)
    labels = rng.random((400, 3)) < [0.1, 0.3, 0.5]
    logits = rng.normal(size=(400, 3)) + labels
    report = compute_metrics(make(labels, logits, multi_label=True), num_resamples=0)
    assert report["task"] == "multi_label"
    assert "accuracy" not in report
    for k in range(3):
        expected = sklearn_metrics(labels[:, k], logits[:, k])
        for metric, value in expected.items():
            assert report["classes"][f"C{k}"][metric]["value"] == pytest.approx(value, abs=1e-12)
    macro = sk.roc_auc_score(labels, logits, average="macro")
    assert report["auroc"]["value"] == pytest.approx(macro, abs=1e-12)


def test_intervals_equal_a_plain_loop_over_the_same_resamples():
    predictions = binary(150, ties=True, seed=3)
    report = compute_metrics(predictions, num_resamples=200, seed=7)
    rows = np.concatenate(list(resample_weights(predictions.patient_id, 200, seed=7)))
    assert rows.shape == (200, 150)
    samples = []
    for row in rows:
        drawn = np.repeat(np.arange(150), row.astype(int))
        samples.append(sklearn_metrics(predictions.labels[drawn], predictions.log_odds[drawn, 1]))
    for name in METRIC_NAMES:
        low, high = np.quantile([sample[name] for sample in samples], [0.025, 0.975])
        assert report[name]["low"] == pytest.approx(low, abs=1e-12), name
        assert report[name]["high"] == pytest.approx(high, abs=1e-12), name


def test_resamples_draw_whole_patients():
    patients = np.array(["a", "b", "a", "c", "b", "b"])
    rows = np.concatenate(list(resample_weights(patients, 5000, seed=1)))
    np.testing.assert_array_equal(rows[:, 0], rows[:, 2])
    np.testing.assert_array_equal(rows[:, 1], rows[:, 5])
    assert (rows[:, [0, 1, 3]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(rows.mean(axis=0), 1, atol=0.05)


def test_the_result_depends_on_the_seed_and_not_on_blocks_or_row_order(monkeypatch):
    predictions = binary(100)
    report = compute_metrics(predictions, num_resamples=101, seed=1)
    assert report != compute_metrics(predictions, num_resamples=101, seed=2)
    monkeypatch.setattr(module, "MAX_BLOCK_WEIGHTS", 1700)
    assert compute_metrics(predictions, num_resamples=101, seed=1) == report
    back = slice(None, None, -1)
    turned = make(
        predictions.labels[back],
        predictions.logits[back],
        predictions.patient_id[back],
        predictions.class_names,
    )
    again = compute_metrics(turned, num_resamples=101, seed=1)
    for name in METRIC_NAMES:
        assert again[name] == pytest.approx(report[name], abs=1e-12)


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


def test_a_missing_class_leaves_the_macro_undefined_and_the_others_reported():
    logits = np.random.default_rng(0).normal(size=(30, 3))
    report = compute_metrics(make(np.arange(30) % 2, logits), num_resamples=50)
    assert report["auroc"] == {
        "value": None,
        "reason": "needs images with and without each class",
    }
    assert report["classes"]["C2"]["auroc"]["value"] is None
    assert report["classes"]["C0"]["auroc"]["value"] is not None
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("patients", "resamples", "reason"),
    [
        (["p"] * 4, 50, "at least two patients"),
        (["p", "q", "r", "s"], 0, "no resamples"),
        (["p", "q", "r", "s"], 200, "undefined in"),
        (["p", "q", "p", "q"], 200, "same value"),
    ],
)
def test_a_value_without_an_interval_says_why(patients, resamples, reason):
    logits = [[1, 0], [1, 0], [0, 1], [0, 1]]
    report = compute_metrics(make([0, 0, 1, 1], logits, patients), resamples)
    assert report["auroc"]["value"] == 1
    assert (report["auroc"]["low"], report["auroc"]["high"]) == (None, None)
    assert reason in report["auroc"]["reason"]
    assert format_metric(report["auroc"]) == "1.000"


def test_a_negative_number_of_resamples_is_an_error():
    with pytest.raises(ValueError, match="num_resamples is -1"):
        compute_metrics(binary(20), num_resamples=-1)


def test_intervals_cover_the_truth_in_simulated_studies():
    # Patients with 1 to 6 alike images: scores N(1.5 y, 1), 80 % of the variance the patient's.
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(1.5 / 2))
    studies, covered, by_image_covered = 300, 0, 0
    for _ in range(studies):
        sizes = rng.integers(1, 7, size=120)
        patients = np.repeat(np.arange(120), sizes)
        labels = (np.arange(120) % 2)[patients]
        shared = rng.normal(size=120)[patients] * math.sqrt(0.8)
        scores = 1.5 * labels + shared + rng.normal(size=len(patients)) * math.sqrt(0.2)
        logits = np.stack([np.zeros_like(scores), scores], axis=1)
        auroc = compute_metrics(make(labels, logits, patients), 200)["auroc"]
        covered += auroc["low"] <= truth <= auroc["high"]
        auroc = compute_metrics(make(labels, logits), 200)["auroc"]
        by_image_covered += auroc["low"] <= truth <= auroc["high"]
    assert 0.90 <= covered / studies <= 0.98
    # The same images as if each were its own patient: the interval is far too narrow.
    assert by_image_covered / studies < 0.80


def test_a_thousand_resamples_of_the_official_test_size_are_quick():
    predictions = binary(624)
    start = time.perf_counter()
    compute_metrics(predictions, num_resamples=1000)
    assert time.perf_counter() - start < 2
