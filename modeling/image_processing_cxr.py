"""The one road from a chest X-ray file to `pixel_values`."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .dicom_cxr import is_dicom, read_dicom
from .heatmap_cxr import heat_layer, overlay
from .image_cxr import (
    FULL_SCALE,
    MAX_JPEG_PARTS,
    MAX_PIXELS,
    MIN_SIDE,
    CxrImage,
    check_file_size,
    check_shape,
    is_slow_jpeg,
)
from .screening_cxr import camera_warnings, colour_warnings, screen

# The formats that X-rays come in. Others that Pillow reads start programs, are for icons, or, as
# GIF with its comments, take time that grows with the square of a file's size.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM")
BIT_DEPTHS = (8, 10, 12, 14, 16)
GEOMETRIES = ("pad", "squash", "crop")
BAND = 1_000_000  # pixels converted at a time, so that memory stays near that of the result
COLOUR_SAMPLES = 500  # a side, where colours are looked for
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
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CxrImageProcessor(BaseImageProcessor):
    """Turns image files into normalised grey `pixel_values`.

    Pixels stay 16-bit until the last step, so that what is cached on disk as uint16 and what is
    read afresh from the file are the same numbers.

    Args:
        size: side of the square output in pixels, or {"height": h, "width": w}.
        num_channels: 1 or 3 (the grey image repeated).
        image_mean, image_std: one value a channel, in units of full scale (0..1). The default is
            ImageNet's (for one channel, the mean over its three).
        geometry: how images of other proportions fill the output: "pad" keeps all of them, centred
            on black; "squash" stretches them; "crop" keeps their centre alone.

    Raises:
        ValueError: a size below 32 pixels, other channels than 1 or 3, an unknown geometry, or a
            mean or standard deviation of another length.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        num_channels: int = 1,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        geometry: str = "pad",
        **kwargs,
    ):
        # Folders of before there were three geometries say "squash", true or false.
        geometry = "squash" if kwargs.pop("squash", False) else geometry
        super().__init__(**kwargs)
        size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        if set(size) != {"height", "width"} or min(size.values()) < MIN_SIDE:
            raise ValueError(
                f"size is {size}; it needs a height and a width of {MIN_SIDE} or more."
            )
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is {num_channels}; it can be 1 or 3.")
        if geometry not in GEOMETRIES:
            raise ValueError(f"geometry is {geometry!r}; it can be {', '.join(GEOMETRIES)}.")
        self.size = size
        self.num_channels = num_channels
        self.geometry = geometry
        self.image_mean = list(image_mean or _per_channel(IMAGENET_MEAN, num_channels))
        self.image_std = list(image_std or _per_channel(IMAGENET_STD, num_channels))
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(values) != num_channels:
                raise ValueError(f"{name} is {values}; it needs {num_channels} values.")

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Reads one image or a list of them.

        Args:
            images: a path, the file's bytes, a PIL image, or an array or tensor: (h, w), (h, w, c)
                or (c, h, w) of bool, uint8, uint16 or floats in [0, 1]; or a list of these.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values`, float32 (B, C, H, W).

        Raises:
            ValueError, FileNotFoundError: see `load`.
            TypeError: an option that this processor does not have.
        """
        if kwargs:
            raise TypeError(f"CxrImageProcessor takes no {', '.join(sorted(kwargs))}.")
        if not isinstance(images, (list, tuple)):
            images = [images]
        pixels = np.stack([self.read(image) for image in images])
        return BatchFeature({"pixel_values": self.normalize(pixels)}, tensor_type=return_tensors)

    def read(self, image, correct: bool = True, shape: tuple[int, int] | None = None) -> np.ndarray:
        """`load`, then `resize` with the `shape` that a stored image had: uint16 (H, W)."""
        opened = _open(image)
        pixels = (screen(opened) if correct else opened).pixels
        if shape:  # of what is left, where a frame was cut
            shape = tuple(a * b / c for a, b, c in zip(pixels.shape, shape, opened.pixels.shape))
        return self.resize(pixels, shape)

    def load(self, image, correct: bool = True) -> np.ndarray:
        """The pixels of `open`: uint16 (h, w), 0..65535."""
        return self.open(image, correct).pixels

    def open(self, image, correct: bool = True) -> CxrImage:
        """Reads the grey image at its own size, and what there is to say about it.

        DICOM is known by its content and read by its header. Other files are known by their
        content, too: PNG, JPEG, TIFF, BMP, WebP, JPEG 2000 or PNM, the first image where there are
        several, which a warning says. Colour becomes ITU-R 601 luma, transparency shows
        black, EXIF orientation is applied; integer images of more than 8 bits are scaled by the
        smallest of 8, 10, 12, 14 or 16 bits that holds their brightest pixel, as detectors write
        12 bits into 16-bit files. Negatives and plain frames around the X-ray are corrected, which
        a warning says; photographs and colours are warned of.

        Args:
            image: see `preprocess`.
            correct: False leaves negatives and frames as they are, for masks and for images that
                were altered on purpose.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an image, damaged, over 256 MB, under 32 pixels a side, over 64 million
                pixels, or a DICOM file of something else than a chest X-ray.
        """
        opened = _open(image)
        return screen(opened) if correct else opened

    def resize(self, pixels: np.ndarray, shape: tuple[float, float] | None = None) -> np.ndarray:
        """Antialiased bilinear resize, by `geometry`.

        Args:
            pixels: uint16 (h, w).
            shape: height and width of the image before it was stretched to `pixels`, where it was:
                its own proportions are then restored.

        Returns:
            uint16 (H, W).
        """
        shape = shape or pixels.shape
        box, (top, left, bottom, right) = self._placement(*shape)
        scale_y, scale_x = pixels.shape[0] / shape[0], pixels.shape[1] / shape[1]
        box = (box[1] * scale_x, box[0] * scale_y, box[3] * scale_x, box[2] * scale_y)
        if (bottom - top, right - left) != pixels.shape or box != (0, 0, *pixels.shape[::-1]):
            resized = Image.fromarray(pixels.astype(np.float32)).resize(
                (right - left, bottom - top), Image.Resampling.BILINEAR, box
            )
            pixels = np.asarray(resized).round().astype(np.uint16)
        square = np.zeros((self.size["height"], self.size["width"]), np.uint16)
        square[top:bottom, left:right] = pixels
        return square

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Scales to `image_mean` and `image_std`, and repeats to `num_channels`.

        Args:
            pixels: (B, H, W), uint16 at full scale or floats in [0, 1].

        Returns:
            `pixel_values`, float32 (B, C, H, W), on the input's device.
        """
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(pixels)
        if pixels.dtype == torch.uint16:
            pixels = pixels.to(torch.float32) / FULL_SCALE
        mean = pixels.new_tensor(self.image_mean)[:, None, None]
        std = pixels.new_tensor(self.image_std)[:, None, None]
        return (pixels[:, None] - mean) / std

    def restore(self, heatmap: np.ndarray | torch.Tensor, height: int, width: int) -> np.ndarray:
        """Puts a heatmap back into the frame of the image it explains.

        Args:
            heatmap: float (H, W), as `grad_cam` gives it for the square.
            height, width: of the original image, pixels.

        Returns:
            float32 (height, width); 0 in what was cut off.
        """
        box, (top, left, bottom, right) = self._placement(height, width)
        inner = np.ascontiguousarray(np.asarray(heatmap, np.float32)[top:bottom, left:right])
        top, left, bottom, right = map(round, box)
        size = (right - left, bottom - top)
        framed = np.zeros((height, width), np.float32)
        framed[top:bottom, left:right] = Image.fromarray(inner).resize(
            size, Image.Resampling.BILINEAR
        )
        return framed

    def overlay(self, pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
        """`heatmap_cxr.overlay`: heat (h, w) in [0, 1] over `pixels` (h, w), to uint8 (h, w, 3)."""
        return overlay(pixels, heat)

    def heat_layer(self, heat: np.ndarray) -> np.ndarray:
        """`heatmap_cxr.heat_layer`: heat (h, w) in [0, 1] alone, to RGBA uint8 (h, w, 4)."""
        return heat_layer(heat)

    def _placement(self, height, width):
        """The part of an image that is shown, and its place in the output.

        Both are (top, left, bottom, right); the first in pixels of the image, the second in whole
        pixels of the output.
        """
        rows, columns = self.size["height"], self.size["width"]
        whole, full = (0, 0, height, width), (0, 0, rows, columns)
        if self.geometry == "squash":
            return whole, full
        if self.geometry == "crop":
            scale = max(rows / height, columns / width)
            kept_height, kept_width = min(height, rows / scale), min(width, columns / scale)
            top, left = (height - kept_height) / 2, (width - kept_width) / 2
            return (top, left, top + kept_height, left + kept_width), full
        scale = min(rows / height, columns / width)
        inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (rows - inner_height) // 2, (columns - inner_width) // 2
        return whole, (top, left, top + inner_height, left + inner_width)


def _open(image):
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, "the image")
    if isinstance(image, bytes):
        return _from_file(image, "the image")
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"{image}: no such file.")
        check_file_size(path.stat().st_size, str(image))
        return _from_file(path.read_bytes(), str(image))
    raise ValueError(
        f"an image of type {type(image).__name__} cannot be read; "
        "give a path, bytes, a PIL image or an array."
    )


def _per_channel(values, num_channels):
    return values if num_channels == 3 else (sum(values) / 3,)


def _from_file(content, name):
    check_file_size(len(content), name)
    if is_dicom(content):
        return read_dicom(content, name)
    if is_slow_jpeg(content):
        raise ValueError(
            f"{name}: a JPEG file of more than {MAX_JPEG_PARTS} scans or segments of Exif data "
            "takes too long to read."
        )
    with _decoding(name):
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
        # a telephone's JPEG (MPO) holds previews of the same picture
        several = opened.format != "MPO" and getattr(opened, "is_animated", False)
        text = opened.tile and opened.tile[0].codec_name == "ppm_plain"
    if text:  # two seconds a million pixels
        raise ValueError(f"{name}: a PNM file of decimal text is not read; save it as PNG.")
    with opened:
        image = _from_pil(opened, name)
    if not several:
        return image
    first = "The file holds several images, of which only the first was read."
    return image._replace(warnings=(first, *image.warnings))


@contextlib.contextmanager
def _decoding(name):
    """Turns what Pillow raises for bytes that are no image, or a damaged one, into a sentence."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{name}: not an image file that can be read; use DICOM, {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: too large; the most is {MAX_PIXELS:,} pixels.") from None
    except Exception as error:  # decoders raise whatever hostile bytes lead them into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: damaged image file ({reason}).") from None


def _from_pil(image, name):
    check_shape(image.size, name)
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


def _luma(image):
    grey = np.empty((image.height, image.width), np.uint16)
    for rows in _bands(*grey.shape):
        band = image.crop((0, rows.start, image.width, rows.stop))
        grey[rows] = np.asarray(_opaque(band).convert("L"))
    grey *= 257
    return grey


def _colours(image):
    """Some of its pixels, uint8 (h, w, 3)."""
    size = [min(side, COLOUR_SAMPLES) for side in image.size]
    return np.asarray(_opaque(image.resize(size, Image.Resampling.NEAREST)).convert("RGB"))


def _opaque(image):
    """In mode 1, L or RGB; what is transparent shows black."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _bands(height, width):
    """Slices of rows that make up the height."""
    rows = max(1, BAND // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def _from_array(array):
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8 and (
        array.ndim == 2 or array.ndim == 3 and array.shape[-1] in (3, 4)
    ):
        check_shape(array.shape[1::-1], "the image")
        return _from_pil(Image.fromarray(np.ascontiguousarray(array)), "the image")
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise ValueError(
            f"an array of shape {array.shape}, {array.dtype} is no grey or 8-bit image."
        )
    check_shape(array.shape[::-1], "the image")
    return CxrImage(_grey_from_array(array, "the image"))


def _grey_from_array(array, name):
    """uint16 at full scale from (h, w) of bool, integers or floats."""
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
    for rows in _bands(*array.shape):
        grey[rows] = (array[rows].astype(np.float64) * scale).round()
    return grey


CxrImageProcessor.register_for_auto_class()
