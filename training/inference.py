"""Logits of a split, each image once, in the split's order."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, tqdm
from torch.utils.data import DataLoader

from evaluation.predictions import Predictions
from modeling import CxrImageProcessor
from training.data import PixelDataset
from training.sampling import training_sampler


def make_loader(split: PixelDataset, batch_size: int, seed: int | None = None) -> DataLoader:
    """Batches as `PixelDataset` gives them; not yet prepared by Accelerate.

    Args:
        split: to take them from.
        batch_size: images.
        seed: of a training split: shuffled, or drawn by its weights; a last batch of one image is
            left out. None keeps the order, and every image.
    """
    sampler = None if seed is None else training_sampler(split, batch_size, seed)
    return DataLoader(split, batch_size, sampler=sampler, collate_fn=lambda batch: batch)


def predict(
    model: torch.nn.Module,
    loader: DataLoader,
    processor: CxrImageProcessor,
    accelerator: Accelerator,
    ten_crop: bool = False,
) -> torch.Tensor:
    """Logits of every image once, whatever the number of processes, in the split's order.

    Args:
        model: gives `logits` of `pixel_values`; left in evaluation mode.
        loader: of `make_loader`, prepared by `accelerator`.
        processor: makes `pixel_values` of decoded pixels.
        accelerator: joins the processes.
        ten_crop: the loader gives frames, see `CxrClassifier.ten_crop_logits`.

    Returns:
        float32 (N, K), on the CPU.

    Raises:
        RuntimeError: an image has no logits, or has them twice.
    """

    def answer(batch: dict) -> torch.Tensor:
        pixel_values = processor.normalize(batch["pixels"])
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return model.ten_crop_logits(pixel_values) if ten_crop else model(pixel_values).logits

    return collect(model, loader, accelerator, answer)


@torch.no_grad()
def collect(
    model: torch.nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    answer: Callable[[dict], torch.Tensor],
) -> torch.Tensor:
    """What `answer` gives of a batch, (B, ...), of every image once, as `predict` does."""
    model.eval()
    # Each process keeps batch statistics of its own; those of the first are the ones saved.
    for buffer in model.buffers():
        broadcast(buffer)
    indices, answers = [], []
    for batch in tqdm(loader, desc="evaluate", unit="batch", leave=False):
        index, output = accelerator.gather_for_metrics((batch["index"], answer(batch)))
        indices.append(index.cpu())
        answers.append(output.float().cpu())
    index, found = torch.cat(indices), torch.cat(answers)
    order = index.argsort()
    if not torch.equal(index[order], torch.arange(len(loader.dataset))):
        raise RuntimeError(f"{len(index)} predictions for {len(loader.dataset)} images.")
    return found[order]


def to_predictions(
    split: PixelDataset,
    logits: torch.Tensor,
    name: str,
    extra: dict[str, np.ndarray] | None = None,
) -> Predictions:
    """Logits (N, K) joined to what the split says of its images."""
    unknown = np.isnan(split.labels) if split.multi_label else None
    return Predictions(
        split.image_ids,
        split.patient_ids,
        split.labels == 1 if split.multi_label else split.labels,
        logits.double().numpy(),
        tuple(split.class_names),
        name,
        split.multi_label,
        extra=extra or {},
        unknown=unknown,
    )
