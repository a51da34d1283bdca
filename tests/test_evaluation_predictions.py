"""The predictions file: exact round trips, and a clear sentence for every wrong one."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from evaluation.predictions import (
    Predictions,
    read_predictions,
    read_predictions_by_model,
    write_predictions,
    write_predictions_by_model,
)

CLASSES = ["NORMAL", "PNEUMONIA"]
HEADER = "image_id,patient_id,label,logit_NORMAL,logit_PNEUMONIA,split\n"


def write_two(path, **changed):
    arguments = {
        "image_ids": ["a.jpeg", "b.jpeg"],
        "patient_ids": ["p1", "p2"],
        "labels": np.array([0, 1]),
        "logits": np.array([[0.1, -2.5], [-1e-7, 3.0]], dtype=np.float32),
        "class_names": CLASSES,
        "split": "test",
    }
    write_predictions(path, **(arguments | changed))


def test_the_file_is_plain_csv(tmp_path):
    write_two(tmp_path / "p.csv")
    expected = HEADER + "a.jpeg,p1,NORMAL,0.1,-2.5,test\nb.jpeg,p2,PNEUMONIA,-1e-07,3.0,test\n"
    assert (tmp_path / "p.csv").read_text() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


def test_float32_logits_round_trip_exactly(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, size=4000, dtype=np.uint32)
    values = bits.view(np.float32)
    logits = values[np.isfinite(values)][:3900].reshape(-1, 3)
    ids = [f"{i}.png" for i in range(len(logits))]
    labels = np.arange(len(logits)) % 3
    write_predictions(tmp_path / "p.csv", ids, ids, labels, logits, ["A", "B", "C"], "validation")
    read = read_predictions(tmp_path / "p.csv")
    assert read.logits.dtype == np.float64
    np.testing.assert_array_equal(read.logits.astype(np.float32), logits)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.image_id.tolist() == ids
    assert (read.split, read.class_names, read.multi_label) == (
        "validation",
        ("A", "B", "C"),
        False,
    )


def test_multi_label_is_known_from_the_file_alone(tmp_path):
    labels = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 0]])
    logits = np.array([[-1, -2, -3], [0.5, -0.5, 2], [0, 1, -1]])
    names = ["Mass", "Nodule", "Pleural, thick"]
    ids = ["a,1.png", 'b"2.png', "c\n3.png"]
    write_predictions(tmp_path / "p.csv", ids, ids, labels, logits, names, "test", multi_label=True)
    read = read_predictions(tmp_path / "p.csv")
    assert read.multi_label
    assert read.labels.dtype == bool
    np.testing.assert_array_equal(read.labels, labels)
    np.testing.assert_array_equal(read.decisions, logits > 0)
    np.testing.assert_allclose(read.probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-12)
    assert read.image_id.tolist() == ids


def test_probabilities_and_decisions_of_a_single_label_file(tmp_path):
    write_two(tmp_path / "p.csv", logits=[[0, np.log(3)], [900, 0]], labels=np.array([1, 0]))
    read = read_predictions(tmp_path / "p.csv")
    np.testing.assert_allclose(read.probabilities, [[0.25, 0.75], [1, 0]], atol=1e-7)
    np.testing.assert_allclose(read.log_odds[:, 1], [np.log(3), -900], rtol=1e-7)
    assert read.decisions.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"image_ids": ["a", "a"]}, "image id 'a' appears 2 times"),
        ({"logits": [[0, np.nan], [1, 2]]}, "'a.jpeg' has a logit that is NaN or infinite"),
        ({"logits": [[0, 1], [1, np.inf]]}, "'b.jpeg' has a logit that is NaN or infinite"),
        ({"labels": [0, 2]}, r"'b.jpeg' has a label index outside 0\.\.1"),
        ({"labels": [0.0, 1.0]}, "must be class indices, not float64"),
        ({"patient_ids": ["", "p"]}, "'a.jpeg' has no patient id"),
        ({"patient_ids": ["p"]}, r"patient_id has shape \(1,\) where \(2,\) is needed"),
        ({"logits": [[0], [1]]}, r"logits has shape \(2, 1\) where \(2, 2\)"),
        ({"class_names": ["X", "X"]}, "must be different"),
        (
            {"image_ids": [], "patient_ids": [], "labels": [], "logits": np.empty((0, 2))},
            "has no predictions",
        ),
        ({"labels": [[0, 1], [0, -1]], "multi_label": True}, "must all be 0 or 1"),
        (
            {"labels": [[0, 1], [0, 1]], "class_names": ["a|b", "c"], "multi_label": True},
            "may not contain",
        ),
    ],
)
def test_wrong_predictions_are_refused_and_the_old_file_stays(tmp_path, changed, sentence):
    path = tmp_path / "p.csv"
    write_two(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=sentence):
        write_two(path, **changed)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        (HEADER, "is empty"),
        ("image_id,label,logit_A,logit_B,split\na,A,0,1,test\n", "no column 'patient_id'"),
        ("image_id,patient_id,logit_A,logit_B,split\na,p,0,1,test\n", "no column 'label'"),
        ("image_id,patient_id,label,split\na,p,A,test\n", "no column 'logit_<CLASS>'"),
        (HEADER + "a,p,COVID,0,1,test\n", "'a' has the unknown class 'COVID'"),
        (HEADER + "a,p,NORMAL,zero,1,test\n", "'a' has 'zero' where logit_NORMAL is a number"),
        (HEADER + "a,p,NORMAL,nan,1,test\n", "'a' has a logit that is NaN"),
        (HEADER + "a,p,NORMAL,0,1,test\na,p,NORMAL,0,1,test\n", "'a' appears 2 times"),
        (HEADER + "a,p,NORMAL,0\n", r"a row \(1\) with other than 6 cells"),
        (HEADER + "a,p,NORMAL,0,1,test\nb,p,NORMAL,0,1,validation\n", "mixes the splits"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, text, sentence):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        read_predictions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_several_models_and_extra_columns_go_through_one_file_unchanged(tmp_path):
    write_two(tmp_path / "one.csv")
    first = read_predictions(tmp_path / "one.csv")
    first = replace(first, extra={"view": np.array(["PA", ""]), "age": np.array(["4", "a,b"])})
    models = {"x": first, "y": replace(first, logits=first.logits[::-1])}
    write_predictions_by_model(tmp_path / "p.csv", models)
    read = read_predictions_by_model(tmp_path / "p.csv")
    assert list(read) == ["x", "y"]
    for name, predictions in models.items():
        np.testing.assert_array_equal(read[name].logits, predictions.logits)
        assert read[name].image_id.tolist() == first.image_id.tolist()
        assert {key: column.tolist() for key, column in read[name].extra.items()} == {
            "view": ["PA", ""],
            "age": ["4", "a,b"],
        }
    with pytest.raises(ValueError, match="holds the models x, y; one is needed"):
        read_predictions(tmp_path / "p.csv")
    models["y"] = replace(first, class_names=("A", "B"))
    with pytest.raises(ValueError, match="the models disagree in class_names"):
        write_predictions_by_model(tmp_path / "p.csv", models)


def test_thresholds_decide_and_must_fit_the_task(tmp_path):
    write_two(tmp_path / "p.csv")
    predictions = read_predictions(tmp_path / "p.csv")
    positive = predictions.probabilities[:, 1]
    at = replace(predictions, thresholds=(float(positive.max()),))
    assert at.decisions.tolist() == (positive >= positive.max()).tolist()
    with pytest.raises(ValueError, match="1 in .0, 1. are needed"):
        replace(predictions, thresholds=(0.2, 0.3))
    with pytest.raises(ValueError, match="1 in .0, 1. are needed"):
        replace(predictions, thresholds=(1.2,))


def test_other_columns_and_a_byte_order_mark_are_read_past(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("\ufeffage," + HEADER + "4,a,p,PNEUMONIA,0,1,test\n", encoding="utf-8")
    read = read_predictions(path)
    assert isinstance(read, Predictions)
    assert (read.image_id.tolist(), read.labels.tolist()) == (["a"], [1])


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_two(tmp_path / "nowhere" / "p.csv")


def test_the_package_and_metrics_import_neither_sklearn_nor_matplotlib():
    code = (
        "import sys, evaluation, evaluation.metrics, evaluation.table\n"
        "heavy = {'sklearn', 'matplotlib', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
