"""Where a model fails: metrics by subgroup, and the cases that a reader should look at."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions

SUBGROUP_METRICS = ("auroc", "accuracy", "sensitivity", "specificity")
MIN_GROUP = 10
MAX_CATEGORIES = 10

# A case's picture, in pixels: three panels of this width are legible on a telephone.
PANEL = 300
GAP = 12
LINE = 36
FONT_SIZE, MIN_FONT_SIZE = 26, 16
MAX_COLUMNS = 4
MAX_OPACITY = 0.7
JPEG_QUALITY = 75
RED = (255, 138, 122)


def subgroups(
    predictions: Predictions,
    columns: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Metrics of each group of images that the extra columns tell apart, ready for JSON.

    A column of numbers with more than `MAX_CATEGORIES` values is cut into thirds, whose bounds are
    the groups' names; any other is grouped by its values. Images with an empty cell are the group
    "unknown". `original_pixels` is `original_width` times `original_height`, where both are.

    A group with images of one class only (bacteria: all pneumonia) has no AUROC of its own. In a
    binary task it is compared with all images of the other class; its row then says so in
    `against`, and its other metrics stay its own.

    Groups below `MIN_GROUP` images are left out, and counted in one row of their column without
    metrics.

    Args:
        columns: of `predictions.extra`, or "original_pixels"; None takes every column that makes at
            least two groups, but free text and the width and height behind `original_pixels`.

    Returns:
        A dict a group: `column`, `value` (the group), `n`, `patients`, and `metrics` with each of
        `SUBGROUP_METRICS` as an entry of `compute_metrics`.

    Raises:
        ValueError: an unknown column, or one asked for that is empty or holds free text.
    """
    available = dict(predictions.extra)
    sides = [_numbers(available.get(side)) for side in ("original_width", "original_height")]
    if all(side is not None for side in sides):
        pixels = sides[0] * sides[1]
        available["original_pixels"] = np.where(np.isnan(pixels), "", pixels.astype(str))
    if columns is None:
        hidden = {"original_width", "original_height"} if "original_pixels" in available else set()
        grouped = {name: _groups(cells) for name, cells in available.items() if name not in hidden}
        grouped = {name: groups for name, groups in grouped.items() if groups and len(groups) > 1}
    else:
        for name in columns:
            if name not in available:
                raise ValueError(f"no column {name!r} to group by; there is {sorted(available)}.")
        grouped = {name: _groups(available[name]) for name in columns}
    rows = []
    for name, groups in grouped.items():
        if groups is None:
            raise ValueError(f"column {name!r} is empty or free text; it makes no groups.")
        small = np.zeros(len(predictions.image_id), dtype=bool)
        num_small = 0
        for value, members in groups.items():
            if members.sum() >= MIN_GROUP:
                found = _group_metrics(predictions, members, num_resamples, seed)
                rows.append(_row(predictions, name, value, members) | found)
            else:
                small |= members
                num_small += 1
        if num_small:
            reason = f"fewer than {MIN_GROUP} images a group"
            nothing = {metric: {"value": None, "reason": reason} for metric in SUBGROUP_METRICS}
            value = f"left out: {num_small} of {len(groups)} groups"
            rows.append(_row(predictions, name, value, small) | {"metrics": nothing})
    return rows


def choose_cases(models: Mapping[str, Predictions], count: int = 12) -> list[dict]:
    """The cases to look at: half of them confident mistakes, the others the least certain.

    - "confident mistake": a wrong decision of any model, ordered by the probability, in log-odds,
      that the model gives to what it decided.
    - "least certain": the images nearest to a decision's boundary in any model, in log-odds: to the
      threshold, or between the two leading classes of more than two.

    No image is chosen twice; with few mistakes, least certain cases fill the places. Equal cases
    are ordered by image id.

    Args:
        models: name -> predictions, of the same images in the same order.

    Returns:
        A dict a case: `kind`, `index` (row of the image), `image_id`, `truth` (class names joined
        by "|", or "none"), `probabilities` {model: {class: p}} and `wrong` (the models that err).

    Raises:
        ValueError: no model, a negative count, or models of different images, labels or classes.
    """
    if not models or count < 0:
        raise ValueError(f"{len(models)} models and count {count}; give a model and 0 or more.")
    name, first = next(iter(models.items()))
    for other, predictions in models.items():
        for field in ("image_id", "labels", "class_names"):
            if not np.array_equal(getattr(first, field), getattr(predictions, field)):
                raise ValueError(
                    f"{name} and {other} have different {field}; cases are chosen among the same "
                    "images, in the same order, with the same labels."
                )
    parts = [_certainty(predictions) for predictions in models.values()]
    # Of each model and image, (M, N): how sure of a mistake, -inf where there is none.
    mistaken = np.stack([np.where(wrong, sure, -np.inf).max(axis=1) for sure, _, wrong in parts])
    distance = np.stack([distance.min(axis=1) for _, distance, _ in parts]).min(axis=0)
    erring = mistaken > -np.inf
    mistakes = np.lexsort((first.image_id, -mistaken.max(axis=0)))
    mistakes = mistakes[: min(erring.any(axis=0).sum(), math.ceil(count / 2))]
    uncertain = np.lexsort((first.image_id, distance))
    uncertain = uncertain[~np.isin(uncertain, mistakes)][: count - len(mistakes)]
    chosen = [("confident mistake", i) for i in mistakes] + [
        ("least certain", i) for i in uncertain
    ]
    probabilities = {name: predictions.probabilities for name, predictions in models.items()}
    return [
        {
            "kind": kind,
            "index": int(i),
            "image_id": str(first.image_id[i]),
            "truth": _truth(first, i),
            "probabilities": {
                name: dict(zip(first.class_names, p[i].tolist()))
                for name, p in probabilities.items()
            },
            "wrong": [name for name, errs in zip(models, erring[:, i]) if errs],
        }
        for kind, i in chosen
    ]


def draw_case(
    image: np.ndarray,
    heatmaps: Mapping[str, np.ndarray],
    case: dict,
    targets: Mapping[str, str],
    path: str | Path,
) -> None:
    """A case as one JPEG: the X-ray, and over it the heatmap of each model, side by side; a cross
    marks the models that err.

    Heat is Grad-CAM times the probability of the class it explains, so that colour and opacity mean
    the same in every picture; Grad-CAM alone is as hot on a healthy chest as on a sick one.

    Args:
        image: uint8 (h, w).
        heatmaps: model -> Grad-CAM, float (h, w) in [0, 1].
        case: of `choose_cases`, with these models among its `probabilities`.
        targets: model -> the class that its heatmap explains.
        path: ends in .jpg.

    Raises:
        ValueError: a heatmap of another shape than the image or outside [0, 1], or a model or class
            that the case does not have.
        OSError: `path` cannot be written.
    """
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"the image is {image.dtype} {image.shape}; it must be uint8 (h, w).")
    height = round(PANEL * image.shape[0] / image.shape[1])
    grey = _resize(image, height)
    panels = [(np.stack([grey] * 3, axis=-1), "X-ray", "white", None)]
    for name, heatmap in heatmaps.items():
        probability = case["probabilities"].get(name, {}).get(targets.get(name))
        if probability is None:
            target = targets.get(name)
            raise ValueError(f"the case has no probability of {target!r} by the model {name!r}.")
        if heatmap.shape != image.shape or not (heatmap.min() >= 0 and heatmap.max() <= 1):
            raise ValueError(
                f"the heatmap of {name!r} is {heatmap.shape}, {heatmap.min()} to {heatmap.max()}; "
                f"it must be {image.shape}, the image's shape, in [0, 1]."
            )
        title, colour = (f"\N{BALLOT X} {name}", RED) if name in case["wrong"] else (name, "white")
        heat = _resize(heatmap.astype(np.float32), height) * probability
        percent = "over 99.9%" if probability > 0.999 else f"{probability:.1%}"
        panels.append((_overlay(grey, heat), title, colour, f"{targets[name]} {percent}"))
    rows = math.ceil(len(panels) / MAX_COLUMNS)
    columns = math.ceil(len(panels) / rows)
    cell_width, cell_height = PANEL + GAP, height + 2 * LINE + GAP
    size = (columns * cell_width + GAP, rows * cell_height + LINE + 2 * GAP)
    canvas = Image.new("RGB", size, "black")
    heading = f"{case['image_id']}   truth: {case['truth']}"
    _write(canvas, heading, (GAP, GAP), size[0] - 2 * GAP, "white")
    for number, (picture, title, colour, caption) in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = GAP + column * cell_width, LINE + 2 * GAP + row * cell_height
        canvas.paste(Image.fromarray(picture), (left, top))
        _write(canvas, title, (left, top + height + 4), PANEL, colour)
        if caption:
            _write(canvas, caption, (left, top + height + LINE), PANEL, "white")
        else:
            _colour_bar(canvas, left, top + height + LINE)
    canvas.save(path, format="JPEG", quality=JPEG_QUALITY, optimize=True)


def _numbers(cells: np.ndarray | None) -> np.ndarray | None:
    """float64 (N,), NaN for an empty cell; None where a cell is no number or all are empty."""
    if cells is None or (cells == "").all():
        return None
    try:
        numbers = np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        return None
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _groups(cells: np.ndarray) -> dict[str, np.ndarray] | None:
    """{group: bool (N,)}, or None for a column that is empty or free text."""
    values, numbers = np.unique(cells[cells != ""]), _numbers(cells)
    unknown = cells == ""
    if 0 < len(values) <= MAX_CATEGORIES:
        if numbers is not None:
            values = sorted(values, key=float)
        groups = {str(value): cells == value for value in values}
    elif numbers is not None and not np.isnan(numbers).all():
        groups, unknown = _thirds(numbers), np.isnan(numbers)
    else:
        return None
    return groups | {"unknown": unknown} if unknown.any() else groups


def _thirds(numbers: np.ndarray) -> dict[str, np.ndarray]:
    # Rounded first, so that the bounds in the names are the very ones that cut.
    low, high = (float(f"{cut:.4g}") for cut in np.nanquantile(numbers, [1 / 3, 2 / 3]))
    groups = {
        f"up to {_plain(low)}": numbers <= low,
        f"{_plain(low)} to {_plain(high)}": (numbers > low) & (numbers <= high),
        f"above {_plain(high)}": numbers > high,
    }
    return {name: members for name, members in groups.items() if members.any()}


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:g}"


def _row(predictions: Predictions, column: str, value: str, members: np.ndarray) -> dict:
    patients = len(np.unique(predictions.patient_id[members]))
    return {"column": column, "value": value, "n": int(members.sum()), "patients": patients}


def _group_metrics(
    predictions: Predictions, members: np.ndarray, num_resamples: int, seed: int
) -> dict:
    report = compute_metrics(predictions.take(members), num_resamples, seed)
    several = {"value": None, "reason": "a task of several classes has one a class"}
    metrics = {name: report.get(name, several) for name in SUBGROUP_METRICS}
    classes = np.unique(predictions.labels[members])
    if report["task"] != "binary" or len(classes) == 2:
        return {"metrics": metrics}
    other = predictions.labels != classes[0]
    if not other.any():
        return {"metrics": metrics}
    wider = compute_metrics(predictions.take(members | other), num_resamples, seed)
    against = f"all {other.sum()} images of {predictions.class_names[1 - classes[0]]}"
    return {"against": against, "metrics": metrics | {"auroc": wider["auroc"]}}


def _certainty(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image's D decisions (K if multi-label, else 1), each (N, D): the log-odds of what was
    decided, the distance from the boundary in log-odds, and bool, whether it is wrong."""
    log_odds, decided = predictions.log_odds, predictions.decisions
    with np.errstate(divide="ignore"):
        thresholds = np.array(predictions.thresholds or (0.5,))
        boundary = np.log(thresholds) - np.log1p(-thresholds)
    if predictions.multi_label:
        confidence = np.where(decided, log_odds, -log_odds)
        return confidence, np.abs(log_odds - boundary), decided != predictions.labels
    confidence = np.take_along_axis(log_odds, decided[:, None], axis=1)
    wrong = (decided != predictions.labels)[:, None]
    if len(predictions.class_names) == 2:
        return confidence, np.abs(log_odds[:, 1:] - boundary), wrong
    ordered = np.sort(predictions.logits, axis=1)
    return confidence, ordered[:, -1:] - ordered[:, -2:-1], wrong


def _truth(predictions: Predictions, index: int) -> str:
    if not predictions.multi_label:
        return predictions.class_names[predictions.labels[index]]
    names = [n for n, present in zip(predictions.class_names, predictions.labels[index]) if present]
    return "|".join(names) or "none"


def _resize(pixels: np.ndarray, height: int) -> np.ndarray:
    """To (height, PANEL); uint8 or float32."""
    smooth = Image.fromarray(pixels).resize((PANEL, height), Image.Resampling.BILINEAR)
    return np.asarray(smooth)


def _overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) of grey, uint8, and heat, float in [0, 1], both (h, w)."""
    opacity = MAX_OPACITY * heat[..., None]
    colour = 255 * matplotlib.colormaps["YlOrRd"](heat)[..., :3]
    return (grey[..., None] * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def _write(canvas: Image.Image, text: str, corner: tuple[int, int], width: int, colour) -> None:
    """One line, as small as it must be to fit, and cut where even the smallest type does not."""
    fonts = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    for size in range(FONT_SIZE, MIN_FONT_SIZE - 1, -1):
        font = ImageFont.truetype(fonts, size)
        if font.getlength(text) <= width:
            break
    while font.getlength(text) > width:
        text = text.removesuffix("\u2026")[:-1] + "\u2026"
    ImageDraw.Draw(canvas).text(corner, text, fill=colour, font=font)


def _colour_bar(canvas: Image.Image, left: int, top: int) -> None:
    """Heat 0 to 1 over dark grey, between its ends' names, in a panel's width."""
    before, after, height = 96, 26, 18
    heat = np.tile(np.linspace(0, 1, PANEL - before - after), (height, 1))
    bar = _overlay(np.full(heat.shape, 90, dtype=np.uint8), heat)
    canvas.paste(Image.fromarray(bar), (left + before, top + 8))
    _write(canvas, "heat 0", (left, top), before, "white")
    _write(canvas, "1", (left + PANEL - 18, top), after, "white")
