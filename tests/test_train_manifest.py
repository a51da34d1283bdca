"""train.py on one CSV file of two sources: weights, images without a label, a teacher, no test."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datasets_scripts.phantom import generate
from evaluation.predictions import read_predictions
from modeling import load_model
from train import load_data
from training.arguments import parse_args

COUNTS = {"train": 21, "unlabelled": 8, "validation": 12, "test": 6}
RECIPE = [
    *("--model", "baseline", "--model_options", "hidden_sizes=[4,8]", "dropout=0.2"),
    *("--image_size", "48", "--per_device_train_batch_size", "4", "--num_train_epochs", "2"),
    *("--max_stretch", "0.2", "--max_blur", "0.3", "--ema_decay", "0.9", "--class_weights"),
    *("balanced", "--checkpointing_steps", "3", "--skip_test", "--outlier_detector", "none"),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Flags of a data set whose test images are no images: whoever decodes them stumbles."""
    root, table = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("table") / "all.csv"
    rows = []
    for split, count in COUNTS.items():
        for _ in range(count):
            number = len(rows)
            source = "ab"[number % 3 == 0]
            file = root / source / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            if split == "test":
                file.write_text(f"test image {number}")
            else:
                Image.fromarray(generate(number, size=64).image).save(file)
            rows.append(
                {
                    "file": f"{source}/{number}.png",
                    "label": "" if split == "unlabelled" else ("NORMAL", "OPACITY")[number % 2],
                    "patient": f"p{number}",
                    "split": split,
                    "source": source,
                    "weight": 0.5 if split == "unlabelled" else 1 + (source == "b"),
                }
            )
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return ["--dataset", str(table), "--dataset_options", f"root={root}"]


def test_a_student_of_two_sources_resumes_in_mid_epoch_to_the_same_bits(
    manifest, finished, train, tmp_path
):
    flags = [*manifest, *RECIPE, "--teacher", finished[0]]
    env = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = train(*flags, "--output_dir", whole, env=env)
    assert result.returncode == 0, result.stderr
    kept = sorted(path.name for path in (whole / "checkpoints").iterdir())
    # 29 images of train and unlabelled in batches of 4: one rests, so that no batch is of one.
    assert kept == ["step_00000009", "step_00000014"]
    shutil.copytree(whole / "checkpoints" / kept[0], resumed / "checkpoints" / kept[0])
    result = train(*flags, "--output_dir", resumed, "--resume_from_checkpoint", env=env)
    assert result.returncode == 0, result.stderr
    for name in ("model.safetensors", "predictions_validation.csv", "config.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name

    assert not (whole / "predictions_test.csv").exists()
    predictions = read_predictions(whole / "predictions_validation.csv")
    assert len(predictions.labels) == COUNTS["validation"]
    model, _ = load_model(str(whole))
    assert model.outlier_detector is None and model.config.outlier_threshold is None
    data = json.loads((whole / "dataset.json").read_text())
    assert set(data["splits"]) == {"train", "validation"}
    assert sorted(data["source"].split(", ")) == ["a", "b"]
    assert data["splits"]["train"]["images"] == COUNTS["train"] + COUNTS["unlabelled"]
    args = json.loads((whole / "training_args.json").read_text())
    assert args["teacher"] == [finished[0].name] and args["dataset_options"]["root"]
    for name, value in load_file(whole / "model.safetensors").items():
        assert torch.isfinite(value).all(), name


def loaded(manifest, *flags):
    return load_data(parse_args([*manifest, *flags]))


def test_images_without_a_label_are_for_students(manifest):
    alone, taught = loaded(manifest), loaded(manifest, "--teacher", "some/model")
    assert len(alone["train"]) == COUNTS["train"]
    assert len(taught["train"]) == COUNTS["train"] + COUNTS["unlabelled"]
    assert list(taught["train"]["label"]).count(-1) == COUNTS["unlabelled"]
    for dataset in (alone, taught, loaded(manifest, "--regroup")):
        assert set(dataset) == {"train", "validation", "test"}
        assert all(-1 not in dataset[name]["label"] for name in ("validation", "test"))


def test_a_set_without_test_images_is_enough_where_none_are_scored():
    phantoms = ["--dataset", "phantom", "--dataset_options", "num_test=0", "num_train=8"]
    phantoms += ["num_validation=4", "image_size=32"]
    assert set(loaded(phantoms, "--skip_test")) == {"train", "validation"}
    with pytest.raises(ValueError, match="phantom has no test split of two or more images"):
        loaded(phantoms)


def test_a_teacher_that_does_not_fit_stops_before_the_training(manifest, finished, train, tmp_path):
    flags = [*manifest, *RECIPE, "--teacher", finished[0], "--geometry", "crop"]
    result = train(*flags, "--output_dir", tmp_path / "run")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert "has the geometry pad, the student crop; set --geometry pad." in last
    assert "epoch" not in result.stderr
