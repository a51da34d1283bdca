"""Boxes of a table, in pixels of the image as it was, brought to the image as it is stored."""

from collections.abc import Sequence
from pathlib import Path

import pydicom
from PIL import Image

from datasets_scripts.files import DICOM_SUFFIXES
from modeling.reading_cxr import FORMATS


def fit_boxes(
    boxes: Sequence[Sequence[float]], side: int, file: Path, table: Path
) -> list[list[float]]:
    """[x, y, width, height] in pixels of the stored file.

    Args:
        boxes: alike, in pixels of a square image.
        side: of that, pixels.
        file: the image, of which the header alone is read.
        table: with the boxes, for messages.

    Raises:
        ValueError: a box is empty or leads out of the image.
    """
    for x, y, width, height in boxes:
        if not (0 <= x < x + width <= side and 0 <= y < y + height <= side):
            raise ValueError(
                f"{table} gives {file.name} the box [{x:g}, {y:g}, {width:g}, {height:g}], which "
                f"does not lie in an image of {side} x {side} pixels: mend or remove its row."
            )
    across, down = (size / side for size in _stored_size(file))
    return [[x * across, y * down, w * across, h * down] for x, y, w, h in boxes]


def _stored_size(file: Path) -> tuple[int, int]:
    """Width and height, pixels."""
    if file.suffix.casefold() in DICOM_SUFFIXES:
        tags = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return tags.Columns, tags.Rows
    with Image.open(file, formats=FORMATS) as image:
        return image.size
