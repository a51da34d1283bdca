"""Masks against masks: overlap and distance, an image each, and their means.

The measures of an image go to a CSV file, a row an image; every mean and interval is computed from
that file alone.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from evaluation.bootstrap import mean_entries
from evaluation.predictions import write_text

KEYS = ("image_id", "patient_id")
MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "surface_distance_95": "95th-percentile surface distance (pixels)",
}
# What is compared: all of an image, or the half of it where the patient's right lung lies.
PARTS = {"whole": "Both lungs", "left_half": "Image-left half (the patient's right lung)"}
COLUMNS = tuple(f"{part}_{measure}" for part in PARTS for measure in MEASURES)


def compare_masks(found: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """How well a mask fits the true one; None where the question has no answer.

    - `dice`: 2 |A and B| / (|A| + |B|), and `iou`, |A and B| / |A or B|; both None where both masks
      are empty, 0 where one is.
    - `surface_distance_95`: the 95th percentile of the distances, in pixels, from each surface
      pixel of one mask to the nearest surface pixel of the other, those of both masks pooled (the
      robust Hausdorff distance of Huttenlocher et al. 1993). A surface pixel is one of the mask
      with one of its four neighbours outside of it. None where a mask is empty.

    Args:
        found: bool (H, W).
        true: bool (H, W).

    Raises:
        ValueError: masks of two shapes, or that are not bool.
    """
    for mask in (found, true):
        if mask.shape != true.shape or mask.ndim != 2 or mask.dtype != bool:
            raise ValueError(
                f"a mask is {mask.dtype} {mask.shape}, the true one {true.dtype} {true.shape}; "
                "both must be bool (height, width) of one shape."
            )
    both, total = int((found & true).sum()), int(found.sum()) + int(true.sum())
    if total == 0:
        return dict.fromkeys(MEASURES)
    overlap = {"dice": 2 * both / total, "iou": both / (total - both)}
    if not (found.any() and true.any()):
        return {**overlap, "surface_distance_95": None}
    surfaces = [mask & ~binary_erosion(mask) for mask in (found, true)]
    to_found, to_true = (distance_transform_edt(~surface) for surface in surfaces)
    distances = np.concatenate([to_true[surfaces[0]], to_found[surfaces[1]]])
    return {**overlap, "surface_distance_95": float(np.percentile(distances, 95))}


def measure_masks(found: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """`compare_masks` of each of `PARTS`: {column of `COLUMNS`: measure}.

    In a chest X-ray as it is hung, the patient's right lung is at the image's left.
    """
    half = true.shape[1] // 2
    pairs = {"whole": (found, true), "left_half": (found[:, :half], true[:, :half])}
    return {
        f"{part}_{measure}": value
        for part, pair in pairs.items()
        for measure, value in compare_masks(*pair).items()
    }


def write_segmentation(path: str | Path, rows: Sequence[dict]) -> None:
    """Write a row an image, with the columns `KEYS` and `COLUMNS`; None is an empty cell.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, (*KEYS, *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_segmentation(path: str | Path) -> list[dict]:
    """Read what `write_segmentation` wrote, to the same numbers.

    Raises:
        ValueError: a missing column, or a cell that is no number.
        OSError: the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for line in lines:
        if missing := [name for name in (*KEYS, *COLUMNS) if line.get(name) is None]:
            raise ValueError(f"{path} has a row without {missing[0]!r}; train_lungs.py writes it.")
        try:
            numbers = {name: float(line[name]) if line[name] else None for name in COLUMNS}
        except ValueError as error:
            raise ValueError(
                f"{path}: {line['image_id']!r} has a cell that is no number."
            ) from error
        rows.append({**{name: line[name] for name in KEYS}, **numbers})
    return rows


def summarize_segmentation(
    rows: Sequence[dict], num_resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict]]:
    """{part: {measure: entry}} for `PARTS` and `MEASURES`, from the rows of a file.

    An entry is the mean over the images where the measure is defined, see
    `evaluation.bootstrap.mean_entries`, with the 95 % interval of a bootstrap over patients.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no segmentation was measured; give a row an image.")
    values = np.array([[_number(row[name]) for name in COLUMNS] for row in rows])
    patients = np.array([row["patient_id"] for row in rows])
    entries = iter(mean_entries(values, patients, num_resamples, seed))
    return {part: {measure: next(entries) for measure in MEASURES} for part in PARTS}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
