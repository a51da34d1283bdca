"""From grey pixels to a network's input, and from its heatmaps back; NumPy and Pillow alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .arrays_cxr import Array, cast, like, namespace
from .image_cxr import FULL_SCALE

GEOMETRIES = ("pad", "squash", "crop", "inner_crop")
# A network of 224 pixels is customarily shown the inside of a frame of 256, whole or in ten crops.
FRAME = 256 / 224
# How grey levels may be equalized, and with what.
EQUALIZATIONS = {"histogram": {}, "clahe": {"clip_limit": 2.0, "tiles": 8}}
BINS = 256


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    geometry: str,
    shape: tuple[float, float] | None = None,
) -> np.ndarray:
    """Antialiased bilinear resize.

    Args:
        pixels: uint16 (h, w).
        size: height and width of the output.
        geometry: how images of other proportions fill the output: "pad" keeps all of them, centred
            on black; "squash" stretches them; "crop" keeps their centre alone; "inner_crop" the
            inner 224/256 of that, as torchvision's Resize(256) and CenterCrop(224) do.
        shape: height and width of the image before it was stretched to `pixels`, where it was: its
            own proportions are then restored.

    Returns:
        uint16 (H, W).
    """
    shape = shape or pixels.shape
    box, (top, left, bottom, right) = _placement(shape, size, geometry)
    scale_y, scale_x = pixels.shape[0] / shape[0], pixels.shape[1] / shape[1]
    box = (box[1] * scale_x, box[0] * scale_y, box[3] * scale_x, box[2] * scale_y)
    if (bottom - top, right - left) != pixels.shape or box != (0, 0, *pixels.shape[::-1]):
        resized = Image.fromarray(pixels.astype(np.float32)).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR, box
        )
        pixels = np.asarray(resized).round().astype(np.uint16)
    square = np.zeros(size, np.uint16)
    square[top:bottom, left:right] = pixels
    return square


def restore(
    heatmap: np.ndarray, size: tuple[int, int], geometry: str, shape: tuple[int, int]
) -> np.ndarray:
    """Puts a heatmap back into the frame of the image it explains.

    Args:
        heatmap: float (H, W).
        size: see `resize`.
        geometry: see `resize`.
        shape: height and width of the original image, pixels.

    Returns:
        float32 (height, width); 0 in what was cut off.
    """
    box, (top, left, bottom, right) = _placement(shape, size, geometry)
    inner = np.ascontiguousarray(np.asarray(heatmap, np.float32)[top:bottom, left:right])
    top, left, bottom, right = map(round, box)
    framed = np.zeros(shape, np.float32)
    framed[top:bottom, left:right] = Image.fromarray(inner).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    return framed


def resize_boxes(
    boxes: np.ndarray,
    frame: tuple[int, int],
    size: tuple[int, int],
    geometry: str,
    shape: tuple[float, float] | None = None,
) -> np.ndarray:
    """Takes boxes where `resize` takes the image that they lie in.

    Args:
        boxes: float (n, 4), left, top, right, bottom in pixels of the image.
        frame: height and width of the image, pixels.
        size: see `resize`.
        geometry: see `resize`.
        shape: see `resize`.

    Returns:
        float64 (n, 4), likewise in pixels of the output and cut at the edges of what is shown; one
        that was cut off whole has no area.
    """
    scale, offset, (top, left, bottom, right) = _motion(frame, size, geometry, shape)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale + offset
    return boxes.clip((left, top) * 2, (right, bottom) * 2)


def restore_boxes(
    boxes: np.ndarray,
    frame: tuple[int, int],
    size: tuple[int, int],
    geometry: str,
    shape: tuple[float, float] | None = None,
) -> np.ndarray:
    """Puts boxes of the output back into the image: the inverse of `resize_boxes`.

    Returns:
        float64 (n, 4), left, top, right, bottom in pixels of the image, cut at its edges.
    """
    scale, offset, _ = _motion(frame, size, geometry, shape)
    boxes = (np.asarray(boxes, np.float64).reshape(-1, 4) - offset) / scale
    return boxes.clip(0, frame[::-1] * 2)


def equalization(equalize: str | Mapping[str, Any]) -> dict[str, Any]:
    """All that `equalize` needs: a method and its parameters, those not given as customary.

    Args:
        equalize: the name of a method, or `{"method": name}` and what there is of its parameters.

    Raises:
        ValueError: an unknown method or parameter, or a parameter out of its range.
    """
    given = {"method": equalize} if isinstance(equalize, str) else dict(equalize)
    method = given.pop("method", None)
    if method not in EQUALIZATIONS:
        raise ValueError(f"equalize is {method!r}; it can be {', '.join(EQUALIZATIONS)}.")
    known = EQUALIZATIONS[method]
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"equalize={method!r} has no {name!r}; it has {', '.join(known) or 'none'}."
            )
        if not value >= 1:
            raise ValueError(f"{name} of equalize={method!r} is {value}; it is 1 or more.")
    return {"method": method, **known, **given}


def equalize(pixels: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """Spreads grey levels evenly over the scale.

    Args:
        pixels: uint16 (h, w), as `resize` gives them.
        how: see `equalization`. "histogram": each level becomes the share of the pixels at or below
            it. Pixels of 0, such as what was padded, stay and do not count. "clahe": the same in
            each of `tiles` x `tiles` tiles, bins of a 256th of the scale cut at `clip_limit` times
            their mean, what was cut spread over all of them, and between the tiles' centres a
            bilinear mean (contrast-limited adaptive histogram equalization, Zuiderveld 1994).

    Returns:
        uint16 (h, w).
    """
    if how["method"] == "histogram":
        counts = np.bincount(pixels.ravel(), minlength=FULL_SCALE + 1)
        counts[0] = 0
        below = counts.cumsum()
        levels = (below * (FULL_SCALE / max(1, below[-1]))).round().astype(np.uint16)
        return levels[pixels]
    return _clahe(pixels, how["clip_limit"], how["tiles"])


def _clahe(pixels: np.ndarray, clip_limit: float, tiles: int) -> np.ndarray:
    height, width = pixels.shape
    level = pixels * np.float32((BINS - 1) / FULL_SCALE)
    bins = level.round().astype(np.int64)
    tile_y, tile_x = (np.arange(side) * tiles // side for side in (height, width))
    tile = tile_y[:, None] * tiles + tile_x
    counts = np.bincount((tile * BINS + bins).ravel(), minlength=tiles**2 * BINS)
    counts = counts.reshape(tiles**2, BINS).astype(np.float64)
    size = counts.sum(1, keepdims=True)
    limit = np.maximum(1, clip_limit * size / BINS)
    excess = (counts - limit).clip(0).sum(1, keepdims=True)
    curves = (np.minimum(counts, limit) + excess / BINS).cumsum(1) / size
    curves = curves.reshape(tiles, tiles, BINS)

    # The curves of the four tiles around each pixel, between the two bins around its level.
    low, part = np.floor(level).astype(np.int64), level % 1
    high = np.minimum(low + 1, BINS - 1)
    (top, bottom, down), (left, right, along) = (_between(side, tiles) for side in (height, width))
    down, equalized = down[:, None], 0.0
    for row, vertical in ((top, 1 - down), (bottom, down)):
        for column, horizontal in ((left, 1 - along), (right, along)):
            y, x = row[:, None], column
            value = (1 - part) * curves[y, x, low] + part * curves[y, x, high]
            equalized = equalized + vertical * horizontal * value
    return (equalized * FULL_SCALE).round().astype(np.uint16)


def _between(side: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of a side: the tiles before and after it, and how far it is from the first."""
    place = (np.arange(side) + 0.5) * tiles / side - 0.5
    before = np.floor(place).astype(np.int64)
    return before.clip(0), (before + 1).clip(max=tiles - 1), place - before


def normalize(pixels: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Scales to a mean and a standard deviation, and repeats the grey image to their channels.

    Args:
        pixels: array or tensor (B, H, W), uint16 at full scale or floats in [0, 1].
        mean: one value a channel, in units of full scale.
        std: the same of the standard deviation.

    Returns:
        float32 (B, C, H, W), an array or a tensor on the input's device.
    """
    whole = pixels.dtype == namespace(pixels).uint16
    pixels = cast(pixels, "float32")
    pixels = pixels / FULL_SCALE if whole else pixels
    mean, std = (like(pixels, values)[:, None, None] for values in (mean, std))
    return (pixels[:, None] - mean) / std


def ten_crops(frames: Array, side: int) -> Array:
    """The corners and the centre of frames, and their mirror images (Krizhevsky et al. 2012).

    Args:
        frames: array or tensor (B, C, h, w), no smaller than the crops.
        side: of a crop, pixels.

    Returns:
        (10, B, C, side, side), in the order of torchvision's TenCrop.
    """
    bottom, right = frames.shape[2] - side, frames.shape[3] - side
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    corners.append((round(bottom / 2), round(right / 2)))
    xp = namespace(frames)
    crops = [
        image[:, :, top : top + side, left : left + side]
        for image in (frames, xp.flip(frames, (3,)))
        for top, left in corners
    ]
    return xp.stack(crops)


def _motion(
    frame: tuple[int, int],
    size: tuple[int, int],
    geometry: str,
    shape: tuple[float, float] | None,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """What a place in an image is multiplied with and moved by, (4,) each, and where it is shown.

    The last is (top, left, bottom, right) in pixels of the output.
    """
    shape = shape or frame
    box, place = _placement(shape, size, geometry)
    scale_y, scale_x = ((place[k + 2] - place[k]) / (box[k + 2] - box[k]) for k in (0, 1))
    offset = (place[1] - box[1] * scale_x, place[0] - box[0] * scale_y)
    scale = (scale_x * shape[1] / frame[1], scale_y * shape[0] / frame[0])
    return np.array(scale * 2), np.array(offset * 2), place


def _placement(
    shape: tuple[float, float], size: tuple[int, int], geometry: str
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """The part of an image that is shown, and its place in the output.

    Both are (top, left, bottom, right); the first in pixels of the image, the second in whole
    pixels of the output.
    """
    (height, width), (rows, columns) = shape, size
    whole, full = (0, 0, height, width), (0, 0, rows, columns)
    if geometry == "squash":
        return whole, full
    if geometry in ("crop", "inner_crop"):
        scale = max(rows / height, columns / width) * (FRAME if geometry == "inner_crop" else 1)
        kept_height, kept_width = min(height, rows / scale), min(width, columns / scale)
        top, left = (height - kept_height) / 2, (width - kept_width) / 2
        return (top, left, top + kept_height, left + kept_width), full
    scale = min(rows / height, columns / width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - inner_height) // 2, (columns - inner_width) // 2
    return whole, (top, left, top + inner_height, left + inner_width)
