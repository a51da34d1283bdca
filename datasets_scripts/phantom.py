"""Chest phantoms: the embedded data set that needs no download.

A phantom is a set of ellipsoids (trunk, lungs, heart, spine, ribs, clavicles, diaphragm domes,
vessels) crossed by parallel X-rays. A ray through an ellipsoid of depth half-axis c travels
2c*sqrt(1 - u^2 - v^2), so the line integral of the attenuation (Beer-Lambert: I = I0 * exp(-L)) is
exact. Half of the phantoms carry soft opacities inside a lung. Lengths are centimetres, attenuation
coefficients 1/cm; image right is the patient's left, as on a displayed film.
"""

import io
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from datasets import DatasetDict
from PIL import Image
from tqdm.auto import tqdm

from datasets_scripts.schema import Source, build, make_features

CLASSES = ("NORMAL", "OPACITY")
SOURCE = Source(
    name="phantom",
    title="computed chest phantoms; no patient was imaged",
    classes=CLASSES,
    licence="apache-2.0",
    population="synthetic chests made by the project's own code; a patient is a phantom",
    limits=(
        "The images are synthetic phantoms: the numbers show that the code works and say nothing "
        "about real X-rays.",
    ),
    out_of_scope=("Real X-rays: it has seen synthetic ones only.",),
)
FIRST_INDEX = {"train": 0, "validation": 1_000_000, "test": 2_000_000}

# Difficulty: how dense and how large an opacity is, and the lung texture it hides in.
OPACITY_DENSITY = (0.09, 0.145)  # 1/cm above lung, at the centre of the opacity
OPACITY_RADIUS = (2.2, 5.2)  # cm, in the image plane
OPACITY_COUNT = (0.62, 0.26, 0.12)  # probability of one, two, three
TEXTURE_STRENGTH = 0.08  # optical depth (standard deviation) where the lung is thickest
PHOTONS = (3e3, 3e4)  # reaching a pixel of a 128-pixel image through air: fewer is noisier

FIELD = 16.5  # half the side of the image, cm
TISSUE, LUNG, BONE = 0.20, 0.055, 0.24  # 1/cm; bone is counted above tissue
TEXTURE_NODES = 26  # cells of lung texture along a side


class Ellipsoid(NamedTuple):
    """A part of the patient, lengths in cm.

    Attributes:
        x: centre, to the right.
        y: centre, downwards.
        a: half-axis in the image.
        b: half-axis in the image.
        c: half-axis in depth.
        turn: in the image, radians.
        bend: of the axis a.
    """

    x: float
    y: float
    a: float
    b: float
    c: float
    turn: float = 0.0
    bend: float = 0.0


class Phantom(NamedTuple):
    """What `generate` gives.

    Attributes:
        image: uint8 (H, W).
        lung_mask: bool (H, W).
        boxes: [x, y, width, height] in pixels, one an opacity.
    """

    image: np.ndarray
    lung_mask: np.ndarray
    boxes: list[list[int]]


def _posed(
    parts: dict[str, list[Ellipsoid]], turn: float, right: float, down: float
) -> dict[str, np.ndarray]:
    """The patient turned in the image plane and shifted.

    Each part's shapes become an array (K, 8), rows of what `_project` needs. A turned ellipse is
    also a sheared upright one: for each column its centre line and half-height are closed forms.
    """
    x, y, a, b, c, own, bend = np.array(
        [shape for shapes in parts.values() for shape in shapes], np.float32
    ).T
    x, y = (
        x * math.cos(turn) - y * math.sin(turn) + right,
        x * math.sin(turn) + y * math.cos(turn) + down,
    )
    cos, sin = np.cos(own + turn), np.sin(own + turn)
    yy = (sin / a) ** 2 + (cos / b) ** 2
    slope = -cos * sin * (1 / a**2 - 1 / b**2) / yy
    reach, rise = np.hypot(a * cos, b * sin), np.hypot(a * sin, b * cos) + np.abs(bend)
    rows = np.stack([x, y, reach, rise, slope, bend, 2 * c, 2 * c * np.sqrt(yy)], axis=1)
    ends = np.cumsum([len(shapes) for shapes in parts.values()])
    return dict(zip(parts, np.split(rows, ends[:-1])))


def _project(shapes: np.ndarray, size: int, union: bool = False) -> np.ndarray:
    """Path length of each ray, float32 (H, W) in cm.

    The sum over the shapes, or that through the `union` of shapes that share one mid-depth, which
    is the longest of their paths.
    """
    canvas = np.zeros((size, size), np.float32)
    axis = _axis(size)
    x, y, reach, rise, slope, bend, depth, steep = shapes.T[:, :, None]
    low = np.concatenate([x - reach, y - rise], axis=1)
    high = np.concatenate([x + reach, y + rise], axis=1)
    windows = np.concatenate([low, high], axis=1) * (size / (2 * FIELD)) + size / 2
    windows = np.clip(windows, 0, size).astype(np.int32) + (0, 0, 1, 1)
    dx = axis - x
    u = (dx / reach) ** 2
    rows, columns = steep * (axis - y), steep * (slope * dx + bend * u)
    height = depth * depth * (1 - u)
    for shape, (x0, y0, x1, y1) in enumerate(windows.tolist()):
        path = rows[shape, y0:y1, None] - columns[shape, x0:x1]
        path *= path
        np.subtract(height[shape, x0:x1], path, out=path)  # squared, negative outside
        window = canvas[y0:y1, x0:x1]
        if union:
            np.maximum(window, path, out=window)
        else:
            np.maximum(path, 0, out=path)
            window += np.sqrt(path, out=path)
    return np.sqrt(canvas, out=canvas) if union else canvas


@lru_cache(maxsize=8)
def _axis(size: int) -> np.ndarray:
    """Pixel centres along a side, float32 (size,), cm."""
    return ((np.arange(size) + 0.5) * (2 * FIELD / size) - FIELD).astype(np.float32)


def _anatomy(rng: np.random.Generator) -> dict[str, list[Ellipsoid]]:
    """One patient: the organs as lists of ellipsoids, before the patient is turned and shifted."""
    draws = iter(rng.uniform(-1, 1, 256).tolist())

    def vary(value: float, spread: float) -> float:
        return value * (1 + spread * next(draws))

    wide, tall, fat, heart = vary(1, 0.09), vary(1, 0.09), vary(1, 0.12), vary(1, 0.16)
    chest = 13.0 * wide
    parts = {
        "trunk": [
            Ellipsoid(0, 8, chest + 2.6 * fat, 30, 9.5 * fat),
            Ellipsoid(
                0, -8.5 * tall, vary(21, 0.06), vary(6.5, 0.08), 6.5 * fat, 0, vary(3.0, 0.3)
            ),
            Ellipsoid(0, -18, vary(5.0, 0.12), 9, 5.5),
        ],
        "organs": [
            Ellipsoid(2.6 * heart, 4.6 * tall, 6.2 * heart, 4.6 * heart, 6.2, vary(0.62, 0.3)),
            Ellipsoid(-1.6 * heart, 4.3 * tall, 3.2 * heart, 4.8 * heart, 5.6),
            Ellipsoid(0, -5, vary(2.5, 0.15), 14, 7.4),
            Ellipsoid(vary(2.1, 0.2), -5.6 * tall, vary(2.0, 0.2), 2.1, 6.0),
            Ellipsoid(vary(2.4, 0.15), -1.6 * tall, 2.0, 3.4, 5.5),
        ],
        "airway": [
            Ellipsoid(0.4 * next(draws), -11.5, 0.95, 8.0, 0.95),
            Ellipsoid(-1.7, -2.9 * tall, 2.2, 0.7, 0.7, -0.75),
            Ellipsoid(1.9, -2.7 * tall, 2.4, 0.65, 0.65, 0.6),
        ],
        "spine": [Ellipsoid(0, 4, vary(1.75, 0.08), 27, 1.2)],
        "lungs": [],
        "bones": [],
        "soft": [],
    }
    pitch, first = vary(2.55, 0.06) * tall, next(draws)
    for i in range(13):
        parts["spine"].append(
            Ellipsoid(0, -16 + first + i * pitch, 1.75 + 0.03 * i, 0.46 * pitch, 0.8)
        )

    low = vary(7.6, 0.22)  # top of the right dome; the left one stands lower
    gap, slope, thick, lift = (
        vary(2.45, 0.07) * tall,
        vary(0.24, 0.35),
        vary(0.46, 0.2),
        vary(0.14, 0.6),
    )
    breast = max(0.0, 0.4 + next(draws))  # soft shadows low on both sides, in most patients
    for side in (-1, 1):
        reach = chest * (1.0 if side < 0 else 0.97)
        middle = 0.53 * reach
        parts["lungs"] += [
            Ellipsoid(
                side * (middle + 0.2),
                0.5,
                0.47 * reach,
                12.6 * tall + 0.5,
                8.2,
                -side * vary(0.07, 0.5),
            ),
            Ellipsoid(
                side * (middle + 0.3),
                6 * tall,
                0.49 * reach,
                11 * tall,
                8.6,
                -side * vary(0.03, 0.6),
            ),
        ]
        top = low if side < 0 else low + vary(0.9, 0.6)
        parts["organs"].append(
            Ellipsoid(side * (middle - 0.3), top + 13.5, vary(0.6, 0.06) * reach, 13.5, 16)
        )
        for i in range(9):
            y = -11.6 * tall + i * gap
            width = chest * min(1.02, math.sqrt(max(0.12, 1 - ((y - 5) / (18.6 * tall)) ** 2)))
            half, tilt = (width - 1.6) / 2, slope + 0.02 * i + 0.02 * next(draws)
            behind = Ellipsoid(
                side * (half + 1.6), y + half * tilt, half, thick, 0.62, side * tilt, 0.16 * half
            )
            parts["bones"].append(behind)
            if 1 <= i <= 6:  # the part in front runs down towards the sternum and is thinner
                half, tilt = 0.36 * width, 0.5 + 0.02 * i
                x = side * (0.98 * width - half)
                parts["bones"].append(
                    Ellipsoid(x, y + 3.7, half, 1.15 * thick, 0.36, -side * tilt, 0.2 * half)
                )
        tilt, bend = lift + 0.06 * next(draws), 0.4 * next(draws) - 0.1
        parts["bones"].append(
            Ellipsoid(7 * side * wide, -10.9 * tall, 6.1 * wide, 0.62, 0.85, -side * tilt, bend)
        )
        parts["bones"] += [
            Ellipsoid(
                side * (chest + 0.2 + 1.4 * next(draws)),
                -5.5 * tall,
                2.3,
                5.6,
                0.45,
                side * vary(0.22, 0.5),
            ),
            Ellipsoid(side * (chest + 4.4), -10.5 * tall, 2.3, 2.6, 2.2),
        ]
        hilum_x, hilum_y = side * vary(3.7, 0.12), -0.7 * tall + 0.8 * next(draws)
        parts["soft"].append(
            Ellipsoid(hilum_x, hilum_y, vary(1.3, 0.25), vary(2, 0.25), 1.3, -0.2 * side)
        )
        for i in range(7):
            angle, half = -1.15 + 0.39 * i + 0.12 * next(draws), vary(2.9, 0.3)
            x, y = hilum_x + side * half * math.cos(angle), hilum_y + half * math.sin(angle)
            parts["soft"].append(
                Ellipsoid(x, y, half, vary(0.32, 0.3), 0.5, side * angle, 0.3 * next(draws))
            )
        if breast:
            parts["soft"].append(
                Ellipsoid(side * vary(7.6, 0.1), vary(6, 0.2), 5.2, 4.2, 1.6 * breast)
            )
    return parts


def _longest(shapes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Path length through the union of the shapes at points (...,), as `_project` gives it."""
    columns = shapes.T.reshape(8, -1, *[1] * x.ndim)
    shape_x, shape_y, reach, _, slope, bend, depth, steep = columns
    dx = x - shape_x
    u = (dx / reach) ** 2
    squared = depth**2 * (1 - u) - (steep * (y - shape_y - slope * dx - bend * u)) ** 2
    return np.sqrt(np.maximum(squared.max(axis=0), 0))


def _opacities(rng: np.random.Generator, parts: dict[str, np.ndarray]) -> list[Ellipsoid]:
    """One to three opacities, each the one of 48 tries that is best surrounded by lung."""
    around = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    placed = []
    for _ in range(1 + rng.choice(len(OPACITY_COUNT), p=OPACITY_COUNT)):
        a = rng.uniform(*OPACITY_RADIUS)
        b, c, turn = a * rng.uniform(0.65, 1), a * rng.uniform(0.8, 1.3), rng.uniform(0, np.pi)
        x, y = rng.uniform((-13, -12), (13, 10), (48, 2)).T
        u, v = a * np.append(np.cos(around), 0), b * np.append(np.sin(around), 0)
        rim_x = x[:, None] + u * math.cos(turn) - v * math.sin(turn)
        rim_y = y[:, None] + u * math.sin(turn) + v * math.cos(turn)
        lung = _longest(parts["lungs"], rim_x, rim_y) - _longest(parts["organs"], rim_x, rim_y)
        best = (lung > 4).sum(axis=1).argmax()  # 4 cm: not behind the heart
        placed.append(Ellipsoid(float(x[best]), float(y[best]), a, b, c, turn))
    return placed


@lru_cache(maxsize=8)
def _upsampling(size: int) -> np.ndarray:
    """Smooth interpolation matrix, float32 (size, TEXTURE_NODES).

    Rows of unit norm keep white noise at unit variance.
    """
    position = np.linspace(0.5, TEXTURE_NODES - 1.5, size)[:, None]
    weights = np.exp(-((position - np.arange(TEXTURE_NODES)) ** 2) / (2 * 0.55**2))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def generate(index: int, seed: int = 0, size: int = 128) -> Phantom:
    """Phantom number `index` of the series `seed`, `size` pixels a side.

    It is the same whatever was generated before it. Odd indices carry opacities.

    Raises:
        ValueError: a size under 32 pixels.
    """
    if size < 32:
        raise ValueError(f"image_size {size} is too small for a phantom: use 32 or more.")
    rng = np.random.default_rng([seed, index])
    turn, right, down = rng.standard_normal(3)
    parts = _posed(_anatomy(rng), 0.045 * turn, 0.5 * right, 0.7 * down)
    trunk = _project(parts["trunk"], size, union=True)
    organs = _project(parts["organs"], size, union=True)
    lung = _project(parts["lungs"], size, union=True) - organs  # organs displace the lung
    lung = np.clip(lung, 0, trunk)

    depth = TISSUE * trunk - (TISSUE - LUNG) * lung
    depth += (TISSUE - LUNG) * (_project(parts["soft"], size) - _project(parts["airway"], size))
    depth += BONE * rng.uniform(0.6, 1.1) * _project(parts["bones"], size)
    depth += BONE * rng.uniform(0.4, 0.8) * _project(parts["spine"], size)
    texture = rng.standard_normal((TEXTURE_NODES, TEXTURE_NODES), np.float32)
    depth += (TEXTURE_STRENGTH / 17) * lung * (_upsampling(size) @ texture @ _upsampling(size).T)
    clear = float(depth[lung > 4].mean())  # automatic exposure control: the lung decides

    boxes, filling = [], np.zeros_like(lung)
    for shape in _opacities(rng, parts) if index % 2 else []:
        path = _project(_posed({"opacity": [shape]}, 0, 0, 0)["opacity"], size)
        # a density falling as 1 - r^2 from the centre integrates to 4/3 c (1 - u^2 - v^2)^(3/2)
        filling += (4 / 3 * shape.c * rng.uniform(*OPACITY_DENSITY)) * (path / (2 * shape.c)) ** 3
        seen = (path > 0) & (lung > 0)
        (top, bottom), (left, right) = (
            np.flatnonzero(seen.any(axis=axis))[[0, -1]].tolist() for axis in (1, 0)
        )
        boxes.append([left, top, right + 1 - left, bottom + 1 - top])
    # no denser than tissue, and only where there is lung
    depth += np.minimum(filling, (TISSUE - LUNG) * lung)

    photons = math.exp(rng.uniform(*np.log(PHOTONS))) * (128 / size) ** 2
    counts = photons * np.exp(-depth)  # Beer-Lambert
    counts += np.sqrt(counts) * rng.standard_normal((size, size), np.float32)  # quantum noise
    depth = math.log(photons) - np.log(np.maximum(counts, 1))
    # the characteristic curve of film (Hurter and Driffield 1890), an S over the log exposure
    middle, contrast = clear + rng.uniform(0.3, 0.8), rng.uniform(1.3, 1.8)
    grey = 255 / (1 + np.exp(contrast * (middle - depth)))
    return Phantom((grey + 0.5).astype(np.uint8), lung > 0, boxes)


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def load(
    *,
    num_train: int = 1200,
    num_validation: int = 200,
    num_test: int = 400,
    image_size: int = 128,
    seed: int = 0,
) -> DatasetDict:
    """Phantoms in the one schema with lung_mask and objects, NORMAL and OPACITY in turn.

    One phantom is one patient. A split's images depend on `seed` and `image_size` alone, so more of
    one split leaves the others as they are.

    Args:
        num_train: images in the training split
        num_validation: images in the validation split
        num_test: images in the test split
        image_size: pixels a side
        seed: of the series of phantoms

    Raises:
        ValueError: a number is negative, or the size under 32 pixels.
    """
    counts = dict(zip(FIRST_INDEX, (num_train, num_validation, num_test)))
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"num_{split} {count} is negative: use 0 for no {split} split.")
    rows, splits = [], []
    indices = [
        (split, FIRST_INDEX[split] + i) for split, count in counts.items() for i in range(count)
    ]
    for split, index in tqdm(indices, desc="phantoms", unit="image"):
        phantom = generate(index, seed, image_size)
        name = f"phantom-{seed}-{index:07d}"
        rows.append(
            {
                "image": {"path": f"{name}.png", "bytes": _png(phantom.image)},
                "label": index % 2,
                "image_id": f"{name}.png",
                "patient_id": name,
                "source": "phantom",
                "subtype": ("none", "single", "multiple")[min(len(phantom.boxes), 2)],
                "lung_mask": {"path": f"{name}-lungs.png", "bytes": _png(phantom.lung_mask)},
                "objects": {"bbox": phantom.boxes, "category": [1] * len(phantom.boxes)},
            }
        )
        splits.append(split)
    features = make_features(list(CLASSES), optional=("subtype", "lung_mask", "objects"))
    columns = {column: [row[column] for row in rows] for column in features}
    return build(columns, splits, features)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)
