"""A case as a picture: the X-ray, and over it the heatmap of each model, side by side."""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.figures.style import printable
from evaluation.pages.wording import percent
from modeling.overlay_cxr import overlay

# In pixels: three panels of this width are legible on a telephone.
PANEL = 300
GAP = 12
LINE = 36
FONT_SIZE, MIN_FONT_SIZE = 26, 16
MAX_COLUMNS = 4
JPEG_QUALITY = 75
RED = (255, 138, 122)


def draw_case(
    image: np.ndarray,
    heatmaps: Mapping[str, np.ndarray],
    case: dict,
    targets: Mapping[str, str],
    path: str | Path,
) -> None:
    """A case as one JPEG: the X-ray, and over it the heatmap of each model, side by side.

    A cross marks the models that err.
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
        panels.append(
            (_overlay(grey, heat), title, colour, f"{targets[name]} {percent(probability)}")
        )
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


def _resize(pixels: np.ndarray, height: int) -> np.ndarray:
    """To (height, PANEL); uint8 or float32."""
    smooth = Image.fromarray(pixels).resize((PANEL, height), Image.Resampling.BILINEAR)
    return np.asarray(smooth)


def _overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) of grey, uint8, and heat, float in [0, 1], both (h, w)."""
    return overlay(grey.astype(np.uint16) << 8, heat)


def _write(
    canvas: Image.Image,
    text: str,
    corner: tuple[int, int],
    width: int,
    colour: str | tuple[int, int, int],
) -> None:
    """One line, as small as it must be to fit, and cut where even the smallest type does not."""
    text, fonts = printable(text), Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
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
