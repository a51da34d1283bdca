"""Checks and safe corrections of what people take for a chest X-ray file.

Screenshots, photographs of films, negatives.
Every threshold keeps clear of the 5,856 images of Kermany et al. 2018 and of three small sets of
adults; the comments give the nearest value met there.
"""

import numpy as np
from PIL import Image

from .image_cxr import FULL_SCALE, MIN_SIDE, CxrImage

SAMPLES = 400  # pixels looked at on a line, lines where a coarse picture will do

# Frames: lines of one grey level around the X-ray.
LEVEL = FULL_SCALE / 255
TOLERANCE = 2 * LEVEL  # what JPEG leaves of a plain colour
DARK = 32 * LEVEL  # up to here it may be air or the collimator's shutter
FLAT_LIGHT = 0.8  # of a line's pixels: text on a window's title bar is not flat
LIGHT_FRAME = 0.01  # of the width or height; flat light columns: never
DARK_FRAME = 0.25  # of the width or height, both sides together; shutters: up to 0.214
CONTENT = 0.25  # of the width or height: less is no X-ray in a frame
PASSES = 4  # a canvas beside a title bar is plain only once the title bar is gone

# Negatives: correlation with the mean chest. Of 1,000 adults, 2,594 images of ChestX-ray14, 976 of
# Kermany et al. and 433 of other sets, the lowest of a positive is -0.18; two below it, -0.64 and
# -0.69, are negatives in ChestX-ray14. 1 in 100 negatives is missed.
NEGATIVE = -0.25
BESIDE = -0.05  # the same of each row's own greys: a picture dark below and light above is no chest
MARGIN = 0.15  # of each side is left out: air, shoulders and borders differ most there
# Blocks of 8 x 8 inside the margin, each image with mean 0 and standard deviation 1, averaged over
# three populations of equal weight and over both sides: the left half. Children: 1,304 training
# images of Kermany et al. 2018. Adults: 1,575, in equal parts RSNA's normals and the COVID-19
# images of the COVID-19 Radiography Database, and tuberculosis and normals of a public collection.
# Patients of a hospital: 1,528 of ChestX-ray14.
HALF_CHEST = (
    (-0.3, -0.4, -0.6, 0.2),
    (-0.2, -0.8, -0.9, 0.2),
    (-0.2, -1.0, -0.9, 0.5),
    (-0.3, -1.0, -0.5, 0.7),
    (-0.4, -0.8, 0.0, 1.0),
    (-0.5, -0.4, 0.3, 1.2),
    (-0.4, 0.0, 0.6, 1.3),
    (0.1, 0.7, 1.1, 1.5),
)
MEAN_CHEST = np.concatenate([HALF_CHEST, np.fliplr(HALF_CHEST)], axis=1)

# Light boxes: three quarters of each edge brighter than nine tenths of the middle.
EDGE = 0.04  # of the width or height

# Colour: the difference of the largest and the smallest channel, of 255. Grey files have none.
TINT, TINTED = 6, 0.3  # difference, share of the pixels
COLOUR, COLOURED = 60, 0.0005
# Drawings: pixels of exactly the grey of those above and to the left.
FLAT = 0.5  # of the pixels; the most of 6,349 X-rays was 0.33
BLACK = 10 * LEVEL  # the air and shutters of an X-ray may be flat
ROWS = 1000  # looked at

EXIF, EXPOSURE_TIME, F_NUMBER = 0x8769, 0x829A, 0x829D

WORSE = "expect the model to do worse than on the X-ray's own file."


def screen(image: CxrImage) -> CxrImage:
    """Undoes a negative, cuts plain frames away, warns of a light box and tells drawings.

    Most images pass as they are.

    Args:
        image: as read; what is no chest X-ray at all may be altered, too.

    Returns:
        The image, with a warning for each correction and finding.
    """
    pixels, warnings = image.pixels, list(image.warnings)
    content = _content(pixels)
    if _is_negative(pixels[content]):
        # the frame of the positive is what the rules of `_content` are made for
        pixels = FULL_SCALE - pixels
        content = _content(pixels)
        warnings.append("The image looks like a negative (dark bones) and was inverted.")
    height, width = pixels.shape
    pixels = pixels[content]
    if pixels.shape != (height, width):
        warnings.append(
            f"A plain frame was cut away: of {width} x {height} pixels, "
            f"{pixels.shape[1]} x {pixels.shape[0]} are left."
        )
    if _is_on_light_box(pixels):
        warnings.append(
            "The image is bright all around, like a film photographed on a light box: crop it to "
            f"the X-ray, and {WORSE}"
        )
    pixels = np.ascontiguousarray(pixels)
    rows, columns = content
    return image._replace(
        pixels=pixels,
        warnings=tuple(warnings),
        drawn=_is_drawn(pixels),
        margins=(rows.start, columns.start, height - rows.stop, width - columns.stop),
    )


def colour_warnings(sample: np.ndarray) -> tuple[str, ...]:
    """What colours say of an image that should be grey.

    Args:
        sample: uint8 (h, w, 3), some of its pixels.
    """
    spread = sample.max(axis=2) - sample.min(axis=2)
    if (spread > TINT).mean() > TINTED:
        return (f"The image is tinted, like a photograph of a film or a screen: {WORSE}",)
    if (spread > COLOUR).mean() > COLOURED:
        return ("Coloured marks on the image were read as grey and may mislead the model.",)
    return ()


def camera_warnings(exif: Image.Exif) -> tuple[str, ...]:
    """Whether a file is a camera's, by the exposure in its Exif data."""
    tags = exif.get_ifd(EXIF)
    if EXPOSURE_TIME in tags or F_NUMBER in tags:
        return (f"The file is a camera's photograph, of a film or a screen: {WORSE}",)
    return ()


def _content(pixels: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns inside plain frames, two slices."""
    top, left, (bottom, right) = 0, 0, pixels.shape
    for _ in range(PASSES):
        inner = pixels[top:bottom, left:right]
        height, width = inner.shape
        first, last = _inside(inner[:: -(-height // SAMPLES)].T, one_side=True)
        left, right = left + first, left + last
        # an overexposed abdomen is a plain light bar, too, but leaves the sides alone
        inner = pixels[top:bottom, left:right]
        first, last = _inside(
            inner[:, :: -(-inner.shape[1] // SAMPLES)], one_side=right - left < pixels.shape[1]
        )
        top, bottom = top + first, top + last
        if (bottom - top, right - left) == (height, width):
            break
    return slice(top, bottom), slice(left, right)


def _inside(lines: np.ndarray, one_side: bool) -> tuple[int, int]:
    """First and last line, exclusive, of what plain lines frame: all of them if it is no frame.

    `one_side`: whether a light bar at one end is enough.
    """
    count = len(lines)
    if not _flat(lines[[0, -1]])[0].any():  # most images: a frame begins at the edge
        return 0, count
    flat, light = _flat(lines)
    # the longest run of lines that are not flat
    edges = np.flatnonzero(np.diff(np.concatenate([[True], flat, [True]]).astype(np.int8)))
    if not len(edges):
        return 0, count
    runs = edges.reshape(-1, 2)
    first, last = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    # flat lines further in may be an overexposed spine
    first = first if flat[0] else 0
    last = last if flat[-1] else count
    if last - first < max(MIN_SIDE, CONTENT * count):
        return 0, count
    bars = light[:first].sum(), light[last:].sum()
    enough = max(bars) if one_side else min(bars)
    dark = count - (last - first) - sum(bars)  # a light bar at one end may be the abdomen
    if enough > LIGHT_FRAME * count or dark > DARK_FRAME * count:
        return int(first), int(last)
    return 0, count


def _flat(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which lines are of one grey level, and which of these are light: two bool arrays."""
    lines = lines.astype(np.float32)
    level = np.median(lines, axis=1, keepdims=True)
    share = (np.abs(lines - level) <= TOLERANCE).mean(axis=1)
    dark = level[:, 0] < DARK
    flat = np.where(dark, share == 1, share >= FLAT_LIGHT)
    return flat, flat & ~dark


def _is_negative(pixels: np.ndarray) -> bool:
    height, width = pixels.shape
    top, left = int(MARGIN * height), int(MARGIN * width)
    coarse = _sample(pixels[top : height - top, left : width - left]).astype(np.float32)
    chest = np.asarray(Image.fromarray(coarse).resize((8, 8), Image.Resampling.BOX))
    if chest.std() < LEVEL:  # blank
        return False
    rows = (image - image.mean(axis=1, keepdims=True) for image in (chest, MEAN_CHEST))
    return bool(_correlation(chest, MEAN_CHEST) < NEGATIVE and _correlation(*rows) < BESIDE)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).mean() / (a.std() * b.std() or np.inf)


def _is_on_light_box(pixels: np.ndarray) -> bool:
    pixels = _sample(pixels)
    height, width = pixels.shape
    rows, columns = max(1, round(EDGE * height)), max(1, round(EDGE * width))
    sides = pixels[:rows], pixels[-rows:], pixels[:, :columns], pixels[:, -columns:]
    middle = pixels[height // 5 : -(height // 5), width // 5 : -(width // 5)]
    return bool(min(np.percentile(side, 25) for side in sides) > np.percentile(middle, 90))


def _is_drawn(pixels: np.ndarray) -> bool:
    """Whether large areas are of exactly one grey.

    Noise and shading leave an X-ray none, unless it was heavily compressed or enlarged by repeating
    pixels.
    """
    step = -(-len(pixels) // ROWS)
    above, here = pixels[:-1:step], pixels[1::step]
    flat = (here[:, 1:] == here[:, :-1]) & (here[:, 1:] == above[:, 1:]) & (here[:, 1:] > BLACK)
    return bool(flat.mean() > FLAT)


def _sample(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape
    return pixels[:: -(-height // SAMPLES), :: -(-width // SAMPLES)]
