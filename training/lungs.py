"""Lung masks in training: decoded beside their images, and what a segmenter makes of them."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import tqdm
from datasets import Dataset, DatasetDict

from datasets_scripts import fingerprint, open_row, read_pixels
from datasets_scripts.perturb import Sample, random_numbers, shift_lungs
from datasets_scripts.pixels import content, stored_rows
from evaluation.segmentation import measure_masks
from modeling import CxrImageProcessor
from modeling.image_cxr import FULL_SCALE
from modeling.reading_cxr import CxrImage, open_image, read_mask
from training.data import PixelDataset, code_digest, decode_splits

logger = logging.getLogger(__name__)

MAX_DISTORTION = 0.05  # of the proportions of a mask against those of its image


class MaskedPixels(PixelDataset):
    """A decoded split with lung masks: a batch also holds `masks`, uint16 (B, H, W).

    Args:
        split: in the dataset schema.
        pixels: uint16 (N, H, W), its images.
        masks: likewise, at full scale where there is lung.
    """

    def __init__(self, split: Dataset, pixels: np.ndarray, masks: np.ndarray) -> None:
        super().__init__(split, pixels)
        self.masks = masks

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return super().__getitems__(indices) | {"masks": torch.from_numpy(self.masks[indices])}

    def masks_digest(self) -> str:
        """A hash of the masks in their order."""
        return hashlib.sha256(self.masks[:]).hexdigest()


def decode_masked(
    dataset: DatasetDict,
    processor: CxrImageProcessor,
    cache_dir: str | Path,
    max_unreadable: float,
    perturbation: str | None = None,
    seed: int = 0,
) -> dict[str, MaskedPixels]:
    """`training.data.decode_splits`, with masks in the frame of the decoded images.

    Images without a mask are taken out of `dataset`, which a warning says, and those whose mask is
    empty, or of other proportions, count as unreadable.

    Args:
        dataset: in the dataset schema.
        processor: see `decode_splits`.
        cache_dir: likewise.
        max_unreadable: likewise.
        perturbation: None, or "shift", in which the masks are moved as the images are.
        seed: of the perturbation.

    Raises:
        ValueError: a split has no masks; and see `decode_splits`.
        OSError: see `decode_splits`.
    """
    folder, size = Path(cache_dir).expanduser() / "pixels", processor.size["height"]
    how = f"{processor.geometry}-{processor.correct}-{perturbation}-{seed}-{code_digest()}"
    digest = hashlib.sha256(how.encode()).hexdigest()[:12]

    def read(row: dict) -> tuple[np.ndarray, tuple[str, ...]]:
        image, shape = open_row(row, processor.correct)
        lungs = open_mask(row, image)
        if perturbation is not None:
            numbers = random_numbers(seed, row["image_id"])
            lungs = shift_lungs(Sample(image.pixels, lungs, shape, numbers))
        return processor.resize(lungs.astype(np.uint16) * FULL_SCALE, shape), ()

    masks = {}
    for name, split in dataset.items():
        split = with_masks(split, name)
        file = folder / f"{fingerprint(split, ('image', 'lung_mask'))}-{size}-{digest}.lungs.pixels"
        decoded = read_pixels(
            split, read, size, file, max_unreadable=max_unreadable, desc=f"lungs of {name}"
        )
        masks[name] = decoded.pixels
        dataset[name] = split.select(decoded.kept)
    images = decode_splits(dataset, processor, cache_dir, 0, perturbation, seed)
    return {name: MaskedPixels(dataset[name], images[name].pixels, masks[name]) for name in dataset}


def with_masks(split: Dataset, name: str) -> Dataset:
    """The rows that have a lung mask; a warning says how many have none.

    Raises:
        ValueError: none has.
    """
    kept = []
    if "lung_mask" in split.features:
        stored = stored_rows(split.select_columns(["lung_mask"]))
        kept = [row for row, mask in enumerate(stored["lung_mask"]) if mask is not None]
    if not kept:
        raise ValueError(
            f"none of the {len(split)} images of the {name} split has a lung mask; give a set with "
            "masks, as --dataset_options extra=FOLDER does for Kermany's."
        )
    if len(kept) < len(split):
        logger.warning("%d images of %s have no lung mask.", len(split) - len(kept), name)
    return split.select(kept)


def open_mask(row: dict, image: CxrImage) -> np.ndarray:
    """A row's lung mask in the frame of its image's pixels: bool (h, w).

    Args:
        row: of `stored_rows`, with a mask.
        image: as `open_row` gives it, not perturbed.

    Raises:
        ValueError: it is empty, of other proportions than the image, or cannot be read.
        OSError: it cannot be read.
    """
    stored = content(row["lung_mask"])
    height, width = open_image(stored, False).pixels.shape
    ratio = width / height / (image.file_shape[1] / image.file_shape[0])
    if not 1 / (1 + MAX_DISTORTION) <= ratio <= 1 + MAX_DISTORTION:
        raise ValueError(
            f"its lung mask is {width} x {height}, of other proportions than the image, "
            f"{image.file_shape[1]} x {image.file_shape[0]}."
        )
    lungs = read_mask(stored, image)
    if not lungs.any():
        raise ValueError("its lung mask is empty.")
    return lungs


def dice_of_logits(logits: torch.Tensor, split: MaskedPixels) -> float:
    """Mean Dice at the network's size, of logits (N, 1, H, W) above 0 against the split's masks."""
    overlaps = []
    for found, mask in zip(logits[:, 0] > 0, split.masks):
        true = torch.from_numpy(np.asarray(mask) > FULL_SCALE // 2)
        overlaps.append(2 * (found & true).sum() / (found.sum() + true.sum()).clamp(min=1))
    return torch.stack(overlaps).mean().item()


def measure_segmentation(
    logits: torch.Tensor, split: Dataset, processor: CxrImageProcessor, name: str
) -> list[dict]:
    """A row an image for `evaluation.segmentation`, in the frame of each image and its mask.

    Args:
        logits: float32 (N, 1, H, W), of the segmenter.
        split: the images with their masks, in that order.
        processor: the segmenter's.
        name: of the split, for the progress bar.
    """
    rows = []
    for row, found in zip(tqdm(stored_rows(split), desc=f"lungs of {name}", unit="image"), logits):
        image, _ = open_row(row, processor.correct)
        true = open_mask(row, image)
        mask = processor.restore(found[0].sigmoid(), *image.pixels.shape) > 0.5
        keys = {key: row[key] for key in ("image_id", "patient_id")}
        rows.append({**keys, **measure_masks(mask, true)})
    return rows
