"""The one road from a chest X-ray file to `pixel_values`: transformers' class around it."""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import cached_file

from .image_cxr import MIN_SIDE, CxrImage
from .preparation_cxr import CxrPreparation
from .preprocessing_cxr import (
    FRAME,
    GEOMETRIES,
    equalization,
    normalize,
    resize_boxes,
    restore_boxes,
)
from .reading_cxr import ImageSource
from .sandbox_cxr import Sandbox

if TYPE_CHECKING:
    from .lungs_cxr import FocusedSandbox, LungFinder

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
CROPS = ("lungs",)
MASKS = ("lungs", "soft")
# How `from_pretrained` reaches the Hub.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


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
        crop: "lungs" cuts images to the lungs' bounding box; None leaves them whole.
        mask: "lungs" sets all but the lungs to their mean brightness; "soft" fades it out; None
            leaves it. Both need `lungs`, a `lungs_cxr.LungFinder`, which is saved and loaded with
            the settings, in a file beside them.

    Raises:
        ValueError: a size below 32 pixels, other channels than 1 or 3, an unknown geometry,
            equalization, crop or mask, or a mean or standard deviation of another length.
    """

    model_input_names = ["pixel_values"]
    # Of the class, so that settings without them do not name them.
    crop: str | None = None
    mask: str | None = None
    lungs: "LungFinder | None" = None

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        num_channels: int = 1,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        geometry: str = "pad",
        correct: bool = True,
        equalize: str | dict[str, Any] | None = None,
        crop: str | None = None,
        mask: str | None = None,
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
        for name, value, known in (("crop", crop, CROPS), ("mask", mask, MASKS)):
            if value is None:
                continue
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it can be {', '.join(known)}.")
            setattr(self, name, value)
        self.image_mean = list(image_mean or _per_channel(IMAGENET_MEAN, num_channels))
        self.image_std = list(image_std or _per_channel(IMAGENET_STD, num_channels))
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(values) != num_channels:
                raise ValueError(f"{name} is {values}; it needs {num_channels} values.")

    @property
    def windowed(self) -> bool:
        """Whether images are cut to the lungs or masked by them, and so `lungs` is needed."""
        return bool(self.crop or self.mask)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> Any:
        """Transformers' own, and the segmenter of a processor with `crop` or `mask`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        if processor.windowed:
            from .lungs_cxr import LUNGS_FILE, LungFinder

            options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            file = cached_file(pretrained_model_name_or_path, LUNGS_FILE, **options)
            processor.lungs = LungFinder.load(file, cls)
        return loaded

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes the settings and, beside them, the segmenter; what `save_pretrained` calls."""
        if self.windowed:
            from .lungs_cxr import LUNGS_FILE

            self._finder().save(Path(json_file_path).with_name(LUNGS_FILE))
        super().to_json_file(json_file_path)

    def to_dict(self) -> dict[str, Any]:
        """The settings, without the segmenter."""
        bare = copy.copy(self)  # other threads use this one meanwhile
        bare.__dict__.pop("lungs", None)
        return super(CxrImageProcessor, bare).to_dict()

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
        opened = super().open(_to_array(image))
        opened, shape = self.focus(opened, shape and opened.part_of(shape))
        return self.prepare(opened.pixels, shape)

    def open(self, image: ImageSource | torch.Tensor) -> CxrImage:
        """Reads the grey image at its own size, `reading_cxr.open_image`, tensors too; `focus`."""
        return self.focus(super().open(_to_array(image)))[0]

    def sandbox(self) -> "Sandbox | FocusedSandbox":
        """What reads files as `open` does, in processes with limits of time and memory."""
        sandbox = super().sandbox()
        if not self.windowed:
            return sandbox
        from .lungs_cxr import FocusedSandbox

        return FocusedSandbox(sandbox, self)

    def focus(
        self, image: CxrImage, shape: tuple[float, float] | None = None
    ) -> tuple[CxrImage, tuple[float, float] | None]:
        """The image as `crop` and `mask` say, and the proportions of what is left.

        One in which no lungs are found stays whole, with a warning.

        Args:
            image: as read, before anything else is done to it.
            shape: its height and width before it was stretched, where it was.

        Raises:
            ValueError: `crop` or `mask` is set and `lungs` is not.
        """
        if not self.windowed:
            return image, shape
        from .lungs_cxr import NO_LUNGS, crop_to, mask_by

        sure = self._finder().find(image.pixels)
        if not (sure > 0.5).any():
            return image._replace(warnings=(*image.warnings, NO_LUNGS)), shape
        if self.mask:
            image = mask_by(image, sure, self.mask)
        if self.crop:
            before = image.pixels.shape
            image = crop_to(image, sure > 0.5)
            after = image.pixels.shape
            shape = shape and tuple(s * a / b for s, a, b in zip(shape, after, before))
        return image, shape

    def _finder(self) -> "LungFinder":
        if self.lungs is None:
            raise ValueError(
                f"the image processor has crop={self.crop!r} and mask={self.mask!r} and no "
                "segmenter: load it by from_pretrained, or set its `lungs`."
            )
        return self.lungs

    def frame(self) -> "CxrImageProcessor":
        """The processor of the frames that ten crops are cut from: 256 pixels a side for 224."""
        settings = self.to_dict() | {
            "size": {name: round(side * FRAME) for name, side in self.size.items()},
            "geometry": "crop" if self.geometry == "inner_crop" else self.geometry,
        }
        framed = type(self).from_dict(settings)
        framed.lungs = self.lungs
        return framed

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """`preprocessing_cxr.normalize` to `image_mean` and `image_std`: a tensor in any case."""
        values = normalize(pixels, self.image_mean, self.image_std)
        return torch.from_numpy(values) if isinstance(values, np.ndarray) else values

    def restore(self, heatmap: np.ndarray | torch.Tensor, height: int, width: int) -> np.ndarray:
        """`preprocessing_cxr.restore` to an image's frame: float32 (height, width)."""
        return super().restore(_to_array(heatmap), height, width)

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


def _to_array(image: Any) -> Any:
    """A tensor as an array, anything else as it is."""
    if not isinstance(image, torch.Tensor):
        return image
    image = image.detach()
    return (image.float() if image.dtype == torch.bfloat16 else image).cpu().numpy()


def _per_channel(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    return values if num_channels == 3 else (sum(values) / 3,)


CxrImageProcessor.register_for_auto_class()
