"""From a dataset in the schema to batches of decoded pixels."""

import hashlib
from pathlib import Path

import numpy as np
import PIL
import torch
from datasets import Dataset, DatasetDict

from datasets_scripts import (
    class_names,
    content_hashes,
    facts,
    fingerprint,
    label_sets,
    read_pixels,
)
from modeling import CxrImageProcessor, image_processing_cxr

MODELING = Path(image_processing_cxr.__file__).parent


class PixelDataset(torch.utils.data.Dataset):
    """A split, decoded; a batch is one read of the memory map.

    A batch holds `pixels`, uint16 (B, H, W); `labels`, int64 (B,), -1 for an unlabelled image, or
    float32 (B, K) when the split is multi-label; `index`, int64 (B,). `weights`, float64 (N,), say
    how often images are drawn in training, and are None where the split has none.

    Args:
        split: in the dataset schema.
        pixels: uint16 (N, H, W), its images.
    """

    def __init__(self, split: Dataset, pixels: np.ndarray):
        self.pixels = pixels
        self.image_ids = np.array(split["image_id"][:])
        self.patient_ids = np.array(split["patient_id"][:])
        self.class_names = class_names(split)
        weights = "weight" in split.features
        self.weights = np.array(split["weight"][:], np.float64) if weights else None
        self.multi_label = "labels" in split.features
        if self.multi_label:
            self.labels = np.zeros((len(split), len(self.class_names)), np.float32)
            for row, present in zip(self.labels, label_sets(split)):
                row[list(present)] = 1
        else:
            self.labels = np.array(split["label"][:], np.int64)

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        return {
            "pixels": torch.from_numpy(self.pixels[indices]),
            "labels": torch.from_numpy(self.labels[indices]),
            "index": torch.tensor(indices),
        }


def decode_splits(
    dataset: DatasetDict,
    processor: CxrImageProcessor,
    cache_dir: str | Path,
    max_unreadable: float,
    correct: bool = True,
) -> dict[str, PixelDataset]:
    """Every split, its images decoded and resized once into files of the cache.

    Images that cannot be read are taken out of `dataset`.

    Args:
        correct: see `CxrImageProcessor.open`; False for images of a variant, as the reader would
            undo what was altered.

    Raises:
        ValueError: more than the share `max_unreadable` of a split cannot be read.
        OSError: the cache cannot be written.
    """
    folder = Path(cache_dir).expanduser() / "pixels"
    folder.mkdir(parents=True, exist_ok=True)
    # What turns a file into pixels is part of the name, so that new code reads no old pixels.
    code = b"".join(path.read_bytes() for path in sorted(MODELING.glob("*_cxr.py")))
    code += PIL.__version__.encode()
    size = processor.size["height"]
    kind = f"{size}-{processor.geometry}{'-as-is' * (not correct)}"
    suffix = f"{kind}-{hashlib.sha256(code).hexdigest()[:8]}.u16"
    splits = {}
    for name, split in dataset.items():
        cache_file = folder / f"{fingerprint(split)}-{suffix}"
        pixels, kept = read_pixels(
            split,
            lambda image, shape: processor.read(image, correct, shape),
            size,
            cache_file,
            max_unreadable=max_unreadable,
            desc=name,
        )
        if len(kept) < len(split):
            dataset[name] = split.select(kept)
        splits[name] = PixelDataset(dataset[name], pixels)
    return splits


def summarize(dataset: DatasetDict, name: str) -> dict:
    """What the model card says of the data, ready for JSON.

    Args:
        name: what the data set is called.

    Returns:
        `source`, `name`, `splits`: images, unique images, patients and images of each class; and
        `facts`, what is known of each source.
    """
    splits = {}
    for split_name, split in dataset.items():
        labels = [label for row in label_sets(split) for label in row]
        splits[split_name] = {
            "images": len(split),
            "unique_images": len(set(content_hashes(split))),
            "patients": len(set(split["patient_id"])),
            "classes": {text: labels.count(k) for k, text in enumerate(class_names(split))},
        }
    sources = list(dict.fromkeys(dataset["train"]["source"]))
    return {
        "source": ", ".join(sources),
        "name": name,
        "splits": splits,
        "facts": facts(dataset),
    }
