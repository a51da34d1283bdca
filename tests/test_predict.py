"""predict.py: a row for any file, the answers of model.assess, heatmaps, errors as sentences."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO
from dicom_files import dicom
from jpeg_files import scans
from PIL import Image

import predict as script
from evaluation.predictions import read_predictions
from modeling import create_model, load_model
from modeling.sandbox_cxr import Limits, Sandbox
from predict import find_files, heatmap_name, predict

SCRIPT = REPO / "predict.py"


@torch.no_grad()
def save_model(folder, classes=("NORMAL", "PNEUMONIA"), seed=0, **options):
    torch.manual_seed(seed)
    model, processor = create_model(
        "baseline", list(classes), image_size=32, hidden_sizes=(8, 16), **options
    )
    # So that images differ in their answers: logits of mean 0 and standard deviation 2.
    head = model.eval().network.classifier
    logits = model(**processor([xray(number) for number in range(20)])).logits
    scale = 2 / logits.std(0)
    head.weight.data *= scale[:, None]
    head.bias.data = (head.bias - logits.mean(0)) * scale
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def multi_folder(tmp_path_factory):
    return save_model(
        tmp_path_factory.mktemp("models") / "multi",
        ("Effusion", "Mass", "Nodule"),
        problem_type="multi_label_classification",
        thresholds=[0.5, 0.5, 0.5],
        abstention=[[0.5, 0.5], [0.3, 0.7], [0.5, 0.5]],
    )


def xray(seed, size=(48, 40)):
    """A smooth grey image, another for every seed."""
    coarse = np.random.default_rng(seed).integers(20, 235, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_xrays(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        xray(seed).save(folder / name, "PNG")
    return folder


def run(*args):
    return script.main([str(arg) for arg in args])


def read_csv(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---------------------------------------------------------------------------------------- any file

ODD_NAMES = [
    "a, b.png",
    'say "x".png',
    "two\nlines\r.png",
    "räntgen胸.png",
    os.fsdecode(b"\xff.png"),
]


def without_root_powers():
    """A prefix under which root, too, is kept from files that it has no permission for."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads every file, and setpriv is missing")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]


def test_every_file_of_a_mixed_folder_has_its_row_and_the_exit_code_tells_of_errors(
    tmp_path, model_folder
):
    folder = write_xrays(tmp_path / "in", ["x.png", "no_suffix", *ODD_NAMES])
    xray(1).save(folder / "photo.jpg")
    whole = (folder / "x.png").read_bytes()
    (folder / "damaged.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    shutil.copy(folder / "x.png", folder / "locked.png")
    (folder / "locked.png").chmod(0)
    (folder / "locked").mkdir(mode=0)
    xray(0, (9, 9)).save(folder / "small.png")
    (folder / "broken_link").symlink_to("nowhere")
    (folder / "own_link").symlink_to("own_link")
    (folder / "loop").symlink_to(".")
    os.mkfifo(folder / "pipe")
    (folder / "empty_folder").mkdir()
    write_xrays(folder / "sub" / "deeper", ["y.png"])
    write_xrays(folder, [".hidden.png", "DICOMDIR"])
    command = [*without_root_powers(), sys.executable, SCRIPT, "in", "--model", model_folder]
    command += ["--output", "out/table.csv"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1, result.stderr
    rows = read_csv(tmp_path / "out/table.csv")
    found = {row["file"]: row["reason"] for row in rows}
    fine = ["x.png", "no_suffix", "photo.jpg", "sub/deeper/y.png", *ODD_NAMES]
    reasons = {
        **dict.fromkeys(fine, ""),
        "damaged.png": "damaged image file",
        "empty.png": "not an image file",
        "notes.txt": "not an image file",
        "locked.png": "Permission denied.",
        "locked": "Permission denied.",
        "small.png": "9 x 9 pixels is too small",
        "broken_link": "no such file.",
        "own_link": "no such file.",
        "loop": "a link to a folder is not followed",
        "pipe": "no such file.",
    }
    assert [row["file"] for row in rows] == sorted(found)
    assert set(found) == {f"in/{name}" for name in reasons}
    for name, reason in reasons.items():
        assert found[f"in/{name}"].startswith(reason), name
        assert bool(reason) == bool(found[f"in/{name}"]), name
    for row in rows:
        assert (row["status"] == "error") == bool(row["reason"]) == (row["logit_NORMAL"] == "")
        assert row["model"].startswith("tiny@")
    assert "19 files: 9 ok, 0 uncertain, 0 refused, 10 error." in result.stderr
    assert "file/s" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_dicom_series_has_a_row_a_file(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_xrays(tmp_path / "series", ["z.png"])
    for number, modality in enumerate(("DX", "DX", "MR")):
        content = dicom(np.asarray(xray(number)), Modality=modality)
        (folder / f"IM{number}").write_bytes(content)
    assert run("series", "--model", model_folder, "--output", "t.csv") == 1
    rows = {row["file"]: row for row in read_csv("t.csv")}
    assert list(rows) == ["series/IM0", "series/IM1", "series/IM2", "series/z.png"]
    assert [row["status"] for row in rows.values()] == ["ok", "ok", "error", "ok"]
    assert "MR" in rows["series/IM2"]["reason"]
    assert "series/" not in rows["series/IM2"]["reason"]


def test_whatever_a_reader_raises_is_an_error_of_that_file(tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", ["a.png", "b.png", "c.png"])
    model, processor = load_model(str(model_folder))

    class Failing(Sandbox):
        def open(self, file):
            if file.endswith("b.png"):
                raise KeyError("odd\ntag")
            return super().open(file)

    processor.sandbox = Failing
    results = list(predict([folder], model, processor))
    assert [result.error for result in results] == [None, r"KeyError: 'odd\ntag'", None]
    assert results[1].answer is None


def test_a_file_that_has_no_end_costs_its_own_row_alone(tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", ["a.png", "c.png"])
    (folder / "b.jpg").write_bytes(scans(5600))
    model, processor = load_model(str(model_folder))
    processor.sandbox = lambda: Sandbox(limits=Limits(seconds=1))
    results = list(predict([folder], model, processor))
    reason = "takes more than 1 seconds to read, which no X-ray needs."
    assert [result.error for result in results] == [None, reason, None]


def test_files_are_found_in_order_and_none_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_xrays(tmp_path / "b" / "10", ["1"])
    write_xrays(tmp_path / "b", ["2", "1", ".x"])
    write_xrays(tmp_path / "real", ["r"])
    write_xrays(tmp_path, ["=cmd.png", "a"])
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "b" / "up").symlink_to("..")
    assert list(find_files(["b"])) == ["b/1", "b/10/1", "b/2", "b/up"]
    assert list(find_files(["b"], leave_out=["b/10", "b/1", "nowhere"])) == ["b/2", "b/up"]
    named = ["linked", "b/.x", Path("a"), "=cmd.png"]  # what is named is taken as it is
    assert list(find_files(named)) == ["linked/r", "b/.x", "a", "./=cmd.png"]
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini"):
        write_xrays(tmp_path / "b" / "10" / name, ["x.png"])
    write_xrays(tmp_path / "b" / "10", ["__y.png", "@z.png"])
    assert list(find_files(["b/10"])) == ["b/10/1", "b/10/@z.png", "b/10/__y.png"]
    assert list(find_files([tmp_path / "real"])) == [str(tmp_path / "real" / "r")]


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("which", ["model_folder", "multi_folder"])
def test_rows_hold_what_the_model_assesses_in_either_format(which, tmp_path, request, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = request.getfixturevalue(which)
    write_xrays(tmp_path / "in", [f"{number:02}.png" for number in range(20)])
    (tmp_path / "in" / "05b.txt").write_text("no image")
    for output in ("t.csv", "t.jsonl"):
        assert run("in", "--model", folder, "--output", output, "--batch_size", 7) == 1
    rows, lines = read_csv("t.csv"), read_jsonl("t.jsonl")
    assert rows == [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines]
    rows = [line for line in lines if line["status"] != "error"]
    assert len(rows) == len(lines) - 1 == 20
    model, processor = load_model(str(folder))
    answered = predict(["in"], model, processor, batch_size=1)
    for row, single in zip(rows, (one for one in answered if one.error is None), strict=True):
        answer = model.assess([processor.open(row["file"])], processor)[0]
        assert single.file == row["file"]
        assert single.answer == answer
        for column, values in (("logit", answer.logits), ("probability", answer.probabilities)):
            for name, value in values.items():
                assert row[f"{column}_{name}"] == pytest.approx(value, abs=1e-5, rel=1e-5)
        assert row["decision"] == answer.decision
        assert row["uncertain"] == "; ".join(answer.uncertain)
        assert row["status"] == ("uncertain" if answer.uncertain else "ok")
        assert row["warnings"] == " ".join(answer.warnings)
    assert len({row["decision"] for row in rows}) > 1
    if which == "multi_folder":
        assert {row["status"] for row in rows} == {"ok", "uncertain"}
        assert any("; " in row["decision"] for row in rows)


def test_the_shipped_model_gives_the_logits_of_its_evaluation(cxr_data, tmp_path):
    checkpoint = REPO / "checkpoints" / "cxr-densenet121"
    stored = read_predictions(checkpoint / "predictions_test.csv")
    logits = dict(zip(stored.image_id, stored.logits))
    files = [
        cxr_data / "chest_xray" / "test" / label / name
        for label, k in (("NORMAL", 0), ("PNEUMONIA", 1))
        for name in stored.image_id[stored.labels == k][:12]
    ]
    assert run(*files, "--model", checkpoint, "--output", tmp_path / "t.csv") == 0
    rows = read_csv(tmp_path / "t.csv")
    assert [row["file"] for row in rows] == list(map(str, files))
    answered = [row for row in rows if row["status"] != "refused"]
    assert len(answered) >= 22
    for row in answered:
        found = [float(row["logit_NORMAL"]), float(row["logit_PNEUMONIA"])]
        np.testing.assert_allclose(found, logits[Path(row["file"]).name], atol=1e-4)


def test_answers_come_one_by_one_and_little_is_read_ahead(tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", [f"{number:03}.png" for number in range(60)])
    model, processor = load_model(str(model_folder))
    read, opened = processor.open, []
    processor.open = lambda file: opened.append(file) or read(file)
    results = predict([folder], model, processor, batch_size=4)
    assert next(results).file == str(folder / "000.png")
    assert len(opened) <= 3 * 4
    results.close()
    assert len(opened) <= 3 * 4


# ---------------------------------------------------------------------------------------- heatmaps


@pytest.mark.parametrize("target", [None, "NORMAL"])
def test_heatmaps_lie_over_the_xray_at_its_own_size(target, tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_xrays(tmp_path / "in" / "sub", ["a.png"])
    xray(3, (90, 70)).save("in/a.png")
    xray(4, (50, 64)).save("in/a.jpg")
    (tmp_path / "in" / "b.txt").write_text("no image")
    flags = ["--heatmaps", "in/maps", "--method", "hires_cam"]
    flags += ["--target", target] if target else []
    assert run("in", "--model", model_folder, "--output", "in/t.csv", *flags) == 1
    model, processor = load_model(str(model_folder))
    rows = {row["file"]: row for row in read_csv("in/t.csv")}
    assert list(rows) == ["in/a.jpg", "in/a.png", "in/b.txt", "in/sub/a.png"]
    assert rows.pop("in/b.txt")["heatmap"] == ""
    for file, row in rows.items():
        image = processor.open(file)
        answer = model.assess([image], processor, target, "hires_cam")[0]
        heat = processor.restore(answer.heatmap, *image.pixels.shape)
        heat = heat * answer.probabilities[answer.explained]
        drawn = np.asarray(Image.open(row["heatmap"])).astype(int)
        assert row["heatmap"] == f"in/maps/{file}.png"
        likeliest = max(answer.logits, key=answer.logits.get)
        assert row["explained"] == answer.explained == (target or likeliest)
        assert row["method"] == "hires_cam"
        assert drawn.shape == (*image.pixels.shape, 3)
        # A batch's last digits may round to the next of 256 levels.
        assert np.abs(drawn - processor.overlay(image.pixels, heat)).max() <= 2
    # The output and the heatmaps lie in the folder, and are not read as X-rays.
    before = Path("in/t.csv").read_bytes()
    assert run("in", "--model", model_folder, "--output", "in/t.csv", *flags) == 1
    assert Path("in/t.csv").read_bytes() == before


def test_heatmaps_never_collide_or_leave_their_folder():
    files = ["a.png", "a.dcm", "a", "b/a.png", "../a.png", "../../a.png", "/a.png", "/b/a.png"]
    files += ["b/../a.png", "../b/a.png", "..a"]
    names = [heatmap_name(file) for file in files]
    assert len(set(names)) == len(files)
    assert names[:4] == ["a.png.png", "a.dcm.png", "a.png", "b/a.png.png"]
    for name in names:
        assert not os.path.isabs(name) and ".." not in Path(name).parts


def test_a_heatmap_that_cannot_be_written_is_an_error_of_its_file(tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", ["n" * 253, "x.png"])
    model, processor = load_model(str(model_folder))
    results = list(
        predict([folder], model, processor, method="grad_cam", heatmaps=tmp_path / "maps")
    )
    assert results[0].error == "no heatmap: File name too long."
    assert results[1].error is None and Path(results[1].heatmap).is_file()
    with pytest.raises(ValueError, match="need a method: grad_cam"):
        next(predict([folder], model, processor, heatmaps=tmp_path / "maps"))


def test_one_path_needs_no_list(tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", ["a.png", "b.png"])
    model, processor = load_model(str(model_folder))
    for path in (folder, str(folder)):
        found = [Path(prediction.file).name for prediction in predict(path, model, processor)]
        assert found == ["a.png", "b.png"]
