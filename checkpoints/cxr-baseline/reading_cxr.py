"""From a chest X-ray file, whatever its format, to grey pixels; NumPy, Pillow and pydicom alone."""

import base64
import contextlib
import io
import os
from collections.abc import Iterator
from urllib.parse import unquote

import numpy as np
from PIL import Image

from .dicom_cxr import is_dicom, read_dicom
from .image_cxr import (
    FULL_SCALE,
    MAX_FRACTIONS,
    MAX_JPEG_PARTS,
    MAX_JPEG_SEGMENTS,
    MAX_PIXELS,
    MAX_TIFF_PARTS,
    CxrImage,
    check_file_size,
    check_shape,
    is_slow_jpeg,
    is_slow_tiff,
)
from .screening_cxr import camera_warnings, colour_warnings, screen

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray

# The formats that X-rays come in. Others that Pillow reads start programs, are for icons, or, as
# GIF with its comments, take time that grows with the square of a file's size.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM")
# Those that Pillow has in Python: PNM of other than 8 or 16 bits, and run-length coded BMP. They
# take seconds a million pixels.
SLOW_DECODERS, MAX_SLOW_PIXELS = ("ppm", "bmp_rle"), 1_000_000
BIT_DEPTHS = (8, 10, 12, 14, 16)
BAND = 1_000_000  # pixels converted at a time, so that memory stays near that of the result
COLOUR_SAMPLES = 500  # a side, where colours are looked for
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R 601
MAX_NAME = 255  # characters; a longer text may be a file's content
ORIENTATION = 0x0112  # of Exif; how to turn rows and columns upright
UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: pixels[::-1].T,
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: lambda pixels: pixels.T[::-1],
}


def open_image(image: ImageSource, correct: bool = True, max_pixels: int = MAX_PIXELS) -> CxrImage:
    """Reads the grey image at its own size, and what there is to say about it.

    All files are known by their content, DICOM read by its header. The others are PNG, JPEG, TIFF,
    BMP, WebP, JPEG 2000 or PNM, the first image where there are several, which a warning says.
    Colour becomes ITU-R 601 luma, transparency shows black, EXIF orientation is applied; integer
    images of more than 8 bits are scaled by the smallest of 8, 10, 12, 14 or 16 bits that holds
    their brightest pixel, as detectors write 12 bits into 16-bit files. Photographs and colours are
    warned of.

    Args:
        image: a path, the file's bytes, their base64 text or data URI, a PIL image, or an array:
            (h, w), (h, w, c) or (c, h, w) of bool, integers of up to 16 bits or floats in [0, 1];
            of (c, h, w), c is 1 or 3, as 4 may be images.
        correct: invert negatives and cut plain frames away, which a warning says; see
            `screening_cxr.screen`.
        max_pixels: of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, damaged, over 256 MB, under 32 pixels a side, over `max_pixels`,
            or a DICOM file of something else than a chest X-ray.
    """
    opened = _open(image, max_pixels)
    return screen(opened) if correct else opened


def read_file(path: str | os.PathLike) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is over 256 MB.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file.")
    check_file_size(os.path.getsize(path), os.fspath(path))
    with open(path, "rb") as file:
        return file.read()


def read_mask(mask: ImageSource, image: CxrImage) -> np.ndarray:
    """A mask of an image's file, of that file's shape or another, in the frame of its pixels.

    Args:
        mask: see `open_image`; what is brighter than half of its brightest pixel is inside.
        image: what the mask belongs to.

    Returns:
        bool (h, w).

    Raises:
        FileNotFoundError, ValueError: see `open_image`.
    """
    grey = _open(mask).pixels
    (height, width), (top, left, bottom, right) = image.file_shape, image.margins
    inside = Image.fromarray(grey > grey.max() / 2).resize(
        (width, height), Image.Resampling.NEAREST
    )
    return np.array(inside)[top : height - bottom, left : width - right]


def _open(image: ImageSource, max_pixels: int = MAX_PIXELS) -> CxrImage:
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, "the image")
    if isinstance(image, bytes):
        return _from_file(image, "the image", max_pixels)
    if isinstance(image, (str, os.PathLike)):
        return _from_text(os.fspath(image), max_pixels)
    raise ValueError(
        f"an image of type {type(image).__name__} cannot be read; "
        "give a path, bytes, a PIL image or an array."
    )


def _from_text(text: str, max_pixels: int) -> CxrImage:
    if os.path.isfile(text):
        return _from_file(read_file(text), text, max_pixels)
    head, comma, data = text.partition(",")
    is_uri = bool(comma) and head[:5].lower() == "data:"
    content = _decode_base64(unquote(data) if is_uri else text)
    is_name = not is_uri and len(text) <= MAX_NAME
    if content is None or is_name and not _is_image(content):  # names may be base64 by chance
        what = text if is_name else f"{text[:40]}... of {len(text):,} characters"
        raise FileNotFoundError(
            f"{what}: no such file{'' if is_name else ', nor an image in base64'}."
        )
    return _from_file(content, "the image", max_pixels)


def _decode_base64(text: str) -> bytes | None:
    """Bytes of base64, the URL-safe one too, with or without padding; None where it is none."""
    text = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def _is_image(content: bytes) -> bool:
    """Whether a file begins as an image, damaged or not, by its content."""
    if is_dicom(content):
        return True
    try:
        with _decoding("the image"):
            Image.open(io.BytesIO(content), formats=FORMATS)
    except ValueError:
        return False
    return True


def _from_file(content: bytes, name: str, max_pixels: int) -> CxrImage:
    check_file_size(len(content), name)
    if is_dicom(content):
        return read_dicom(content, name, max_pixels)
    if is_slow_jpeg(content):
        raise ValueError(
            f"{name}: a JPEG file of more than {MAX_JPEG_PARTS} scans, comments or segments of "
            f"Exif data, or {MAX_JPEG_SEGMENTS} of all kinds, takes too long to read."
        )
    if is_slow_tiff(content):
        raise ValueError(
            f"{name}: a TIFF file of over {MAX_TIFF_PARTS:,} strips or tiles, or a tag of over "
            f"{MAX_FRACTIONS:,} fractions, takes too long to read."
        )
    with _decoding(name):
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
        # a telephone's JPEG (MPO) holds previews of the same picture
        several = opened.format != "MPO" and getattr(opened, "is_animated", False)
        decoder = opened.tile[0].codec_name if opened.tile else ""
    if decoder == "ppm_plain":  # two seconds a million pixels
        raise ValueError(f"{name}: a PNM file of decimal text is not read; save it as PNG.")
    if decoder in SLOW_DECODERS and opened.width * opened.height > MAX_SLOW_PIXELS:
        raise ValueError(
            f"{name}: a {opened.format} file of this kind takes too long to read at over "
            f"{MAX_SLOW_PIXELS:,} pixels; save it as PNG."
        )
    with opened:
        image = _from_pil(opened, name, max_pixels)
    if not several:
        return image
    first = "The file holds several images, of which only the first was read."
    return image._replace(warnings=(first, *image.warnings))


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns what Pillow raises for bytes that are no image, or a damaged one, into a sentence."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{name}: not an image file that can be read; use DICOM, {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: too large; the most is {MAX_PIXELS:,} pixels.") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever hostile bytes lead them into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: damaged image file ({reason}).") from None


def _from_pil(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> CxrImage:
    check_shape(image.size, name, max_pixels)
    deep = image.mode.startswith("I") or image.mode == "F"
    with _decoding(name):
        image.load()
        exif = image.getexif()
        orientation = exif.get(ORIENTATION)
        warnings = camera_warnings(exif)
        pixels = np.asarray(image) if deep else _luma(image)
        if not deep and image.mode not in ("1", "L", "LA"):
            warnings += colour_warnings(_colours(image))
    if deep:
        pixels = _grey_from_array(pixels, name)
    if orientation in UPRIGHT:
        pixels = UPRIGHT[orientation](pixels)
    return CxrImage(pixels, warnings)


def _luma(image: Image.Image) -> np.ndarray:
    grey = np.empty((image.height, image.width), np.uint16)
    for rows in _bands(*grey.shape):
        band = image.crop((0, rows.start, image.width, rows.stop))
        grey[rows] = np.asarray(_opaque(band).convert("L"))
    grey *= 257
    return grey


def _colours(image: Image.Image) -> np.ndarray:
    """Some of its pixels, uint8 (h, w, 3)."""
    size = [min(side, COLOUR_SAMPLES) for side in image.size]
    return np.asarray(_opaque(image.resize(size, Image.Resampling.NEAREST)).convert("RGB"))


def _opaque(image: Image.Image) -> Image.Image:
    """In mode 1, L or RGB; what is transparent shows black."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _bands(height: int, width: int) -> list[slice]:
    """Slices of rows that make up the height."""
    rows = max(1, BAND // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def _from_array(array: np.ndarray) -> CxrImage:
    if array.ndim == 3 and array.shape[0] == 4 and array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an array of shape {array.shape} may be 4 images or one with transparency; give a "
            "list of images, or (h, w, 4)."
        )
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    colour = array.ndim == 3 and array.shape[-1] in (3, 4)
    if not (array.ndim == 2 or colour) or array.dtype.kind not in "buif":
        raise ValueError(
            f"an array of shape {array.shape}, {array.dtype} is no image; give (h, w), (h, w, c) "
            "with 1, 3 or 4 channels, or (c, h, w) with 1 or 3."
        )
    check_shape(array.shape[1::-1], "the image")
    if array.dtype == np.uint8:
        return _from_pil(Image.fromarray(np.ascontiguousarray(array)), "the image")
    grey = _grey_from_array(array, "the image")
    if colour:
        opacity = grey[..., 3:] / FULL_SCALE if grey.shape[-1] == 4 else 1
        grey = (grey[..., :3] * opacity @ LUMA).round().astype(np.uint16)
    return CxrImage(grey)


def _grey_from_array(array: np.ndarray, name: str) -> np.ndarray:
    """uint16 at full scale from (h, w) or (h, w, c) of bool, integers or floats."""
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name}: floating-point pixels span {low} to {high}; they must lie in [0, 1]."
            )
        scale = FULL_SCALE
    elif low < 0 or high > FULL_SCALE:
        raise ValueError(
            f"{name}: integer pixels span {low} to {high}; they must lie in 0..{FULL_SCALE}."
        )
    elif array.dtype == bool:
        scale = FULL_SCALE
    else:
        scale = FULL_SCALE / (2 ** next(bits for bits in BIT_DEPTHS if high < 2**bits) - 1)
    if scale == 1:
        return array.astype(np.uint16)
    grey = np.empty(array.shape, np.uint16)
    for rows in _bands(*array.shape[:2]):
        grey[rows] = (array[rows].astype(np.float64) * scale).round()
    return grey
