"""The one road from a chest X-ray file to `pixel_values`: transformers' class around it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .heatmap_cxr import heat_layer, overlay
from .image_cxr import MIN_SIDE, CxrImage
from .preprocessing_cxr import (
    FRAME,
    GEOMETRIES,
    equalization,
    equalize,
    normalize,
    resize,
    resize_boxes,
    restore,
    restore_boxes,
)
from .reading_cxr import ImageSource, open_image
from .sandbox_cxr import Sandbox, shared_sandbox

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


class CxrImageProcessor(BaseImageProcessor):
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
    # Of the class, so that settings without it do not name it.
    equalize: dict[str, Any] | None = None

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
        return open_image(_to_array(image), self.correct)

    def sandbox(self) -> Sandbox:
        """What reads files as `open` does, in processes with limits of time and memory."""
        return shared_sandbox(self.correct)

    def prepare(self, pixels: np.ndarray, shape: tuple[float, float] | None = None) -> np.ndarray:
        """`resize`, then equalized: the image as `normalize` takes it, uint16 (H, W).

        What was resized before may be given, what was equalized before may not.
        """
        resized = self.resize(pixels, shape)
        return resized if self.equalize is None else equalize(resized, self.equalize)

    def resize(self, pixels: np.ndarray, shape: tuple[float, float] | None = None) -> np.ndarray:
        """`preprocessing_cxr.resize` to this processor's size by its geometry: uint16 (H, W)."""
        return resize(pixels, self._side(), self.geometry, shape)

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
        return restore(_to_array(heatmap), self._side(), self.geometry, (height, width))

    def resize_boxes(
        self,
        boxes: np.ndarray,
        height: int,
        width: int,
        shape: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """`preprocessing_cxr.resize_boxes` of boxes (n, 4) in an image of `height` and `width`."""
        return resize_boxes(boxes, (height, width), self._side(), self.geometry, shape)

    def restore_boxes(
        self,
        boxes: np.ndarray | torch.Tensor,
        height: int,
        width: int,
        shape: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """`preprocessing_cxr.restore_boxes` to an image's frame: float64 (n, 4)."""
        return restore_boxes(_to_array(boxes), (height, width), self._side(), self.geometry, shape)

    def post_process_object_detection(
        self,
        outputs: Mapping[str, torch.Tensor],
        threshold: float = 0.5,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """What a detector found, image by image, as transformers' detectors answer.

        Args:
            outputs: of `CxrDetector`, with `scores`, `labels` and `boxes`.
            threshold: the least score, in [0, 1].
            target_sizes: height and width of each image as `open` gives its pixels; None leaves
                boxes in pixels of `pixel_values`.

        Returns:
            For each image `scores`, float32 (n,), the highest first; `labels`, int64 (n,); `boxes`,
            float32 (n, 4): left, top, right, bottom in pixels of the image.

        Raises:
            ValueError: another number of sizes than of images.
        """
        found = list(zip(outputs["scores"], outputs["labels"], outputs["boxes"]))
        if target_sizes is not None and len(target_sizes) != len(found):
            raise ValueError(f"{len(target_sizes)} target_sizes for {len(found)} images.")
        answers = []
        for index, (scores, labels, boxes) in enumerate(found):
            kept = (labels >= 0) & (scores >= threshold)
            scores, labels, boxes = scores[kept], labels[kept], boxes[kept].float()
            if target_sizes is not None:
                placed = self.restore_boxes(boxes, *map(int, target_sizes[index]))
                boxes = torch.from_numpy(placed).to(boxes)
            answers.append({"scores": scores.float(), "labels": labels, "boxes": boxes})
        return answers

    def overlay(self, pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
        """`heatmap_cxr.overlay`: heat (h, w) in [0, 1] over `pixels` (h, w), to uint8 (h, w, 3)."""
        return overlay(pixels, heat)

    def heat_layer(self, heat: np.ndarray) -> np.ndarray:
        """`heatmap_cxr.heat_layer`: heat (h, w) in [0, 1] alone, to RGBA uint8 (h, w, 4)."""
        return heat_layer(heat)

    def _side(self) -> tuple[int, int]:
        return self.size["height"], self.size["width"]


def _to_array(image: Any) -> Any:
    """A tensor as an array, anything else as it is."""
    if not isinstance(image, torch.Tensor):
        return image
    image = image.detach()
    return (image.float() if image.dtype == torch.bfloat16 else image).cpu().numpy()


def _per_channel(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    return values if num_channels == 3 else (sum(values) / 3,)


CxrImageProcessor.register_for_auto_class()
