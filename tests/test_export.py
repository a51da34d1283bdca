"""export.py: what leaves PyTorch answers as the model does, and says so."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO
from test_modeling_families import NETWORKS, SIZE, batch, make
from test_predict import read_csv, save_model, write_xrays

import export as script
import predict
from exporting.graph import ExportGraph
from exporting.to_onnx import write_onnx
from modeling import load_model
from modeling.exported_cxr import load_exported
from modeling.outlier_cxr import OutlierDetector

CLOSED_FORM = {"baseline", "densenet121", "timm", "conformer_tiny", "conformer_small"}
CLOSED_FORM |= {"conformer_mini"}
QUICK = {"baseline", "densenet121", "small_vit"}
SHIPPED = ["cxr-baseline", pytest.param("cxr-densenet121", marks=pytest.mark.slow)]


def metadata_of(model, processor):
    return {
        "cxr_config": model.config.to_json_string(),
        "cxr_preprocessor": processor.to_json_string(),
        "cxr_model": "tiny@0123456789ab",
    }


def export(*flags):
    script.main([str(flag) for flag in flags])


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
