"""CheXNet's F1 protocol, by an example that is computed by hand."""

import json

import numpy as np
import pytest

from evaluation.readers import compare_readers, main, read_readers

# Six patients. A finds 1, 2, 3; B finds 2, 3, 4; C finds 3; the model finds 2 and 3.
FILE = """image_id,patient_id,A,B,model,C
1.png,p1,1,0,0,0
2.png,p2,1,1,1,0
3.png,p3,1,1,1,1
4.png,p4,0,1,0,0
5.png,p5,0,0,0,0
6.png,p6,0,0,0,0
"""
# F1 is twice what both found over what each found.
A_B, A_C, A_M = 2 * 2 / (3 + 3), 2 * 1 / (3 + 1), 2 * 2 / (3 + 2)
B_C, B_M, C_M = 2 * 1 / (3 + 1), 2 * 2 / (3 + 2), 2 * 1 / (1 + 2)
MEANS = {
    "A": (A_B + A_C + A_M) / 3,
    "B": (A_B + B_C + B_M) / 3,
    "C": (A_C + B_C + C_M) / 3,
    "model": (A_M + B_M + C_M) / 3,
}


@pytest.fixture
def readers(tmp_path):
    def write(text):
        (tmp_path / "readers.csv").write_text(text)
        return tmp_path / "readers.csv"

    return write


def test_each_is_scored_against_each_of_the_others_the_models_label_too(readers):
    patients, labels = read_readers(readers(FILE))
    found = compare_readers(labels, "model", patients, num_resamples=0)
    assert {name: entry["value"] for name, entry in found["f1"].items()} == pytest.approx(MEANS)
    mean = (MEANS["A"] + MEANS["B"] + MEANS["C"]) / 3
    assert found["readers"]["value"] == pytest.approx(mean)
    assert found["difference"]["value"] == pytest.approx(MEANS["model"] - mean)
    assert (found["n"], found["patients"]) == (6, 6)


def test_intervals_are_percentiles_of_resampled_patients():
    rng = np.random.default_rng(0)
    truth = rng.random(420) < 0.3
    flips = {"A": 0.2, "B": 0.2, "C": 0.2, "D": 0.2, "model": 0.02}
    labels = {name: truth ^ (rng.random(420) < share) for name, share in flips.items()}
    patients = np.arange(420).astype(str)
    found = compare_readers(labels, "model", patients, num_resamples=2000)
    difference = found["difference"]
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    # The same study with every image twice: as many patients, so the same interval.
    twice = {name: np.repeat(column, 2) for name, column in labels.items()}
    doubled = compare_readers(twice, "model", np.repeat(patients, 2), num_resamples=2000)
    assert doubled["difference"] == pytest.approx(difference)
    as_if = compare_readers(twice, "model", np.arange(840).astype(str), num_resamples=2000)
    narrow = as_if["difference"]["high"] - as_if["difference"]["low"]
    assert narrow < 0.8 * (difference["high"] - difference["low"])


def test_readers_who_find_nothing_have_no_f1(readers):
    text = "image_id,A,B,model\n1,0,0,1\n2,0,0,0\n"
    patients, labels = read_readers(readers(text))
    assert patients.tolist() == ["1", "2"]
    found = compare_readers(labels, "model", patients)
    assert found["f1"]["A"] == {"value": None, "reason": "two labellers found nothing"}
    assert found["f1"]["model"]["value"] == 0


def test_the_command_prints_and_writes_the_comparison(readers, tmp_path, capsys):
    output = tmp_path / "result.json"
    main([str(readers(FILE)), "--model", "model", "--num_resamples", "50", "--output", str(output)])
    result = json.loads(output.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith(f"model: F1 {result['f1']['model']['value']:.3f}")
    assert lines[5].startswith(f"model less the readers: {result['difference']['value']:.3f}")


@pytest.mark.parametrize(
    ("text", "model", "sentence"),
    [
        (FILE, "CheXNet", "'CheXNet' is none of the readers A, B, model, C."),
        (FILE.replace("1.png,p1,1", "1.png,p1,?"), "model", "gives '1.png' the label '.' of A"),
        (FILE.replace("2.png", "1.png"), "model", "has the image '1.png' 2 times"),
        ("image_id,A,model\n1,1,1\n", "model", "'model' needs two readers beside it, not 1."),
        ("image,A,B,model\n1,1,1,1\n", "model", "needs a column image_id"),
        ("image_id,A,B,model\n", "model", "needs a column image_id and a row an image."),
    ],
)
def test_a_file_that_is_no_reader_study_is_refused(readers, text, model, sentence):
    with pytest.raises(ValueError, match=sentence):
        main([str(readers(text)), "--model", model])
