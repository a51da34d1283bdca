"""The same images, altered: what does a classifier keep where a shortcut is taken away, or where
the machine and the exposure are others?

Shortcuts in chest X-rays: laterality markers (Zech et al. 2018, doi:10.1371/journal.pmed.1002683),
borders and everything outside the lungs (Maguolo and Nanni 2021, doi:10.1016/j.inffus.2021.04.008),
the shape of the image. A mask hides pixels, not their outline: the shape of the lungs is still seen
where they are blacked out.
"""

import io
import logging
import math
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter, ImageOps
from tqdm.auto import tqdm

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

VARIANTS = {
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


class Sample(NamedTuple):
    """An 8-bit grey image; lung, bool (H, W), and original size (width, height) where the variant
    needs them; its own random numbers.
    """

    image: Image.Image
    lung: np.ndarray | None
    original_size: tuple[int, int] | None
    rng: np.random.Generator


def _borders(sample: Sample) -> Image.Image:
    width, height = sample.image.size
    x, y = round(BORDER * width), round(BORDER * height)
    pixels = np.zeros((height, width), np.uint8)
    pixels[y : height - y, x : width - x] = np.asarray(sample.image)[y : height - y, x : width - x]
    return Image.fromarray(pixels)


def _corners(sample: Sample) -> Image.Image:
    pixels = np.array(sample.image)
    side = round(CORNER * min(pixels.shape))
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            pixels[rows, columns] = 0
    return Image.fromarray(pixels)


def _squashed(sample: Sample) -> Image.Image:
    return _stretch(sample.image, *[max(sample.image.size)] * 2)


def _padded(sample: Sample) -> Image.Image:
    side, longer = max(sample.image.size), max(sample.original_size)
    width, height = (max(1, round(side * length / longer)) for length in sample.original_size)
    square = Image.new("L", (side, side))
    inner = _stretch(sample.image, width, height)
    square.paste(inner, ((side - width) // 2, (side - height) // 2))
    return square


def _lungs(sample: Sample) -> Image.Image:
    height, width = sample.lung.shape
    x, y = np.flatnonzero(sample.lung.any(axis=0)), np.flatnonzero(sample.lung.any(axis=1))
    across, down = round(MARGIN * width), round(MARGIN * height)
    left, right = max(0, x[0] - across), min(width, x[-1] + 1 + across)
    top, bottom = max(0, y[0] - down), min(height, y[-1] + 1 + down)
    cut = sample.image.crop((int(left), int(top), int(right), int(bottom)))
    return _stretch(cut, *[max(sample.image.size)] * 2)


def _only_lungs(sample: Sample) -> Image.Image:
    # not black: an edge of full contrast and a dark frame would be measured, not the loss of what
    # lies around the lungs
    pixels, inside = np.array(sample.image), _dilate(sample.lung)
    pixels[~inside] = round(pixels[inside].mean())
    return Image.fromarray(pixels)


def _no_lungs(sample: Sample) -> Image.Image:
    pixels = np.array(sample.image)
    pixels[_dilate(sample.lung)] = 0
    return Image.fromarray(pixels)


def _exposure(sample: Sample) -> Image.Image:
    gamma = GAMMA ** sample.rng.uniform(-1, 1)
    contrast = CONTRAST ** sample.rng.uniform(-1, 1)
    grey = (np.asarray(sample.image) / 255) ** gamma
    grey = grey.mean() + contrast * (grey - grey.mean())
    return Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))


def _shift(sample: Sample) -> Image.Image:
    image, rng = _exposure(sample), sample.rng
    width, height = image.size
    scale = 1 - rng.uniform(0, ZOOM)
    angle = math.radians(rng.uniform(-ROTATION, ROTATION))
    centre_x = width * (scale / 2 + rng.uniform(0, 1 - scale))
    centre_y = height * (scale / 2 + rng.uniform(0, 1 - scale))
    # output pixel -> input pixel: about the centre of the output, to the centre of the window
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x = centre_x - (cos * width - sin * height) / 2
    y = centre_y - (sin * width + cos * height) / 2
    image = image.transform(
        image.size, Image.Transform.AFFINE, (cos, -sin, x, sin, cos, y), Image.Resampling.BICUBIC
    )
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR) * max(image.size)))


ALTER: dict[str, Callable[[Sample], Image.Image]] = {
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
NEEDS_LUNGS = ("lungs", "only_lungs", "no_lungs")
NEEDS_SIZE = ("padded",)
MOVES_PIXELS = ("squashed", "padded", "lungs", "shift")
RESHAPES = ("squashed", "padded", "lungs")


def _stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _dilate(mask: np.ndarray) -> np.ndarray:
    """A mask, bool (H, W), grown in each direction by `DILATION` of the longer side (a square)."""
    radius = round(DILATION * max(mask.shape))
    for axis in (0, 1):
        around = [(radius, radius) if axis == side else (0, 0) for side in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(mask, around), 2 * radius + 1, axis
        )
        mask = windows.any(axis=-1)
    return mask


def _grey(stored: dict, name: str) -> Image.Image:
    """An encoded image as 8-bit grey: upright, transparency black, deeper images scaled by the bits
    that hold their brightest pixel.
    """
    content = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
    try:
        with Image.open(content) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read ({error}): repair or remove it") from error
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(float)
        bits = next((bits for bits in (8, 10, 12, 14) if pixels.max() < 2**bits), 16)
        return Image.fromarray((pixels * (255 / (2**bits - 1))).round().clip(0, 255).astype("u1"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L")


def _sample(row: dict, name: str, seed: int) -> Sample | None:
    """What a variant works on, None where the row lacks what it needs."""
    image_id, mask, lung = row["image_id"], row.get("lung_mask"), None
    size = (row.get("original_width"), row.get("original_height"))
    if (name in NEEDS_LUNGS and mask is None) or (name in NEEDS_SIZE and None in size):
        return None
    image = _grey(row["image"], f"image {image_id}")
    if name in NEEDS_LUNGS:
        lung = _grey(mask, f"the lung mask of {image_id}")
        lung = np.asarray(lung.resize(image.size, Image.Resampling.NEAREST)) >= 128
        if not lung.any():
            return None
    key = int.from_bytes(sha256(image_id.encode()).digest()[:8])
    return Sample(image, lung, size, np.random.default_rng([seed, key]))


def make_variant(split: Dataset, name: str, seed: int = 0) -> Dataset:
    """The rows of a split with their images altered as `VARIANTS` says of `name`: 8-bit grey,
    embedded as PNG.

    An image depends on `seed` and its image_id alone. Rows that lack what the variant needs (a lung
    mask that is not empty, an original size) are left out with one warning. Where pixels move,
    lung_mask and boxes no longer fit and are left out too, as is the original size of a new shape.

    Raises ValueError for an unknown variant, an image that cannot be read, and a split in which no
    row has what the variant needs.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}: use {', '.join(VARIANTS)}")
    for column, feature in split.features.items():
        if isinstance(feature, ImageFeature):
            split = split.cast_column(column, ImageFeature(decode=False))
    kept, images = [], []
    for index, row in enumerate(tqdm(split, desc=f"variant {name}", unit="image")):
        if sample := _sample(row, name, seed):
            buffer = io.BytesIO()
            ALTER[name](sample).save(buffer, "PNG", compress_level=1)
            images.append({"path": None, "bytes": buffer.getvalue()})
            kept.append(index)
    needed = "a lung mask" if name in NEEDS_LUNGS else "original_width and original_height"
    if not kept:
        raise ValueError(
            f"variant {name!r} needs {needed}, which none of the {len(split)} images has"
        )
    if lacking := len(split) - len(kept):
        logger.warning(
            "variant %s leaves out %d of %d images without %s", name, lacking, len(split), needed
        )
    gone = {"image", *(("lung_mask", "boxes") if name in MOVES_PIXELS else ())}
    gone |= {"original_width", "original_height"} if name in RESHAPES else set()
    others = split.select_columns([column for column in split.features if column not in gone])
    columns = {"image": images, **others.select(kept)[:]}
    features = Features(
        {
            column: ImageFeature() if isinstance(feature, ImageFeature) else feature
            for column, feature in split.features.items()
            if column in columns
        }
    )
    return Dataset.from_dict(columns, features=features, split=split.split)
