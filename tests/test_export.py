"""export.py: what leaves PyTorch answers as the model does, and says so."""

import importlib
import json
import re
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from conftest import REPO
from dicom_files import dicom
from PIL import Image
from test_modeling_families import NETWORKS, batch, make
from test_predict import read_csv, save_model, xray

import export as script
import predict
from evaluation.predictions import Predictions
from exporting.graph import ExportGraph, export_program
from exporting.parity import compare, refuse_loss
from exporting.to_onnx import write_onnx
from modeling import load_model
from modeling.exported_cxr import load_exported
from modeling.outlier_cxr import OutlierDetector

CLOSED_FORM = {"baseline", "densenet121", "timm", "conformer_tiny", "conformer_small"}
CLOSED_FORM |= {"conformer_mini"}
QUICK = {"densenet121"}  # the baseline is exported below
SHIPPED = ["cxr-baseline", pytest.param("cxr-densenet121", marks=pytest.mark.slow)]


def metadata_of(model, processor):
    return {
        "cxr_config": model.config.to_json_string(),
        "cxr_preprocessor": processor.to_json_string(),
        "cxr_model": "tiny@0123456789ab",
    }


def export(*flags):
    script.main([str(flag) for flag in flags])


def refused(text, call, *args):
    with pytest.raises((ValueError, OSError, ImportError)) as info:
        call(*args)
    message = str(info.value)
    assert re.search(text, message), message
    assert message.endswith(".") and "\n" not in message


@pytest.fixture(autouse=True, scope="module")
def no_telemetry():
    """OpenVINO's packages tell nobody of their use where this is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "true")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A labelled set of 30 images."""
    folder = tmp_path_factory.mktemp("data") / "set"
    for seed in range(30):
        file = folder / "validation" / ("NORMAL", "PNEUMONIA")[seed % 2] / f"{seed}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        xray(seed).save(file)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model that abstains, refuses some images and knows the ages that it is for."""
    folder = save_model(
        tmp_path_factory.mktemp("models") / "tiny",
        calibration={"method": "isotonic", "log_odds": [[-3, 0, 2]], "calibrated": [[-2, 1, 4]]},
        thresholds=[0.4],
        abstention=[[0.35, 0.45]],
        prevalence=[0.3, 0.7],
        age_range=[1, 5],
    )
    model, processor = load_model(str(folder))
    detector = OutlierDetector().eval()
    model.set_outlier_detector(detector, 0.0)
    with torch.no_grad():
        scores = model(**processor([xray(seed) for seed in range(20)])).outlier_score
    model.set_outlier_detector(detector, scores.sort().values[14:16].mean().item())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(data, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return ["--dataset", data, "--cache_dir", cache, "--num_resamples", 100]


@pytest.fixture(scope="module")
def exported(model_folder, flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "exported"
    export("--model", model_folder, "--format", "onnx", "--output_dir", folder, *flags)
    return folder


# -------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_onnxruntime_answers_any_number_of_images_as_the_network_does(name, tmp_path):
    options = {"depth": 2} if name == "small_vit" else {}
    model, processor = make(name, **options)
    write_onnx(ExportGraph(model), metadata_of(model, processor), tmp_path / "x.onnx", None)
    exported, _ = load_exported(tmp_path / "x.onnx")
    for count in (1, 3):
        inputs = batch(model, count)
        found = exported.run(inputs.numpy())
        with torch.no_grad():
            expected = model(inputs)
        np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4)
        np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)
        assert ("heatmap" in found) == (name in CLOSED_FORM)
        for target in range(3) if name in CLOSED_FORM else ():
            heatmaps = model.grad_cam(inputs, target)
            np.testing.assert_allclose(found["heatmap"][:, target], heatmaps, atol=1e-3)


# ------------------------------------------------------------------------------------- the answers


@pytest.fixture
def several():
    """Predictions of three findings in 40 images, and the outputs that they are of."""
    rng = np.random.default_rng(0)
    names = np.array([f"{number}" for number in range(40)])
    logits = rng.normal(size=(40, 3)) + np.sign(rng.normal(size=(40, 3)))
    predictions = Predictions(
        names, names, rng.random((40, 3)) < 0.4, logits, tuple("ABC"), "x", True
    )
    outputs = {"logits": logits, "probabilities": 1 / (1 + np.exp(-logits))}
    return predictions, outputs | {"outlier_score": np.full(40, -1.0)}


def test_a_decision_is_a_label_and_refusing_is_one(several):
    predictions, own = several
    config = {"problem_type": "multi_label_classification", "outlier_threshold": 0.0}
    found = {name: values.copy() for name, values in own.items()}
    found["probabilities"][0, 0] = 1 - found["probabilities"][0, 0]
    parity = compare(predictions, own, found, config, 50, 0)
    assert parity["changed"]["value"] == pytest.approx(1 / 120)
    found["outlier_score"][1] = 1
    parity = compare(predictions, own, found, config, 50, 0)
    assert parity["changed"]["value"] == pytest.approx(4 / 120)
    assert parity["changed"]["low"] < 4 / 120 < parity["changed"]["high"]
    refused("changes 3.3% of the decisions", refuse_loss, parity, None, 0.002, 0.01)
    refuse_loss(parity, None, 0.002, 0.04)


def test_what_is_lost_is_refused_whatever_it_is(several):
    predictions, own = several
    config = {"problem_type": "multi_label_classification", "outlier_threshold": 0.0}
    found = own | {"logits": own["logits"] + np.eye(40, 3) * 0.01}
    parity = compare(predictions, own, found, config, 0, 0)
    refused("logits differ .* by up to 0.01; the limit", refuse_loss, parity, 1e-3, 1, 1)
    refuse_loss(parity, None, 0.01, 0)
    worse = own | {"logits": np.where(predictions.labels, -9.0, 9.0)}
    parity = compare(predictions, own, worse, config, 0, 0)
    assert parity["auroc"]["export"]["value"] == 0
    refused("the export loses 0.* of AUROC", refuse_loss, parity, None, 0.002, 1)
    broken = own | {"outlier_score": np.full(40, np.nan)}
    parity = compare(predictions, own, broken, config, 0, 0)
    refused("answers outlier_score that are no numbers", refuse_loss, parity, None, 1, 1)
    ill = replace(predictions, labels=np.ones((40, 3), bool))
    parity = compare(ill, own, own, config, 0, 0)
    refused("AUROC cannot be compared on these images", refuse_loss, parity, None, 1, 1)


def test_the_parity_report_says_what_was_compared_and_how_alike_both_are(exported, model_folder):
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["file"] == "tiny.onnx" and parity["data"]["split"] == "validation"
    assert parity["bytes"] == (exported / "tiny.onnx").stat().st_size
    assert parity["images"] == parity["patients"] == 30
    largest = parity["largest_difference"]
    assert set(largest) == {"logits", "probabilities", "outlier_score", "heatmap"}
    assert 0 < max(largest.values()) < 1e-4
    auroc = parity["auroc"]
    assert auroc["model"]["low"] < auroc["model"]["value"] < auroc["model"]["high"]
    assert auroc["difference"]["value"] == pytest.approx(0, abs=1e-9)
    assert parity["changed"]["value"] == 0 and parity["changed"]["n"] == 30
    assert set(parity["versions"]) >= {"torch", "onnx", "onnxruntime"}


def test_predict_writes_the_table_and_heatmaps_of_the_model_itself(
    exported, model_folder, tmp_path
):
    files = tmp_path / "in"
    files.mkdir()
    for seed in range(20):
        xray(seed).save(files / f"{seed}.png")
    levels = np.asarray(xray(3).resize((70, 90))).astype(np.uint16) * 16
    (files / "x.dcm").write_bytes(dicom(levels, 12, PatientAge="040Y"))
    (files / "notes.txt").write_text("no image")
    tables = {}
    for model in (model_folder, exported / "tiny.onnx"):
        table, heatmaps = tmp_path / f"{model.name}.csv", tmp_path / model.name
        options = ["--output", table, "--heatmaps", heatmaps, "--target", "PNEUMONIA"]
        code = predict.main([str(arg) for arg in [files, "--model", model, *options]])
        assert code == 1  # of notes.txt
        tables[model.suffix] = read_csv(table)
    assert {row["status"] for row in tables[""]} == {"ok", "uncertain", "refused", "error"}
    assert len(tables[""]) == len(tables[".onnx"]) == 22
    for own, found in zip(tables[""], tables[".onnx"]):
        assert re.fullmatch(r"tiny\.onnx@[0-9a-f]{12}", found.pop("model"))
        own.pop("model")
        assert own.keys() == found.keys()
        drawn = own.pop("heatmap"), found.pop("heatmap")
        for column, text in own.items():
            if text and re.match("probability|logit|outlier", column):
                assert float(found[column]) == pytest.approx(float(text), abs=1e-4)
            else:
                assert found[column] == text
        assert bool(drawn[0]) == bool(drawn[1]) == (own["status"] in ("ok", "uncertain"))
        if drawn[0]:
            pictures = [np.asarray(Image.open(file)).astype(int) for file in drawn]
            assert np.abs(pictures[0] - pictures[1]).max() <= 2


EXAMPLE = (REPO / "README.md").read_text()
EXAMPLE = re.search(r"```python\n([^`]*load_exported[^`]*)```", EXAMPLE).group(1)
WITHOUT_TORCH = """
import builtins, json, sys
real = builtins.__import__
def refuse(name, *args, **kwargs):
    if name.partition(".")[0] in ("torch", "transformers"):
        raise ImportError(f"{name} is not to be imported")
    return real(name, *args, **kwargs)
builtins.__import__ = refuse
"""


def test_the_readmes_example_answers_without_torch_and_transformers(
    exported, model_folder, run_python
):
    model, processor = load_model(str(model_folder))
    file = exported.parent / "chest.dcm"
    for seed in range(20):
        levels = np.asarray(xray(seed)).astype(np.uint16) * 16
        file.write_bytes(dicom(levels, 12, PatientAge="040Y"))
        (expected,) = model.assess([processor.open(file)], processor, method="grad_cam")
        if not expected.refusal:
            break
    code = EXAMPLE.replace("cxr-densenet121.onnx", "tiny.onnx").replace("chest.png", "chest.dcm")
    code += """
import numpy as np
np.save("heat.npy", heat)
row = table_row("chest.dcm", answer, None, model.classes)
print(json.dumps([row, answer.explained]))
assert not {"torch", "transformers"} & set(sys.modules)
"""
    code = WITHOUT_TORCH + "from exported.answers_cxr import table_row\n" + code
    result = run_python(code, cwd=exported.parent)
    assert result.returncode == 0, result.stderr
    row, explained = json.loads(result.stdout.splitlines()[-1])
    assert row["status"] == expected.status and row["decision"] == expected.decision
    assert row["warnings"] == " ".join(expected.warnings) and "adult" in row["warnings"]
    assert row["probability_PNEUMONIA"] == pytest.approx(
        expected.probabilities["PNEUMONIA"], abs=1e-5
    )
    assert explained == expected.explained
    heat = np.load(exported.parent / "heat.npy")
    np.testing.assert_allclose(heat, expected.heat(processor, *heat.shape), atol=1e-4)


def test_the_space_serves_an_exported_file_with_the_rows_of_predict(
    exported, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(REPO / "space"))
    models = importlib.import_module("models")
    monkeypatch.delitem(sys.modules, "models")
    file, model = tmp_path / "x.png", exported / "tiny.onnx"
    xray(1).save(file)
    predict.main([str(arg) for arg in [file, "--model", model, "--output", tmp_path / "x.csv"]])
    (expected,) = read_csv(tmp_path / "x.csv")
    classifier = models.Classifier(str(model))
    assert (classifier.name, classifier.finding) == ("tiny.onnx", "PNEUMONIA")
    opened = classifier.open(file.read_bytes())
    answer = classifier.assess(opened, method=classifier.methods[0])
    row = classifier.row(str(file), answer)
    assert {name: "" if cell is None else str(cell) for name, cell in row.items()} == expected
    if not answer.refusal:
        height, width = opened.pixels.shape
        heat = answer.heat(classifier.processor, height, width)
        assert classifier.processor.overlay(opened.pixels, heat).shape == (height, width, 3)


# ---------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize("suffix", ["pt2", pytest.param("xml", marks=pytest.mark.slow)])
def test_other_formats_answer_as_the_model_too(suffix, model_folder, flags, tmp_path):
    form = {"pt2": "pt2", "xml": "openvino"}[suffix]
    export("--model", model_folder, "--format", form, "--output_dir", tmp_path / "x", *flags)
    parity = json.loads((tmp_path / "x" / "parity.json").read_text())
    assert parity["changed"]["value"] == 0
    assert parity["largest_difference"]["logits"] < 1e-4
    model, processor = load_model(str(model_folder))
    exported, settings = load_exported(tmp_path / "x" / f"tiny.{suffix}")
    images = [processor.open(xray(seed)) for seed in range(5)]
    expected = model.assess(images, processor, method="grad_cam")
    for own, found in zip(expected, exported.assess(images, settings, method="grad_cam")):
        assert (found.status, found.decision) == (own.status, own.decision)
        assert found.probabilities == pytest.approx(own.probabilities, abs=1e-5)
        if own.heatmap is not None:
            np.testing.assert_allclose(found.heatmap, own.heatmap, atol=1e-4)


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_is_smaller_and_says_what_it_loses(form, exported, model_folder, flags, tmp_path):
    limits = ["--max_auroc_drop", 1, "--max_changed", 1]
    quantized = ["--format", form, "--int8", "--calibration_images", 20, *limits]
    export("--model", model_folder, *quantized, "--output_dir", tmp_path / "x", *flags)
    parity = json.loads((tmp_path / "x" / "parity.json").read_text())
    assert parity["int8"] == {
        "data": "set",
        "split": "validation",
        "images": 20,
        "also_compared": 20,
    }
    assert 1e-4 < parity["largest_difference"]["logits"] < 1
    assert parity["largest_difference"]["outlier_score"] < 1e-3  # its threshold holds
    assert parity["auroc"]["export"]["value"] is not None


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_checkpoints_are_exported_without_a_changed_decision(name, flags, tmp_path):
    checkpoint = REPO / "checkpoints" / name
    export("--model", checkpoint, "--format", "onnx", "--output_dir", tmp_path / "x", *flags)
    parity = json.loads((tmp_path / "x" / "parity.json").read_text())
    assert parity["changed"]["value"] == 0
    assert parity["largest_difference"]["logits"] < 1e-4
    assert parity["largest_difference"]["probabilities"] < 1e-5
    assert parity["largest_difference"]["heatmap"] < 1e-3


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.slow
def test_int8_that_loses_too_much_leaves_nothing(model_folder, flags, tmp_path):
    folder = tmp_path / "x"
    quantized = ["--format", "onnx", "--int8", "--calibration_images", 1, "--max_changed", 0]
    quantized += ["--max_auroc_drop", 0]
    refused(
        "loses .* of AUROC and changes .*% of the decisions; .*--max_changed 0",
        export, "--model", model_folder, *quantized, "--output_dir", folder, *flags,
    )  # fmt: skip
    assert list(folder.iterdir()) == []


def test_a_file_of_others_is_refused(tmp_path, exported):
    model = onnx.load(exported / "tiny.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    refused(
        "bare.onnx does not say cxr_config, as .*export.py", load_exported, tmp_path / "bare.onnx"
    )
    (tmp_path / "text.onnx").write_text("no network")
    refused("text.onnx is damaged", load_exported, tmp_path / "text.onnx")
    refused("none.onnx does not exist", load_exported, tmp_path / "none.onnx")
    refused("x.bin is no exported model; it ends in .onnx", load_exported, tmp_path / "x.bin")
    refused("is an exported model", load_model, str(exported / "tiny.onnx"))


def test_a_missing_package_is_named_with_its_extra(model_folder, flags, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("exporting.to_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    refused(
        r"--format onnx needs the package onnxruntime.*pip install -e '\.\[onnx\]'",
        export, "--model", model_folder, "--format", "onnx", "--output_dir", tmp_path, *flags,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "x.onnx").touch()
    refused("is run by onnxruntime: pip install onnxruntime", load_exported, tmp_path / "x.onnx")


def test_a_network_that_cannot_be_written_down_is_refused(model_folder, monkeypatch):
    model, _ = load_model(str(model_folder))
    graph = ExportGraph(model)
    forward = model.network.forward_features

    def depends_on_values(pixel_values):
        return forward(pixel_values * (2 if pixel_values.sum() > 0 else 1))

    monkeypatch.setattr(model.network, "forward_features", depends_on_values)
    refused("a cxr-baseline network .*cannot be exported", export_program, graph)


def test_what_an_exported_model_lacks_is_said(exported, tmp_path):
    model, processor = load_exported(exported / "tiny.onnx")
    images = [processor.open(xray(0))]
    refused("no images", model.assess, [], processor)
    refused("'CAT' is not a class", model.assess, images, processor, "CAT")
    refused("this exported model has grad_cam alone", model.assess, images, processor, None, "x")
    refused("no ten crops", model.assess, images, processor, None, None, True)
    xray(0).save(tmp_path / "x.png")
    flags = [tmp_path, "--model", exported / "tiny.onnx", "--output", tmp_path / "x.csv"]
    refused("no ten crops", predict.main, [str(flag) for flag in [*flags, "--ten_crop"]])
