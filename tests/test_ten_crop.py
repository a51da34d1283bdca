"""Ten crops: the same mean in the model, validate.py and predict.py, and torchvision's crops."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import TenCrop

import predict as predict_script
import validate as validate_script
from evaluation.predictions import read_predictions_by_model
from modeling import create_model, load_model

CLASSES = ("Effusion", "Mass")


def save_model(folder, problem_type="multi_label_classification", geometry="inner_crop"):
    torch.manual_seed(0)
    shape = {"block_config": [1, 1], "growth_rate": 4}
    model, processor = create_model(
        "densenet121", list(CLASSES), 64, problem_type=problem_type, **shape
    )
    torch.nn.init.normal_(model.network.classifier.weight, std=3)
    processor.geometry = geometry
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images, each another, in split/class folders."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        y, x = np.mgrid[0:146, 0:146] / 146
        grey = 60 + 120 * x * (number % 3 + 1) / 3 + 60 * y**2 * (number % 2)
        file = folder / "test" / CLASSES[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.astype(np.uint8)).save(file)
    return folder


def means(folder, files):
    """Probabilities (N, K): the mean over torchvision's ten crops of a frame of 73 pixels."""
    model, processor = load_model(str(folder))
    frame = processor.frame()
    assert frame.size == {"height": 73, "width": 73}  # 64 * 256 / 224
    frames = frame(list(files))["pixel_values"]
    to_probabilities = torch.sigmoid if model.config.is_multi_label else lambda x: x.softmax(1)
    with torch.no_grad():
        views = [to_probabilities(model(crop).logits) for crop in TenCrop(64)(frames)]
    return torch.stack(views).mean(0)


@pytest.mark.parametrize("geometry", ["inner_crop", "pad"])
@pytest.mark.parametrize(
    "problem_type", ["multi_label_classification", "single_label_classification"]
)
def test_the_answer_is_the_mean_over_torchvisions_crops(tmp_path, images, problem_type, geometry):
    folder = save_model(tmp_path / "model", problem_type, geometry)
    files = sorted(images.glob("*/*/*.png"))
    model, processor = load_model(str(folder))
    opened = [processor.open(file) for file in files]
    expected = means(folder, files).numpy()
    found = [answer.probabilities for answer in model.assess(opened, processor, ten_crop=True)]
    one = [answer.probabilities for answer in model.assess(opened, processor)]
    found, one = (np.array([list(row.values()) for row in rows]) for rows in (found, one))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - one).max() > 1e-3
    predictions = list(predict_script.predict([str(images)], model, processor, ten_crop=True))
    assert len(predictions) == len(files)
    for prediction in predictions:
        row = files.index(Path(prediction.file))
        probabilities = list(prediction.answer.probabilities.values())
        np.testing.assert_allclose(probabilities, expected[row], atol=1e-5)


def test_a_sure_answer_stays_finite(tmp_path):
    model, processor = load_model(str(save_model(tmp_path / "model")))
    model.network.classifier.bias.data += 200
    with torch.no_grad():
        logits = model.ten_crop_logits(torch.randn(2, 1, 73, 73))
    assert torch.isfinite(logits).all() and (logits > 30).all()


def test_validate_writes_the_logit_of_the_mean(tmp_path, images, no_accelerator):
    folder = save_model(tmp_path / "model", "single_label_classification")
    flags = ["--model", folder, "--dataset", images, "--output_dir", tmp_path / "report"]
    flags += ["--skip_heatmaps", "--num_resamples", "0", "--cache_dir", tmp_path / "cache"]
    validate_script.main([*map(str, flags), "--ten_crop"])
    found = read_predictions_by_model(tmp_path / "report" / "predictions.csv")["model"]
    files = [next(images.glob(f"**/{name.rpartition('/')[2]}")) for name in found.image_id]
    np.testing.assert_allclose(found.probabilities, means(folder, files), atol=1e-5)
    assert "ten crops" in (tmp_path / "report" / "report.md").read_text()


def test_a_table_of_one_view_is_not_gone_on_with(tmp_path, images):
    folder = save_model(tmp_path / "model")
    flags = [str(images), "--model", str(folder), "--output", str(tmp_path / "table.csv")]
    assert predict_script.main([*flags, "--ten_crop"]) == 0
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["views"] for row in rows} == {"ten crops"}
    with pytest.raises(ValueError, match="name another --output"):
        predict_script.main(flags)


@pytest.mark.parametrize(
    ("script", "flags", "sentence"),
    [
        (validate_script, ["--model", "m"], "--ten_crop has no heatmaps; add --skip_heatmaps."),
        (
            predict_script,
            ["a.png", "--model", "m", "--output", "t.csv", "--heatmaps", "h"],
            "--ten_crop has no heatmaps; leave out --heatmaps.",
        ),
    ],
    ids=["validate.py", "predict.py"],
)
def test_heatmaps_of_ten_crops_are_refused(script, flags, sentence, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([*flags, "--ten_crop"])
    assert sentence in capsys.readouterr().err
