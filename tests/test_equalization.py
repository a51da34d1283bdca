"""Grey levels spread over the scale: by hand, as OpenCV does it, and the same everywhere."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets_scripts import load_cxr_dataset
from modeling import CxrImageProcessor, create_model
from modeling.preprocessing_cxr import equalization, equalize
from predict import predict
from training.data import decode_splits


def test_histogram_equalization_gives_each_grey_the_share_at_or_below_it():
    pixels = np.array([[0, 0, 100, 200], [200, 300, 300, 300]], np.uint16)
    levels = np.array([0, 0, 1, 3, 3, 6, 6, 6]) / 6 * 65535  # black does not count
    found = equalize(pixels, equalization("histogram"))
    np.testing.assert_array_equal(found, levels.round().astype(np.uint16).reshape(2, 4))
    assert not equalize(np.zeros((4, 4), np.uint16), equalization("histogram")).any()


def test_histogram_equalization_undoes_any_curve():
    pixels = np.random.default_rng(0).integers(1, 60000, (64, 64), np.uint16)
    altered = (((pixels / 65535) ** 2) * 65535).astype(np.uint16)  # some greys become one
    once, other = (equalize(image, equalization("histogram")) for image in (pixels, altered))
    assert np.abs(once.astype(int) - other.astype(int)).max() < 65535 * 0.01


@pytest.mark.parametrize("clip_limit", [2.0, 4.0])
def test_clahe_is_that_of_opencv(clip_limit):
    side = 1024
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 180, side)
    image = (ramp[:, None] / 2 + ramp / 2 + rng.normal(0, 12, (side, side))).clip(0, 255)
    image = image.astype(np.uint8)
    theirs = cv2.createCLAHE(clip_limit, (8, 8)).apply(image).astype(float)
    how = equalization({"method": "clahe", "clip_limit": clip_limit})
    ours = equalize(image.astype(np.uint16) * 257, how) / 257
    # They spread what was cut by whole pixels, which some bins get and others do not: with 16,384
    # pixels a tile that makes up to 256 of them.
    assert np.abs(ours - theirs).max() < 255 * 256 / 16384 + 1
    assert np.abs(ours - theirs).mean() < 1.5
    assert np.abs(image - theirs).mean() > 10


def test_clahe_keeps_the_depth_of_sixteen_bits_and_takes_any_side():
    image = np.linspace(20000, 20400, 70 * 90).astype(np.uint16).reshape(70, 90)
    found = equalize(image, equalization("clahe"))
    assert found.shape == image.shape
    assert len(np.unique(found)) > 300  # of 8 bits it has three levels


@pytest.mark.parametrize("name", ["histogram", "clahe"])
def test_equalization_travels_with_its_parameters_to_the_same_floats(name, tmp_path):
    image = np.random.default_rng(0).integers(50, 120, (80, 100), np.uint8)
    processor = CxrImageProcessor(64, equalize=name)
    assert not torch.equal(processor(image).pixel_values, CxrImageProcessor(64)(image).pixel_values)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    parameters = {"clip_limit": 2.0, "tiles": 8} if name == "clahe" else {}
    assert stored["equalize"] == {"method": name, **parameters}
    loaded = CxrImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(image).pixel_values, processor(image).pixel_values)
    CxrImageProcessor(64).save_pretrained(tmp_path)
    assert "equalize" not in json.loads((tmp_path / "preprocessor_config.json").read_text())


@pytest.mark.parametrize("name", ["histogram", "clahe"])
def test_training_prediction_and_plain_calls_equalize_once(name, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(4):
        image = rng.normal(120, 5, (80, 100)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    rows = "".join(f"{k}.png,{'AB'[k % 2]},test\n" for k in range(4))
    (tmp_path / "set.csv").write_text("file,label,split\n" + rows)
    model, processor = create_model("baseline", ["A", "B"], 64, hidden_sizes=[4, 4])
    processor.equalize = equalization(name)
    files = [str(tmp_path / f"{k}.png") for k in range(4)]
    pixel_values = processor(files).pixel_values

    dataset = load_cxr_dataset(str(tmp_path / "set.csv"))
    decoded = decode_splits(dataset, processor, tmp_path / "cache", 0)["test"]
    assert torch.equal(processor.normalize(np.asarray(decoded.pixels)), pixel_values)
    with torch.no_grad():
        logits = model.eval()(pixel_values).logits
    for prediction, expected in zip(predict(files, model, processor), logits):
        found = torch.tensor(list(prediction.answer.logits.values()))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("stretch", "equalize is 'stretch'; it can be histogram, clahe."),
        ({"clip_limit": 2}, "equalize is None; it can be histogram, clahe."),
        (
            {"method": "clahe", "grid": 8},
            "equalize='clahe' has no 'grid'; it has clip_limit, tiles.",
        ),
        ({"method": "clahe", "tiles": 0}, "tiles of equalize='clahe' is 0; it is 1 or more."),
        ({"method": "histogram", "tiles": 8}, "equalize='histogram' has no 'tiles'; it has none."),
    ],
)
def test_an_equalization_that_is_none_is_one_sentence(how, sentence):
    with pytest.raises(ValueError) as caught:
        CxrImageProcessor(64, equalize=how)
    assert str(caught.value) == sentence
