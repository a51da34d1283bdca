"""Batches of decoded pixels, and what augmentation does to them."""

import argparse
import hashlib
import inspect
import math
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict

from datasets_scripts import fingerprint, read_pixels
from modeling import CxrImageProcessor

FULL_SCALE = 65535


class PixelDataset(torch.utils.data.Dataset):
    """The readable images of a split, decoded; a batch is one read of the memory map.

    A batch holds `pixels`, uint16 (B, H, W); `labels`, int64 (B,), or float32 (B, K) when the
    split is multi-label; `index`, int64 (B,).

    Args:
        split: in the dataset schema.
        pixels: uint16 (N, H, W).
        kept: int64 (N,), the row of the split that each image of `pixels` is.
    """

    def __init__(self, split: Dataset, pixels: np.ndarray, kept: np.ndarray):
        rows = split.remove_columns("image").select(kept)
        self.pixels = pixels
        self.image_ids = np.array(rows["image_id"])
        self.patient_ids = np.array(rows["patient_id"])
        self.multi_label = "labels" in split.features
        if self.multi_label:
            self.class_names = split.features["labels"].feature.names
            self.labels = np.zeros((len(rows), len(self.class_names)), np.float32)
            for row, present in zip(self.labels, rows["labels"]):
                row[present] = 1
        else:
            self.class_names = split.features["label"].names
            self.labels = np.array(rows["label"], np.int64)

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        return {
            "pixels": torch.from_numpy(self.pixels[indices]),
            "labels": torch.from_numpy(self.labels[indices]),
            "index": torch.tensor(indices),
        }


def decode_splits(
    dataset: DatasetDict, processor: CxrImageProcessor, cache_dir: str | Path, max_unreadable: float
) -> dict[str, PixelDataset]:
    """Every split, its images decoded and resized once into files of the cache.

    Raises:
        ValueError: more than the share `max_unreadable` of a split cannot be read.
        OSError: the cache cannot be written.
    """
    folder = Path(cache_dir).expanduser() / "pixels"
    folder.mkdir(parents=True, exist_ok=True)
    # What turns a file into pixels is part of the name, so that new code reads no old pixels.
    code = Path(inspect.getfile(type(processor))).read_bytes() + PIL.__version__.encode()
    size = processor.size["height"]
    suffix = f"{size}-{hashlib.sha256(code).hexdigest()[:8]}.u16"
    splits = {}
    for name, split in dataset.items():
        cache_file = folder / f"{fingerprint(split)}-{suffix}"
        pixels, kept = read_pixels(
            split, processor.read, size, cache_file, max_unreadable=max_unreadable, desc=name
        )
        splits[name] = PixelDataset(split, pixels, kept)
    return splits


def augment(images: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Small rotation, scale, shift, contrast and gamma; no flip, as it would move the heart.

    Args:
        images: uint16 (B, H, W), full scale 0..65535.

    Returns:
        float32 (B, H, W) in [0, 1]; what moves in is black.
    """

    def uniform(limit):
        return (torch.rand(len(images), device=images.device) * 2 - 1) * limit

    images = images.float() / FULL_SCALE
    angle, scale = uniform(math.radians(args.max_rotation)), 1 + uniform(args.max_scale)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    shift_x, shift_y = uniform(2 * args.max_shift), uniform(2 * args.max_shift)
    rows = [torch.stack(row, 1) for row in ((cosine, -sine, shift_x), (sine, cosine, shift_y))]
    shape = (len(images), 1, *images.shape[1:])
    grid = F.affine_grid(torch.stack(rows, 1), shape, align_corners=False)
    images = F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    gain, gamma = 1 + uniform(args.max_contrast), uniform(args.max_contrast).exp()
    mean = images.mean((1, 2), keepdim=True)
    images = ((images - mean) * gain[:, None, None] + mean).clamp(0, 1)
    return images ** gamma[:, None, None]
