"""A model under validation: its network, its images, its logits."""

import argparse
import hashlib
import json
import re
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from transformers.utils import cached_file

from datasets_scripts import class_names, content_hashes, label_key, open_row, people_of
from datasets_scripts.labels import is_negative
from datasets_scripts.perturb import drop_columns
from datasets_scripts.pixels import stored_rows
from evaluation.calibration import NO_OPERATION
from evaluation.predictions import Predictions
from modeling import CxrImageProcessor, load_model
from modeling.configuration_cxr import CxrConfig
from modeling.convert import TRAINED_ON
from modeling.factory import split_commit
from modeling.image_cxr import FULL_SCALE, CxrImage
from modeling.reading_cxr import read_mask
from training.data import PixelDataset, decode_splits, images_digest, source_names
from training.inference import make_loader, predict, to_predictions

SCHEMA = {
    *("image", "label", "labels", "unknown", "image_id", "patient_id"),
    *("lung_mask", "objects", "weight"),
}

NIH_NAME = re.compile(r"\d{8}_\d{3}")


class Subject:
    """A saved or Hub model beside the split that it is validated on.

    Args:
        name: what the report calls it.
        model_id: a folder, Hub id or id@commit.
        split: in the dataset schema.
        args: of validate.py.

    Raises:
        ValueError: the model does not fit the data, or an image id appears twice.
        OSError: the model cannot be found.
    """

    def __init__(self, name: str, model_id: str, split: Dataset, args: argparse.Namespace) -> None:
        self.name, self.id = name, model_id
        self.model, self.processor = load_model(model_id)
        check_fit(model_id, self.model.config, self.processor, split)
        config = self.model.config
        self.class_names = [config.id2label[k] for k in range(config.num_labels)]
        splits = DatasetDict({args.split: split})
        self.altered = (args.variant, args.seed)
        reader = self.processor.frame() if args.ten_crop else self.processor
        decoded = decode_splits(splits, reader, args.cache_dir, args.max_unreadable, *self.altered)
        self.pixels, self.split = decoded[args.split], splits[args.split]
        self.stored = stored_rows(self.split)
        if args.variant:
            self.split = drop_columns(self.split, args.variant)
        align_classes(self.pixels, self.class_names)
        self.columns = columns(self.split, self.pixels.pixels)
        # Before any inference: ids that clash.
        self.to_predictions(torch.zeros(len(self.pixels), len(self.class_names)), args.split)

    @property
    def operation(self) -> dict:
        """What the configuration holds of calibration, thresholds, abstention and prevalence."""
        return {name: getattr(self.model.config, name) for name in NO_OPERATION}

    def describe(self) -> dict:
        """The model's entry in context.json."""
        source, commit = split_commit(self.id)
        weights = Path(cached_file(source, "model.safetensors", revision=commit)).read_bytes()
        return {
            "id": Path(self.id).name if Path(self.id).is_dir() else self.id,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "num_parameters": sum(w.numel() for w in self.model.network.parameters()),
            "operation": None if self.operation == NO_OPERATION else self.operation,
        }

    def predict(self, args: argparse.Namespace, accelerator: Accelerator) -> Predictions:
        """Raw logits of every image, with the columns that errors are broken down by."""
        loader = make_loader(self.pixels, args.per_device_eval_batch_size)
        model = self.model.to(accelerator.device, memory_format=torch.channels_last)
        loader = accelerator.prepare(loader)
        logits = predict(model, loader, self.processor, accelerator, args.ten_crop)
        return self.to_predictions(logits, args.split)

    def to_predictions(self, logits: torch.Tensor, name: str) -> Predictions:
        """Logits (N, K) joined to what the split `name` says of its images."""
        return to_predictions(self.pixels, logits, name, self.columns)

    def has_heatmaps(self) -> bool:
        """Whether the network has feature maps to explain itself by."""
        pixel_values = self.processor.normalize(np.asarray(self.pixels.pixels[[0]]))
        return self.model.explain(pixel_values.to(self.model.device)).heatmaps is not None

    def open(self, row: int) -> tuple[CxrImage, tuple[float, float] | None]:
        """The image at its own size, altered as the model saw it; see `pixels.open_row`."""
        return self.processor.focus(*self.open_whole(row))

    def open_whole(self, row: int) -> tuple[CxrImage, tuple[float, float] | None]:
        """`open`, before the model's processor cuts it to the lungs or masks it."""
        return open_row(self.stored[row], self.processor.correct, *self.altered)

    def restore(self, heatmap: np.ndarray, row: int, whole: CxrImage) -> np.ndarray:
        """A heatmap in the frame of an image of `open_whole`: float32, 0 in what was cut off."""
        seen, _ = self.open(row)
        top, left = (max(0, s - w) for s, w in zip(seen.margins[:2], whole.margins[:2]))
        framed = np.zeros(whole.pixels.shape, np.float32)
        part = framed[top : top + seen.pixels.shape[0], left : left + seen.pixels.shape[1]]
        part[:] = self.processor.restore(heatmap, *part.shape)
        return framed

    def place(
        self, mask: bytes | str | np.ndarray, image: CxrImage, shape: tuple[float, float] | None
    ) -> np.ndarray:
        """A mask of an image's file in the frame of `pixel_values`: bool (H, W).

        Args:
            mask: see `modeling.reading_cxr.read_mask`.
            image: as `open` gives it.
            shape: likewise.
        """
        inside = read_mask(mask, image).astype(np.uint16) * FULL_SCALE
        return self.processor.resize(inside, shape) > FULL_SCALE // 2

    def boxes_of(self, objects: dict | None, target: int) -> list[list[float]]:
        """What is boxed in an image, see `make_features`; of several labels, of one class alone."""
        if objects is None:
            return []
        names = spelled_as(self.class_names, class_names(self.split))
        return [
            box
            for box, category in zip(objects["bbox"], objects["category"])
            if not self.pixels.multi_label or names[category] == self.class_names[target]
        ]

    def explain(self, row: int, target: int) -> tuple[torch.Tensor, np.ndarray]:
        """`pixel_values` (1, C, H, W) and the heatmap (H, W) of one image for one class."""
        pixel_values = self.processor.normalize(np.asarray(self.pixels.pixels[[row]]))
        pixel_values = pixel_values.to(self.model.device)
        return pixel_values, self.model.grad_cam(pixel_values, target)[0].cpu().numpy()


def refuse_trained_on(model_id: str, dataset: DatasetDict, split: str) -> None:
    """Refuses images of the patients that a converted model was trained on.

    Those are the patients of its list's images in the set, and, where the set has patients of
    ChestX-ray14, those whom that set's file names give: `00000001_000` is an image of patient 1.

    Args:
        model_id: a folder, Hub id or id@commit.
        dataset: the whole set.
        split: of the set, or "all".

    Raises:
        ValueError: an image of the split has the name, suffix aside, of one in the model's list, or
            is of a patient of such an image.
    """
    found = beside(model_id, TRAINED_ON)
    if found is None:
        return
    trained = set(found.read_text().split())
    by_name = {f"chestxray14/{int(name[:8])}" for name in trained if NIH_NAME.fullmatch(name)}
    everyone = [image for part in dataset.values() for image in _images(part)]
    patients = {patient for patient, name in everyone if PurePosixPath(name).stem in trained}
    patients |= by_name
    images = everyone if split == "all" else _images(dataset[split])
    seen = [name for patient, name in images if patient in patients]
    if seen:
        raise ValueError(
            f"{model_id} was trained on patients of {len(seen)} of these {len(images)} images, as "
            f"{seen[0]}; validate it on others."
        )


def _images(part: Dataset) -> list[tuple[str, str]]:
    """Patient and name of each image; a patient's group of people before the id, where known."""
    people = {source: people_of(source) for source in set(part["source"])}
    found = []
    for source, patient, name in zip(part["source"], part["patient_id"], part["image_id"]):
        group = people[source]
        patient = patient.removeprefix(f"{group}/")  # as `merge` names patients
        if group == "chestxray14" and patient.isdecimal():
            patient = str(int(patient))
        found.append((f"{group}/{patient}", name))
    return found


def was_trained_on(model_id: str, parts: DatasetDict, name: str) -> bool:
    """Whether the images of some splits are those that a model learned from.

    By the hash of its training images in its dataset.json, or, where a run was cut to fewer images
    or is older, by the set's source and name.

    Args:
        model_id: a folder, Hub id or id@commit.
        parts: splits of a set, whole.
        name: what the set is called, see `training.data.summarize`.
    """
    found = beside(model_id, "dataset.json")
    if found is None or not parts:
        return False
    known = json.loads(found.read_text())
    first = next(iter(parts.values()))
    if "train" in parts and (known["source"], known["name"]) == (source_names(first), name):
        return True
    trained = known["splits"]["train"].get("sha256")
    return any(images_digest(content_hashes(part)) == trained for part in parts.values())


def beside(model_id: str, file: str) -> Path | None:
    """A file of a model's folder or repository; None where it has none."""
    source, commit = split_commit(model_id)
    found = cached_file(
        source,
        file,
        revision=commit,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def check_fit(name: str, config: CxrConfig, processor: CxrImageProcessor, split: Dataset) -> None:
    """Refuses a model whose task, classes or preprocessing do not fit the data or one another.

    Raises:
        ValueError: they do not.
    """
    side = {"height": config.image_size, "width": config.image_size}
    if dict(processor.size) != side or processor.num_channels != config.num_channels:
        raise ValueError(
            f"{name}: its image processor makes {processor.num_channels} x "
            f"{processor.size['height']} x {processor.size['width']} pixels, its network takes "
            f"{config.num_channels} x {config.image_size} x {config.image_size}."
        )
    multi_label = config.problem_type == "multi_label_classification"
    if multi_label != ("labels" in split.features):
        raise ValueError(
            f"{name} is a {config.problem_type} model, but the data have "
            f"{'one label' if multi_label else 'several labels'} an image."
        )
    known = [config.id2label[k] for k in range(config.num_labels)]
    given = spelled_as(known, class_names(split))
    unknown = [text for text in given if text not in known]
    if unknown:
        negative = [text for text in known if is_negative(text)]
        sure = {text: text for text in known}
        if len(given) == len(known) == 2 and len(negative) == 1 == sum(map(is_negative, given)):
            sure |= {text: negative[0] for text in given if is_negative(text)}
        pairs = ", ".join(f"{text}: {sure.get(text, '...')}" for text in given)
        raise ValueError(
            f"the data's class {unknown[0]!r} is none of {name}'s: {', '.join(known)}. If it is "
            f"one of them by another name, say which: --dataset_options 'label_map={{{pairs}}}'."
        )
    if not multi_label and given != [text for text in known if text in given]:
        raise ValueError(
            f"{name} orders its classes {', '.join(known)}, the data {', '.join(given)}; the "
            "positive class would not be the same."
        )


def spelled_as(known: list[str], given: list[str]) -> list[str]:
    """The names of `given`, those that differ from one of `known` in case or blanks spelled so."""
    spelling = {label_key(text): text for text in known}
    return [spelling.get(label_key(text), text) for text in given]


def align_classes(pixels: PixelDataset, names: list[str]) -> None:
    """Labels of the model's classes, of which the data may hold fewer: unknown, of several."""
    indices = np.array([names.index(text) for text in spelled_as(names, pixels.class_names)])
    if pixels.multi_label:
        labels = np.full((len(pixels), len(names)), np.nan, np.float32)
        labels[:, indices] = pixels.labels
        pixels.labels = labels
    else:
        pixels.labels = indices[pixels.labels]
    pixels.class_names = names


def columns(split: Dataset, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of predictions.csv by which errors are broken down, as text (N,).

    All that the schema leaves free, and `brightness`, the mean of the decoded square in [0, 1].
    """
    found = {}
    for column in (name for name in split.features if name not in SCHEMA):
        found[column] = np.array(["" if v is None else str(v) for v in split[column]])
    levels = [f"{image.mean() / FULL_SCALE:.3f}" for image in pixels]
    return found | {"brightness": np.array(levels)}
