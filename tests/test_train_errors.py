"""What train.py says to wrong input: one sentence, and a failure."""

import numpy as np
import pytest
from PIL import Image
from test_train import PHANTOM

from evaluation.predictions import read_predictions
from training.arguments import parse_args


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dataset", "kermani"], "kermany"),
        (["--dataset", "/no/such/folder"], "/no/such/folder"),
        (["--model", "resnet81"], "resnet18"),
        (["--loss", "hinge"], "focal"),
        (["--report_to", "paper"], "tensorboard"),
        (["--report_to", "aim"], "--report_to aim needs that package"),
        (["--model", "baseline", "--pretrained"], "no pretrained weights"),
        (["--model_options", "depth=3"], "no option 'depth'"),
        (["--max_eval_samples", "1"], "--max_eval_samples is 1; it lies in 2 to"),
        (["--model", "inception_v3"], "inception_v3 fails on a blank image of 64 x 64 pixels ("),
        (["--dataset", "phantom", "--dataset_options", "num_test=0"], "test"),
        (["--push_to_hub"], "--hub_model_id"),
        (["--resume_from_checkpoint"], "holds no checkpoint"),
        (["--output_dir", "/proc/run"], "/proc/run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_sentence_and_a_failure(flags, sentence, train, tmp_path):
    result = train("--output_dir", tmp_path / "run", *PHANTOM, *flags)
    assert result.returncode != 0
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model_options", "loss=focal"], "loss=... has a flag of its own, use --loss"),
        (["--model_options", "num_channels=3"], "use --num_channels"),
        (["--model_options", "growth_rate=8", "class_weights=[1,2]"], "use --class_weights"),
        (["--model_options", "image_size=96"], "use --image_size"),
        (["--model_options", "thresholds=[0.5]"], "thresholds=... is set by the data and the"),
        (["--model_options", "problem_type=x"], "problem_type=... is set by the data and the"),
        (["--model_options", "class_names=[A,B]"], "class_names=... is set by the data and the"),
        (["--per_device_train_batch_size", "1"], "it lies in 2 to"),
        (["--outlier_detector", "magic"], "drawn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_flag_that_contradicts_another_is_refused(flags, sentence, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_two_splits_that_share_a_patient_are_refused_until_regrouped(train, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            folder = tmp_path / "leaky" / split / name
            folder.mkdir(parents=True)
            for index in range(20):
                image = Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8))
                image.save(folder / f"{name}-patient{index}-{split}.png")
    flags = ["--dataset", tmp_path / "leaky", "--dataset_options", r"patient_regex=^(.*)-\w+\.png$"]
    flags += ["--model", "baseline", "--model_options", "hidden_sizes=[4,8]", "--image_size", "64"]
    flags += ["--num_train_epochs", "1", "--output_dir", tmp_path / "run"]
    result = train(*flags)
    assert result.returncode != 0
    assert "NORMAL-patient" in result.stderr.splitlines()[-1]
    assert "--regroup" in result.stderr.splitlines()[-1]
    result = train(*flags, "--regroup")
    assert result.returncode == 0, result.stderr
    patients = [
        set(read_predictions(tmp_path / "run" / f"predictions_{split}.csv").patient_id)
        for split in ("validation", "test")
    ]
    assert not patients[0] & patients[1]


def test_damaged_images_are_named_and_stop_the_run_beyond_a_share(train, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("NORMAL", "PNEUMONIA"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index in range(40):
            image = Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8))
            image.save(folder / f"{name}{index}.jpeg")
    (tmp_path / "images" / "NORMAL" / "NORMAL0.jpeg").write_text("no image")
    (tmp_path / "images" / "NORMAL" / "NORMAL1.jpeg").write_bytes(b"")
    flags = ["--dataset", tmp_path / "images", "--model", "baseline", "--image_size", "64"]
    flags += ["--model_options", "hidden_sizes=[4,8]", "--num_train_epochs", "1"]
    result = train(*flags, "--output_dir", tmp_path / "run")
    assert result.returncode != 0
    assert "NORMAL" in result.stderr.splitlines()[-1]
    assert "cannot be read" in result.stderr.splitlines()[-1]
    result = train(*flags, "--output_dir", tmp_path / "run", "--max_unreadable", "0.5")
    assert result.returncode == 0, result.stderr
    assert "NORMAL0.jpeg" in result.stderr
