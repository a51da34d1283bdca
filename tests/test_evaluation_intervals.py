"""Bootstrap intervals: against a plain loop, and by simulated studies whose truth is known."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t as student
from test_evaluation_metrics import CALIBRATION_ERRORS, binary, make, sklearn_metrics

from benchmarks.coverage import coverage, simulated, simulated_truth
from evaluation import bootstrap
from evaluation.bootstrap import calibration_error, resample_weights
from evaluation.metrics import METRIC_NAMES, compute_metrics, format_metric


def test_intervals_equal_a_plain_loop_over_the_same_resamples():
    predictions = binary(150, ties=True, seed=3)
    report = compute_metrics(predictions, num_resamples=40, seed=7)
    rows = np.concatenate(list(resample_weights(predictions.patient_id, 40, seed=7)))
    assert rows.shape == (40, 150)
    samples = []
    for row in rows:
        drawn = np.repeat(np.arange(150), row.astype(int))
        samples.append(sklearn_metrics(predictions.labels[drawn], predictions.log_odds[drawn, 1]))
    patients = report["patients"]
    t = student.ppf(0.975, patients - 1) * math.sqrt(patients / (patients - 1))
    for name in set(METRIC_NAMES) - set(CALIBRATION_ERRORS):
        value = report[name]["value"]
        half_width = t * np.std([sample[name] for sample in samples])
        if name == "mcc":
            half_width /= 1 - value**2
            bounds = np.tanh([np.arctanh(value) - half_width, np.arctanh(value) + half_width])
        elif name == "log_loss":
            bounds = value * np.exp([-half_width / value, half_width / value])
        else:
            half_width /= value * (1 - value)
            bounds = expit([logit(value) - half_width, logit(value) + half_width])
        assert (report[name]["low"], report[name]["high"]) == pytest.approx(bounds, abs=1e-12), name


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
    monkeypatch.setattr(bootstrap, "MAX_BLOCK_WEIGHTS", 1700)
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


@pytest.mark.parametrize("scale", [1, 2], ids=["calibrated", "overconfident"])
def test_intervals_cover_the_truth_in_simulated_studies(scale):
    # Nominal 95 %: of 120 studies one metric may miss by 4 binomial standard errors, the mean over
    # all by less. (The percentile interval of a calibrated model's ECE covers the truth in none.)
    shares = coverage(120, 120, 1.5, scale, num_resamples=200, seed=scale)
    assert len(shares) == len(METRIC_NAMES) + 4
    assert min(shares.values()) >= 0.86, shares
    assert 0.93 <= np.mean(list(shares.values())) <= 0.98, shares


def test_intervals_that_take_images_for_patients_are_too_narrow():
    rng = np.random.default_rng(0)
    truth = simulated_truth(1.5, 1)["auroc"]
    covered = 0
    for _ in range(80):
        study = simulated(rng, 1.5, 1)
        auroc = compute_metrics(make(study.labels, study.logits), 60)["auroc"]
        covered += auroc["low"] <= truth <= auroc["high"]
    assert covered / 80 < 0.85


def test_a_calibration_errors_interval_inverts_the_distribution_it_is_taken_from():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=15) * 0.02
    resampled = gaps + rng.normal(size=(4000, 15)) * 0.008
    entry = calibration_error(gaps, resampled, num_patients=100)
    assert entry["value"] == pytest.approx(np.abs(gaps).sum())
    assert entry["low"] < entry["debiased"] < entry["value"]
    for key, share in (("low", 0.975), ("debiased", 0.5), ("high", 0.025)):
        population = gaps * entry[key] / entry["value"]
        values = np.abs(population + resampled - gaps).sum(axis=1)
        assert (values <= entry["value"]).mean() == pytest.approx(share, abs=0.001)


def test_the_debiased_calibration_error_of_a_calibrated_model_is_near_zero():
    rng = np.random.default_rng(5)
    entries = [compute_metrics(simulated(rng, 1.5, 1), 200)["ece"] for _ in range(40)]
    assert all(entry["low"] < 0.05 for entry in entries)
    assert np.mean([entry["value"] for entry in entries]) > 0.055
    assert np.median([entry["debiased"] for entry in entries]) < 0.02
