"""Answers: numbers into words, by NumPy as by torch."""

import numpy as np
import pytest
import torch

from modeling import create_model
from modeling.answers_cxr import CxrAnswer, answers, table_row
from modeling.calibration_cxr import calibrate, check_operation, decide, to_probabilities
from modeling.image_cxr import CxrImage

BINARY = {"id2label": {"0": "NORMAL", "1": "PNEUMONIA"}}
GREY = np.zeros((64, 64), np.uint16)
MAPS = {
    "none": None,
    "temperature": {"method": "temperature", "temperature": 1.7},
    "platt": {"method": "platt", "scale": [1.3, 0.7, 2.0], "bias": [0.5, -1.0, 0.1]},
    "isotonic": {
        "method": "isotonic",
        "log_odds": [[-2, 0, 1, 4], [-1, 1], [0, 0.5, 3]],
        "calibrated": [[-3, -1, -1, 2], [0, 1], [-2, -2, 5]],
    },
    "operating_point": {"method": "operating_point", "threshold": [0.1, 0.5, 0.8]},
}


def answer(log_odds, config=BINARY, image=None, **outputs):
    logits = np.array([[0.0, log_odds]])
    (given,) = answers({"logits": logits, **outputs}, [image or CxrImage(GREY)], config)
    return given


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("method", MAPS)
def test_arrays_and_tensors_are_calibrated_and_decided_alike(method, multi_label):
    count = 3 if multi_label else 2
    calibration = MAPS[method] and {
        key: value if isinstance(value, (str, float)) else value[: count if multi_label else 1]
        for key, value in MAPS[method].items()
    }
    logits = np.random.default_rng(0).normal(0, 4, (200, count))
    old, new = [0.3, 0.7, 0.5][:count], [0.9, 0.1, 0.2][:count]
    thresholds, bands = [0.4, 0.6, 0.5], [[0.3, 0.4], [0.55, 0.7], [0.5, 0.5]]
    thresholds, bands = ((list_ if multi_label else list_[:1]) for list_ in (thresholds, bands))
    results = []
    for given in (logits, torch.from_numpy(logits)):
        calibrated = calibrate(given, calibration, multi_label)
        plain = to_probabilities(calibrated, multi_label)
        moved = to_probabilities(calibrated, multi_label, old, new)
        decided = decide(plain, thresholds, bands, multi_label)
        results.append([calibrated, plain, moved, decided])
    for array, tensor in zip(*results):
        np.testing.assert_allclose(array, tensor.numpy(), atol=1e-6)
    array, tensor = results
    assert [value.dtype for value in array] == [np.float64] * 3 + [np.int64]
    assert (tensor[1].dtype, tensor[3].dtype) == (torch.float32, torch.int64)
    assert set(array[3].ravel().tolist()) == {-1, 0, 1}


def test_probabilities_of_extreme_logits_are_finite():
    logits = np.array([[0, 1e4], [0, -1e4], [1e4, 0]])
    for multi_label in (False, True):
        with np.errstate(all="raise", under="ignore"):
            found = to_probabilities(logits, multi_label)
        assert ((found >= 0) & (found <= 1)).all()


def test_an_operating_point_becomes_one_half():
    point = {"method": "operating_point", "threshold": [0.1]}
    p = np.array([1e-30, 0.05, 0.1, 0.55, 1 - 1e-15])
    logits = np.stack([np.zeros(5), np.log(p) - np.log1p(-p)], 1)
    found = to_probabilities(calibrate(logits, point, False), False)[:, 1]
    np.testing.assert_allclose(found, [5e-30, 0.25, 0.5, 0.75, 1], rtol=1e-6)
    extreme = calibrate(np.array([[0, 1e4], [0, -1e4]]), point, False)[:, 1]
    assert np.isfinite(extreme).all() and extreme[0] > 9e3 and extreme[1] < -9e3


@pytest.mark.parametrize("threshold", [None, [], [0.0], [1.0], [0.2, 0.3], [float("nan")]])
def test_an_operating_point_lies_between_0_and_1(threshold):
    calibration = {"method": "operating_point", "threshold": threshold}
    with pytest.raises(ValueError, match="it takes 1 numbers between 0 and 1."):
        check_operation(calibration, None, None, None, 2, False)


def test_a_calibration_of_tensors_has_a_gradient():
    logits = torch.zeros(2, 2, requires_grad=True)
    isotonic = {"method": "isotonic", "log_odds": [[-1, 1]], "calibrated": [[-2, 2]]}
    to_probabilities(calibrate(logits, isotonic, False), False)[:, 1].sum().backward()
    assert (logits.grad[:, 1] > 0).all()


@pytest.mark.parametrize(
    ("log_odds", "decision", "status"),
    [(2.0, "PNEUMONIA", "ok"), (0.67, "not flagged", "ok"), (-3.0, "not flagged", "ok")],
)
def test_what_is_below_the_threshold_is_not_flagged_and_never_the_other_class(
    log_odds, decision, status
):
    given = answer(log_odds, {**BINARY, "thresholds": [0.7]})
    assert (given.decision, given.status) == (decision, status)
    row = table_row("x", given, None, ["NORMAL", "PNEUMONIA"])
    assert (row["decision"], row["status"]) == (decision, status)
    assert row["probability_PNEUMONIA"] == pytest.approx(1 / (1 + np.exp(-log_odds)))


def test_an_uncertain_answer_decides_nothing():
    given = answer(0.1, {**BINARY, "thresholds": [0.5], "abstention": [[0.4, 0.6]]})
    assert (given.decision, given.uncertain, given.status) == ("", ("PNEUMONIA",), "uncertain")


def test_of_several_labels_each_is_flagged_uncertain_or_neither():
    config = {
        "id2label": {0: "Mass", 1: "Edema", 2: "Nodule"},
        "problem_type": "multi_label_classification",
        "abstention": [[0.5, 0.5], [0.4, 0.6], [0.5, 0.5]],
        "thresholds": [0.5] * 3,
    }
    logits = np.array([[3.0, 3, -3], [-3, 0.1, -3], [-3, -3, -3], [3, 0.1, -3]])
    given = answers({"logits": logits}, [CxrImage(GREY)] * 4, config)
    assert [one.decision for one in given] == ["Mass; Edema", "", "not flagged", "Mass"]
    assert [one.uncertain for one in given] == [(), ("Edema",), (), ("Edema",)]


def test_of_three_exclusive_classes_the_likeliest_is_named():
    config = {"id2label": {"0": "NORMAL", "1": "BACTERIA", "2": "VIRUS"}}
    (given,) = answers({"logits": np.array([[3.0, 1, 2]])}, [CxrImage(GREY)], config)
    assert given.decision == "NORMAL"


@pytest.mark.parametrize(
    ("age", "refused", "words"),
    [
        (None, False, "does not say how old"),
        (40, False, "of an adult"),
        (9, True, "of a child"),
        (3, False, None),
        (None, True, None),
    ],
)
def test_all_warnings_of_an_age_are_the_answers_own(age, refused, words):
    config = {**BINARY, "age_range": [1, 5], "outlier_threshold": 0.0}
    image = CxrImage(GREY, ("Noticed.",), age)
    given = answer(1.0, config, image, outlier_score=np.array([1.0 if refused else -1.0]))
    assert (given.refusal is not None) == refused
    assert given.warnings[0] == "Noticed." and len(given.warnings) == 1 + (words is not None)
    row = table_row("x", given, None, ["NORMAL", "PNEUMONIA"])
    assert row["warnings"] == " ".join(given.warnings) and (words or "") in row["warnings"]


def test_a_refused_image_has_no_numbers_decision_or_heatmap():
    config = {**BINARY, "outlier_threshold": 0.0}
    maps = np.ones((1, 8, 8), np.float32)
    given = answer(9.0, config, outlier_score=np.array([3.0]), heatmaps=maps)
    assert given == CxrAnswer(given.refusal, outlier_score=3.0) and given.status == "refused"
    row = table_row("x", given, None, ["NORMAL", "PNEUMONIA"])
    assert row["reason"] == given.refusal and row["decision"] == ""
    assert row["logit_PNEUMONIA"] is None and row["outlier_score"] == 3


def test_a_file_that_cannot_be_read_has_a_row_of_the_same_columns():
    row = table_row("x", None, "no such file.", ["NORMAL", "PNEUMONIA"])
    assert (row["status"], row["reason"], row["decision"]) == ("error", "no such file.", "")
    assert list(row) == list(table_row("x", answer(1.0), None, ["NORMAL", "PNEUMONIA"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_answers(dtype):
    model, processor = create_model("baseline", ["NORMAL", "PNEUMONIA"], 64, hidden_sizes=[8])
    image = processor.open(np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8))
    (whole,) = model.eval().assess([image], processor)
    (half,) = model.to(dtype).assess([image], processor)
    assert half.probabilities == pytest.approx(whole.probabilities, abs=0.02)
