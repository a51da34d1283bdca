"""Perturbations of decoded images.

What does a classifier keep where a shortcut is taken away, or where the machine and the exposure
are others?

Shortcuts in chest X-rays: laterality markers (Zech et al. 2018, doi:10.1371/journal.pmed.1002683),
borders and everything outside the lungs (Maguolo and Nanni 2021, doi:10.1016/j.inffus.2021.04.008),
the shape of the image. A mask hides pixels, not their outline: the shape of the lungs is still seen
where they are blacked out.
"""

import logging
import math
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter
from tqdm.auto import tqdm

from modeling.reading_cxr import FULL_SCALE, open_image

logger = logging.getLogger(__name__)

BORDER = 0.10  # of the width or height, at each side
CORNER = 0.20  # of the shorter side
MARGIN = 0.05  # of the width or height, around the lungs' bounding box
DILATION = 0.02  # of the longer side
GAMMA = 2.0  # at most; at least its inverse
CONTRAST = 1.5  # at most; at least its inverse
ZOOM = 0.15  # of each side is cut away, at most
ROTATION = 5.0  # degrees, at most
BLUR = 0.005  # standard deviation, of the longer side, at most

PERTURBATIONS = {
    "borders": "the outermost 10 % of each side blacked out",
    "corners": "four corner squares of 20 % of the shorter side blacked out",
    "squashed": "stretched to a square of the longer side",
    "padded": "the original aspect ratio, padded with black to a square",
    "lungs": "cut to the bounding box of the lungs with a margin of 5 %, stretched to a square",
    "only_lungs": "everything outside the lungs set to their mean brightness",
    "no_lungs": "the lungs blacked out",
    "exposure": "a random gamma and contrast",
    "shift": "a random gamma, contrast, crop, rotation and blur",
}
NEEDS_LUNGS = ("lungs", "only_lungs", "no_lungs")
NEEDS_SIZE = ("padded",)
MOVES_PIXELS = ("squashed", "padded", "lungs", "shift")
RESHAPES = ("squashed", "padded", "lungs")


class Sample(NamedTuple):
    """An image as read, before it is resized.

    Attributes:
        pixels: uint16 (h, w), full scale 0..65535.
        lungs: bool (h, w), for the perturbations of `NEEDS_LUNGS`.
        shape: height and width before it was stretched to `pixels`, for those of `NEEDS_SIZE`.
        rng: its own random numbers.
    """

    pixels: np.ndarray
    lungs: np.ndarray | None
    shape: tuple[float, float] | None
    rng: np.random.Generator


def random_numbers(seed: int, image_id: str) -> np.random.Generator:
    """Those of an image: they depend on nothing else."""
    return np.random.default_rng([seed, int.from_bytes(sha256(image_id.encode()).digest()[:8])])


def perturb(name: str, sample: Sample) -> np.ndarray:
    """The image altered as `PERTURBATIONS` says of `name`.

    uint16 (h, w) of the same shape, or of another for those of `RESHAPES`.
    """
    return ALTER[name](sample)


def check_perturbation(name: str) -> None:
    """Refuses a name that is none.

    Raises:
        ValueError: it is not in `PERTURBATIONS`.
    """
    if name not in PERTURBATIONS:
        raise ValueError(f"unknown perturbation {name!r}: use {', '.join(PERTURBATIONS)}.")


def select_rows(split: Dataset, name: str) -> Dataset:
    """The rows that have what a perturbation needs.

    That is a lung mask that is not empty, or an original size. The others are left out with one
    warning.

    Raises:
        ValueError: no row has it, an unknown name, or a mask that cannot be read.
    """
    check_perturbation(name)
    kept, needed = np.ones(len(split), bool), ""
    if name in NEEDS_SIZE:
        needed = "original_width and original_height"
        for column in ("original_width", "original_height"):
            values = split[column] if column in split.features else [None] * len(split)
            kept &= np.array([value is not None for value in values])
    if name in NEEDS_LUNGS:
        needed, kept[:] = "a lung mask", False
        if "lung_mask" in split.features:
            masks = split.select_columns(["image_id", "lung_mask"])
            masks = masks.cast_column("lung_mask", ImageFeature(decode=False))
            for row, mask in enumerate(tqdm(masks, desc="lung masks", unit="image")):
                kept[row] = not _is_empty(mask["lung_mask"], mask["image_id"])
    if not kept.any():
        raise ValueError(
            f"perturbation {name!r} needs {needed}, which none of the {len(split)} images has."
        )
    if kept.all():
        return split
    logger.warning(
        "Perturbation %s leaves out %d of %d images without %s.",
        name,
        (~kept).sum(),
        len(split),
        needed,
    )
    return split.select(np.flatnonzero(kept))


def _is_empty(mask: dict | None, image_id: str) -> bool:
    if mask is None:
        return True
    try:
        pixels = open_image(mask["path"] if mask["bytes"] is None else mask["bytes"], False).pixels
    except (ValueError, OSError) as error:
        raise ValueError(
            f"the lung mask of {image_id} cannot be read ({error}); repair or remove it."
        ) from error
    return not pixels.any()


def drop_columns(split: Dataset, name: str) -> Dataset:
    """The split without what no longer fits its perturbed images.

    That is masks and boxes where pixels move, and the original size of a new shape.
    """
    gone = ("lung_mask", "objects") if name in MOVES_PIXELS else ()
    gone += ("original_width", "original_height") if name in RESHAPES else ()
    return split.remove_columns([column for column in gone if column in split.features])


def _borders(sample: Sample) -> np.ndarray:
    height, width = sample.pixels.shape
    x, y = round(BORDER * width), round(BORDER * height)
    pixels = np.zeros_like(sample.pixels)
    pixels[y : height - y, x : width - x] = sample.pixels[y : height - y, x : width - x]
    return pixels


def _corners(sample: Sample) -> np.ndarray:
    pixels = sample.pixels.copy()
    side = round(CORNER * min(pixels.shape))
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            pixels[rows, columns] = 0
    return pixels


def _squashed(sample: Sample) -> np.ndarray:
    side = max(sample.pixels.shape)
    return _stretch(sample.pixels, side, side)


def _padded(sample: Sample) -> np.ndarray:
    side, longer = max(sample.pixels.shape), max(sample.shape)
    height, width = (max(1, round(side * length / longer)) for length in sample.shape)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), np.uint16)
    square[top : top + height, left : left + width] = _stretch(sample.pixels, height, width)
    return square


def _lungs(sample: Sample) -> np.ndarray:
    height, width = sample.lungs.shape
    x, y = np.flatnonzero(sample.lungs.any(axis=0)), np.flatnonzero(sample.lungs.any(axis=1))
    across, down = round(MARGIN * width), round(MARGIN * height)
    left, right = max(0, x[0] - across), min(width, x[-1] + 1 + across)
    top, bottom = max(0, y[0] - down), min(height, y[-1] + 1 + down)
    side = max(sample.pixels.shape)
    return _stretch(sample.pixels[top:bottom, left:right], side, side)


def _only_lungs(sample: Sample) -> np.ndarray:
    # not black: an edge of full contrast and a dark frame would be measured, not the loss of what
    # lies around the lungs
    pixels, inside = sample.pixels.copy(), _dilate(sample.lungs)
    pixels[~inside] = round(pixels[inside].mean())
    return pixels


def _no_lungs(sample: Sample) -> np.ndarray:
    pixels = sample.pixels.copy()
    pixels[_dilate(sample.lungs)] = 0
    return pixels


def _exposure(sample: Sample) -> np.ndarray:
    gamma = GAMMA ** sample.rng.uniform(-1, 1)
    contrast = CONTRAST ** sample.rng.uniform(-1, 1)
    grey = (sample.pixels / FULL_SCALE) ** gamma
    grey = grey.mean() + contrast * (grey - grey.mean())
    return (grey.clip(0, 1) * FULL_SCALE).round().astype(np.uint16)


def _shift(sample: Sample) -> np.ndarray:
    return _move(_exposure(sample), sample.rng)


def shift_lungs(sample: Sample) -> np.ndarray:
    """The lungs of an image moved as "shift" moves its pixels: bool (h, w).

    The sample is one that nothing was drawn for yet.
    """
    sample.rng.uniform(size=2)  # what the exposure draws
    return _move(sample.lungs.astype(np.uint16) * FULL_SCALE, sample.rng) > FULL_SCALE // 2


def _move(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random crop, rotation and blur."""
    height, width = pixels.shape
    scale = 1 - rng.uniform(0, ZOOM)
    angle = math.radians(rng.uniform(-ROTATION, ROTATION))
    centre_x = width * (scale / 2 + rng.uniform(0, 1 - scale))
    centre_y = height * (scale / 2 + rng.uniform(0, 1 - scale))
    # output pixel -> input pixel: about the centre of the output, to the centre of the window
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x = centre_x - (cos * width - sin * height) / 2
    y = centre_y - (sin * width + cos * height) / 2
    image = Image.fromarray(pixels.astype(np.float32)).transform(
        (width, height),
        Image.Transform.AFFINE,
        (cos, -sin, x, sin, cos, y),
        Image.Resampling.BICUBIC,
    )
    blurred = gaussian_filter(np.asarray(image), rng.uniform(0, BLUR) * max(pixels.shape))
    return blurred.clip(0, FULL_SCALE).round().astype(np.uint16)


ALTER: dict[str, Callable[[Sample], np.ndarray]] = {
    "borders": _borders,
    "corners": _corners,
    "squashed": _squashed,
    "padded": _padded,
    "lungs": _lungs,
    "only_lungs": _only_lungs,
    "no_lungs": _no_lungs,
    "exposure": _exposure,
    "shift": _shift,
}


def _stretch(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape == (height, width):
        return pixels
    image = Image.fromarray(pixels.astype(np.float32))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized.round().astype(np.uint16)


def _dilate(mask: np.ndarray) -> np.ndarray:
    """A mask, bool (h, w), grown in each direction by `DILATION` of the longer side (a square)."""
    return maximum_filter(mask, 2 * round(DILATION * max(mask.shape)) + 1, mode="constant")
