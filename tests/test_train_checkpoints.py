"""Checkpoints: whole or not used, free of pickles, of the same data; and errors of the disk."""

import json
import os
import pickle
import subprocess
from importlib.metadata import version

import pytest
import torch
from accelerate import Accelerator
from datasets_trees import write_classes
from safetensors import SafetensorError

from training.averaging import snapshot
from training.checkpoints import (
    SUMS,
    checksums,
    load_checkpoint,
    save_checkpoint,
    write_errors,
)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
        # What torch.save says on a full disk.
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 640 vs 598"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_a_disk_that_cannot_be_written_is_one_sentence(error):
    with pytest.raises(OSError, match=r"^the results in x could not be written \(.*\)\.$"):
        with write_errors("the results in x"):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied, see the profile"),
        RuntimeError("a tensor that is overwritten in place"),
        ValueError("a threshold needs both kinds of images."),
    ],
)
def test_other_errors_are_not_blamed_on_the_disk(error):
    with pytest.raises(type(error)) as caught:
        with write_errors("the results in x"):
            raise error
    assert caught.value is error


PROGRESS = {"recipe": {"seed": 1}, "data": {"train": "abc"}, "versions": {"torch": "0.9"}}


def network(fill):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, fill)
    optimizer = torch.optim.AdamW(model.parameters())
    return accelerator, *accelerator.prepare(model, optimizer)


@pytest.fixture
def checkpoints(tmp_path, no_accelerator):
    """A folder with the checkpoints of steps 1 and 2, the weights of which are 1 and 2."""
    for step in (1, 2):
        accelerator, model, _ = network(step)
        save_checkpoint(accelerator, tmp_path, step, PROGRESS, {"best": snapshot(model)})
    return tmp_path


def resumed_weight(folder, recipe=PROGRESS["recipe"], data=PROGRESS["data"]):
    accelerator, model, _ = network(0.0)
    progress, tensors = load_checkpoint(accelerator, folder, recipe, data)
    assert progress == PROGRESS
    assert (tensors["best"]["weight"] == model.weight).all()
    return model.weight[0, 0].item()


def damage_a_byte(folder):
    path = folder / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_a_byte,
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: os.truncate(folder / "optimizer.bin", 200),
        lambda folder: (folder / "progress.json").write_text('{"epoch": 1, "ba'),
        lambda folder: (folder / "progress.json").unlink(),
        lambda folder: (folder / SUMS).unlink(),
        lambda folder: (folder / SUMS).write_bytes(b"\xff"),
        lambda folder: (folder / "custom_checkpoint_0.pkl").write_bytes(b"more"),
    ],
    ids=["byte", "empty", "cut", "half", "gone", "sums_gone", "sums_cut", "more"],
)
def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(damage, checkpoints, caplog):
    assert resumed_weight(checkpoints) == 2.0
    assert "is damaged" not in caplog.text
    damage(checkpoints / "step_00000002")
    assert resumed_weight(checkpoints) == 1.0
    assert "step_00000002 is damaged: an older checkpoint is looked for." in caplog.text
    damage(checkpoints / "step_00000001")
    with pytest.raises(ValueError, match="holds no checkpoint that is whole; leave out --resume"):
        resumed_weight(checkpoints)


def test_a_checkpoint_is_checked_by_sha256sum_and_holds_no_pickle_that_would_be_trusted(
    checkpoints, tmp_path
):
    newest = checkpoints / "step_00000002"
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=newest, check=True)
    assert not list(newest.glob("*.pkl"))

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save(Attack(), newest / "optimizer.bin", pickle_module=pickle)
    (newest / SUMS).write_text(checksums(newest))
    with pytest.raises(ValueError, match="holds what no training writes .*; do not trust it"):
        resumed_weight(checkpoints)
    assert not (tmp_path / "attacked").exists()


def test_another_recipe_or_other_data_is_refused_and_another_version_said(checkpoints, caplog):
    with pytest.raises(ValueError, match="seed is 2, but .* was written with 1"):
        resumed_weight(checkpoints, recipe={"seed": 2})
    with pytest.raises(ValueError, match="the train images or labels are not those that"):
        resumed_weight(checkpoints, data={"train": "abd"})
    caplog.clear()
    assert resumed_weight(checkpoints, data={"validation": "new"}) == 2.0
    assert f"torch was 0.9 and is now {version('torch')}: the last digits may" in caplog.text


def test_a_run_does_not_go_on_with_other_images_or_swapped_classes(train, tmp_path):
    write_classes(tmp_path / "set", NORMAL=40, PNEUMONIA=40)
    flags = ["--dataset", tmp_path / "set", "--model", "baseline", "--image_size", "32"]
    flags += ["--model_options", "hidden_sizes=[4,8]", "--num_train_epochs", "1"]
    flags += ["--outlier_detector", "none", "--output_dir", tmp_path / "run"]
    assert train(*flags).returncode == 0
    one, other = (tmp_path / "set" / name for name in ("NORMAL", "PNEUMONIA"))
    one.rename(tmp_path / "swap")
    other.rename(one)
    (tmp_path / "swap").rename(other)
    result = train(*flags, "--resume_from_checkpoint")
    assert result.returncode == 1
    assert "the train images or labels are not those that" in result.stderr.splitlines()[-1]
    progress = next((tmp_path / "run" / "checkpoints").glob("step_*/progress.json"))
    assert set(json.loads(progress.read_text())["data"]) == {"train", "validation", "test"}
