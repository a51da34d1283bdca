"""The one road from a chest X-ray file to `pixel_values`: transformers' class around it."""

from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_cxr import MIN_SIDE, CxrImage
from .preparation_cxr import CxrPreparation
from .preprocessing_cxr import FRAME, GEOMETRIES, equalization, normalize
from .reading_cxr import ImageSource

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What other image processors are asked for and this one always does.
ALWAYS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "data_format": "channels_first",
}


class CxrImageProcessor(CxrPreparation, BaseImageProcessor):
    """Turns image files into normalised grey `pixel_values`.

    Pixels stay 16-bit until the last step, so that what is cached on disk as uint16 and what is
    read afresh from the file are the same numbers.

    Args:
        size: side of the square output in pixels, or {"height": h, "width": w}.
        num_channels: 1 or 3 (the grey image repeated).
        image_mean: one value a channel, in units of full scale (0..1); None is ImageNet's (for one
            channel, the mean over its three).
        image_std: the same of the standard deviation.
        geometry: how images of other proportions fill the output, see `preprocessing_cxr.resize`.
        correct: whether negatives are inverted and plain frames cut away.
        equalize: "histogram", "clahe", or one of these with its parameters, see
            `preprocessing_cxr.equalization`; None leaves grey levels as they are.

    Raises:
        ValueError: a size below 32 pixels, other channels than 1 or 3, an unknown geometry or
            equalization, or a mean or standard deviation of another length.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        num_channels: int = 1,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        geometry: str = "pad",
        correct: bool = True,
        equalize: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
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
        self.correct = correct
        if equalize is not None:
            self.equalize = equalization(equalize)
        self.image_mean = list(image_mean or _per_channel(IMAGENET_MEAN, num_channels))
        self.image_std = list(image_std or _per_channel(IMAGENET_STD, num_channels))
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(values) != num_channels:
                raise ValueError(f"{name} is {values}; it needs {num_channels} values.")

    def preprocess(
        self,
        images: ImageSource | torch.Tensor | list | tuple,
        return_tensors: str | None = "pt",
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Reads one image, a list of them, or a batch.

        Args:
            images: see `open`; or a list of these; or a batch of arrays or a tensor, (B, h, w, c)
                or (B, c, h, w).
            return_tensors: "pt" or "np".
            device: where to put the tensors.
            kwargs: other processors' keywords, where they ask for what this one always does, such
                as `do_resize=True`.

        Returns:
            `pixel_values`, float32 (B, C, H, W).

        Raises:
            ValueError, FileNotFoundError: see `open`; there are no images.
            TypeError: a keyword that asks for something else.
        """
        for name, value in kwargs.items():
            if value is not None and (name not in ALWAYS or value != ALWAYS[name]):
                settings = "; set it on the processor" if hasattr(self, name) else ""
                raise TypeError(
                    f"CxrImageProcessor takes no {name}={value!r} in a call{settings}. It always "
                    f"resizes, scales and normalises; leave {name} out."
                )
        if getattr(images, "ndim", None) != 4 and not isinstance(images, (list, tuple)):
            images = [images]
        if not len(images):
            raise ValueError("there are no images; give one or more.")
        pixels = np.stack([self.read(image) for image in images])
        values = normalize(pixels, self.image_mean, self.image_std)
        batch = BatchFeature({"pixel_values": values}, tensor_type=return_tensors)
        return batch if device is None else batch.to(device)

    def read(
        self, image: ImageSource | torch.Tensor, shape: tuple[int, int] | None = None
    ) -> np.ndarray:
        """`open`, then `prepare` with the `shape` that a stored image had: uint16 (H, W)."""
        opened = self.open(image)
        return self.prepare(opened.pixels, shape and opened.part_of(shape))

    def open(self, image: ImageSource | torch.Tensor) -> CxrImage:
        """Reads the grey image at its own size: `reading_cxr.open_image`, tensors too."""
        return super().open(_to_array(image))

    def frame(self) -> "CxrImageProcessor":
        """The processor of the frames that ten crops are cut from: 256 pixels a side for 224."""
        settings = self.to_dict() | {
            "size": {name: round(side * FRAME) for name, side in self.size.items()},
            "geometry": "crop" if self.geometry == "inner_crop" else self.geometry,
        }
        return type(self).from_dict(settings)

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """`preprocessing_cxr.normalize` to `image_mean` and `image_std`: a tensor in any case."""
        values = normalize(pixels, self.image_mean, self.image_std)
        return torch.from_numpy(values) if isinstance(values, np.ndarray) else values

    def restore(self, heatmap: np.ndarray | torch.Tensor, height: int, width: int) -> np.ndarray:
        """`preprocessing_cxr.restore` to an image's frame: float32 (height, width)."""
        return super().restore(_to_array(heatmap), height, width)


def _to_array(image: Any) -> Any:
    """A tensor as an array, anything else as it is."""
    if not isinstance(image, torch.Tensor):
        return image
    image = image.detach()
    return (image.float() if image.dtype == torch.bfloat16 else image).cpu().numpy()


def _per_channel(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    return values if num_channels == 3 else (sum(values) / 3,)


CxrImageProcessor.register_for_auto_class()
