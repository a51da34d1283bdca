"""The one preprocessing path: every kind of file, to known pixels."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from modeling import CxrImageProcessor

GREYS = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (48, 1))  # (48, 64)
FULL = GREYS.astype(np.uint16) * 257


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def half_transparent(mode):
    """The grey ramp, its lower half transparent, which shows black."""
    image = Image.fromarray(GREYS).convert(mode)
    alpha = np.full(GREYS.shape, 255, np.uint8)
    alpha[24:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


UPPER = np.where(np.arange(48)[:, None] < 24, FULL, 0).astype(np.uint16)
SIXTEEN = np.where(FULL < 60000, FULL + 3, FULL).astype(np.uint16)
BITS = np.where(GREYS > 127, 65535, 0).astype(np.uint16)
TWELVE = GREYS.astype(np.uint16) * 16 + 15  # a detector's 12 bits in a 16-bit file
SOURCES = {
    "L": (Image.fromarray(GREYS), FULL),
    "RGB": (Image.fromarray(GREYS).convert("RGB"), FULL),
    "P": (Image.fromarray(GREYS).convert("P"), FULL),
    "1": (Image.fromarray(GREYS > 127), BITS),
    "LA": (half_transparent("L"), UPPER),
    "RGBA": (half_transparent("RGB"), UPPER),
    "16 bit": (Image.fromarray(SIXTEEN), SIXTEEN),
    "12 in 16 bit": (Image.fromarray(TWELVE), (TWELVE / 4095 * 65535).round().astype(np.uint16)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_mode_gives_its_known_pixels_from_every_kind_of_input(kind, tmp_path):
    image, expected = SOURCES[kind]
    path = tmp_path / "x.png"
    image.save(path)
    processor = CxrImageProcessor(64)
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(processor.open(source).pixels, expected)


def test_a_palette_with_a_transparent_entry_shows_black_there(tmp_path):
    image = Image.fromarray(GREYS).convert("P")
    image.info["transparency"] = 255
    image.save(tmp_path / "x.png", transparency=255)
    loaded = CxrImageProcessor(64).open(tmp_path / "x.png").pixels
    assert loaded[0, -1] == 0
    assert loaded[0, 32] == FULL[0, 32]


@pytest.mark.parametrize(
    "array",
    [
        GREYS,
        FULL,
        np.dstack([GREYS] * 3),
        np.stack([GREYS] * 3),
        GREYS[..., None],
        GREYS[None],
        FULL.astype(np.float32) / 65535,
        torch.from_numpy(GREYS.copy()),
        torch.from_numpy(FULL.astype(np.float32) / 65535)[None],
    ],
    ids=lambda array: f"{tuple(array.shape)} {array.dtype}",
)
def test_arrays_and_tensors_give_the_pixels_of_the_file(array):
    np.testing.assert_array_equal(CxrImageProcessor(64).open(array).pixels, FULL)


def test_colour_becomes_luma():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert (CxrImageProcessor(32).open(red).pixels == 76 * 257).all()  # 0.299 * 255, rounded


UPRIGHT = {
    1: FULL,
    2: np.fliplr(FULL),
    3: np.rot90(FULL, 2),
    4: np.flipud(FULL),
    5: FULL.T,
    6: np.rot90(FULL, 3),
    7: np.rot90(FULL, 2).T,
    8: np.rot90(FULL),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(form, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREYS).save(tmp_path / "x", form, exif=exif)
    loaded = CxrImageProcessor(64).open(tmp_path / "x").pixels
    np.testing.assert_array_equal(loaded, UPRIGHT[orientation])


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    np.testing.assert_array_equal(CxrImageProcessor(64).read(image), image)


@pytest.mark.parametrize(("shape", "rows", "columns"), [((200, 100), 64, 32), ((50, 150), 21, 64)])
def test_the_aspect_ratio_is_kept_on_black(shape, rows, columns):
    square = CxrImageProcessor(64).read(np.full(shape, 255, np.uint8))
    assert square.shape == (64, 64)
    assert (square == 65535).any(1).sum() == rows
    assert (square == 65535).any(0).sum() == columns
    top, left = (64 - rows) // 2, (64 - columns) // 2
    assert (square[top : top + rows, left : left + columns] == 65535).all()
    assert square.sum(dtype=np.int64) == 65535 * rows * columns


def test_downscaling_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (512, 256))
    small = CxrImageProcessor(64).read(stripes)
    inner = small[:, 1:-1].astype(float) / 65535
    assert np.abs(inner - 0.5).max() < 0.01  # sampling without a filter gives 0 or 1


def test_a_squashing_processor_fills_the_square_and_restores_the_frame(tmp_path):
    wide = np.zeros((40, 80), np.uint8)
    wide[:, 40:] = 255
    CxrImageProcessor(64, geometry="squash").save_pretrained(tmp_path)
    processor = CxrImageProcessor.from_pretrained(tmp_path)
    pixels = processor.read(wide)
    assert pixels.shape == (64, 64)
    assert (pixels[:, :31] == 0).all() and (pixels[:, 33:] == 65535).all()
    restored = processor.restore(pixels / 65535, 40, 80)
    assert restored.shape == (40, 80)
    assert restored[:, :38].max() == 0 and restored[:, 42:].min() == 1


def test_a_cropping_processor_keeps_the_centre_and_restores_the_frame():
    wide = np.zeros((64, 192), np.uint8)
    wide[:, 64:128] = np.random.default_rng(0).integers(0, 256, (64, 64))
    processor = CxrImageProcessor(64, geometry="crop")
    pixels = processor.read(wide)
    np.testing.assert_array_equal(pixels, wide[:, 64:128] * np.uint16(257))
    restored = processor.restore(pixels / 65535, 64, 192)
    np.testing.assert_allclose(restored, wide / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(50, 150), (90, 64)])
def test_cropping_keeps_the_proportions(shape):
    image = np.zeros(shape, np.uint8)
    top, left = shape[0] // 2, shape[1] // 2
    image[top - 10 : top + 10, left - 10 : left + 10] = 255
    pixels = CxrImageProcessor(64, geometry="crop").read(image) / 65535
    side = 20 * 64 / min(shape)
    np.testing.assert_allclose(pixels.sum(0).max(), side, rtol=0.02)
    np.testing.assert_allclose(pixels.sum(1).max(), side, rtol=0.02)


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("geometry", ["pad", "crop"])
def test_a_stretched_image_gets_back_its_own_proportions(geometry, framed):
    y, x = np.mgrid[:600, :900] / 900
    original = (0.2 + 0.3 * x + 0.4 * (np.hypot(y - 0.33, x - 0.5) < 0.2)).astype(np.float32)
    if framed:
        original = np.pad(original, 120)
    shape = original.shape
    stretched = np.asarray(Image.fromarray(original).resize((512, 512), Image.Resampling.BILINEAR))
    processor = CxrImageProcessor(96, geometry=geometry)
    expected = processor.read(original) / 65535
    restored = processor.read(stretched.clip(0, 1), shape=shape) / 65535
    assert np.abs(restored - expected).mean() < 0.02
    assert np.abs(processor.read(stretched.clip(0, 1)) / 65535 - expected).mean() > 0.03


def test_folders_of_before_there_were_three_geometries_stay_readable(tmp_path):
    CxrImageProcessor(64).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    for squash, geometry in ((True, "squash"), (False, "pad")):
        stored = json.loads(file.read_text())
        stored.pop("geometry", None)
        file.write_text(json.dumps({**stored, "squash": squash}))
        processor = CxrImageProcessor.from_pretrained(tmp_path)
        assert processor.geometry == geometry
        assert "squash" not in processor.to_dict()


def test_an_unknown_geometry_names_the_known_ones():
    with pytest.raises(ValueError, match="geometry is 'stretch'; it can be pad, squash, crop"):
        CxrImageProcessor(64, geometry="stretch")


def test_pixel_values_are_normalised_floats():
    processor = CxrImageProcessor(64, image_mean=[0.5], image_std=[0.25])
    levels = np.zeros((64, 64), np.uint8)
    levels[:32] = 255
    pixel_values = processor([levels, levels])["pixel_values"]
    assert pixel_values.shape == (2, 1, 64, 64)
    assert pixel_values.dtype == torch.float32
    assert pixel_values[0, 0, 0, 0] == 2
    assert pixel_values[0, 0, 63, 0] == -2


def test_three_channels_repeat_the_grey_image_by_imagenet_statistics():
    pixel_values = CxrImageProcessor(64, num_channels=3)(np.zeros((64, 64), np.uint8)).pixel_values
    expected = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixel_values[0, :, 5, 5], expected)


def test_cached_uint16_pixels_give_the_same_pixel_values_as_the_file(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (300, 200), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(image).save(path)
    processor = CxrImageProcessor(64)
    cached = processor.read(path)
    assert cached.dtype == np.uint16
    assert torch.equal(processor.normalize(cached[None]), processor(path).pixel_values)


def test_restore_puts_a_heatmap_back_on_the_original():
    processor = CxrImageProcessor(64)
    image = np.zeros((400, 200), np.uint8)
    image[100:150, 20:60] = 255
    heatmap = processor.read(image) / 65535
    restored = processor.restore(heatmap, 400, 200)
    assert restored.shape == (400, 200)
    rows, columns = np.nonzero(restored > 0.5)
    assert abs(rows.min() - 100) <= 4
    assert abs(rows.max() - 149) <= 4
    assert abs(columns.min() - 20) <= 4
    assert abs(columns.max() - 59) <= 4


def test_saved_settings_come_back(tmp_path):
    CxrImageProcessor(96, num_channels=3, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    loaded = CxrImageProcessor.from_pretrained(tmp_path)
    assert loaded.size == {"height": 96, "width": 96}
    assert loaded.image_mean == [0.1, 0.2, 0.3]
    assert loaded.num_channels == 3


def one_colour_png(side):
    """A valid PNG of side x side black pixels, without holding them in memory."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def truncated_jpeg():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[:4000]


def with_chunk(kind, keyword):
    """A PNG with a chunk of 100 MB of zeros, compressed."""
    content = png(Image.fromarray(GREYS))
    body = kind + keyword + b"\0\0" + zlib.compress(bytes(100_000_000))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]


def jpeg_with(segment):
    """A JPEG with a segment before the others."""
    file = io.BytesIO()
    Image.fromarray(GREYS).save(file, "JPEG")
    return file.getvalue()[:2] + segment + file.getvalue()[2:]


def gif():
    file = io.BytesIO()
    Image.fromarray(GREYS).save(file, "GIF")
    return file.getvalue()


def many_scans():
    """A progressive JPEG whose last scan comes 500 times."""
    file = io.BytesIO()
    Image.fromarray(GREYS).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 500 + content[-2:]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "x.jpeg: not an image file"),
        (b"this is text, whatever its name", "x.jpeg: not an image file"),
        (truncated_jpeg(), "x.jpeg: damaged image file"),
        (png(Image.new("L", (1, 1))), "x.jpeg: 1 x 1 pixels is too small"),
        (png(Image.new("L", (500, 20))), "x.jpeg: 500 x 20 pixels is too small"),
        (one_colour_png(20_000), "x.jpeg: too large"),
        (one_colour_png(13_000), "x.jpeg: 13000 x 13000 pixels is too large"),
        (png(Image.new("L", (1000, 40))), "x.jpeg: 1000 x 40 pixels is too narrow"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "x.jpeg: not an image file"),
        (b"P2 40 40 255\n" + b"9 " * 1600, "x.jpeg: a PNM file of decimal text"),
        (with_chunk(b"zTXt", b"Comment"), "x.jpeg: damaged image file .*too large"),
        (many_scans(), "x.jpeg: a JPEG file of more than 100 scans"),
        (jpeg_with(b"\xff\xe1\0\x09Exif\0\0x" * 200), "x.jpeg: .* or segments of Exif data"),
        (gif(), "x.jpeg: not an image file that can be read; use DICOM, PNG, JPEG"),
    ],
    ids=[
        "empty", "text", "truncated", "1x1", "strip", "20000x20000", "13000x13000", "narrow",
        "PostScript", "text PNM", "text bomb", "scans", "Exif", "GIF",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_x_ray_is_one_sentence(content, sentence, tmp_path):
    path = tmp_path / "x.jpeg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error:
        CxrImageProcessor(64).open(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((1, 1), np.uint8), "1 x 1 pixels is too small"),
        (np.full((64, 64), 2.0), "span 2.0 to 2.0"),
        (np.full((64, 64), np.nan), "must lie in"),
        (np.full((64, 64), -5, np.int16), "span -5 to -5"),
        (np.zeros((64, 64, 7), np.uint8), "shape"),
        (np.zeros((5, 64, 64), np.float32), r"shape \(5, 64, 64\), float32 is no image"),
        (np.zeros((64, 64), complex), "complex128 is no image"),
        (42, "type int"),
    ],
)
def test_arrays_that_are_no_image_are_one_sentence(image, sentence):
    with pytest.raises(ValueError, match=sentence):
        CxrImageProcessor(64).open(image)


def test_a_missing_file_and_a_wrong_size_are_named():
    processor = CxrImageProcessor(64)
    with pytest.raises(FileNotFoundError, match="nowhere.png: no such file"):
        processor.open("nowhere.png")
    with pytest.raises(ValueError, match="size is"):
        CxrImageProcessor(8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
def test_content_decides_and_what_follows_an_image_is_ignored(form, tmp_path):
    file = io.BytesIO()
    Image.fromarray(GREYS).save(file, form)
    processor = CxrImageProcessor(64)
    expected = processor.open(file.getvalue()).pixels
    path = tmp_path / "x.dcm"
    path.write_bytes(file.getvalue() + b"PK\x03\x04" + bytes(1000))
    np.testing.assert_array_equal(processor.open(path).pixels, expected)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_the_first_of_several_images_is_read_and_said(form):
    file = io.BytesIO()
    other = Image.fromarray(255 - GREYS)
    options = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(GREYS).save(file, form, save_all=True, append_images=[other], **options)
    image = CxrImageProcessor(64).open(file.getvalue())
    np.testing.assert_array_equal(image.pixels, FULL)
    assert image.warnings == ("The file holds several images, of which only the first was read.",)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.truncate(300 * 1024**2)  # sparse: it takes no room on the disk
    with pytest.raises(ValueError, match="x.png: a file of 300 MB is too large; the most is 256"):
        CxrImageProcessor(64).open(path)


# --------------------------------------------------------------------- batches, keywords, base64


BATCH = np.stack([GREYS, GREYS[::-1], 255 - GREYS])


@pytest.mark.parametrize(
    "batch",
    [
        BATCH[..., None],
        BATCH[:, None],
        np.repeat(BATCH[:, None], 3, 1),
        np.repeat(BATCH[..., None], 3, -1),
        torch.from_numpy(BATCH[:, None]),
        torch.from_numpy(np.repeat(BATCH[:, None], 3, 1)).float() / 255,
        torch.from_numpy(BATCH[:, None] / 255).requires_grad_(),
    ],
    ids=lambda batch: f"{tuple(batch.shape)} {batch.dtype}",
)
def test_a_batch_is_its_images(batch):
    processor = CxrImageProcessor(64, correct=False)
    expected = processor(list(BATCH)).pixel_values
    assert expected.shape == (3, 1, 64, 64)
    torch.testing.assert_close(processor(batch).pixel_values, expected)


def test_what_may_be_several_images_or_one_is_refused():
    processor = CxrImageProcessor(64)
    with pytest.raises(ValueError, match=r"may be 4 images or one with transparency; give a list"):
        processor(np.stack([GREYS] * 4))
    with pytest.raises(ValueError, match="there are no images; give one or more."):
        processor([])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_of_half_precision_are_read(dtype):
    processor = CxrImageProcessor(64)
    given = processor(torch.from_numpy(GREYS / 255).to(dtype)).pixel_values
    torch.testing.assert_close(given, processor(GREYS).pixel_values, atol=0.02, rtol=0)


def test_deep_and_transparent_colour_arrays_become_luma():
    processor = CxrImageProcessor(32)
    rgba = np.zeros((32, 32, 4), np.float32)
    rgba[..., 0] = rgba[16:, :, 3] = 1
    pixels = processor.open(rgba).pixels
    assert (pixels[16:] == round(0.299 * 65535)).all() and not pixels[:16].any()
    deep = np.zeros((3, 32, 32), np.uint16)
    deep[1] = 4095
    assert (processor.open(deep).pixels == round(0.587 * 65535)).all()


def test_keywords_for_what_is_always_done_are_taken():
    processor = CxrImageProcessor(64)
    batch = processor(
        GREYS,
        return_tensors="np",
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        do_center_crop=False,
        data_format="channels_first",
        input_data_format=None,
    )
    np.testing.assert_array_equal(batch.pixel_values, processor(GREYS).pixel_values.numpy())
    assert processor(GREYS, device="meta").pixel_values.device.type == "meta"
    assert processor(GREYS, device=torch.device("cpu")).pixel_values.device.type == "cpu"


@pytest.mark.parametrize(
    ("keyword", "value", "sentence"),
    [
        ("do_flip", True, r"takes no do_flip=True in a call\. .* leave do_flip out\.$"),
        ("do_resize", False, r"takes no do_resize=False in a call\. It always resizes"),
        ("size", 32, r"takes no size=32 in a call; set it on the processor\."),
        ("data_format", "channels_last", "data_format='channels_last'"),
    ],
)
def test_keywords_for_something_else_are_refused_in_a_sentence(keyword, value, sentence):
    with pytest.raises(TypeError, match=sentence):
        CxrImageProcessor(64)(GREYS, **{keyword: value})


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "data:application/dicom;base64,"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
def test_base64_is_read(head, encode):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    text = head + encode(png(Image.fromarray(noise))).decode()
    np.testing.assert_array_equal(CxrImageProcessor(64).open(text).pixels, noise * np.uint16(257))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.rstrip("="),
        lambda text: "DATA:image/png;base64," + text,
        lambda text: "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F"),
    ],
    ids=["URL-safe", "no padding", "capitals", "percent signs"],
)
@pytest.mark.parametrize("image", [np.eye(40) * 255, np.arange(4096).reshape(64, 64) * 7 % 251])
def test_other_spellings_of_base64_are_read_however_short(image, change):
    image = image.astype(np.uint8)
    text = base64.b64encode(png(Image.fromarray(image))).decode()
    assert (len(text) < 256) == (len(image) == 40)
    pixels = CxrImageProcessor(64, correct=False).open(change(text)).pixels
    np.testing.assert_array_equal(pixels, image * np.uint16(257))


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("x/" * 3000 + "y.png", FileNotFoundError, r"^x/x/.{40}.*no such file, nor an image"),
        ("!" * 300, FileNotFoundError, "300 characters: no such file, nor an image in base64"),
        ("QUJD" * 100, ValueError, "^the image: not an image file that can be read"),
        ("data:image/png;base64,QUJD", ValueError, "^the image: not an image file"),
        ("data:image/png;base64,%%", FileNotFoundError, "nor an image in base64"),
        ("no\0file", FileNotFoundError, "no such file"),
        ("data/chest/test/", FileNotFoundError, "^data/chest/test/: no such file.$"),
    ],
)
def test_text_that_is_no_image_is_one_short_sentence(text, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        CxrImageProcessor(64).open(text)
    assert len(str(caught.value)) < 160


def test_corrections_can_be_turned_off_for_good(tmp_path):
    framed = np.full((120, 140), 255, np.uint8)
    framed[20:100, 30:110] = np.random.default_rng(0).integers(0, 200, (80, 80))
    assert CxrImageProcessor(64).open(framed).pixels.shape == (80, 80)
    CxrImageProcessor(64, correct=False).save_pretrained(tmp_path)
    processor = CxrImageProcessor.from_pretrained(tmp_path)
    image = processor.open(framed)
    assert image.pixels.shape == (120, 140) and image.warnings == ()
