"""The models that ship: they load offline, and their cards state what they score."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import roc_auc_score
from transformers import AutoImageProcessor, AutoModel
from transformers.dynamic_module_utils import get_relative_import_files

from datasets_scripts import load_cxr_dataset, open_row
from datasets_scripts.pixels import stored_rows
from evaluation.calibration import apply_operation
from evaluation.metrics import METRIC_NAMES, compute_metrics
from evaluation.predictions import read_predictions
from evaluation.segmentation import measure_masks, read_segmentation
from modeling import load_segmenter
from modeling.configuration_cxr import OPERATION
from recipes.lungs.results import write_results
from training.lungs import open_mask

REPO = Path(__file__).parent.parent
CHECKPOINTS = [REPO / "checkpoints" / name for name in ("cxr-densenet121", "cxr-baseline")]
LUNGS = REPO / "checkpoints" / "cxr-lungs"


def stated(folder, metric_type):
    results = ModelCard.load(folder / "README.md").data.eval_results
    return next(r.metric_value for r in results if r.metric_type == metric_type)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_card_states_what_the_predictions_file_gives(folder):
    config = json.loads((folder / "config.json").read_text())
    operation = {name: config[name] for name in OPERATION}
    metrics = json.loads((folder / "metrics.json").read_text())["test"]
    predictions = apply_operation(read_predictions(folder / "predictions_test.csv"), operation)
    computed = compute_metrics(predictions, seed=metrics["seed"])
    for name in METRIC_NAMES:
        for bound in ("value", "low", "high"):
            assert computed[name][bound] == pytest.approx(metrics[name][bound], abs=1e-9)
    assert stated(folder, "roc_auc") == pytest.approx(metrics["auroc"]["value"], abs=1e-9)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_shipped_weights_score_on_the_real_test_images_what_the_card_states(folder, cxr_data):
    test = load_cxr_dataset("kermany", cxr_data / "chest_xray")["test"]
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    logits, probabilities = [], []
    with torch.no_grad():
        for start in range(0, len(test), 48):
            pixels = processor(list(test[start : start + 48]["image"]))["pixel_values"]
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            output = model(pixels)
            logits.append(output.logits)
            probabilities.append(output.probabilities[:, 1])
    auroc = roc_auc_score(test["label"], torch.cat(probabilities))
    assert stated(folder, "roc_auc") == pytest.approx(auroc, abs=1e-3)
    log_odds = torch.cat(logits).diff(dim=1)[:, 0].numpy()
    written = read_predictions(folder / "predictions_test.csv")
    assert written.image_id.tolist() == list(test["image_id"])
    np.testing.assert_allclose(written.log_odds[:, 1], log_odds, atol=1e-3)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_checkpoint_answers_in_a_fresh_process_without_the_checkout(folder, run_python):
    code = f"""
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoModel, AutoModelForImageClassification, pipeline
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
same = AutoModelForImageClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert model.dtype == same.dtype and str(model.dtype) == "torch.float32"
image = Image.linear_gradient("L")
photograph = Image.fromarray(load_sample_images().images[0])
ask = pipeline("image-classification", model={str(folder)!r}, trust_remote_code=True)
assert [entry["outlier"] for entry in ask(photograph)] == [True, True]
answer = ask(image)
print(sorted(entry["label"] for entry in answer), round(sum(e["score"] for e in answer), 5))
"""
    result = run_python(code, env={"HF_HUB_OFFLINE": "1"}, isolated=True)
    assert result.stdout.strip() == "['NORMAL', 'PNEUMONIA'] 1.0", result.stderr


@pytest.mark.parametrize("folder", [*CHECKPOINTS, LUNGS], ids=lambda folder: folder.name)
def test_a_checkpoint_travels_with_the_code_of_this_commit(folder):
    file = json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"].split(".")[0]
    needed = {
        path.name for path in map(Path, get_relative_import_files(REPO / f"modeling/{file}.py"))
    }
    needed |= {f"{file}.py"}
    assert {path.name for path in folder.glob("*.py")} == needed
    for name in needed:
        assert (folder / name).read_text() == (REPO / "modeling" / name).read_text()


def test_the_checkpoints_weigh_less_than_16_mb_together():
    sizes = [path.stat().st_size for folder in CHECKPOINTS for path in folder.glob("*.safetensors")]
    assert len(sizes) == 2 and sum(sizes) < 16_000_000


# -------------------------------------------------------------------------------------------- lungs


def test_the_lung_study_states_what_its_tables_give(tmp_path):
    results, model = tmp_path / "lungs", tmp_path / "cxr-lungs"
    shutil.copytree(REPO / "results" / "lungs", results)
    shutil.copytree(LUNGS, model)
    write_results(results, model)
    for name in ("metrics.json", "lungs.md"):
        made = (results / name).read_text()
        assert made == (REPO / "results" / "lungs" / name).read_text()
    assert (model / "evidence.json").read_text() == (LUNGS / "evidence.json").read_text()


def test_the_lung_segmenter_scores_on_adults_what_the_study_states(cxr_data):
    table = REPO / "results" / "lungs" / "openist.csv"
    rows = {row["image_id"]: row for row in read_segmentation(table)}
    options = {"where": "file=^openist/"}
    test = load_cxr_dataset(str(cxr_data / "external" / "manifest.csv"), **options)["test"]
    assert list(rows) == list(test["image_id"])
    model, processor = load_segmenter(str(LUNGS))
    for row in stored_rows(test).select(range(0, len(test), 8)):
        image, _ = open_row(row, processor.correct)
        mask = model.segment(processor.normalize(processor.prepare(image.pixels)[None]))[0]
        found = processor.restore(mask, *image.pixels.shape) > 0.5
        for name, value in measure_masks(found, open_mask(row, image)).items():
            assert rows[row["image_id"]][name] == pytest.approx(value, abs=0.01), name


def test_the_lung_segmenter_weighs_4_mb_at_most_and_loads_by_an_auto_class():
    assert (LUNGS / "model.safetensors").stat().st_size <= 4_000_000
    model = AutoModel.from_pretrained(LUNGS, trust_remote_code=True)
    masks = model.segment(torch.zeros(1, 1, 128, 128))
    assert masks.shape == (1, 128, 128)
