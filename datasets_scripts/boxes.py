"""Boxes of a table, in pixels of the image as it was, brought to the image as it is stored."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from modeling.reading_cxr import FORMATS


def fit_boxes(
    boxes: Sequence[Sequence[float]], side: int, size: tuple[int, int], name: str, table: Path
) -> list[list[float]]:
    """[x, y, width, height] in pixels of the stored file.

    Args:
        boxes: alike, in pixels of a square image.
        side: of that, pixels.
        size: width and height of the stored file, pixels.
        name: of the file, for messages.
        table: with the boxes, for messages.

    Raises:
        ValueError: a box is empty or leads out of the image.
    """
    for x, y, width, height in boxes:
        if not (0 <= x < x + width <= side and 0 <= y < y + height <= side):
            raise ValueError(
                f"{table} gives {name} the box [{x:g}, {y:g}, {width:g}, {height:g}], which "
                f"does not lie in an image of {side} x {side} pixels: mend or remove its row."
            )
    across, down = (length / side for length in size)
    return [[x * across, y * down, w * across, h * down] for x, y, w, h in boxes]


def stored_size(file: Path) -> tuple[int, int]:
    """Width and height of an image that is no DICOM file, pixels; its header alone is read."""
    with Image.open(file, formats=FORMATS) as image:
        return image.size
