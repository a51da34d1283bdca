"""Saliency as numbers: does a heatmap lie where it should, and does the model use what it shows?

The measures of an image go to saliency.csv, a row an image and model; every mean, interval and
paired difference is computed from that file alone.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from evaluation.bootstrap import mean_entries
from evaluation.predictions import write_text

# The columns of saliency.csv: what names a row, and the numbers.
KEYS = ("model", "image_id", "patient_id")
COLUMNS = ("energy_in_lungs", "lung_area", "pointing", "iou", "deletion", "insertion")
MEASURES = {
    "energy_in_lungs": "Energy inside the lungs",
    "lung_area": "Lung area",
    "energy_gain": "Energy inside the lungs beyond their area",
    "pointing": "Pointing game (on boxes if the data have them, else on the lungs)",
    "iou": "IoU (likewise)",
    "deletion": "Deletion AUC (lower is better)",
    "insertion": "Insertion AUC (higher is better)",
}


def measure_heatmap(
    heatmap: np.ndarray, mask: np.ndarray, tolerance: float = 0
) -> dict[str, float | None]:
    """How far a heatmap and a mask agree; None where the question has no answer.

    - `energy_in_lungs`: the heatmap's sum inside the mask over its whole sum (the energy-based
      pointing game of Wang et al. 2020, Score-CAM).
    - `lung_area`: the mask's share of the pixels, which is the energy of a uniform heatmap, and the
      expected energy of one whose cells are shuffled, at whatever resolution.
    - `pointing`: 1 if the hottest pixel lies in the mask or within `tolerance` pixels of it, else 0
      (Zhang et al. 2018, Excitation Backprop, section 4.1, who allow 15 pixels for small objects;
      lungs need none). Of several hottest pixels, the share that hits.
    - `iou`: of the mask with the hottest k pixels, k being the mask's own pixel count. A heatmap's
      scale has no natural cut, and a fixed one would reward large blobs; with equal areas the IoU
      depends on the order of the pixels alone and can reach 1. Pixels tied at the cut count by the
      share of them that a random choice would put in the mask.

    A heatmap of zeros has no energy, one of a single value no hottest pixel; an empty mask is a
    missing one, and every measure of it None.

    Args:
        heatmap: float (H, W) in [0, 1].
        mask: bool (H, W); `boxes_mask` makes one of boxes.
        tolerance: pixels, 0 or more.

    Raises:
        ValueError: shapes that differ, a mask that is not bool, a heat outside [0, 1] or NaN.
    """
    _check_heatmap(heatmap)
    if mask.shape != heatmap.shape or mask.dtype != bool:
        raise ValueError(f"the mask is {mask.dtype} {mask.shape}; needed: bool {heatmap.shape}.")
    found = dict.fromkeys(("energy_in_lungs", "lung_area", "pointing", "iou"))
    if not mask.any():
        return found
    heat = heatmap.astype(np.float64)
    found["lung_area"] = float(mask.mean())
    if heat.any():
        found["energy_in_lungs"] = float(heat[mask].sum() / heat.sum())
    if heat.min() < heat.max():
        found["pointing"] = _pointing(heat, mask, tolerance)
        area = mask.sum()
        cut = np.partition(heat, -area, axis=None)[-area]
        above, tied = heat > cut, heat == cut
        overlap = (above & mask).sum() + (area - above.sum()) * mask[tied].mean()
        found["iou"] = float(overlap / (2 * area - overlap))
    return found


def boxes_mask(boxes: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """The inside of any box, its edges rounded to whole pixels: bool (height, width).

    Args:
        boxes: [x, y, width, height] each, in pixels of the image.
        height: of the image, in pixels.
        width: likewise.

    Raises:
        ValueError: a box that is empty or reaches out of the image.
    """
    mask = np.zeros((height, width), dtype=bool)
    for x, y, across, down in boxes:
        left, top, right, bottom = np.rint([x, y, x + across, y + down]).astype(int).tolist()
        inside = 0 <= left <= right <= width and 0 <= top <= bottom <= height
        if not (inside and across > 0 and down > 0):
            box = ", ".join(f"{side:g}" for side in (x, y, across, down))
            raise ValueError(f"box [{box}] does not fit an image {width} x {height}.")
        mask[top:bottom, left:right] = True
    return mask


def deletion_insertion(
    score: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    heatmap: np.ndarray,
    steps: int = 20,
) -> dict[str, float | None]:
    """Areas under the deletion and insertion curves (Petsiuk et al. 2018, RISE, section 4.2).

    Deletion replaces the image's pixels, hottest first, by the image's own mean; insertion brings
    them, hottest first, into a blurred image. A heatmap that shows what the model uses makes the
    score fall soon (a small deletion area) and rise soon (a large insertion area). The blur is
    wide, a standard deviation of an eighth of the larger side: an opacity outlives a narrow one.
    Pixels of equal heat go row by row. `score` is called once, with all 2 * (steps + 1) images.

    Args:
        score: of float (B, *image.shape), the explained class's probability (B,).
        image: float (H, W) or (C, H, W), as `score` reads it.
        heatmap: float (H, W) in [0, 1].
        steps: of equal numbers of pixels.

    Returns:
        `deletion` and `insertion`: mean score over the share of pixels replaced, by the trapezoid
        rule; None for a heatmap of a single value, which puts no pixel first.

    Raises:
        ValueError: shapes that do not fit, fewer than 1 step or more than pixels, a heat outside
            [0, 1], or scores that are not B finite numbers.
    """
    _check_heatmap(heatmap)
    if image.ndim not in (2, 3) or image.shape[-2:] != heatmap.shape:
        raise ValueError(f"the image is {image.shape}; the heatmap, {heatmap.shape}, must fit it.")
    if not 1 <= steps <= heatmap.size:
        raise ValueError(f"steps is {steps}; give 1 to {heatmap.size}, the number of pixels.")
    if heatmap.min() == heatmap.max():
        return {"deletion": None, "insertion": None}
    order = np.argsort(-heatmap, axis=None, kind="stable")
    rank = np.empty(heatmap.size, dtype=np.int64)
    rank[order] = np.arange(heatmap.size)
    counts = np.linspace(0, heatmap.size, steps + 1).round()
    # (steps + 1, [1,] H, W): whether a pixel is among the hottest at each step.
    hot = rank.reshape(heatmap.shape) < counts.reshape(-1, *[1] * image.ndim)
    mean = image.mean(axis=(-2, -1), keepdims=True)
    blurred = _blur(image, max(heatmap.shape) / 8)
    batch = np.concatenate([np.where(hot, mean, image), np.where(hot, image, blurred)])
    scores = np.asarray(score(batch.astype(image.dtype)), dtype=np.float64)
    if scores.shape != (len(batch),) or not np.isfinite(scores).all():
        raise ValueError(
            f"score gave {scores.shape} for {len(batch)} images; give each one finite number."
        )
    deletion, insertion = np.trapezoid(scores.reshape(2, -1), counts / heatmap.size, axis=1)
    return {"deletion": float(deletion), "insertion": float(insertion)}


def randomization_check(
    before: np.ndarray,
    after: np.ndarray,
    patient_ids: np.ndarray,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Heatmaps of a trained model against those of it with ever more layers randomised.

    The layers go from the classifier down (Adebayo et al. 2018, section 3). Heatmaps that stay
    alike show the image, not the learning.

    Args:
        before: float (N, H, W), of the trained model.
        after: float (S, N, H, W), of the S stages, each with more layers randomised.
        patient_ids: str (N,), the unit that the interval resamples.
        num_resamples: bootstrap resamples; 0 leaves the intervals out.
        seed: of the resamples.

    Returns:
        For each stage the mean over images of Spearman's rank correlation over pixels, as
        `{"value", "low", "high", "n"}`. An image with a heatmap of one value has no correlation and
        is left out of n.

    Raises:
        ValueError: shapes that do not fit.
    """
    fits = before.ndim == 3 and after[:1].shape == (1, *before.shape)
    if not fits or not len(before) == len(patient_ids) > 0:
        raise ValueError(
            f"heatmaps {before.shape} before and {after.shape} after, of {len(patient_ids)} "
            "patient ids, do not fit; give (N, H, W), (S, N, H, W) and N."
        )
    pairs = [[_spearman(*pair) for pair in zip(before, stage)] for stage in after]
    return mean_entries(np.transpose(pairs), np.asarray(patient_ids), num_resamples, seed)


def write_saliency(path: str | Path, rows: Sequence[dict]) -> None:
    """Write saliency.csv, whole or not at all; None is an empty cell.

    Args:
        path: of the CSV.
        rows: a dict an image and model: str `model`, `image_id`, `patient_id`, and of `COLUMNS`
            float, or None where undefined; a measure left out is None.

    Raises:
        ValueError: no row, a name or id that is empty or missing, a model's image that appears
            twice, an unknown key, or a number that is not finite.
        OSError: the file cannot be written.
    """
    _check_rows(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, (*KEYS, *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {c: float(row[c]) for c in COLUMNS if row.get(c) is not None}
        writer.writerow({c: row[c] for c in KEYS} | numbers)
    write_text(path, text.getvalue())


def read_saliency(path: str | Path) -> list[dict]:
    """Read what `write_saliency` wrote, to the same numbers.

    Raises:
        ValueError: a missing column or cell, one that is no number, or what `write_saliency`
            refuses.
        OSError: the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, cells = reader.fieldnames or [], list(reader)
    for column in (*KEYS, *COLUMNS):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; its columns are {columns}.")
    rows = []
    for line in cells:
        if None in line or None in line.values():
            raise ValueError(f"{path} has a row with other than {len(columns)} cells: {line}.")
        row = {name: line[name] for name in KEYS}
        for column in COLUMNS:
            try:
                row[column] = float(line[column]) if line[column] else None
            except ValueError:
                raise ValueError(
                    f"{path}: image {line['image_id']!r} has {line[column]!r} where {column} is a "
                    "number or empty."
                ) from None
        rows.append(row)
    try:
        _check_rows(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return rows


def summarize_saliency(
    rows: Sequence[dict], num_resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict]]:
    """{model: {measure: entry}} for the `MEASURES`, from the rows of `read_saliency`.

    An entry is `{"value", "low", "high", "n"}`: the mean over the n images where the measure is
    defined, with the 95 % interval of a bootstrap over patients; one defined in no image
    is `{"value": None, "reason", "n": 0}`.

    `energy_gain` is energy_in_lungs - lung_area: 0 for a heatmap that knows nothing, whatever its
    resolution and the child's lungs. A difference and no ratio, as a ratio is largest where lungs
    are smallest and would let those images rule the mean, and as the gains of two models on the
    same masks differ by exactly what their energies do.
    """
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        patients = np.array([row["patient_id"] for row in own])
        entries = mean_entries(_values(own, MEASURES), patients, num_resamples, seed)
        found[model] = dict(zip(MEASURES, entries))
    return found


def compare_saliency(
    rows: Sequence[dict], a: str, b: str, num_resamples: int = 2000, seed: int = 0
) -> dict[str, dict]:
    """{measure: entry} of the mean paired difference, model `a` minus model `b`, image by image.

    Entries as `summarize_saliency` gives them, n counting the images where both are defined;
    `lung_area`, a fact of the image, is not compared.

    Raises:
        ValueError: a model without rows, or two models of different images or patients.
    """
    models = dict.fromkeys(row["model"] for row in rows)
    paired = []
    for name in (a, b):
        if name not in models:
            raise ValueError(f"no saliency of the model {name!r}; there is {', '.join(models)}.")
        own = [row for row in rows if row["model"] == name]
        paired.append(sorted(own, key=lambda row: row["image_id"]))
    keys = [[(row["image_id"], row["patient_id"]) for row in own] for own in paired]
    if keys[0] != keys[1]:
        odd = sorted(set(keys[0]) ^ set(keys[1]))
        raise ValueError(
            f"{a} and {b} were measured on different images: {len(odd)} differ, such as "
            f"{odd[0][0]!r} of patient {odd[0][1]!r}."
        )
    measures = [name for name in MEASURES if name != "lung_area"]
    difference = _values(paired[0], measures) - _values(paired[1], measures)
    patients = np.array([patient for _, patient in keys[0]])
    return dict(zip(measures, mean_entries(difference, patients, num_resamples, seed)))


def _check_heatmap(heatmap: np.ndarray) -> None:
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise ValueError(f"a heatmap has shape {heatmap.shape}; it must be (height, width).")
    if not (heatmap.min() >= 0 and heatmap.max() <= 1):
        span = f"{heatmap.min()} to {heatmap.max()}"
        raise ValueError(f"a heatmap spans {span}; it must lie in [0, 1].")


def _check_rows(rows: Sequence[dict]) -> None:
    if not rows:
        raise ValueError("no saliency was measured; give a row an image and model.")
    seen = set()
    for row in rows:
        if unknown := set(row) - {*KEYS, *COLUMNS}:
            raise ValueError(f"unknown columns {sorted(unknown)}; there are {KEYS + COLUMNS}.")
        if not all(row.get(column) for column in KEYS):
            raise ValueError(f"a saliency row lacks one of {KEYS}: {row}.")
        key = row["model"], row["image_id"]
        if key in seen:
            raise ValueError(f"image {key[1]!r} appears twice for the model {key[0]!r}.")
        seen.add(key)
        for column in COLUMNS:
            number = row.get(column)
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"image {key[1]!r} has the {column} {number}; leave it empty where undefined."
                )


def _pointing(heat: np.ndarray, mask: np.ndarray, tolerance: float) -> float:
    hottest, target = np.argwhere(heat == heat.max()), np.argwhere(mask)
    nearest = [((target - point) ** 2).sum(axis=1).min() for point in hottest]
    return float(np.mean(np.array(nearest) <= tolerance**2))


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of the last two axes; at the border the kernel is cut and weighs 1 again."""
    # Eight sigma reach across the image.
    smooth = partial(gaussian_filter, sigma=sigma, mode="constant", truncate=8, axes=(-2, -1))
    return smooth(image.astype(np.float64)) / smooth(np.ones(image.shape))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where a or b has one value."""
    if a.min() == a.max() or b.min() == b.max():
        return math.nan
    return float(spearmanr(a, b, axis=None).statistic)


def _values(rows: Sequence[dict], measures: Sequence[str]) -> np.ndarray:
    """float64 (N, M), NaN where undefined."""
    columns = {c: np.array([row.get(c) for row in rows], dtype=np.float64) for c in COLUMNS}
    columns["energy_gain"] = columns["energy_in_lungs"] - columns["lung_area"]
    return np.stack([columns[measure] for measure in measures], axis=1)
