"""Checkpoints that are whole or absent."""

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modeling.pretrained import first_line
from training.data import versions

logger = logging.getLogger(__name__)

KEPT = 2
SUMS = "SHA256SUMS"


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
    tensors: dict[str, dict[str, torch.Tensor]],
) -> None:
    """Writes `folder/step_00000123` under another name and renames it when it is whole on the disk.

    Nothing in it needs Python's pickle to be trusted: JSON, safetensors, and the optimizer's state,
    which torch reads with `weights_only`. No state of a random generator is kept: each batch seeds
    its own. `sha256sum -c SHA256SUMS` says whether it is whole.

    Args:
        accelerator: has prepared model and optimizer.
        folder: holds a run's checkpoints; the two newest are kept.
        step: batches so far.
        progress: JSON-ready state of the loop.
        tensors: what becomes NAME.safetensors.

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
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                for pickled in partial.glob("random_states_*.pkl"):
                    pickled.unlink()
                for name, content in tensors.items():
                    save_file(content, partial / f"{name}.safetensors")
                (partial / "progress.json").write_text(json.dumps(progress))
                (partial / SUMS).write_text(checksums(partial))
                for file in (*partial.iterdir(), partial):
                    flush(file)
                whole = folder / f"step_{step:08d}"
                shutil.rmtree(whole, ignore_errors=True)
                os.replace(partial, whole)
                flush(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        for old in list_checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)


def flush(path: Path) -> None:
    """Has a file, or the names in a folder, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksums(folder: Path) -> str:
    """A line a file of the folder, as sha256sum writes and reads them."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != SUMS:
            with open(path, "rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*"))


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint; newer ones that are damaged are named in a warning.

    Raises:
        ValueError: the folder holds no whole checkpoint.
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        sums = checkpoint / SUMS
        if sums.is_file() and sums.read_text("ascii", "replace") == checksums(checkpoint):
            return checkpoint
        logger.warning("%s is damaged: an older checkpoint is looked for.", checkpoint)
    raise ValueError(
        f"{folder} holds no checkpoint that is whole; leave out --resume_from_checkpoint."
    )


def load_checkpoint(
    accelerator: Accelerator, folder: Path, recipe: dict, data: dict[str, str]
) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    """Restores the newest whole checkpoint into what `accelerator` prepared.

    Args:
        accelerator: has prepared model and optimizer.
        folder: holds a run's checkpoints.
        recipe: what must be the same in the checkpoint's `progress["recipe"]`.
        data: {split: digest}, the same for those splits that the checkpoint's `progress` has, too.

    Returns:
        The `progress` and the `tensors` saved with it.

    Raises:
        ValueError: the folder holds no whole checkpoint, or one of another recipe or other data.
    """
    checkpoint = newest_checkpoint(folder)
    progress = json.loads((checkpoint / "progress.json").read_text())
    for name, value in json.loads(json.dumps(recipe)).items():
        saved = progress["recipe"].get(name)
        if value != saved:
            raise ValueError(f"{name} is {value}, but {folder} was written with {saved}.")
    for split, digest in data.items():
        if progress["data"].get(split, digest) != digest:
            raise ValueError(
                f"the {split} images or labels are not those that {folder} was written with; give "
                "it the same data, or leave out --resume_from_checkpoint and name another "
                "--output_dir."
            )
    for name, version in progress["versions"].items():
        if (now := versions((name,))[name]) != version:
            logger.warning(
                "%s was %s and is now %s: the last digits may be others than in a run that was "
                "never stopped.", name, version, now,
            )  # fmt: skip
    try:
        accelerator.load_state(str(checkpoint))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{checkpoint} holds what no training writes ({first_line(error)}); do not trust it."
        ) from error
    names = [path.stem for path in checkpoint.glob("*.safetensors") if path.stem != "model"]
    tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
    logger.info("Resuming from %s", checkpoint)
    return progress, tensors
