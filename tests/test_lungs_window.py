"""Images cut to the lungs, or left with nothing else: known pixels, and the same everywhere."""

import json
import os
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_scripts import load_cxr_dataset
from modeling import CxrImageProcessor, create_model, load_segmenter
from modeling.image_cxr import CxrImage
from modeling.lungs_cxr import NO_LUNGS, LungFinder, crop_to, mask_by
from predict import predict
from train import build_model
from training.arguments import parse_args
from training.augmentation import swap_backgrounds
from training.data import decode_splits
from training.subject import Subject

REPO = Path(__file__).parents[1]
SEGMENTER = str(REPO / "checkpoints" / "cxr-lungs")
WINDOWS = [{"crop": "lungs"}, {"mask": "lungs"}, {"crop": "lungs", "mask": "soft"}]


@pytest.fixture(scope="module")
def finder():
    return LungFinder(*load_segmenter(SEGMENTER))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Eight phantoms as files with lung masks and a table; the folder."""
    folder = tmp_path_factory.mktemp("phantoms")
    split = load_cxr_dataset("phantom", num_train=8, num_validation=2, num_test=2)["train"]
    rows = ["file,label,split,lung_mask"]
    for k, row in enumerate(split):
        row["image"].save(folder / f"{k}.png")
        row["lung_mask"].save(folder / f"{k}_mask.png")
        rows.append(f"{k}.png,{'AB'[k % 2]},test,{k}_mask.png")
    (folder / "set.csv").write_text("\n".join(rows) + "\n")
    return folder


def lungs(height, width, *boxes):
    mask = np.zeros((height, width), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


# ------------------------------------------------------------------------------------ known pixels


def test_a_crop_is_the_box_of_both_lungs_and_a_twentieth_around_it():
    pixels = np.arange(200 * 100, dtype=np.uint16).reshape(200, 100)
    image = CxrImage(pixels, margins=(1, 2, 3, 4))
    cropped = crop_to(image, lungs(200, 100, (40, 120, 10, 40), (50, 140, 55, 97)))
    np.testing.assert_array_equal(cropped.pixels, pixels[30:150, 5:100])
    assert cropped.margins == (31, 7, 53, 4)
    assert cropped.file_shape == image.file_shape


def test_a_crop_is_never_smaller_than_an_image_may_be():
    image = CxrImage(np.zeros((200, 100), np.uint16))
    assert crop_to(image, lungs(200, 100, (195, 199, 98, 99))).pixels.shape == (32, 32)


def test_a_mask_keeps_the_lungs_and_their_mean_brightness_elsewhere():
    pixels = np.full((100, 100), 9000, np.uint16)
    pixels[20:60, 20:40] = np.arange(40)[:, None] * 10 + 1000
    found = lungs(100, 100, (22, 58, 22, 38)).astype(np.float32)
    hard = mask_by(CxrImage(pixels), found, "lungs").pixels  # grown by two pixels
    np.testing.assert_array_equal(hard[20:60, 20:40], pixels[20:60, 20:40])
    outside = ~lungs(100, 100, (20, 60, 20, 40))
    assert set(hard[outside]) == {round(pixels[20:60, 20:40].mean())}

    sure = found * 0.75
    soft = mask_by(CxrImage(pixels), sure, "soft").pixels.astype(float)
    mean = pixels[22:58, 22:38].mean()
    np.testing.assert_allclose(soft, mean + sure * (pixels - mean), atol=0.51)


# ----------------------------------------------------------------------------------------- the road


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "-".join(window.values()))
def test_prediction_training_and_plain_calls_see_the_same(window, finder, phantoms, tmp_path):
    model, processor = create_model("baseline", ["A", "B"], 64, hidden_sizes=[4, 4])
    for name, value in window.items():
        setattr(processor, name, value)
    processor.lungs = finder
    files = [str(phantoms / f"{k}.png") for k in range(8)]
    pixel_values = processor(files).pixel_values
    whole = CxrImageProcessor(64)(files).pixel_values
    assert (pixel_values - whole).abs().mean((1, 2, 3)).min() > 0.01

    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = CxrImageProcessor.from_pretrained(tmp_path / "model")
    assert {key: getattr(loaded, key) for key in window} == window
    assert torch.equal(loaded(files).pixel_values, pixel_values)
    assert loaded.lungs.digest() == finder.digest()

    dataset = load_cxr_dataset(str(phantoms / "set.csv"))
    decoded = decode_splits(dataset, loaded, tmp_path / "cache", 0)["test"]
    assert torch.equal(processor.normalize(np.asarray(decoded.pixels)), pixel_values)
    with torch.no_grad():
        logits = model.eval()(pixel_values).logits
    for prediction, expected in zip(predict(files, model, loaded), logits):
        found = torch.tensor(list(prediction.answer.logits.values()))
        torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def subject(finder, phantoms, tmp_path_factory):
    """A classifier of crops beside the phantoms, as validate.py has it."""
    folder = tmp_path_factory.mktemp("subject")
    model, processor = create_model("baseline", ["A", "B"], 64, hidden_sizes=[4, 4])
    processor.crop, processor.lungs = "lungs", finder
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    split = load_cxr_dataset(str(phantoms / "set.csv"))["test"]
    args = Namespace(split="test", variant=None, seed=0, ten_crop=False, max_unreadable=0)
    args.cache_dir = folder / "cache"
    return Subject("model", str(folder / "model"), split, args)


def test_masks_of_the_file_follow_the_crop(subject, phantoms):
    opened, shape = subject.open(0)
    assert min(opened.margins[0], opened.margins[2]) > 0
    placed = subject.place(str(phantoms / "0_mask.png"), opened, shape)
    dark = subject.pixels.pixels[0]
    assert dark[placed].mean() < 0.8 * dark[~placed].mean()
    assert placed.mean() > np.asarray(Image.open(phantoms / "0_mask.png")).astype(bool).mean()


def test_the_gallerys_heat_lies_where_the_crop_was(subject):
    (whole, _), (seen, _) = subject.open_whole(0), subject.open(0)
    framed = subject.restore(np.ones((64, 64), np.float32), 0, whole)
    top, left, bottom, right = seen.margins
    height, width = whole.pixels.shape
    expected = lungs(height, width, (top, height - bottom, left, width - right))
    np.testing.assert_array_equal(framed > 0.5, expected)
    assert not expected.all()


LOAD = """
import sys
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(float(processor(sys.argv[2]).pixel_values.double().sum()))
"""


def test_a_folder_alone_is_enough(finder, phantoms, tmp_path):
    processor = CxrImageProcessor(64, crop="lungs", mask="soft")
    processor.lungs = finder
    processor.save_pretrained(tmp_path / "model")
    image = str(phantoms / "1.png")
    result = subprocess.run(
        [sys.executable, "-c", LOAD, "model", image],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = processor(image).pixel_values.double().sum()
    assert float(result.stdout) == pytest.approx(float(expected), abs=1e-3)
    settings = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert (settings["crop"], settings["mask"]) == ("lungs", "soft")
    assert "lungs" not in settings


def test_backgrounds_are_swapped_and_lungs_stay(finder):
    split = load_cxr_dataset("phantom", num_train=16, num_validation=2, num_test=2)["train"]
    processor = CxrImageProcessor(96)
    images = torch.from_numpy(np.stack([processor.read(row["image"]) for row in split]))
    masks = np.stack(
        [
            np.asarray(row["lung_mask"].resize((96, 96), Image.Resampling.NEAREST)) > 0
            for row in split
        ]
    )
    torch.manual_seed(0)
    before = images.float() / 65535
    assert torch.equal(swap_backgrounds(images, finder, 0.0), before)
    torch.manual_seed(0)
    changed = (swap_backgrounds(images, finder, 1.0) - before).abs().numpy()
    assert changed[~masks].mean() > 4 * changed[masks].mean()
    before[0] = 1.0  # no lungs: it keeps its place, or its label would be another's
    swapped = swap_backgrounds(before, finder, 1.0)
    assert torch.equal(swapped[0], before[0]) and not torch.equal(swapped[1], before[1])


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.skipif("CXR_DATA" not in os.environ, reason="CXR_DATA is not set")
def test_lungs_are_found_in_x_rays_and_not_in_blank_images_or_noise(finder):
    data = Path(os.environ["CXR_DATA"])
    files = sorted((data / "chest_xray" / "test" / "NORMAL").iterdir())[::6]
    files += sorted((data / "chestxray14" / "images").iterdir())[::40]
    reader = CxrImageProcessor(64)
    found = [finder.find(reader.open(str(file)).pixels).any() for file in files]
    assert len(found) > 90 and np.mean(found) > 0.97
    rng = np.random.default_rng(0)
    others = [np.full((80, 80), grey, np.uint8) for grey in (0, 128, 255)]
    others += [rng.integers(0, 256, (side, side), np.uint8) for side in (64, 256)]
    others.append(np.tile(np.linspace(0, 255, 200), (200, 1)).astype(np.uint8))
    assert not any(finder.find(reader.open(other).pixels).any() for other in others)


def test_settings_can_be_asked_for_while_images_are_read(finder):
    processor = CxrImageProcessor(64, crop="lungs")
    processor.lungs = finder
    seen = []
    asking = threading.Thread(target=lambda: [processor.to_dict() for _ in range(300)])
    asking.start()
    while asking.is_alive():
        seen.append(processor.lungs is finder)
    asking.join()
    assert all(seen) and "lungs" not in processor.to_dict()


def test_an_image_without_lungs_stays_whole_and_says_so(finder):
    processor = CxrImageProcessor(64, crop="lungs", mask="lungs")
    processor.lungs = finder
    blank = np.full((64, 80), 255, np.uint8)
    opened = processor.open(blank)
    assert opened.warnings == (NO_LUNGS,)
    assert opened.pixels.shape == (64, 80)
    assert torch.equal(processor(blank).pixel_values, CxrImageProcessor(64)(blank).pixel_values)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crop": "heart"}, "crop is 'heart'; it can be lungs."),
        ({"mask": "hard"}, "mask is 'hard'; it can be lungs, soft."),
    ],
)
def test_a_window_that_is_none_is_one_sentence(options, sentence):
    with pytest.raises(ValueError) as caught:
        CxrImageProcessor(64, **options)
    assert str(caught.value) == sentence


def test_a_window_without_a_segmenter_is_one_sentence(tmp_path):
    processor = CxrImageProcessor(64, mask="soft")
    for use in (processor.open, processor.save_pretrained):
        with pytest.raises(ValueError, match=r"mask='soft' and no segmenter: load it by"):
            use(np.zeros((64, 64), np.uint8) if use == processor.open else tmp_path)
    split = load_cxr_dataset("phantom", num_train=4, num_validation=2, num_test=2)["train"]
    flags = ["--model", "baseline", "--image_size", "64", "--output_dir", str(tmp_path)]
    for more in (["--crop", "lungs"], ["--mask", "soft"], ["--swap_background", "0.5"]):
        with pytest.raises(ValueError, match=r"need --lungs, the folder or id"):
            build_model(split, parse_args([*flags, *more]))
    more = ["--swap_background", "0.5", "--equalize", "clahe", "--lungs", SEGMENTER]
    with pytest.raises(ValueError, match="needs X-rays as they are; leave out --crop"):
        build_model(split, parse_args([*flags, *more]))
    with pytest.raises(ValueError, match="--lungs is for --crop, --mask or"):
        build_model(split, parse_args([*flags, "--lungs", SEGMENTER]))
    with pytest.raises(ValueError, match="it takes a lung segmenter"):
        other = str(REPO / "checkpoints" / "cxr-baseline")
        build_model(split, parse_args([*flags, "--mask", "soft", "--lungs", other]))
