"""Any kind of file: the page says what predict.py and validate.py say, to the digit it shows."""

import csv

import numpy as np
import pytest
import torch
from conftest import REPO
from dicom_files import dicom
from PIL import Image
from space_server import CLASSES, Page, percent, save, serve

from datasets_scripts.phantom import generate
from modeling import create_model

# Each file, and what the page says of it besides the numbers.
FILES = {
    "plain.png": "does not say how old this person is",
    "photo.jpeg": "does not say how old this person is",
    "child.dcm": None,
    "adult.dcm": "The file is of an adult",
    "lateral.dcm": "lateral",
    "hand.dcm": "HAND",
    "text.png": "Not an image file that can be read",
}
TEMPERATURE = 0.5
THRESHOLD = 0.6  # a finding may be more probable than not and still not flagged
REFUSED = ("hand.dcm", "text.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    options = {"age_range": [1, 5], "thresholds": [THRESHOLD]}
    options["calibration"] = {"method": "temperature", "temperature": TEMPERATURE}
    model, _ = create_model("baseline", CLASSES, image_size=64, hidden_sizes=[8, 8], **options)
    model.network.get_classifier().weight.data.normal_()  # so that answers differ
    return save(model, tmp_path_factory.mktemp("models") / "tiny").folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    xrays = [generate(index, size=160).image for index in range(6)]
    deep = [xray.astype(np.uint16) * 16 for xray in xrays]
    Image.fromarray(xrays[0]).save(folder / "plain.png")
    Image.fromarray(xrays[1]).save(folder / "photo.jpeg")
    headers = {
        "child.dcm": {"PatientAge": "003Y"},
        "adult.dcm": {"PatientAge": "045Y"},
        "lateral.dcm": {"ViewPosition": "LL", "PatientAge": "003Y"},
        "hand.dcm": {"BodyPartExamined": "HAND"},
    }
    for xray, (name, header) in zip(deep[2:], headers.items()):
        (folder / name).write_bytes(dicom(xray, 12, WindowCenter=2048, WindowWidth=4096, **header))
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def predicted(folder, files, tmp_path_factory, run_python):
    """predict.py's rows by file."""
    table = tmp_path_factory.mktemp("predicted") / "t.csv"
    run = run_python([REPO / "predict.py", files, "--model", folder, "--output", table], cwd=REPO)
    assert run.returncode == 1, run.stderr  # two files have errors
    with open(table, newline="") as file:
        return {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def validated(folder, files, tmp_path_factory, run_python):
    """The probability of PNEUMONIA by file, calibrated by hand from validate.py's logits."""
    out = tmp_path_factory.mktemp("validated")
    lines = [f"{name},{CLASSES[k % 2]}" for k, name in enumerate(FILES) if name not in REFUSED]
    (files / "films.csv").write_text("\n".join(["file,label", *lines]))
    command = [REPO / "validate.py", "--model", folder, "--dataset", files / "films.csv"]
    command += ["--output_dir", out / "report", "--cache_dir", out, "--num_resamples", "20"]
    run = run_python([*command, "--skip_heatmaps"], cwd=REPO)
    assert run.returncode == 0, run.stderr
    with open(out / "report" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    differences = {
        row["image_id"]: float(row["logit_PNEUMONIA"]) - float(row["logit_NORMAL"]) for row in rows
    }
    return {name: 1 / (1 + np.exp(-logit / TEMPERATURE)) for name, logit in differences.items()}


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("served"), [folder]) as served:
        page = Page(served.url, tmp_path_factory.mktemp("browser"), 1280, "light")
        yield page
        page.driver.quit()


@pytest.mark.parametrize("name", FILES)
def test_the_page_says_what_predict_and_validate_say(name, page, files, predicted, validated):
    page.upload(files / name)
    row = predicted[name]
    if name in REFUSED:
        assert row["status"] == "error"
        page.wait(lambda: page.all("#results .problem"))
        assert page.text("#results") == row["reason"][0].upper() + row["reason"][1:]
        assert not page.all("#viewer img")
    else:
        p = float(row["probability_PNEUMONIA"])
        assert percent(p) == percent(validated[name])
        page.wait_for_text("#results", f"{percent(p)} probability of PNEUMONIA")
        flagged = "Flagged" if row["decision"] == "PNEUMONIA" else "Not flagged"
        assert page.all("#results .decision")[0].text == f"{flagged} as PNEUMONIA"
        assert row["warnings"] == "" or row["warnings"] in page.text("#results")
        page.wait_for_text("#viewer figcaption", f"Grad-CAM for PNEUMONIA, {percent(p)}")
    if FILES[name] is None:
        assert not page.all("#results .warnings")
    else:
        assert FILES[name] in page.text("#results")


def test_the_numbers_differ(predicted):
    """Else another file's answer would pass for this one's."""
    answered = [row for name, row in predicted.items() if name not in REFUSED]
    shown = {percent(float(row["probability_PNEUMONIA"])) for row in answered}
    assert len(shown) == len(answered) == 5


def test_the_tab_of_many_says_the_same_of_each(page, files, predicted):
    page.tab("Many")
    page.upload(*(files / name for name in FILES), zone="#files")
    page.wait(lambda: len(page.all("#files .file-preview tr")) == len(FILES))
    page.press("Read all files")
    page.wait_for_text("#progress", f"{len(FILES)} files by tiny:")
    rows = {row[0]: row[1:] for row in page.table("#table")}
    assert list(rows) == list(FILES)
    said = []
    for name, (status, decision, probability, remarks) in rows.items():
        row = predicted[name]
        assert status == row["status"]
        assert remarks.lower() == f"{row['reason']} {row['warnings']}".strip().lower()
        assert (FILES[name] or "") in remarks
        if name not in REFUSED:
            p = float(row["probability_PNEUMONIA"])
            flagged = "Flagged" if p >= THRESHOLD else "Not flagged"
            said.append(p)
            assert (decision, probability) == (f"{flagged} as PNEUMONIA", percent(p))
            assert f"{decision}, P(PNEUMONIA) {percent(p)}" in page.text("#contact-sheet")
    assert max(said) >= THRESHOLD and any(0.5 < p < THRESHOLD for p in said)


def test_a_long_name_is_not_broken_in_its_suffix(page, files, tmp_path):
    names = [f"{'patient_0123456789_' * 6}{number}.png" for number in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes((files / "plain.png").read_bytes())
    page.tab("Many")
    page.upload(*(tmp_path / name for name in names), zone="#files")
    page.wait(lambda: len(page.all("#files .file-preview tr")) == len(names))
    page.press("Read all files")
    page.wait_for_text("#progress", "2 files by tiny:")
    assert [row[0] for row in page.table("#table")] == names
    for place in ("#table th[scope=row]", "#contact-sheet figcaption"):
        ends = page.all(f"{place} .file span:last-child")
        assert [end.text for end in ends] == [name[-10:] for name in names]
        for end in ends:  # on one line, and none of it cut off
            boxes = page.script(
                """const range = document.createRange();
                range.selectNodeContents(arguments[0]);
                const out = arguments[0].closest("th, figcaption").getBoundingClientRect();
                return [...range.getClientRects()].map((box) => box.right <= out.right + 1);""",
                end,
            )
            assert boxes == [True]
