"""From grey pixels to a network's input, and from its heatmaps back; NumPy and Pillow alone."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .arrays_cxr import Array, cast, like, namespace
from .image_cxr import FULL_SCALE

GEOMETRIES = ("pad", "squash", "crop", "inner_crop")
# A network of 224 pixels is customarily shown the inside of a frame of 256, whole or in ten crops.
FRAME = 256 / 224


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
