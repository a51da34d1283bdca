"""Findings that are unknown of some images count nowhere, from the file to the pages."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from evaluation import calibration
from evaluation.calibration import apply_operation, fit_calibration, fit_operation
from evaluation.cases import choose_cases
from evaluation.compare import compare_models, delong
from evaluation.metrics import METRIC_NAMES, compute_metrics, confusion_matrix, format_metric
from evaluation.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
    write_predictions_by_model,
)
from evaluation.subgroups import subgroups
from evaluation.validation import bare_context, score_report

NAMES = ("Mass", "Nodule", "Effusion")


def sample(num_images=300, seed=0, unknown=(0.5, 0.2, 0.0), **extra):
    rng = np.random.default_rng(seed)
    hidden = rng.random((num_images, 3)) < unknown
    labels = (rng.random((num_images, 3)) < [0.2, 0.4, 0.3]) & ~hidden
    return Predictions(
        image_id=np.array([f"{i:03d}.png" for i in range(num_images)]),
        patient_id=np.array([f"p{i // 2}" for i in range(num_images)]),
        labels=labels,
        # As float32, which is what a file holds; in tenths, for ties.
        logits=(rng.normal(size=labels.shape) + labels).round(1).astype(np.float32).astype(float),
        class_names=NAMES,
        split="test",
        multi_label=True,
        extra={name: np.asarray(cells, dtype=str) for name, cells in extra.items()},
        unknown=hidden,
    )


def alone(predictions, k):
    """The known rows of a class, as the multi-label file of this class."""
    rows = predictions.known[:, k]
    chosen = predictions.take(rows)
    return replace(
        chosen,
        labels=chosen.labels[:, [k]],
        logits=chosen.logits[:, [k]],
        class_names=NAMES[k : k + 1],
        thresholds=None,
        unknown=None,
    )


def written(path, predictions):
    labels = np.where(predictions.known, predictions.labels, np.nan)
    ids = (predictions.image_id, predictions.patient_id)
    write_predictions(path, *ids, labels, predictions.logits, NAMES, "test", multi_label=True)
    return path


def values(entries):
    return {name: entries[name]["value"] for name in METRIC_NAMES}


def test_a_class_has_the_metrics_of_its_known_rows_alone(tmp_path):
    predictions = read_predictions(written(tmp_path / "p.csv", sample()))
    report = compute_metrics(predictions, num_resamples=200)
    for k, name in enumerate(NAMES):
        expected = compute_metrics(alone(predictions, k), num_resamples=0)["classes"][name]
        found = report["classes"][name]
        assert values(found) == pytest.approx(values(expected), rel=1e-12)
        for key in ("n", "patients", "prevalence", "tn", "fp", "fn", "tp"):
            assert found[key] == expected[key], key
        for key in ("sensitivity_at_specificity", "specificity_at_sensitivity"):
            for target, entry in expected[key].items():
                assert found[key][target]["value"] == entry["value"]
        assert found["auroc"]["low"] < found["auroc"]["value"] < found["auroc"]["high"]
    assert report["classes"]["Mass"]["n"] < report["classes"]["Nodule"]["n"] < report["n"] == 300
    means = np.mean([report["classes"][name]["auroc"]["value"] for name in NAMES])
    assert report["auroc"]["value"] == pytest.approx(means)


def test_the_interval_of_a_class_is_that_of_a_file_of_its_rows():
    predictions = sample(600)
    found = compute_metrics(predictions, num_resamples=2000)["classes"]["Mass"]["auroc"]
    filtered = alone(predictions, 0)
    expected = compute_metrics(filtered, num_resamples=2000)["classes"]["Mass"]["auroc"]
    width = expected["high"] - expected["low"]
    # Other draws of the same patients.
    assert found["low"] == pytest.approx(expected["low"], abs=0.07 * width)
    assert found["high"] == pytest.approx(expected["high"], abs=0.07 * width)


def test_the_micro_average_is_over_known_pairs():
    predictions = sample()
    micro = compute_metrics(predictions, num_resamples=0)["micro"]
    truth, scores = (of[predictions.known] for of in (predictions.labels, predictions.logits))
    assert micro["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    loss = log_loss(truth, 1 / (1 + np.exp(-scores)))
    assert micro["log_loss"]["value"] == pytest.approx(loss)


def test_what_an_unknown_cell_holds_changes_nothing():
    predictions = sample()
    other = np.where(predictions.known, predictions.logits, 99.0)
    changed = replace(predictions, logits=other)
    assert compute_metrics(changed, 50) == compute_metrics(predictions, 50)
    assert fit_calibration(changed) == fit_calibration(predictions)
    thresholds = [fit_operation(one)["thresholds"] for one in (changed, predictions)]
    assert thresholds[0] == thresholds[1]


def test_a_class_known_nowhere_is_undefined_and_left_out_of_the_means():
    predictions = sample(unknown=(1.0, 0.2, 0.0))
    report = compute_metrics(predictions, num_resamples=50)
    mass = report["classes"]["Mass"]
    assert (mass["n"], mass["prevalence"]) == (0, None)
    for name in METRIC_NAMES:
        assert mass[name] == {
            "value": None,
            "reason": "needs images for which Mass is known",
        }
        two = [report["classes"][k][name]["value"] for k in NAMES[1:]]
        assert report["macro"][name]["value"] == pytest.approx(np.mean(two))
        assert report["macro"][name]["without"] == ["Mass"]
    json.dumps(report, allow_nan=False)


def test_a_resample_without_a_rare_class_is_left_out_of_its_intervals():
    # Mass is known of 4 patients of 150: 2 % of resamples hold none of them.
    predictions = sample(unknown=(0.0, 0.2, 0.0))
    hidden = predictions.unknown.copy()
    hidden[8:, 0] = True
    predictions = replace(predictions, unknown=hidden, labels=predictions.labels & ~hidden)
    entry = compute_metrics(predictions, num_resamples=500)["classes"]["Mass"]
    assert (entry["n"], entry["patients"]) == (8, 4)
    assert entry["ece"]["low"] <= entry["ece"]["debiased"] <= entry["ece"]["high"]
    assert 0 < entry["brier"]["low"] < entry["brier"]["value"] < entry["brier"]["high"]


def test_counts_of_the_confusion_matrix_are_of_known_cells():
    predictions = sample()
    matrix = confusion_matrix(predictions)
    assert matrix.sum(axis=(1, 2)).tolist() == predictions.known.sum(axis=0).tolist()


def test_two_models_are_compared_on_known_rows():
    a, b = sample(seed=0), sample(seed=0)
    b = replace(b, logits=b.logits + np.random.default_rng(5).normal(size=b.logits.shape))
    found = compare_models(a, b, num_resamples=100)["classes"]["Mass"]
    rows = a.known[:, 0]
    scores = (a.labels[rows, 0], a.logits[rows, 0], b.logits[rows, 0])
    assert found["delong"] == delong(*scores)
    assert found["delong_clustered"] == delong(*scores, a.patient_id[rows])
    expected = compare_models(alone(a, 0), alone(b, 0), num_resamples=0)["classes"]["Mass"]
    expected = values(expected["differences"])
    assert values(found["differences"]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    other = replace(b, unknown=np.zeros_like(b.unknown))
    with pytest.raises(ValueError, match="has the known findings"):
        compare_models(a, other)


def test_operating_points_are_fitted_on_known_rows():
    predictions = sample(600)
    operation = fit_operation(predictions, abstain_share=0)
    calibrated = apply_operation(predictions, operation)
    for k in range(3):
        own = alone(calibrated, k)
        shares = fit_operation(own, abstain_share=0)["prevalence"]
        assert operation["prevalence"][k] == shares[0]
        decided = calibrated.decisions[calibrated.known[:, k], k]
        youden = decided[own.truth[:, 0]].mean() - decided[~own.truth[:, 0]].mean()
        every = [
            (own.logits[own.truth] >= cut).mean() - (own.logits[~own.truth] >= cut).mean()
            for cut in own.logits.ravel()
        ]
        assert youden == pytest.approx(max(every))


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_a_class_known_nowhere_keeps_its_probabilities(method):
    predictions = sample(unknown=(1.0, 0.2, 0.0))
    fit = getattr(calibration, f"_fit_{method}")
    operation = {"calibration": fit(predictions), "thresholds": None}
    operation |= {"abstention": None, "prevalence": None}
    found = apply_operation(predictions, operation)
    if method != "temperature":
        np.testing.assert_allclose(found.logits[:, 0], predictions.logits[:, 0], atol=1e-12)
    assert np.isfinite(found.logits).all()
    fitted = fit_operation(predictions)
    assert fitted["thresholds"][0] == 0.5 and fitted["prevalence"][0] == 0.5


def test_cases_do_not_err_where_nobody_knows():
    predictions = sample(4, unknown=(0, 0, 0))
    labels = np.zeros((4, 3), dtype=bool)
    logits = np.full((4, 3), -3.0)
    logits[0, 0] = 9.0  # a confident mistake, were Mass known
    logits[1, 1] = -0.1
    logits[2, 2] = 0.2
    hidden = np.zeros((4, 3), dtype=bool)
    hidden[0, 0] = hidden[3] = True
    predictions = replace(predictions, labels=labels, logits=logits, unknown=hidden)
    cases = choose_cases({"m": predictions}, count=3)
    assert [(case["index"], case["wrong"]) for case in cases] == [(2, ["m"]), (1, []), (0, [])]
    assert cases[2]["truth"] == "none (unknown: Mass)"


def test_unknown_cells_go_through_the_file(tmp_path):
    predictions = sample()
    path = written(tmp_path / "p.csv", predictions)
    head = path.read_text().splitlines()[0]
    assert head.startswith("image_id,patient_id,labels,unknown,logit_Mass,")
    read = read_predictions(path)
    np.testing.assert_array_equal(read.unknown, predictions.unknown)
    np.testing.assert_array_equal(read.labels, predictions.labels)
    assert read.extra == {}
    known = replace(predictions, unknown=np.zeros_like(predictions.unknown))
    assert ",unknown," not in written(tmp_path / "q.csv", known).read_text()
    for old, new, sentence in (
        (",Nodule,", ",Fracture,", "has the unknown class 'Fracture'"),
        (",,Nodule,", ",Nodule,Nodule,", "has a finding that is present and unknown"),
    ):
        (tmp_path / "bad.csv").write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(ValueError, match=sentence):
            read_predictions(tmp_path / "bad.csv")


def test_a_report_says_of_how_many_images_a_finding_is_known(tmp_path):
    source = np.repeat(["nih", "chexpert"], [160, 140])
    predictions = sample(source=source, sex=np.tile(["F", "M"], 150))
    # Of one set Mass is unknown throughout, of all images Nodule.
    hidden = predictions.unknown | (source == "chexpert")[:, None] & [True, False, False]
    hidden[:, 1] = True
    predictions = replace(predictions, unknown=hidden, labels=predictions.labels & ~hidden)
    folder = tmp_path / "report"
    folder.mkdir()
    write_predictions_by_model(folder / "predictions.csv", {"m": predictions})
    context = bare_context(folder / "predictions.csv", "validate.py")
    (folder / "context.json").write_text(json.dumps(context))
    report = score_report(folder, num_resamples=100)
    known = predictions.known.sum(axis=0).tolist()
    assert report["dataset"]["known"] == dict(zip(NAMES, known))
    text = (folder / "report.md").read_text()
    mass = report["models"]["m"]["metrics"]["classes"]["Mass"]
    assert f"of {known[0]} known" in text and "all unknown" in text
    cells = ["Mass", str(known[0]), f"{mass['prevalence']:.3f}", format_metric(mass["auroc"])]
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines()]
    assert cells in rows
    rows = report["models"]["m"]["subgroups"]
    by_source = {row["value"]: row["classes"] for row in rows if row["column"] == "source"}
    assert by_source["chexpert"]["Mass"]["n"] == 0 and by_source["nih"]["Mass"]["n"] == mass["n"]
    in_set = predictions.take(source == "nih")
    expected = compute_metrics(in_set, num_resamples=0)["classes"]["Effusion"]["auroc"]["value"]
    assert by_source["nih"]["Effusion"]["auroc"]["value"] == expected
    # The gap is over the finding that both sets know.
    (chexpert,) = (row for row in rows if row["value"] == "chexpert")
    gap = chexpert["gap"]["metrics"]["auroc"]
    effusion = [by_source[name]["Effusion"]["auroc"]["value"] for name in ("chexpert", "nih")]
    assert gap["value"] == pytest.approx(effusion[0] - effusion[1])
    assert gap["low"] < gap["value"] < gap["high"] and gap["without"] == ["Mass", "Nodule"]
    assert subgroups(predictions, ["sex"], 0)[0]["n"] == 150


def test_a_file_without_any_known_label_is_no_report(tmp_path):
    predictions = sample(unknown=(1, 1, 1))
    written(tmp_path / "predictions.csv", predictions)
    context = bare_context(tmp_path / "predictions.csv", "validate.py")
    (tmp_path / "context.json").write_text(json.dumps(context))
    with pytest.raises(ValueError, match="knows of no image whether it has a class"):
        score_report(tmp_path, num_resamples=0)
