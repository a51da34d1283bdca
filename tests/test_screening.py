"""Screenshots, photographs of films and negatives: what is put right, what is said, and that real
X-rays pass untouched.
"""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modeling import CxrImageProcessor
from modeling.image_cxr import CxrImage
from modeling.screening_cxr import screen

PROCESSOR = CxrImageProcessor(64)


def chest(height=300, width=360):
    """A grey stand-in of a chest: dark lungs beside a bright spine, brighter below; noisy."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    lungs = np.exp(-8 * (np.abs(x) - 0.45) ** 2 - 1.5 * (y + 0.1) ** 2)
    grey = 190 - 130 * lungs + 20 * y - 90 * (np.abs(x) > 0.9)
    noise = np.random.default_rng(0).normal(0, 4, grey.shape)
    return (grey + noise).clip(1, 254).astype(np.uint8)


CHEST = chest()


def said(image, words):
    return any(words in warning for warning in image.warnings)


def on_canvas(colour, form="PNG", chrome=False):
    """The chest on a plain canvas, as a window's title bar or without, encoded."""
    canvas = Image.new("RGB", (640, 480), colour)
    canvas.paste(Image.fromarray(CHEST), (200, 110))
    if chrome:
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 0, 640, 30), fill=(225, 228, 235))
        draw.text((8, 8), "Viewer - File Edit View Window Help", fill=(40, 40, 40))
        draw.rectangle((0, 455, 640, 480), fill=(60, 60, 66))
    file = io.BytesIO()
    canvas.save(file, form)
    return file.getvalue()


def test_a_plain_x_ray_passes_untouched():
    image = PROCESSOR.open(CHEST)
    np.testing.assert_array_equal(image.pixels, CHEST.astype(np.uint16) * 257)
    assert image.warnings == ()


@pytest.mark.parametrize("colour", ["white", "black", (128, 128, 128), (30, 60, 160)], ids=str)
@pytest.mark.parametrize("chrome", [False, True])
def test_a_screenshot_is_cut_to_the_x_ray(colour, chrome):
    image = PROCESSOR.open(on_canvas(colour, chrome=chrome))
    np.testing.assert_array_equal(image.pixels, CHEST.astype(np.uint16) * 257)
    assert said(image, "of 640 x 480 pixels, 360 x 300 are left")


@pytest.mark.parametrize("colour", ["white", (128, 128, 128)], ids=str)
def test_a_screenshot_in_jpeg_is_cut_to_within_its_blocks(colour):
    height, width = PROCESSOR.open(on_canvas(colour, "JPEG")).pixels.shape
    assert 300 <= height <= 316 and 360 <= width <= 376


def test_narrow_black_borders_stay():
    bordered = np.pad(CHEST, ((0, 0), (40, 40)))  # 18 % of the width, as shutters leave
    image = PROCESSOR.open(bordered)
    assert image.pixels.shape == (300, 440)
    assert image.warnings == ()


def test_an_overexposed_abdomen_is_no_frame():
    bright = CHEST.copy()
    bright[250:] = 255
    assert PROCESSOR.open(bright).pixels.shape == (300, 360)


@pytest.mark.parametrize("colour", [None, "white", "black"])
def test_a_negative_is_undone_in_a_frame_or_without(colour):
    negative = 255 - CHEST
    if colour:
        canvas = Image.new("L", (640, 480), colour)
        canvas.paste(Image.fromarray(negative), (200, 110))
        negative = np.asarray(canvas)
    image = PROCESSOR.open(negative)
    np.testing.assert_array_equal(image.pixels, CHEST.astype(np.uint16) * 257)
    assert said(image, "negative")


@pytest.mark.parametrize(
    ("channels", "words"),
    [((1, 0.93, 0.8), "tinted"), ((0.8, 0.9, 1), "tinted"), ((1, 1, 1), None)],
    ids=["warm", "blue film", "grey"],
)
def test_a_tint_is_said(channels, words):
    image = PROCESSOR.open((CHEST[..., None] * np.array(channels)).astype(np.uint8))
    assert image.warnings == () if words is None else said(image, words)


def test_coloured_marks_are_said():
    marked = Image.fromarray(CHEST).convert("RGB")
    ImageDraw.Draw(marked).ellipse((100, 100, 160, 160), outline=(255, 40, 40), width=2)
    assert said(PROCESSOR.open(marked), "Coloured marks")


def test_a_camera_s_exposure_is_said():
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x829A] = 0.01
    file = io.BytesIO()
    Image.fromarray(CHEST).save(file, "JPEG", exif=exif)
    assert said(PROCESSOR.open(file.getvalue()), "camera's photograph")


def test_a_light_box_is_said():
    noise = np.random.default_rng(1).integers(235, 255, (420, 480), dtype=np.uint8)
    noise[60:360, 60:420] = CHEST
    image = PROCESSOR.open(noise)
    assert said(image, "light box")
    assert image.pixels.shape == (420, 480)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((64, 64), np.uint16),
        np.full((64, 64), 65535, np.uint16),
        np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16),
        np.tile(np.arange(32, dtype=np.uint16) * 2000, (640, 1)),
    ],
    ids=["black", "white", "noise", "narrow ramp"],
)
def test_what_is_no_chest_passes_untouched(pixels):
    image = screen(CxrImage(pixels, ("said before.",), 4.0))
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (image.warnings, image.age) == (("said before.",), 4.0)


def test_an_overexposed_abdomen_beside_a_shutter_is_no_frame():
    bright = np.pad(CHEST, ((0, 0), (12, 0)))
    bright[200:, 12:] = 255
    assert PROCESSOR.open(bright).pixels.shape == (300, 372)


@pytest.mark.parametrize("turn", [lambda x: x[::-1], lambda x: x, lambda x: x.T], ids="vAh")
def test_a_gradient_is_no_negative(turn):
    gradient = np.ascontiguousarray(turn(np.tile(np.linspace(0, 255, 90), (90, 1)).T))
    assert PROCESSOR.open(gradient.astype(np.uint8)).warnings == ()


# Of all 13,905 adults and 2,594 of ChestX-ray14, each a share; two there are negatives.
@pytest.mark.parametrize(("pattern", "step"), [("adults/*/*", 140), ("chestxray14/images/*", 26)])
def test_no_x_ray_of_other_people_is_inverted_and_their_negatives_are(pattern, step, cxr_data):
    files = sorted(path for path in cxr_data.glob(pattern) if path.suffix != ".csv")[::step]
    files = [file for file in files if file.stem not in ("00017625_000", "00017999_000")]
    undone = []
    for file in files:
        pixels = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 257
        assert not said(screen(CxrImage(pixels)), "negative"), file
        undone.append(said(screen(CxrImage(65535 - pixels)), "negative"))
    assert len(undone) > 90
    assert np.mean(undone) > 0.95


@pytest.mark.parametrize(
    ("folder", "step", "found"),
    [
        ("chest_xray", 60, 0.98),
        ("kermany_fullres", 4, 0.99),
        ("external/actualmed", 1, 0.95),
        ("external/openist", 2, 0.93),
    ],
)
def test_real_x_rays_pass_and_their_negatives_are_undone(folder, step, found, cxr_data):
    images = sorted(path for path in (cxr_data / folder).rglob("*.*") if "mask" not in str(path))
    undone = []
    for path in images[::step]:
        pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
        image = PROCESSOR.open(path)
        np.testing.assert_array_equal(image.pixels, pixels)
        assert image.warnings == ()
        undone.append(np.array_equal(screen(CxrImage(65535 - pixels)).pixels, pixels))
    assert len(undone) >= 15
    assert np.mean(undone) >= found
