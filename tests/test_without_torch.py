"""A saved model's files read, preprocess and answer where neither torch nor transformers is."""

import json

import numpy as np
import pytest
import torch
from dicom_files import dicom

from modeling import create_model
from modeling.outlier_cxr import OutlierDetector
from modeling.preprocessing_cxr import equalization

WITHOUT = """
import builtins, importlib, json, sys
import numpy as np

real = builtins.__import__
def refuse(name, *args, **kwargs):
    if name.partition(".")[0] in ("torch", "transformers"):
        raise ImportError(f"{name} is not to be imported")
    return real(name, *args, **kwargs)
builtins.__import__ = refuse

# Files that lie beside one another import one another as a package named like their folder.
reading, preprocessing, answers = (
    importlib.import_module(f"cxr-model.{name}_cxr")
    for name in ("reading", "preprocessing", "answers")
)
settings = json.load(open("cxr-model/preprocessor_config.json"))
config = json.load(open("cxr-model/config.json"))
image = reading.open_image("x.dcm", settings["correct"])
size = settings["size"]["height"], settings["size"]["width"]
pixels = preprocessing.resize(image.pixels, size, settings["geometry"])
if "equalize" in settings:
    pixels = preprocessing.equalize(pixels, settings["equalize"])
values = preprocessing.normalize(pixels[None], settings["image_mean"], settings["image_std"])
np.save("values.npy", values)
given = np.load("outputs.npz")
(answer,) = answers.answers(given, [image], config, target="PNEUMONIA")
row = answers.table_row("x.dcm", answer, None, answers.class_names(config))
print(json.dumps([row, answer.explained, answer.heatmap.tolist()]))
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.mark.parametrize(("channels", "how"), [(1, None), (3, "clahe")])
def test_a_dicom_file_is_read_and_answered_without_torch(channels, how, tmp_path, run_python):
    torch.manual_seed(0)
    model, processor = create_model(
        "baseline",
        ["NORMAL", "PNEUMONIA"],
        64,
        num_channels=channels,
        hidden_sizes=[8, 8],
        calibration={"method": "isotonic", "log_odds": [[-3, 0, 2]], "calibrated": [[-2, 1, 4]]},
        thresholds=[0.4],
        abstention=[[0.35, 0.45]],
        prevalence=[0.3, 0.7],
        age_range=[1, 5],
    )
    if how is not None:
        processor.equalize = equalization(how)
    model.eval().set_outlier_detector(OutlierDetector().eval(), 1e9)
    model.save_pretrained(tmp_path / "cxr-model")
    processor.save_pretrained(tmp_path / "cxr-model")
    levels = np.random.default_rng(0).integers(0, 4096, (90, 70), np.uint16)
    (tmp_path / "x.dcm").write_bytes(dicom(levels, 12, PatientAge="040Y"))
    image = processor.open(tmp_path / "x.dcm")
    (expected,) = model.assess([image], processor, "PNEUMONIA", "grad_cam")
    pixel_values = processor(tmp_path / "x.dcm").pixel_values
    with torch.no_grad():
        output = model.explain(pixel_values, 1)
    np.savez(tmp_path / "outputs.npz", **{name: value.numpy() for name, value in output.items()})

    result = run_python(WITHOUT, cwd=tmp_path, isolated=True)
    assert result.returncode == 0, result.stderr
    row, explained, heatmap = json.loads(result.stdout)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), pixel_values.numpy())
    assert row["status"] == expected.status and row["decision"] == expected.decision
    assert row["probability_PNEUMONIA"] == pytest.approx(expected.probabilities["PNEUMONIA"])
    assert row["logit_NORMAL"] == pytest.approx(expected.logits["NORMAL"])
    assert row["warnings"] == " ".join(expected.warnings) and "adult" in row["warnings"]
    assert explained == expected.explained == "PNEUMONIA"
    np.testing.assert_allclose(heatmap, expected.heatmap, atol=1e-6)
