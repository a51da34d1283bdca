"""DeLong's test: its published example, definition and simulation. Paired differences."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.bootstrap import resample_weights
from evaluation.compare import compare_models, delong
from evaluation.metrics import METRIC_NAMES, compute_metrics
from evaluation.predictions import Predictions

# DeLong, DeLong and Clarke-Pearson 1988: 43 of their patients with ovarian cancer, as the SAS/STAT
# documentation prints them (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"):
# albumin, total protein, K-G score, benefit of surgery.
OVARIAN_CANCER = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


def pair(num_images=200, seed=0, better=0.5):
    """Two models' binary predictions of the same images, patients of about two images."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(num_images // 2, size=num_images)
    labels = (np.arange(num_images // 2) % 2)[patients]
    shared = labels + rng.normal(size=num_images // 2)[patients]
    ids = np.array([f"{i}.png" for i in range(num_images)])
    models = []
    for gain in (better, 0):
        scores = shared + gain * labels + rng.normal(size=num_images) - 0.5
        logits = np.stack([np.zeros(num_images), scores], axis=1)
        models.append(Predictions(ids, patients.astype(str), labels, logits, ("N", "P"), "test"))
    return models


def multi_label_pair():
    rng = np.random.default_rng(1)
    labels = rng.random((120, 3)) < [0.2, 0.4, 0.5]
    ids = np.arange(120).astype(str)
    return [
        Predictions(
            ids, ids, labels, rng.normal(size=(120, 3)) + labels, ("A", "B", "C"), "t", True
        )
        for _ in range(2)
    ]


def test_delong_gives_the_published_figures_of_the_ovarian_cancer_data():
    albumin, protein, score, benefit = np.array(OVARIAN_CANCER.split(), float).reshape(-1, 4).T
    positive, kg = benefit == 1, 10 - score
    # Estimate, Wald limits, chi-square and p as printed there; the areas against no ranking at all.
    for scores, other, difference, low, high, chi_square, p in (
        (albumin, kg, 0.0108, -0.1761, 0.1976, 0.0127, 0.9102),
        (protein, kg, -0.0780, -0.2830, 0.1271, 0.5554, 0.4561),
    ):
        found = delong(positive, scores, other)
        figures = [found[key] for key in ("difference", "low", "high", "p")]
        assert figures == pytest.approx([difference, low, high, p], abs=5e-5)
        assert found["z"] ** 2 == pytest.approx(chi_square, abs=5e-5)
    for scores, area, low, high in (
        (albumin, 0.7366, 0.5549, 0.9182),
        (kg, 0.7258, 0.5243, 0.9273),
        (protein, 0.6478, 0.4518, 0.8439),
    ):
        found = delong(positive, scores, np.zeros(43))
        figures = [found[key] + 0.5 for key in ("difference", "low", "high")]
        assert figures == pytest.approx([area, low, high], abs=5e-5)


def test_delong_equals_its_definition_pair_by_pair():
    rng = np.random.default_rng(3)
    positive = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=(2, 60)) + positive, 1)
    kernels = [
        (s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive])
        for s in scores
    ]
    of_positives = np.cov([kernel.mean(axis=1) for kernel in kernels])
    of_negatives = np.cov([kernel.mean(axis=0) for kernel in kernels])
    covariance = of_positives / positive.sum() + of_negatives / (~positive).sum()
    contrast = np.array([1, -1])
    difference = kernels[0].mean() - kernels[1].mean()
    z = difference / math.sqrt(contrast @ covariance @ contrast)
    found = delong(positive, *scores)
    assert found["difference"] == pytest.approx(difference, abs=1e-12)
    assert found["z"] == pytest.approx(z, abs=1e-9)
    assert found["p"] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=1e-12)
    # An image a patient: the clustered form is the same test.
    alone = delong(positive, *scores, np.arange(60).astype(str))
    assert alone == pytest.approx(found, abs=1e-12)


def test_copies_of_an_image_add_nothing_to_the_clustered_test():
    one = pair(150, seed=5)
    patients = np.arange(150).astype(str)
    positive, scores = one[0].labels == 1, [model.logits[:, 1] for model in one]
    thrice = [np.tile(array, 3) for array in (positive, *scores)]
    once = delong(positive, *scores, patients)
    clustered = delong(*thrice, np.tile(patients, 3))
    assert clustered["z"] == pytest.approx(once["z"], rel=1e-9)
    assert abs(delong(*thrice)["z"]) > 1.7 * abs(once["z"])


def test_delong_rejects_equal_models_in_five_percent_and_intervals_cover():
    studies, rejected, clustered_rejected, covered = 400, 0, 0, 0
    for study in range(studies):
        a, b = pair(240, seed=study, better=0)
        positive, scores = a.labels == 1, (a.logits[:, 1], b.logits[:, 1])
        rejected += delong(positive, *scores)["p"] < 0.05
        clustered_rejected += delong(positive, *scores, a.patient_id)["p"] < 0.05
        if study < 60:
            entry = compare_models(a, b, num_resamples=200)["differences"]["auroc"]
            covered += entry["low"] <= 0 <= entry["high"]
    # Both are valid here: what images of one patient share, the two models share too. The bounds
    # are three binomial standard errors away.
    assert 0.018 <= rejected / studies <= 0.083
    assert 0.018 <= clustered_rejected / studies <= 0.083
    assert covered >= 52


def test_delong_is_one_sided_in_favour_of_the_better_model():
    a, b = pair(600, better=1.5)
    report = compare_models(a, b, num_resamples=100)
    for test in (report["delong"], report["delong_clustered"]):
        assert test["z"] > 3 and test["p"] < 0.01 and 0 < test["low"] < test["difference"]
    entry = report["differences"]["auroc"]
    assert entry["value"] == pytest.approx(report["delong"]["difference"], abs=1e-12)
    assert 0 < entry["low"] < entry["value"] < entry["high"]
    turned = compare_models(b, a, num_resamples=100)
    assert turned["delong"]["z"] == pytest.approx(-report["delong"]["z"])
    assert turned["differences"]["auroc"]["low"] == pytest.approx(-entry["high"])


def test_differences_are_those_of_compute_metrics_on_the_same_resamples():
    a, b = pair()
    report = compare_models(a, b, num_resamples=60, seed=4)
    alone = [compute_metrics(model, num_resamples=0) for model in (a, b)]
    assert set(METRIC_NAMES) < set(report["differences"])
    for metric in METRIC_NAMES:
        expected = alone[0][metric]["value"] - alone[1][metric]["value"]
        assert report["differences"][metric]["value"] == pytest.approx(expected, abs=1e-12)
    target = report["differences"]["ppv_at_prevalence"]["0.1"]
    assert target["low"] < target["value"] < target["high"]
    weights = np.concatenate(list(resample_weights(a.patient_id, 60, seed=4)))
    right = [(model.decisions == model.labels).astype(float) for model in (a, b)]
    resampled = weights @ (right[0] - right[1]) / weights.sum(axis=1)
    entry = report["differences"]["accuracy"]
    # Student's t of 85 patients; the paired errors are far smaller than two separate ones.
    patients = report["patients"]
    error = resampled.std() * math.sqrt(patients / (patients - 1))
    assert (entry["high"] - entry["low"]) / 2 / error == pytest.approx(1.988, abs=0.01)


def test_calibration_errors_are_compared_without_an_interval_and_say_why():
    a, b = pair()
    for metric in ("ece", "ece_mass"):
        entry = compare_models(a, b, num_resamples=20)["differences"][metric]
        assert (entry["low"], entry["high"]) == (None, None)
        assert "bias" in entry["reason"]


def test_the_order_of_the_second_models_rows_does_not_matter():
    a, b = pair()
    order = np.random.default_rng(0).permutation(200)
    shuffled = replace(
        b,
        image_id=b.image_id[order],
        patient_id=b.patient_id[order],
        labels=b.labels[order],
        logits=b.logits[order],
    )
    assert compare_models(a, shuffled, 20) == compare_models(a, b, 20)


def test_multi_label_models_are_compared_class_by_class():
    a, b = multi_label_pair()
    report = compare_models(a, b, num_resamples=40)
    assert list(report["classes"]) == ["A", "B", "C"]
    aurocs = []
    for k, name in enumerate(a.class_names):
        entry = report["classes"][name]
        assert entry["delong"] == delong(a.labels[:, k], a.logits[:, k], b.logits[:, k])
        aurocs.append(entry["differences"]["auroc"]["value"])
    macro = report["macro"]["auroc"]
    assert macro["value"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert report["differences"]["auroc"] == macro
    assert report["micro"]["accuracy"]["low"] < report["micro"]["accuracy"]["high"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_equal_predictions_have_no_z_and_say_why():
    a, _ = pair()
    report = compare_models(a, a, num_resamples=20)
    for test in (report["delong"], report["delong_clustered"]):
        assert (test["difference"], test["z"], test["p"]) == (0, None, None)
        assert "do not vary" in test["reason"]
    assert report["differences"]["auroc"]["reason"] == "every resample gives the same value"
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_is_undefined_with_a_reason(label):
    a, b = pair()
    a, b = (replace(model, labels=np.full(200, label)) for model in (a, b))
    report = compare_models(a, b, num_resamples=20)
    assert report["delong"]["difference"] is None
    assert "with and without" in report["delong"]["reason"]
    assert "with and without" in report["differences"]["auroc"]["reason"]
    assert report["differences"]["accuracy"]["value"] is not None
    json.dumps(report, allow_nan=False)


def test_one_patient_only_has_differences_without_intervals():
    a, b = (replace(model, patient_id=np.full(200, "p")) for model in pair())
    report = compare_models(a, b, num_resamples=20)
    assert "two patients" in report["delong_clustered"]["reason"]
    assert "two patients" in report["differences"]["auroc"]["reason"]
    json.dumps(report, allow_nan=False)


def test_models_of_different_images_or_truth_are_refused_by_name():
    a, b = pair()
    other = b.image_id.copy()
    other[7] = "other.png"
    labels, patients = b.labels.copy(), b.patient_id.copy()
    labels[3] = 1 - labels[3]
    patients[4] = "someone"
    for second, message in (
        (replace(b, image_id=other), "image '7.png' has no prediction by the second model"),
        (replace(b, labels=labels), "image '3.png' has the label"),
        (replace(b, patient_id=patients), "image '4.png' has the patient"),
        (replace(b, class_names=("N", "X")), "the classes differ: N, P and N, X"),
        (multi_label_pair()[0], "the first model is single-label, the second multi-label"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_models(a, second, 10)
    longer, _ = pair(202)
    with pytest.raises(ValueError, match="has no prediction by the first model"):
        compare_models(a, longer, 10)
    with pytest.raises(ValueError, match="num_resamples is -1"):
        compare_models(a, b, -1)


def test_means_over_different_classes_are_not_subtracted():
    a, b = multi_label_pair()
    never = a.logits.copy()
    never[:, 2] = -9.0  # no image is called C, so that its PPV is undefined
    report = compare_models(replace(a, logits=never), b, num_resamples=50)
    assert report["macro"]["ppv"] == {
        "value": None,
        "reason": "the two means are over different classes",
    }
    assert report["macro"]["sensitivity"]["value"] is not None
    assert report["differences"]["auroc"]["value"] is not None
