"""Boxes in training: placed as their images are decoded, and what a detector makes of them."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader

from datasets_scripts import class_names, open_row
from datasets_scripts.pixels import in_order, report_unreadable, stored_rows
from evaluation.detection import BoxedImage
from modeling import CxrDetector, CxrImageProcessor
from modeling.image_cxr import CxrImage
from training.data import PixelDataset, decode_splits
from training.inference import collect

logger = logging.getLogger(__name__)

SLACK = 0.01  # pixels that rounding may move a box's edge beyond the image's
MIN_SIDE = 2  # pixels of the input; of a smaller box nothing is left to be seen


class BoxedPixels(PixelDataset):
    """A decoded split with boxes: a batch also holds `targets`, as `CxrDetector` takes labels.

    Args:
        split: in the dataset schema.
        pixels: uint16 (N, H, W), its images.
        boxes: of each image float64 (n, 4), left, top, right, bottom in pixels of the decoded one.
        classes: of each image int64 (n,), which class of the detector each box is of.
    """

    def __init__(
        self,
        split: Dataset,
        pixels: np.ndarray,
        boxes: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
    ) -> None:
        super().__init__(split, pixels)
        self.targets = [
            {"boxes": torch.from_numpy(box).float(), "class_labels": torch.from_numpy(of)}
            for box, of in zip(boxes, classes)
        ]

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return super().__getitems__(indices) | {"targets": [self.targets[k] for k in indices]}

    def boxes_digest(self) -> str:
        """A hash of the boxes and their classes in their order."""
        digest = hashlib.sha256()
        for target in self.targets:
            for name in ("boxes", "class_labels"):
                digest.update(f"{target[name].tolist()}".encode())
        return digest.hexdigest()


def select_boxed(dataset: DatasetDict) -> list[str]:
    """The classes that are boxed in train; images in which nobody drew boxes are taken out.

    A warning says how many these are. An image that was looked at and holds no box stays.

    Args:
        dataset: in the dataset schema, with a split "train".

    Raises:
        ValueError: a split has no image with a box of these classes.
    """
    known: list[str] = []
    for name in ("train", *(name for name in dataset if name != "train")):
        split = dataset[name]
        objects = split["objects"][:] if "objects" in split.features else [None] * len(split)
        kept = [row for row, found in enumerate(objects) if found is not None]
        names = class_names(split)
        there = {k for row in kept for k in objects[row]["category"]}
        if name == "train":
            known = [names[k] for k in sorted(there)]
        if not {names[k] for k in there} & set(known):
            of = f" of {', '.join(known)}" if known else ""
            raise ValueError(
                f"none of the {len(split)} images of the {name} split has a box{of}; give a set "
                "with boxes, as the RSNA's challenge."
            )
        if len(kept) < len(split):
            logger.warning(
                "Nobody drew boxes in %d images of %s: they are left out.",
                len(split) - len(kept),
                name,
            )
        dataset[name] = split.select(kept)
        if unknown := sorted({names[k] for k in there} - set(known)):
            logger.warning(
                "Boxes of %s in %s are left out: train has none.", ", ".join(unknown), name
            )
    return known


def decode_boxed(
    dataset: DatasetDict,
    processor: CxrImageProcessor,
    known: Sequence[str],
    cache_dir: str | Path,
    max_unreadable: float,
) -> dict[str, BoxedPixels]:
    """`training.data.decode_splits`, with boxes in the frame of the decoded images.

    Images whose boxes are empty or lead out of them count as unreadable.

    Args:
        dataset: of `select_boxed`.
        processor: see `decode_splits`.
        known: the detector's classes; boxes of others are left out.
        cache_dir: see `decode_splits`.
        max_unreadable: likewise.

    Raises:
        ValueError, OSError: see `decode_splits`.
    """
    placed: dict[str, dict[int, np.ndarray]] = {}
    for name, split in dataset.items():
        stored = stored_rows(split)
        boxed = [row for row, found in enumerate(split["objects"][:]) if found["bbox"]]

        def place(
            number: int, stored: Dataset = stored, boxed: list[int] = boxed
        ) -> np.ndarray | str:
            """The boxes of an image, or why they cannot be read."""
            row = stored[boxed[number]]
            try:
                image, shape = open_row(row, processor.correct)
                boxes = boxes_in_file(row["objects"]["bbox"], image)
            except (ValueError, OSError) as error:
                return f"{row['image_id']}: {error}"
            boxes = boxes - np.tile(image.origin, 2)
            return processor.resize_boxes(boxes, *image.pixels.shape, shape)

        # Opened once more, as the cache of decoded pixels does not keep what was cut away.
        with ThreadPoolExecutor() as pool:
            found = tqdm(
                in_order(pool, place, len(boxed)),
                total=len(boxed),
                desc=f"boxes of {name}",
                unit="image",
            )
            results = dict(zip(boxed, found))
        problems = [found for found in results.values() if isinstance(found, str)]
        report_unreadable(len(split), problems, max_unreadable)
        kept = [row for row in range(len(split)) if not isinstance(results.get(row), str)]
        dataset[name] = split.select(kept)
        ids = split["image_id"]
        placed[name] = {
            ids[row]: boxes for row, boxes in results.items() if not isinstance(boxes, str)
        }
    pixels = decode_splits(dataset, processor, cache_dir, max_unreadable)
    decoded = {}
    for name, split in dataset.items():
        index = {k: known.index(text) for k, text in enumerate(class_names(split)) if text in known}
        boxes, classes = [], []
        for image_id, objects in zip(split["image_id"], split["objects"]):
            own = placed[name].get(image_id, np.zeros((0, 4)))
            category = np.array(objects["category"], np.int64)
            kept = np.array([k in index for k in objects["category"]], bool)
            kept &= (own[:, 2:] - own[:, :2] >= MIN_SIDE).all(1)
            boxes.append(own[kept])
            classes.append(np.array([index[k] for k in category[kept].tolist()], np.int64))
        decoded[name] = BoxedPixels(split, pixels[name].pixels, boxes, classes)
    return decoded


def boxes_in_file(bbox: Sequence[Sequence[float]], image: CxrImage) -> np.ndarray:
    """A row's boxes as float64 (n, 4), left, top, right, bottom in pixels of its file's image.

    Args:
        bbox: [x, y, width, height] each, see `datasets_scripts.schema.make_features`.
        image: as it was read of the file.

    Raises:
        ValueError: a box is empty, or leads out of the image.
    """
    boxes = np.array(bbox, np.float64).reshape(-1, 4)
    height, width = image.file_shape
    ends = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2] >= -SLACK) & (ends <= np.array([width, height]) + SLACK)
    fits = (inside & (boxes[:, 2:] > 0)).all(1)
    if not fits.all():
        box = ", ".join(f"{side:g}" for side in boxes[~fits][0])
        raise ValueError(
            f"its box [{box}] (x, y, width, height) is empty or does not lie in the image, "
            f"{width} x {height}."
        )
    return np.hstack([boxes[:, :2], ends]).clip(0, (width, height) * 2)


def detect(
    model: CxrDetector, loader: DataLoader, processor: CxrImageProcessor, accelerator: Accelerator
) -> torch.Tensor:
    """What a detector finds in every image once, in the split's order.

    Args:
        model: left in evaluation mode.
        loader: of `training.inference.make_loader`, prepared by `accelerator`.
        processor: makes `pixel_values` of decoded pixels.
        accelerator: joins the processes.

    Returns:
        float32 (N, D, 6), on the CPU: left, top, right, bottom in pixels of `pixel_values`, the
        score, and the class, -1 where there is no box.
    """

    def answer(batch: dict) -> torch.Tensor:
        output = model(processor.normalize(batch["pixels"]))
        more = torch.stack([output.scores, output.labels.float()], 2)
        return torch.cat([output.boxes, more], 2)

    return collect(model, loader, accelerator, answer)


def boxed_images(found: torch.Tensor, split: BoxedPixels, known: Sequence[str]) -> list[BoxedImage]:
    """What was found and what is there, in pixels of the decoded images, for scores.

    Args:
        found: of `detect`.
        split: the images, in that order.
        known: the detector's classes.
    """
    return [
        _boxed(
            *(ids, patient, found[k].numpy(), known),
            *(target["boxes"].double().numpy(), target["class_labels"].tolist()),
        )
        for k, (ids, patient, target) in enumerate(
            zip(split.image_ids, split.patient_ids, split.targets)
        )
    ]


def measure_detection(
    found: torch.Tensor,
    split: Dataset,
    processor: CxrImageProcessor,
    known: Sequence[str],
    name: str,
) -> list[BoxedImage]:
    """`boxed_images` in pixels of the stored images, as their boxes were drawn.

    Args:
        found: of `detect`.
        split: the images with their boxes, in that order.
        processor: the detector's.
        known: its classes; boxes of others are left out.
        name: of the split, for the progress bar.
    """
    images, names = [], class_names(split)
    bar = tqdm(stored_rows(split), desc=f"boxes of {name}", unit="image")
    for row, one in zip(bar, found.numpy()):
        image, shape = open_row(row, processor.correct)
        one = one[one[:, 5] >= 0]
        boxes = processor.restore_boxes(one[:, :4], *image.pixels.shape, shape)
        one = np.hstack([boxes + np.tile(image.origin, 2), one[:, 4:]])
        true = boxes_in_file(row["objects"]["bbox"], image)
        labels = [names[k] for k in row["objects"]["category"]]
        kept = [k for k, label in enumerate(labels) if label in known]
        classes = [known.index(labels[k]) for k in kept]
        images.append(_boxed(row["image_id"], row["patient_id"], one, known, true[kept], classes))
    return images


def _boxed(
    image_id: str,
    patient_id: str,
    found: np.ndarray,
    known: Sequence[str],
    true: np.ndarray,
    classes: Sequence[int],
) -> BoxedImage:
    sides = found[:, 2:4] - found[:, :2]
    found = found[(found[:, 5] >= 0) & (sides > 0).all(1)].astype(np.float64)
    return BoxedImage(
        str(image_id),
        str(patient_id),
        true,
        np.array([known[k] for k in classes], str),
        found[:, :4],
        found[:, 4],
        np.array([known[int(k)] for k in found[:, 5]], str),
    )
