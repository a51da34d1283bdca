"""The one road from a chest X-ray file to `pixel_values`."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

MIN_SIDE = 32
MAX_PIXELS = 150_000_000
FULL_SCALE = 65535
BIT_DEPTHS = (8, 10, 12, 14, 16)
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
        squash: stretch images to the output's shape, as for networks trained on images that were;
            otherwise the aspect ratio is kept and the rest is black.

    Raises:
        ValueError: a size below 32 pixels, other channels than 1 or 3, or a mean or standard
            deviation of another length.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        num_channels: int = 1,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        squash: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        if set(size) != {"height", "width"} or min(size.values()) < MIN_SIDE:
            raise ValueError(
                f"size is {size}; it needs a height and a width of {MIN_SIDE} or more."
            )
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is {num_channels}; it can be 1 or 3.")
        self.size = size
        self.num_channels = num_channels
        self.squash = squash
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

    def read(self, image) -> np.ndarray:
        """`load`, then `resize`: uint16 (H, W), 0..65535."""
        return self.resize(self.load(image))

    def load(self, image) -> np.ndarray:
        """The grey image at its own size.

        Colour becomes ITU-R 601 luma, transparency shows black, EXIF orientation is applied.
        Integer images of more than 8 bits are scaled by the smallest of 8, 10, 12, 14 or 16 bits
        that holds their brightest pixel, as detectors write 12 bits into 16-bit files.

        Args:
            image: see `preprocess`.

        Returns:
            uint16 (h, w), full scale 0..65535.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an image, truncated, under 32 pixels a side, over 150 million pixels.
        """
        if isinstance(image, torch.Tensor):
            image = image.cpu().numpy()
        if isinstance(image, np.ndarray):
            return _grey_from_array(image)
        if isinstance(image, Image.Image):
            return _grey_from_pil(image, "the image")
        if isinstance(image, bytes):
            return _grey_from_file(io.BytesIO(image), "the image")
        if isinstance(image, (str, os.PathLike)):
            if not Path(image).is_file():
                raise FileNotFoundError(f"{image}: no such file.")
            return _grey_from_file(image, str(image))
        raise ValueError(
            f"an image of type {type(image).__name__} cannot be read; "
            "give a path, bytes, a PIL image or an array."
        )

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """Antialiased bilinear resize: keeping the aspect ratio, centred on black, or by `squash`.

        Args:
            pixels: uint16 (h, w).

        Returns:
            uint16 (H, W).
        """
        top, left, height, width = self._placement(*pixels.shape)
        if (height, width) != pixels.shape:
            resized = Image.fromarray(pixels.astype(np.float32)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
            pixels = np.asarray(resized).round().astype(np.uint16)
        padded = np.zeros((self.size["height"], self.size["width"]), np.uint16)
        padded[top : top + height, left : left + width] = pixels
        return padded

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
            heatmap: float (H, W), as `grad_cam` gives it for the padded square.
            height, width: of the original image, pixels.

        Returns:
            float32 (height, width).
        """
        top, left, inner_height, inner_width = self._placement(height, width)
        inner = np.asarray(heatmap, np.float32)[top : top + inner_height, left : left + inner_width]
        image = Image.fromarray(np.ascontiguousarray(inner))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    def _placement(self, height, width):
        """Top, left, height and width of an image inside the output."""
        if self.squash:
            return 0, 0, self.size["height"], self.size["width"]
        scale = min(self.size["height"] / height, self.size["width"] / width)
        inner_height = max(1, round(height * scale))
        inner_width = max(1, round(width * scale))
        top = (self.size["height"] - inner_height) // 2
        left = (self.size["width"] - inner_width) // 2
        return top, left, inner_height, inner_width


def _per_channel(values, num_channels):
    return values if num_channels == 3 else (sum(values) / 3,)


def _check_shape(size, name):
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{name}: {width} x {height} pixels is too small for a chest X-ray; "
            f"the least is {MIN_SIDE} a side."
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name}: {width} x {height} pixels is too large; the most is {MAX_PIXELS:,} in all."
        )


def _grey_from_file(file, name):
    try:
        with Image.open(file) as image:
            return _grey_from_pil(image, name)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not an image file that can be read.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: too large; the most is {MAX_PIXELS:,} pixels.") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name}: damaged image file ({error}).") from None


def _grey_from_pil(image, name):
    _check_shape(image.size, name)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_from_array(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L")).astype(np.uint16) * 257


def _grey_from_array(array):
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8 and (
        array.ndim == 2 or array.ndim == 3 and array.shape[-1] in (3, 4)
    ):
        return _grey_from_pil(Image.fromarray(np.ascontiguousarray(array)), "the image")
    if array.ndim != 2:
        raise ValueError(
            f"an array of shape {array.shape}, {array.dtype} is no grey or 8-bit image."
        )
    _check_shape(array.shape[::-1], "the image")
    if array.dtype == bool:
        return array * np.uint16(FULL_SCALE)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"floating-point pixels span {low} to {high}; they must lie in [0, 1]."
            )
        return (array * FULL_SCALE).round().astype(np.uint16)
    if low < 0 or high > FULL_SCALE:
        raise ValueError(f"integer pixels span {low} to {high}; they must lie in 0..{FULL_SCALE}.")
    bits = next(bits for bits in BIT_DEPTHS if high < 2**bits)
    return (array.astype(np.float64) * (FULL_SCALE / (2**bits - 1))).round().astype(np.uint16)


CxrImageProcessor.register_for_auto_class()
