"""train_lungs.py as a user runs it: to the end, resumed, and on sets that teach nothing."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import REPO
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

from datasets_scripts import load_cxr_dataset
from evaluation.segmentation import measure_masks, read_segmentation, summarize_segmentation
from modeling import load_segmenter
from modeling.reading_cxr import read_mask

DATA = {"num_train": 64, "num_validation": 12, "num_test": 9, "image_size": 64}
PHANTOM = ["--dataset_options", *(f"{key}={value}" for key, value in DATA.items())]
FLAGS = ["--image_size", "64", "--hidden_sizes", "8", "16", "16", "--num_train_epochs", "5"]
FLAGS += ["--per_device_train_batch_size", "4", "--ema_decay", "0.8"]


@pytest.fixture(scope="module")
def train_lungs(run_python, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def run(*flags, env=None):
        flags = [*FLAGS, *flags, "--cache_dir", cache]
        return run_python([REPO / "train_lungs.py", *flags], env=env, cwd=REPO)

    return run


@pytest.fixture(scope="module")
def finished(train_lungs, new_hub, tmp_path_factory):
    hub = new_hub(tmp_path_factory.mktemp("hub"))
    folder = tmp_path_factory.mktemp("runs") / "lungs"
    push = ["--push_to_hub", "--hub_model_id", "org/cxr-lungs"]
    result = train_lungs(*PHANTOM, *push, "--output_dir", folder, env=hub.env)
    assert result.returncode == 0, result.stderr
    return folder, hub, result


def test_a_run_ends_with_a_segmenter_that_finds_lungs(finished):
    folder, _, result = finished
    model, processor = load_segmenter(str(folder))
    (test,) = load_cxr_dataset("phantom", **{**DATA, "num_train": 0, "num_validation": 0}).values()
    rows = {row["image_id"]: row for row in read_segmentation(folder / "segmentation_test.csv")}
    assert list(rows) == list(test["image_id"])
    for example in test:
        image = processor.open(example["image"])
        mask = model.segment(processor(image.pixels).pixel_values)[0]
        found = processor.restore(mask, *image.pixels.shape) > 0.5
        measured = measure_masks(found, read_mask(example["lung_mask"], image))
        for name, value in measured.items():
            assert rows[example["image_id"]][name] == pytest.approx(value, abs=0.02)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"] == summarize_segmentation(list(rows.values()))
    assert metrics["test"]["whole"]["dice"]["value"] > 0.7
    assert metrics["test"]["whole"]["dice"]["n"] == 9
    assert "images/s" in result.stderr


def test_weights_are_in_half_precision_and_load_by_transformers(finished):
    folder, _, _ = finished
    weights = load_file(folder / "model.safetensors")
    assert weights["network.encoder.0.0.weight"].dtype == torch.float16
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    own, _ = load_segmenter(str(folder))
    inputs = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(model.segment(inputs), own.segment(inputs))


def test_the_best_epoch_is_the_one_of_highest_dice_on_shifted_images(finished):
    folder, _, _ = finished
    with open(folder / "history.csv") as file:
        dice = [float(row["shifted_dice"]) for row in csv.DictReader(file)]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert dice[metrics["best_epoch"] - 1] == max(dice) and len(dice) == 5


def test_the_card_says_what_the_files_say(finished):
    folder, _, _ = finished
    card = ModelCard.load(folder / "README.md")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['test']['whole']['dice']['value']:.3f}" in card.text
    assert f"{metrics['num_parameters']:,} parameters" in card.text
    assert card.data.pipeline_tag == "image-segmentation"
    assert str(folder.parent) not in card.content


def test_model_code_and_card_are_pushed_and_no_file_that_names_a_patient(finished):
    _, hub, result = finished
    names = set(hub.files("org/cxr-lungs"))
    assert {"README.md", "config.json", "model.safetensors", "segmentation_cxr.py"} <= names
    assert not [name for name in names if name.startswith("segmentation_test")]
    assert "pushed will be the model and its card." in result.stderr


def test_an_interrupted_run_resumes_to_the_same_bits(finished, train_lungs, tmp_path):
    folder = tmp_path / "resumed"
    flags = [*PHANTOM, "--output_dir", folder, "--checkpointing_steps", "13"]
    assert train_lungs(*flags).returncode == 0
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    last, *_ = sorted((folder / "checkpoints").iterdir(), reverse=True)
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    refused = train_lungs(*flags)
    assert "holds a run already" in refused.stderr.splitlines()[-1]
    result = train_lungs(*flags, "--resume_from_checkpoint")
    assert result.returncode == 0, result.stderr
    for name in ("model.safetensors", "segmentation_test.csv"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes(), name


# ---------------------------------------------------------------------------------------- bad input


def made(folder, masks):
    """A folder of images by split and class, and their masks as a CSV lists them."""
    rng, lines = np.random.default_rng(0), ["file,label,split,lung_mask"]
    for k, mask in enumerate(masks):
        Image.fromarray(rng.integers(0, 255, (50, 60), np.uint8)).save(folder / f"{k}.png")
        if mask is not None:
            Image.fromarray(mask).save(folder / f"m{k}.png")
        split = ("train", "train", "validation", "test")[k % 4]
        lines.append(f"{k}.png,{'AB'[k // 4 % 2]},{split},{'' if mask is None else f'm{k}.png'}")
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder / "set.csv"


LUNGS = np.pad(np.full((20, 30), 255, np.uint8), 15)


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (np.zeros((50, 60), np.uint8), "1.png: its lung mask is empty"),
        (
            np.pad(LUNGS, ((0, 50), (0, 0))),
            "1.png: its lung mask is 60 x 100, of other proportions than the image, 60 x 50",
        ),
    ],
    ids=["empty", "other proportions"],
)
def test_a_mask_that_cannot_be_learned_from_is_named(odd, sentence, train_lungs, tmp_path):
    table = made(tmp_path, [LUNGS, odd, *[LUNGS] * 6])
    result = train_lungs("--dataset", table, "--output_dir", tmp_path / "run")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("train_lungs.py: error: 1 of 4 images cannot be read (")
    assert sentence in last


def test_a_set_without_masks_is_refused(train_lungs, tmp_path):
    table = made(tmp_path, [None] * 8)
    result = train_lungs("--dataset", table, "--output_dir", tmp_path / "run")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "train_lungs.py: error: none of the 4 images of the train split has a lung mask; give a "
        "set with masks, as --dataset_options extra=FOLDER does for Kermany's."
    )


def test_images_without_a_mask_are_counted_and_masks_of_another_size_stretched(
    train_lungs, tmp_path
):
    larger = np.kron(LUNGS, np.ones((2, 2), np.uint8))
    table = made(tmp_path, [larger, LUNGS, LUNGS, LUNGS, LUNGS, None, LUNGS, LUNGS])
    result = train_lungs(
        *("--dataset", table, "--output_dir", tmp_path / "run", "--num_train_epochs", "1")
    )
    assert result.returncode == 0, result.stderr
    assert "1 images of train have no lung mask." in result.stderr
    splits = json.loads((tmp_path / "run" / "dataset.json").read_text())["splits"]
    assert splits["train"]["images"] == 3
