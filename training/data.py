"""From a dataset in the schema to batches of decoded pixels."""

import argparse
import ast
import hashlib
import importlib.metadata
import inspect
import json
import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers.dynamic_module_utils import get_relative_import_files

from datasets_scripts import (
    check_leaks,
    class_names,
    content_hashes,
    describe,
    facts,
    fingerprint,
    label_sets,
    load_cxr_dataset,
    open_row,
    original_shapes,
    perturb,
    read_pixels,
    unknown_sets,
)
from modeling import (
    CxrImageProcessor,
    lungs_cxr,
    preprocessing_cxr,
    reading_cxr,
    segmentation_cxr,
)
from training.arguments import dataset_name

logger = logging.getLogger(__name__)

# What turns a file into pixels, with all that these import beside them.
READERS = (reading_cxr.__file__, preprocessing_cxr.__file__)
DECODERS = ("pillow", "numpy", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg")


class PixelDataset(torch.utils.data.Dataset):
    """A split, decoded; a batch is one read of the memory map.

    A batch holds `pixels`, uint16 (B, H, W); `labels`, int64 (B,), -1 for an unlabelled image, or
    float32 (B, K) when the split is multi-label, NaN where a finding is unknown; `index`, int64
    (B,). `weights`, float64 (N,), say how often images are drawn in training, and are None where
    the split has none; `sources`, str (N,); `warnings`, {what was noticed while reading: images}.

    Args:
        split: in the dataset schema.
        pixels: uint16 (N, H, W), its images.
        warnings: see above.
    """

    def __init__(
        self, split: Dataset, pixels: np.ndarray, warnings: dict[str, int] | None = None
    ) -> None:
        self.pixels = pixels
        self.warnings = warnings or {}
        self.image_ids = np.array(split["image_id"][:])
        self.patient_ids = np.array(split["patient_id"][:])
        self.sources = np.array(split["source"][:])
        self.class_names = class_names(split)
        weights = "weight" in split.features
        self.weights = np.array(split["weight"][:], np.float64) if weights else None
        self.multi_label = "labels" in split.features
        if self.multi_label:
            self.labels = np.zeros((len(split), len(self.class_names)), np.float32)
            for row, present, unknown in zip(self.labels, label_sets(split), unknown_sets(split)):
                row[list(present)] = 1
                row[list(unknown)] = np.nan
        else:
            self.labels = np.array(split["label"][:], np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {
            "pixels": torch.from_numpy(self.pixels[indices]),
            "labels": torch.from_numpy(self.labels[indices]),
            "index": torch.tensor(indices),
        }


def load_splits(args: argparse.Namespace) -> DatasetDict:
    """The splits, grouped by patient, checked for leaks, cut to the sample limits.

    Args:
        args: the flags of `training.arguments.add_dataset`, `max_train_samples`,
            `max_eval_samples`, and `skip_test`, which leaves the test split out.

    Raises:
        ValueError: a split is missing, or splits share a patient or an image.
        OSError: the data cannot be read.
    """
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    names = ("train", "validation", *(["test"] if not args.skip_test else []))
    for name in names:
        if name not in dataset:
            raise ValueError(f"{dataset_name(args)} has no {name} split; add one.")
    logger.info("%s", describe(dataset))
    check_leaks(dataset)
    dataset = DatasetDict({name: dataset[name] for name in names})
    limit_splits(dataset, args)
    return dataset


def limit_splits(dataset: DatasetDict, args: argparse.Namespace) -> None:
    """Cuts the splits to `max_train_samples` and `max_eval_samples`, the same for every seed."""
    for name, split in dataset.items():
        limit = args.max_train_samples if name == "train" else args.max_eval_samples
        if limit is not None and limit < len(split):
            dataset[name] = split.shuffle(seed=0).select(range(limit))


def decode_splits(
    dataset: DatasetDict,
    processor: CxrImageProcessor,
    cache_dir: str | Path,
    max_unreadable: float,
    perturbation: str | None = None,
    seed: int = 0,
) -> dict[str, PixelDataset]:
    """Every split, its images decoded and resized once into files of the cache.

    Images that cannot be read, and those that lack what the perturbation needs, are taken out of
    `dataset`.

    Args:
        dataset: in the dataset schema.
        processor: decodes and resizes, as for the model.
        cache_dir: holds the files, of earlier runs too.
        max_unreadable: share of a split's images, in [0, 1].
        perturbation: alters the images between reading and resizing, see
            `datasets_scripts.PERTURBATIONS`.
        seed: of the perturbation.

    Raises:
        ValueError: more than the share `max_unreadable` of a split cannot be read, or none of a
            split has what the perturbation needs.
        OSError: the cache cannot be written.
    """
    folder = Path(cache_dir).expanduser() / "pixels"
    size = processor.size["height"]
    how = {"size": size, "geometry": processor.geometry, "correct": processor.correct}
    if processor.equalize is not None:
        how |= {"equalize": processor.equalize}
    if processor.windowed:
        how |= {"crop": processor.crop, "mask": processor.mask, "lungs": processor.lungs.digest()}
        how |= {"window": code_digest([lungs_cxr.__file__, segmentation_cxr.__file__])}
    if perturbation is not None:
        how |= {"perturbation": perturbation, "seed": seed}
    how |= {"code": code_digest(), "versions": versions(DECODERS)}
    settings = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:12]
    seen = ("image", "lung_mask") if perturbation in perturb.NEEDS_LUNGS else ("image",)

    def read(row: dict) -> tuple[np.ndarray, tuple[str, ...]]:
        image, shape = processor.focus(*open_row(row, processor.correct, perturbation, seed))
        return processor.prepare(image.pixels, shape), image.warnings

    splits = {}
    for name, split in dataset.items():
        split = perturb.select_rows(split, perturbation) if perturbation else split
        cache_file = folder / f"{fingerprint(split, seen)}-{size}-{settings}.pixels"
        decoded = read_pixels(
            split, read, size, cache_file, max_unreadable=max_unreadable, desc=name
        )
        if len(decoded.kept) < len(split):
            split = split.select(decoded.kept)
        dataset[name] = split
        splits[name] = PixelDataset(split, decoded.pixels, decoded.warnings)
    noticed = sum((Counter(split.warnings) for split in splits.values()), Counter())
    if noticed:
        listed = "; ".join(f"{count} x {text}" for text, count in noticed.most_common())
        logger.warning("While reading %s: %s", ", ".join(splits), listed)
    return splits


def code_digest(files: Collection[str] | None = None) -> str:
    """A hash of the code that turns files into pixels, comments and docstrings left out.

    Args:
        files: of that code; None for all that reads, perturbs and resizes.
    """
    if files is None:
        files = {*READERS, inspect.getfile(open_row), perturb.__file__}
        files |= {file for reader in READERS for file in get_relative_import_files(reader)}
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: Path(file).name):
        tree = ast.parse(Path(file).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [line for line in body if not _is_text(line)]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _is_text(line: ast.AST) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """{package: version}; None for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def summarize(
    dataset: DatasetDict, name: str, warnings: dict[str, dict[str, int]] | None = None
) -> dict:
    """What the model card says of the data, ready for JSON.

    Args:
        dataset: in the dataset schema, with a split "train".
        name: what the data set is called.
        warnings: of each split, what `decode_splits` noticed.

    Returns:
        `source`, `name`, `splits`: images, unique images, patients, images of each class, where
        some are unknown the number `known` of each, a hash of the images, and warnings; and
        `facts`, what is known of each source.
    """
    splits = {}
    for split_name, split in dataset.items():
        names, hashes = class_names(split), content_hashes(split)
        present = Counter(label for row in label_sets(split) for label in row)
        unknown = Counter(label for row in unknown_sets(split) for label in row)
        known = {text: len(split) - unknown[k] for k, text in enumerate(names)}
        splits[split_name] = {
            "images": len(split),
            "unique_images": len(set(hashes)),
            "patients": len(set(split["patient_id"])),
            "classes": {text: present[k] for k, text in enumerate(names)},
            **({"known": known} if unknown else {}),
            "sha256": images_digest(hashes),
            "warnings": (warnings or {}).get(split_name, {}),
        }
    return {
        "source": source_names(dataset["train"]),
        "name": name,
        "splits": splits,
        "facts": facts(dataset),
    }


def source_names(split: Dataset) -> str:
    """The sources of a split's images, joined by commas."""
    return ", ".join(dict.fromkeys(split["source"]))


def split_digest(split: Dataset) -> str:
    """A hash of what a training sees of a split: images, labels and weights in their order."""
    seen = [class_names(split), content_hashes(split), original_shapes(split)]
    seen += [list(map(list, label_sets(split)))]
    seen += [list(map(list, unknown_sets(split)))] if "unknown" in split.features else []
    seen += [list(split["weight"])] if "weight" in split.features else []
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def images_digest(hashes: list[str]) -> str:
    """A hash of a set of images, whatever their order, of the hashes of each."""
    return hashlib.sha256("".join(sorted(set(hashes))).encode()).hexdigest()
