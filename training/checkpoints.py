"""Checkpoints that are whole or absent."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file

from modeling.pretrained import first_line

KEPT = 2


@contextmanager
def write_errors(what: str) -> Iterator[None]:
    """Turns the many errors of a full or forbidden disk into one OSError with one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(f"{what} could not be written ({error}).") from error
    except RuntimeError as error:
        # So does torch.save's archive writer report a full disk; no other error is the disk's.
        if "inline_container" not in str(error) and "iostream" not in str(error):
            raise
        raise OSError(f"{what} could not be written ({first_line(error)}).") from error


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    progress: dict,
    best: dict[str, torch.Tensor],
) -> None:
    """Writes `folder/step_00000123` under another name and renames it when it is whole.

    Args:
        accelerator: has prepared, or registered, what is saved.
        folder: holds a run's checkpoints; the two newest are kept.
        step: batches so far.
        progress: JSON-ready state of the loop.
        best: the best weights so far, empty before the first evaluation.

    Raises:
        OSError: the disk is full or forbids writing; earlier checkpoints stay as they are.
    """
    partial = folder / f".partial_{step:08d}"
    try:
        with write_errors(f"the checkpoint of step {step} in {folder}"):
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(partial))
            if accelerator.is_main_process:
                save_file(best, partial / "best.safetensors")
                (partial / "progress.json").write_text(json.dumps(progress))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                whole = folder / f"step_{step:08d}"
                shutil.rmtree(whole, ignore_errors=True)
                os.replace(partial, whole)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        for old in list_checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(accelerator: Accelerator, folder: Path, recipe: dict) -> tuple[dict, Path]:
    """Restores the newest checkpoint into what `accelerator` prepared.

    Args:
        accelerator: has prepared, or registered, what is restored.
        folder: holds a run's checkpoints.
        recipe: what must be the same in the checkpoint's `progress`.

    Returns:
        The `progress` saved with it, and its folder.

    Raises:
        ValueError: the folder holds no whole checkpoint, or one of another recipe.
    """
    whole = list_checkpoints(folder)
    if not whole:
        raise ValueError(f"{folder} holds no checkpoint; leave out --resume_from_checkpoint.")
    progress = json.loads((whole[-1] / "progress.json").read_text())
    for name, value in json.loads(json.dumps(recipe)).items():
        saved = progress["recipe"].get(name)
        if value != saved:
            raise ValueError(f"{name} is {value}, but {folder} was written with {saved}.")
    accelerator.load_state(str(whole[-1]))
    return progress, whole[-1]
