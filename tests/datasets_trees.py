"""Small image trees on disk for the tests of `datasets_scripts`."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, size: int = 40) -> Path:
    """A grey image of noise that depends on the seed alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_kermany(root: Path, train: int = 20, val: int = 2, test: int = 6) -> Path:
    """A tree like Kaggle's: so many patients of each class; those of train with two images."""
    seed = 0
    for split, patients, first in (("train", train, 0), ("val", val, 5000), ("test", test, 8000)):
        for patient in range(first, first + patients):
            for image in range(1 + (split == "train")):
                kind = ("bacteria", "virus")[patient % 2]
                for name in (
                    f"NORMAL/IM-{patient:04d}-{image + 1:04d}.jpeg",
                    f"PNEUMONIA/person{patient}_{kind}_{seed}.jpeg",
                ):
                    write_image(root / split / name, seed)
                    seed += 1
    return root


def write_classes(root: Path, **counts: int) -> Path:
    """root/CLASS/CLASS-00.png, ...: so many images of each class."""
    for offset, (name, count) in enumerate(counts.items()):
        for index in range(count):
            write_image(root / name / f"{name}-{index:02d}.png", 1000 * offset + index)
    return root
