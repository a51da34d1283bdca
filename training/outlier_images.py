"""Images that are no chest X-ray, drawn by a program, to teach the outlier detector.

Noise of every smoothness, heaps of shapes as in photographs (dead leaves), text pages, charts,
screens, patterns, blank fields, limbs, skulls, solids and sections of bodies; and X-rays turned,
cut, shuffled or covered. Nothing here comes from a real image other than a training X-ray.
"""

from collections.abc import Callable

import numpy as np
from accelerate.utils import tqdm
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from modeling.image_cxr import FULL_SCALE

SIDE = 128

Rng = np.random.Generator


def draw_outliers(xrays: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws `count` images.

    Args:
        xrays: uint16 (N, H, W), training images, which an eighth of the outliers are made from.
        count: images to draw.
        seed: of the draws.

    Returns:
        uint16 (count, 128, 128), 0..65535.
    """
    rng = np.random.default_rng(seed)
    outliers = np.empty((count, SIDE, SIDE), np.uint16)
    for row in tqdm(range(count), desc="drawn outliers", unit="image", leave=False):
        if rng.random() < 1 / 8:
            image = _spoil(xrays[rng.integers(len(xrays))], rng)
        else:
            image = _draw(rng)
            if rng.random() < 0.15:
                share = rng.random()
                image = share * image + (1 - share) * _draw(rng)
        if rng.random() < 0.1:
            image = 1 - image
        outliers[row] = (np.clip(image, 0, 1) * FULL_SCALE).round()
    return outliers


def _draw(rng: Rng) -> np.ndarray:
    return DRAWN[rng.integers(len(DRAWN))](rng)


# ---------------------------------------------------------------------- each: float (SIDE, SIDE)


def _noise(rng: Rng) -> np.ndarray:
    """A power law spectrum, from white noise to clouds, stretched along one axis."""
    stretch = rng.uniform(0.5, 2, 2)
    frequency = np.hypot(
        np.fft.fftfreq(SIDE)[:, None] * stretch[0], np.fft.fftfreq(SIDE)[None] * stretch[1]
    )
    frequency[0, 0] = 1 / SIDE
    spectrum = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / frequency ** rng.uniform(0, 2.6)
    return _expose(np.fft.ifft2(spectrum).real, rng)


def _leaves(rng: Rng) -> np.ndarray:
    """Shapes that cover one another, as things do in a photograph."""
    canvas, draw = _canvas(2, int(rng.integers(256)))
    largest = rng.uniform(15, 140)
    for _ in range(rng.integers(2, 120)):
        width, height = largest * rng.power(2, 2) * rng.uniform(0.3, 1.5, 2) + 2
        x, y = rng.uniform(-40, 2 * SIDE + 20, 2)
        _shape(draw, (x, y, x + width, y + height), int(rng.integers(256)), rng)
    image = _shrink(canvas)
    if rng.random() < 0.5:
        image = image * rng.uniform(0.5, 1) + 0.5 * rng.random() * _noise(rng)
    return image


def _text(rng: Rng) -> np.ndarray:
    """Lines of letters and of bars, as a page looks from near and from far."""
    ink, paper = (int(rng.integers(90)), 255) if rng.random() < 0.6 else (255, 30)
    canvas, draw = _canvas(3, paper)
    size = int(np.exp(rng.uniform(1.8, 3.7)))
    font, y = ImageFont.load_default(size), rng.uniform(0, 40)
    while y < 3 * SIDE:
        x, end = rng.uniform(5, 50), 3 * SIDE - rng.uniform(5, 150)
        while x < end:
            width = rng.uniform(1, 6) * size / 2
            if rng.random() < 0.5:
                letters = rng.integers(97, 123, max(1, int(2 * width / size)))
                draw.text((x, y), "".join(map(chr, letters)), fill=ink, font=font)
            else:
                draw.rectangle((x, y + 0.3 * size, x + width, y + 0.9 * size), fill=ink)
            x += width + 0.4 * size
        y += size * rng.uniform(1.1, 2)
    return _shrink(canvas)


def _chart(rng: Rng) -> np.ndarray:
    canvas, draw = _canvas(2, int(rng.choice([255, 255, 240, 200, 90, 30])))
    for _ in range(rng.integers(1, 12)):
        grey = int(rng.integers(256))
        if rng.random() < 0.4:
            xs = np.linspace(0, 2 * SIDE, rng.integers(2, 20))
            points = [(x, rng.uniform(0, 2 * SIDE)) for x in xs]
            draw.line(points, fill=grey, width=int(rng.integers(1, 8)))
        else:
            x, y, width, height = rng.uniform(0, 2 * SIDE, 4)
            _shape(draw, (x, y, x + width / 2 + 2, y + height / 2 + 2), grey, rng)
    return _shrink(canvas)


def _window(rng: Rng) -> np.ndarray:
    """Flat panels, frames, buttons and short lines of letters, as on a screen."""
    tone = int(rng.integers(20, 256))
    canvas, draw = _canvas(2, tone)
    for _ in range(rng.integers(2, 25)):
        x, y = rng.uniform(0, 2 * SIDE, 2)
        width, height = rng.uniform(10, 2 * SIDE), rng.choice([10, 20, 40, 120]) * rng.random() + 6
        fill = int(np.clip(tone + rng.choice([-60, -15, 0, 15, 60]), 0, 255))
        draw.rectangle((x, y, x + width, y + height), fill=fill, outline=int(rng.integers(256)))
        letters = "".join(map(chr, rng.integers(97, 123, rng.integers(1, 20))))
        font = ImageFont.load_default(int(rng.integers(8, 18)))
        draw.text((x + 3, y + 2), letters, fill=255 if fill < 100 else 0, font=font)
    return _shrink(canvas)


def _pattern(rng: Rng) -> np.ndarray:
    """Waves and their products: stripes, checks, weaves."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle = rng.uniform(0, np.pi)
    along, across = (
        x * np.cos(angle) + y * np.sin(angle),
        y * np.cos(angle) - x * np.sin(angle),
    )
    image = np.sin(2 * np.pi * (rng.uniform(1, 40) * along + rng.random()))
    if rng.random() < 0.5:
        image = image * np.sin(2 * np.pi * rng.uniform(1, 20) * across)
    return _expose(np.sign(image) if rng.random() < 0.4 else image, rng)


def _blank(rng: Rng) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    slope = rng.uniform(-0.5, 0.5, 5) * rng.random()
    image = rng.random() + slope @ np.stack([x, y, x * x, y * y, x * y]).reshape(5, -1)
    grain = rng.normal(size=(SIDE, SIDE)) * rng.choice([0, 0.01, 0.05])
    return np.clip(image.reshape(SIDE, SIDE) + grain, 0, 1)


def _section(rng: Rng) -> np.ndarray:
    """A body cut across: an outline, perhaps a ring of bone, organs."""
    canvas, draw = _ground(rng)
    centre, half, tone = rng.uniform(40, 88, 2), rng.uniform(25, 64, 2), rng.uniform(0.2, 0.8)
    _disc(draw, centre, half, tone)
    if rng.random() < 0.6:
        _disc(draw, centre, half, min(1, tone + 0.4))
        _disc(draw, centre, half - rng.uniform(2, 8), 0.7 * tone)
    for _ in range(rng.integers(2, 14)):
        where = centre + rng.uniform(-0.6, 0.6, 2) * half
        _disc(draw, where, rng.uniform(3, 0.6 * half), rng.random())
    return _soften(canvas, rng)


def _hand(rng: Rng) -> np.ndarray:
    """Fingers of three bones each, fanned out from a wrist, within softer flesh."""
    canvas, draw = _ground(rng)
    wrist, turn, tone = rng.uniform(40, 88, 2), rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8)
    for finger in range(rng.integers(3, 7)):
        angle = turn + (finger - 2) * rng.uniform(0.15, 0.4)
        step = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(10, 27)
        joint, flesh, bone = wrist, rng.uniform(8, 16), rng.uniform(3, 8)
        for _ in range(3):
            _rod(draw, joint, joint + step, flesh, 0.5 * tone)
            _rod(draw, joint, joint + step, bone, tone + 0.2)
            joint = joint + 1.1 * step
    elbow = wrist - 60 * np.array([np.cos(turn), np.sin(turn)])
    _rod(draw, wrist, elbow, rng.uniform(20, 45), 0.5 * tone)
    _rod(draw, wrist, elbow, rng.uniform(8, 16), tone + 0.2)
    return _soften(canvas, rng)


def _limb(rng: Rng) -> np.ndarray:
    """One or two long bones in a limb that crosses the image."""
    canvas, draw = _ground(rng)
    centre, angle, width = rng.uniform(40, 88, 2), rng.uniform(0, np.pi), rng.uniform(25, 70)
    along, tone = 90 * np.array([np.cos(angle), np.sin(angle)]), rng.uniform(0.2, 0.8)
    _rod(draw, centre - along, centre + along, width, 0.5 * tone)
    for bone in range(rng.integers(1, 3)):
        aside = centre + (bone - 0.5) * 0.4 * width * np.array([1, 0])
        end = aside + along * rng.uniform(-0.2, 1)
        _rod(draw, aside - along, end, width * rng.uniform(0.15, 0.35), tone + 0.3)
    return _soften(canvas, rng)


def _skull(rng: Rng) -> np.ndarray:
    """A bony outline, mostly with a pair of holes: a skull, a pelvis."""
    canvas, draw = _ground(rng)
    centre, half, tone = rng.uniform(40, 88, 2), rng.uniform(35, 60, 2), rng.uniform(0.2, 0.8)
    _disc(draw, centre, half, tone + 0.2)
    _disc(draw, centre, half - 5, tone)
    height, size = rng.uniform(-0.2, 0.5), rng.uniform(6, 16)
    for side in (-0.4, 0.4):
        hole = centre + half * np.array([side, height])
        _disc(draw, hole, size * np.array([1, 0.8]), tone * rng.uniform(0.2, 0.7))
    for _ in range(rng.integers(8)):
        where = centre + half * np.array([rng.uniform(-0.6, 0.6), rng.random()])
        _disc(draw, where, np.full(2, rng.uniform(2, 9)), rng.random())
    return _soften(canvas, rng)


def _solid(rng: Rng) -> np.ndarray:
    """Ellipsoids as X-rays see them: brightness grows with the depth that is crossed."""
    depth = 0
    for part in range(rng.integers(1, 10)):
        centre, half = rng.uniform(30, 98, 2), rng.uniform(5, 40, 2) + (25 if part == 0 else 0)
        angle = rng.uniform(0, np.pi)
        y, x = np.mgrid[:SIDE, :SIDE] - centre[:, None, None]
        along = (x * np.cos(angle) + y * np.sin(angle)) / half[0]
        across = (y * np.cos(angle) - x * np.sin(angle)) / half[1]
        thickness = np.sqrt(np.clip(1 - along**2 - across**2, 0, None))
        depth = depth + thickness * (1.5 if part == 0 else rng.uniform(-0.7, 1))
    image = 1 - np.exp(-rng.uniform(0.5, 3) * np.clip(depth, 0, None))
    return np.clip(image + rng.uniform(0, 0.15) * (_noise(rng) - 0.5) * (image > 0), 0, 1)


def _spoil(xray: np.ndarray, rng: Rng) -> np.ndarray:
    """An X-ray of which no reader could say much: turned, shuffled, a detail, tiny, covered."""
    image = _resize(xray.astype(np.float32) / FULL_SCALE, SIDE)
    kind = rng.integers(6)
    if kind == 0:
        return np.rot90(image, rng.integers(1, 4))
    if kind == 1:
        return image[::-1]
    if kind == 2:
        parts = int(rng.choice([2, 4]))
        tiles = image.reshape(parts, SIDE // parts, parts, SIDE // parts).swapaxes(1, 2)
        # Along one cycle, so that no tile keeps its place.
        cycle, order = rng.permutation(parts**2), np.empty(parts**2, int)
        order[cycle] = np.roll(cycle, 1)
        tiles = tiles.reshape(-1, *tiles.shape[2:])[order].reshape(tiles.shape)
        return tiles.swapaxes(1, 2).reshape(SIDE, SIDE)
    if kind == 3:
        side = rng.integers(16, 44)
        top, left = rng.integers(0, SIDE - side, 2)
        return _resize(image[top : top + side, left : left + side], SIDE)
    if kind == 4:
        side, ground = rng.integers(24, 56), _draw(rng).copy()
        top, left = rng.integers(0, SIDE - side, 2)
        ground[top : top + side, left : left + side] = _resize(image, side)
        return ground
    share = rng.uniform(0.6, 0.9)
    return share * _leaves(rng) + (1 - share) * image


DRAWN: tuple[Callable[[Rng], np.ndarray], ...] = (
    _noise,
    _leaves,
    _leaves,
    _text,
    _chart,
    _window,
    _pattern,
    _blank,
    _section,
    _section,
    _hand,
    _limb,
    _skull,
    _solid,
    _solid,
)


# --------------------------------------------------------------------------------- tools of these


def _canvas(scale: int, grey: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """8 bits, larger than the image, for smooth edges."""
    canvas = Image.new("L", (scale * SIDE, scale * SIDE), grey)
    return canvas, ImageDraw.Draw(canvas)


def _ground(rng: Rng) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Floats in [0, 1]: mostly the black around an exposed body part."""
    canvas = Image.new("F", (SIDE, SIDE), float(rng.choice([0, 0, 0, 0.1, 0.9]) * rng.random()))
    return canvas, ImageDraw.Draw(canvas)


def _shape(draw: ImageDraw.ImageDraw, box: tuple, grey: int, rng: Rng) -> None:
    kind = rng.integers(3)
    if kind == 0:
        draw.ellipse(box, fill=grey)
    elif kind == 1:
        draw.rectangle(box, fill=grey)
    else:
        corners = rng.uniform(box[:2], box[2:], (rng.integers(3, 8), 2))
        draw.polygon([tuple(corner) for corner in corners], fill=grey)


def _disc(draw: ImageDraw.ImageDraw, centre: np.ndarray, half: np.ndarray, tone: float) -> None:
    draw.ellipse((*(centre - half), *(centre + half)), fill=float(tone))


def _rod(
    draw: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, width: float, tone: float
) -> None:
    draw.line((*start, *end), fill=float(tone), width=int(width))
    for joint in (start, end):
        _disc(draw, joint, np.full(2, 0.65 * width), tone)


def _soften(canvas: Image.Image, rng: Rng) -> np.ndarray:
    image = gaussian_filter(np.asarray(canvas), rng.uniform(0.5, 4))
    image = image + rng.uniform(0, 0.25) * (_noise(rng) - 0.5) * (image > 0.05)
    image = np.clip(image / max(image.max(), 0.5), 0, 1)
    return image ** np.exp(rng.uniform(-0.5, 0.5))


def _expose(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Stretched to a random range of at least 0.3, and a random gamma."""
    low = rng.uniform(0, 0.7)
    high = rng.uniform(low + 0.3, 1)
    image = (image - image.min()) / (np.ptp(image) + 1e-9)
    return (low + (high - low) * image) ** np.exp(rng.uniform(-0.6, 0.6))


def _shrink(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BILINEAR), float) / 255


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(image.astype(np.float32)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    return np.asarray(small)
