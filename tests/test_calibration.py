"""Calibration, prevalence and operating points, against scikit-learn and by simulation."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

from evaluation.calibration import (
    abstained,
    adjust_prevalence,
    apply_operation,
    estimate_prevalence,
    fit_calibration,
    fit_operation,
)
from evaluation.operating_points import abstention_band, choose_threshold
from evaluation.predictions import Predictions


def binary(z, labels, patient_id=None):
    return predictions_of(np.column_stack([-z / 2, z / 2]), labels, patient_id)


def predictions_of(logits, labels, patient_id=None, multi_label=False):
    image_id = np.array([f"{i:05d}" for i in range(len(logits))])
    labels = np.asarray(labels)
    return Predictions(
        image_id,
        image_id if patient_id is None else np.asarray(patient_id, dtype=str),
        labels.astype(bool) if multi_label else labels.astype(np.int64),
        np.asarray(logits, dtype=np.float64),
        tuple("ABCDEFG"[: logits.shape[1]]),
        "validation",
        multi_label,
    )


def drawn(count, distort, seed=0):
    """Scores whose true log-odds `distort` has bent, and labels drawn by the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.5, 2, count)
    return binary(distort(true), rng.random(count) < expit(true))


def log_loss(predictions):
    z, positive = predictions.log_odds[:, 1], predictions.labels == 1
    return np.logaddexp(0, np.where(positive, -z, z)).mean()


def nearly_separable(count=300, seed=0):
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < 0.74
    return binary(np.where(positive, 8, -8) + rng.normal(0, 4, count), positive)


# -------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize(
    ("distort", "method"),
    [
        (lambda z: 2.5 * z, "temperature"),
        (lambda z: 2.5 * z - 3, "platt"),
        (lambda z: np.where(np.abs(z) < 1, z / 10, z) + 2 * np.sign(z), "isotonic"),
    ],
)
def test_the_method_that_the_scores_need_wins_and_recovers_the_true_odds(distort, method):
    train, fresh = drawn(4000, distort), drawn(20_000, distort, seed=1)
    calibration = fit_calibration(train)
    assert calibration["method"] == method
    operation = {**fit_operation(train), "calibration": calibration}
    truth = log_loss(drawn(20_000, lambda z: z, seed=1))
    assert log_loss(apply_operation(fresh, operation)) < truth + 0.005 < log_loss(fresh)
    if method == "temperature":
        assert calibration["temperature"] == pytest.approx(2.5, rel=0.06)


def test_platt_is_scikit_learns_sigmoid_calibration():
    predictions = drawn(400, lambda z: 3 * z - 4)
    z = predictions.log_odds[:, 1:]
    scorer = LogisticRegression().fit(z, predictions.labels)
    scorer.coef_[:], scorer.intercept_[:] = 1, 0
    peer = CalibratedClassifierCV(FrozenEstimator(scorer), method="sigmoid", ensemble=False)
    peer.fit(z, predictions.labels)
    calibration = fit_calibration(predictions)
    assert calibration["method"] == "platt"
    ours = expit(calibration["scale"][0] * z[:, 0] + calibration["bias"][0])
    np.testing.assert_allclose(ours, peer.predict_proba(z)[:, 1], atol=1e-6)


def isotonic_fit():
    predictions = drawn(1000, lambda z: np.where(np.abs(z) < 1, z / 10, z) + 2 * np.sign(z))
    calibration = fit_calibration(predictions)
    assert calibration["method"] == "isotonic"
    return predictions, calibration


def test_isotonic_knots_are_scikit_learns_blocks():
    predictions, calibration = isotonic_fit()
    z, positive = predictions.log_odds[:, 1], predictions.labels == 1
    n = np.where(positive, positive.sum(), (~positive).sum())
    targets = np.where(positive, (n + 1) / (n + 2), 1 / (n + 2))  # Platt 1999
    levels = IsotonicRegression().fit_transform(z, targets)
    blocks = [z[np.isclose(levels, level)].mean() for level in np.unique(levels.round(10))]
    np.testing.assert_allclose(calibration["log_odds"][0][1:-1], blocks, rtol=1e-9)
    np.testing.assert_allclose(
        expit(calibration["calibrated"][0][1:-1]), np.unique(levels.round(10)), atol=1e-9
    )


def test_unseen_scores_far_outside_stay_finite_and_flat():
    predictions, calibration = isotonic_fit()
    operation = {**fit_operation(predictions), "calibration": calibration}
    far = apply_operation(binary(np.array([-1e6, -1e3, 1e3, 1e6]), [0, 1, 0, 1]), operation)
    z = far.log_odds[:, 1]
    assert z[0] == z[1] == pytest.approx(calibration["calibrated"][0][0])
    assert z[2] == z[3] == pytest.approx(calibration["calibrated"][0][-1])
    assert np.abs(z).max() < np.log(len(predictions.labels))


@pytest.mark.parametrize(
    "predictions",
    [drawn(500, lambda z: 3 * z), drawn(500, lambda z: 3 * z - 4), isotonic_fit()[0]],
    ids=["temperature", "platt", "isotonic"],
)
def test_calibration_keeps_the_order_of_the_validation_images(predictions):
    operation = fit_operation(predictions)
    after = apply_operation(predictions, operation)
    before = roc_auc_score(predictions.labels, predictions.log_odds[:, 1])
    assert roc_auc_score(after.labels, after.log_odds[:, 1]) == pytest.approx(before, abs=1e-12)


def test_the_winner_has_the_least_cross_validated_loss_and_identity_is_a_candidate():
    for seed in range(5):
        calibration = fit_calibration(drawn(60, lambda z: z, seed))
        losses = calibration["log_loss"]
        assert set(losses) == {"identity", "temperature", "platt", "isotonic"}
        name = calibration["method"]
        if calibration.get("temperature") == 1.0:
            name = "identity"
        assert losses[name] == min(losses.values()) <= losses["identity"]
    # Scores that are right but few: a fit can only add noise.
    right = [fit_calibration(drawn(40, lambda z: z, seed)) for seed in range(10)]
    assert sum(found.get("temperature") == 1.0 for found in right) >= 2


def test_the_cross_validation_keeps_a_patients_images_together():
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=60), 4) + np.tile([0, 1e-4, 2e-4, 3e-4], 60)
    labels = np.repeat(rng.random(60) < 0.5, 4)  # no relation to the score but by patient
    patients = np.repeat(np.arange(60), 4)
    grouped = fit_calibration(binary(z, labels, patients))["log_loss"]["isotonic"]
    leaky = fit_calibration(binary(z, labels))["log_loss"]["isotonic"]
    assert grouped > np.log(2)
    assert leaky < grouped


def test_the_fit_is_the_same_whatever_the_order_of_the_images():
    predictions = drawn(200, lambda z: 2 * z)
    order = np.random.default_rng(0).permutation(200)
    shuffled = replace(
        predictions,
        **{
            name: getattr(predictions, name)[order]
            for name in ("image_id", "patient_id", "labels", "logits")
        },
    )
    first, second = fit_operation(predictions), fit_operation(shuffled)
    assert first["calibration"]["log_loss"] == pytest.approx(second["calibration"]["log_loss"])
    assert first["thresholds"] == pytest.approx(second["thresholds"])
    assert fit_operation(predictions) == first


def test_nearly_and_perfectly_separable_scores_keep_modest_odds():
    scores = np.concatenate([np.linspace(-40, -20, 30), np.linspace(20, 40, 90)])
    for predictions in (nearly_separable(), binary(scores, scores > 0)):
        operation = fit_operation(predictions)
        calibrated = apply_operation(predictions, operation)
        losses = operation["calibration"]["log_loss"]
        assert np.isfinite(calibrated.logits).all()
        assert np.isfinite(list(losses.values())).all()
        assert log_loss(calibrated) < 0.1
        assert 0.01 < operation["thresholds"][0] < 0.99
        assert 0.1 <= operation["calibration"].get("temperature", 1) <= 10


def test_multi_class_and_multi_label_calibration():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (3000, 3))
    labels = (
        np.exp(true).cumsum(1) / np.exp(true).sum(1, keepdims=True) > rng.random((3000, 1))
    ).argmax(1)
    operation = fit_operation(predictions_of(4 * true, labels))
    assert operation["calibration"]["temperature"] == pytest.approx(4, rel=0.06)
    assert set(operation["calibration"]["log_loss"]) == {"identity", "temperature"}
    assert operation["thresholds"] is operation["abstention"] is None
    assert operation["prevalence"] == pytest.approx(np.bincount(labels) / 3000)

    present = rng.random((3000, 3)) < expit(true)
    bent = predictions_of(true * [1, 2, 3] + [0, 1, -2], present, multi_label=True)
    operation = fit_operation(bent)
    assert operation["calibration"]["scale"] == pytest.approx([1, 1 / 2, 1 / 3], rel=0.1)
    assert operation["calibration"]["bias"] == pytest.approx([0, -1 / 2, 2 / 3], abs=0.12)
    assert len(operation["thresholds"]) == len(operation["abstention"]) == 3
    assert operation["prevalence"] == pytest.approx(present.mean(0))
    after = apply_operation(bent, operation)
    np.testing.assert_array_equal(after.decisions, after.probabilities >= operation["thresholds"])


def test_an_operation_is_json_and_does_the_same_read_back():
    predictions = drawn(200, lambda z: 2 * z - 1)
    operation = fit_operation(predictions)
    assert list(operation) == ["calibration", "thresholds", "abstention", "prevalence"]
    again = json.loads(json.dumps(operation))
    assert again == operation
    after = apply_operation(predictions, again)
    np.testing.assert_array_equal(after.logits, apply_operation(predictions, operation).logits)
    np.testing.assert_array_equal(after.logits[:, 0], 0)
    assert after.thresholds == tuple(operation["thresholds"])


def test_splits_that_allow_no_calibration_are_named():
    z = np.linspace(-1, 1, 8)
    with pytest.raises(ValueError, match="'validation' has no image of B; calibration needs"):
        fit_operation(binary(z, np.zeros(8)))
    with pytest.raises(ValueError, match="has one patient; .* needs two or more"):
        fit_operation(binary(z, np.arange(8) % 2, ["p"] * 8))
    none = np.zeros((8, 2))
    with pytest.raises(ValueError, match="has no image of A"):
        fit_operation(predictions_of(np.eye(8, 2), none, multi_label=True))
    with pytest.raises(ValueError, match="has only images of A"):
        fit_operation(predictions_of(np.eye(8, 2), none + 1, multi_label=True))


def test_a_class_without_images_leaves_the_others_operation_as_it_is():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 3)), rng.integers(0, 2, (60, 3))
    labels[:, 1], labels[:, 2] = 0, 1
    predictions = predictions_of(logits, labels, multi_label=True)
    operation = fit_operation(predictions)
    assert operation["thresholds"][1:] == [0.5, 0.5]
    assert operation["prevalence"] == pytest.approx(
        [(labels[:, 0].sum() + 0.5) / 61, 1 / 122, 121 / 122]
    )
    decided = apply_operation(predictions, operation).decisions
    assert not decided[:, 1].any() and decided[:, 2].all()
    exclusive = fit_operation(predictions_of(np.eye(8, 3), np.arange(8) % 2))
    assert exclusive["prevalence"] == pytest.approx([4.5 / 9.5, 4.5 / 9.5, 0.5 / 9.5])


def test_operations_that_do_not_fit_are_named():
    predictions = drawn(20, lambda z: z)
    operation = dict.fromkeys(["calibration", "thresholds", "abstention", "prevalence"])
    assert apply_operation(predictions, operation).logits is predictions.logits
    with pytest.raises(ValueError, match="has no 'prevalence'"):
        apply_operation(predictions, {k: None for k in operation if k != "prevalence"})
    with pytest.raises(ValueError, match="'beta'}; it takes a dict with the method temperature"):
        apply_operation(predictions, operation | {"calibration": {"method": "beta"}})
    platt = operation | {"calibration": {"method": "platt", "scale": [1, 1], "bias": [0, 0]}}
    with pytest.raises(ValueError, match="it takes 1 numbers each"):
        apply_operation(predictions, platt)
    with pytest.raises(ValueError, match="more than two exclusive classes take 'temperature'"):
        apply_operation(predictions_of(np.eye(3), [0, 1, 2]), platt)


# --------------------------------------------------------------------------------------- prevalence


def two_gaussians(count, share, seed):
    """Exact posteriors at prevalence 0.5 of images drawn at another one."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < share
    return binary(2 * (np.where(positive, 1, -1) + rng.normal(0, 1, count)), positive)


def test_another_prevalence_is_bayes_rule():
    predictions = predictions_of(np.log([[0.2, 0.8]]), [1])
    moved = adjust_prevalence(predictions, [0.5, 0.5], [0.9, 0.1])
    assert moved.probabilities[0, 1] == pytest.approx(0.16 / (0.16 + 0.36))
    back = adjust_prevalence(moved, [0.9, 0.1], [0.5, 0.5])
    np.testing.assert_allclose(back.probabilities, predictions.probabilities)
    both = predictions_of(logit([[0.8, 0.5]]), [[1, 0]], multi_label=True)
    moved = adjust_prevalence(both, [0.5, 0.2], [0.1, 0.2])
    np.testing.assert_allclose(moved.probabilities, [[0.16 / 0.52, 0.5]])


def test_probabilities_at_the_true_prevalence_are_calibrated():
    predictions = two_gaussians(20_000, 0.1, seed=0)
    moved = adjust_prevalence(predictions, [0.5, 0.5], [0.9, 0.1])
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
        p, y = moved.probabilities[:, 1], predictions.labels
        held = (p >= low) & (p < high)
        error = np.sqrt(p[held].mean() * (1 - p[held].mean()) / held.sum())
        assert abs(p[held].mean() - y[held].mean()) < 3.5 * error
    assert log_loss(moved) < log_loss(predictions)


def test_em_finds_the_prevalence_within_its_sampling_error():
    estimates = [
        estimate_prevalence(two_gaussians(500, 0.2, seed), [0.5, 0.5])[1] for seed in range(200)
    ]
    spread = np.std(estimates)
    assert abs(np.mean(estimates) - 0.2) < 3 * spread / np.sqrt(200)
    assert 0.018 < spread < 0.03  # 0.018 were the labels known
    sample = two_gaussians(500, 0.2, seed=0)
    ratio = 2 * sample.probabilities

    def loss(share):
        return -np.log(ratio @ [1 - share, share]).sum()

    peak = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).x
    assert estimates[0] == pytest.approx(peak, abs=1e-6)


def test_em_with_three_classes_and_with_a_class_that_is_gone():
    rng = np.random.default_rng(0)
    centres, old, new = 2 * np.eye(3), np.array([0.6, 0.3, 0.1]), [0.1, 0.2, 0.7]
    labels = rng.choice(3, 6000, p=new)
    x = centres[labels] + rng.normal(0, 1, (6000, 3))
    logits = x @ centres.T + np.log(old)
    estimate = estimate_prevalence(predictions_of(logits, labels), old)
    assert estimate == pytest.approx(np.bincount(labels) / 6000, abs=0.02)
    gone = two_gaussians(3000, 0.0, seed=1)
    estimate = estimate_prevalence(gone, [0.5, 0.5])
    assert 0 < estimate[1] < 0.01
    assert np.isfinite(adjust_prevalence(gone, [0.5, 0.5], estimate).logits).all()


def test_a_prevalence_that_does_not_fit_is_named():
    predictions = two_gaussians(10, 0.5, seed=0)
    for wrong in ([0.5], [0.5, 0.6], [0, 1], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="the new prevalence is .*; 2 shares between 0 and 1"):
            adjust_prevalence(predictions, [0.5, 0.5], wrong)
    many = predictions_of(np.eye(2), np.eye(2), multi_label=True)
    with pytest.raises(ValueError, match="for exclusive classes"):
        estimate_prevalence(many, [0.5, 0.5])


# ---------------------------------------------------------------------------------- operating point


def test_youden_and_f1_reach_the_best_of_all_cuts():
    for seed in range(3):
        predictions = drawn(60, lambda z: z, seed)
        z, positive = predictions.log_odds[:, 1], predictions.labels == 1
        false, true, _ = roc_curve(positive, z, drop_intermediate=False)
        decided = expit(z) >= choose_threshold(positive, z)
        youden = decided[positive].mean() - decided[~positive].mean()
        assert youden == pytest.approx((true - false).max())
        decided = expit(z) >= choose_threshold(positive, z, "f1")
        best = max(f1_score(positive, z >= cut) for cut in z)
        assert f1_score(positive, decided) == pytest.approx(best)


def test_a_target_sensitivity_costs_the_least_specificity():
    for seed, target in enumerate((0.8, 0.95, 1.0)):
        predictions = drawn(150, lambda z: z, seed)
        z, positive = predictions.log_odds[:, 1], predictions.labels == 1
        threshold = choose_threshold(positive, z, "sensitivity", target)
        false, true, _ = roc_curve(positive, z, drop_intermediate=False)
        decided = expit(z) >= threshold
        assert decided[positive].mean() >= target
        assert decided[~positive].mean() == pytest.approx(false[true >= target].min())


def test_a_threshold_lies_midway_and_in_the_widest_gap():
    z = np.array([-3.0, -1.0, 2.0, 4.0])
    assert choose_threshold(z > 0, z) == pytest.approx(expit(0.5))
    # 0.5 is at either end of the positive at 1; the wider gap is above it.
    z, positive = np.array([-2.0, 1.0, 2.0, 8.0]), np.array([0, 1, 0, 1], dtype=bool)
    assert choose_threshold(positive, z) == pytest.approx(expit(5.0))
    # The lowest score is a positive's: only a threshold below all scores finds it.
    assert choose_threshold(~positive, z, "sensitivity", 1.0) == pytest.approx(expit(-3.0))
    huge = choose_threshold(np.array([False, True]), np.array([100.0, 300.0]))
    assert 0 < huge < 1


def test_wrong_rules_and_targets_are_named():
    z = np.array([-1.0, 1.0])
    with pytest.raises(ValueError, match="rule is 'max'; it can be youden, f1, sensitivity"):
        choose_threshold(z > 0, z, "max")
    with pytest.raises(ValueError, match="target is 95"):
        choose_threshold(z > 0, z, "sensitivity", 95)
    with pytest.raises(ValueError, match=r"abstain_share is 1\.0"):
        abstention_band(z, 0.5, 1.0)


def test_the_band_holds_its_share_around_the_threshold():
    predictions = drawn(200, lambda z: z)
    operation = fit_operation(predictions, abstain_share=0.15)
    after = apply_operation(predictions, operation)
    ((low, high),), (threshold,) = operation["abstention"], operation["thresholds"]
    assert abstained(after, operation).sum() == 30
    assert logit(high) - logit(threshold) == pytest.approx(logit(threshold) - logit(low))
    nearest = np.abs(after.log_odds[:, 1] - logit(threshold)).argsort()[:30]
    assert abstained(after, operation)[nearest].all()


def test_a_band_of_equal_scores_holds_less_and_a_share_of_nothing_is_no_band():
    z = np.repeat([-2.0, -1.0, 1.5, 2.5], 5)
    low, high = abstention_band(z, 0.5, 0.3)  # six images; the nearest five are at -1
    assert [low, high] == pytest.approx(expit([-1.25, 1.25]))
    assert abstention_band(z, 0.5, 0.25) == pytest.approx([low, high])
    low, high = abstention_band(z, 0.5, 0.1)
    here = binary(z, z > 0)
    assert not abstained(here, {"thresholds": [0.5], "abstention": [[low, high]]}).any()
    assert abstention_band(z, 0.5, 0) is None
    assert not abstained(here, {"thresholds": [0.5], "abstention": None}).any()
    assert fit_operation(drawn(50, lambda z: z), abstain_share=0)["abstention"] is None
