"""Lungs: a small U-Net that says of each pixel whether it is lung."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SemanticSegmenterOutput

from .modeling_cxr import CxrPreTrainedModel, register

# The second of two lungs has at least this share of the first's pixels; less is a speck.
SECOND = 0.2


class CxrLungSegmenterConfig(PretrainedConfig):
    """A U-Net for one mask, that of both lungs.

    Args:
        image_size: height and width of `pixel_values` in training, pixels; others may be given.
        num_channels: 1 (grey) or 3.
        hidden_sizes: channels of the encoder's stages, each of which halves the sides.
        kwargs: transformers' own.

    Raises:
        ValueError: other channels than 1 or 3, or fewer than two stages.
    """

    model_type = "cxr-lungs"

    def __init__(
        self,
        image_size: int = 128,
        num_channels: int = 1,
        hidden_sizes: Sequence[int] = (8, 16, 32, 64, 96),
        **kwargs: Any,
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is {num_channels}; it can be 1 or 3.")
        if len(hidden_sizes) < 2:
            raise ValueError(f"hidden_sizes is {list(hidden_sizes)}; it needs two stages or more.")
        self.image_size = image_size
        self.num_channels = num_channels
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**{"id2label": {0: "lungs"}, **kwargs})


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) that works at half of the input's resolution and below.

    Lungs are large and smooth: their outline is found between the pixels of that half, for a
    quarter of the work.
    """

    def __init__(self, config: CxrLungSegmenterConfig) -> None:
        super().__init__()
        widths = config.hidden_sizes
        inputs = [config.num_channels, *widths]
        self.encoder = nn.ModuleList(
            _stage(before, after, stride=2) for before, after in zip(inputs, widths)
        )
        self.decoder = nn.ModuleList(
            _stage(below + beside, beside) for beside, below in zip(widths, widths[1:])
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, H, W) of float (B, C, H, W)."""
        maps, skipped = pixel_values, []
        for stage in self.encoder:
            maps = stage(maps)
            skipped.append(maps)
        skipped.pop()
        for stage in reversed(self.decoder):
            beside = skipped.pop()
            maps = stage(torch.cat([_enlarge(maps, beside.shape[2:]), beside], 1))
        return _enlarge(self.head(maps), pixel_values.shape[2:])


def _stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _enlarge(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus 1 - the soft Dice of each image (Milletari et al. 2016, V-Net).

    Args:
        logits: float (B, 1, H, W).
        masks: float (B, H, W) in [0, 1].

    Returns:
        float scalar.

    Raises:
        ValueError: masks of another shape.
    """
    logits = logits[:, 0].float()
    if masks.shape != logits.shape:
        raise ValueError(
            f"the masks have shape {tuple(masks.shape)}; this batch takes {tuple(logits.shape)}."
        )
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum((1, 2))
    total = (probabilities + masks).sum((1, 2))
    dice = (2 * overlap + 1) / (total + 1)  # 1 where nothing is found of nothing
    return F.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


@register("lungs")
class CxrLungSegmenter(CxrPreTrainedModel):
    """Where the lungs are: one mask for both, which `split_sides` tells apart."""

    config_class = CxrLungSegmenterConfig
    base_model_prefix = "network"
    auto_model = "AutoModelForSemanticSegmentation"

    def __init__(self, config: CxrLungSegmenterConfig) -> None:
        super().__init__(config)
        self.network = UNet(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation stands, as where nothing is loaded.
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> SemanticSegmenterOutput:
        """Segments a batch.

        Args:
            pixel_values: float (B, C, H, W), as the image processor gives them.
            labels: masks, float (B, H, W) in [0, 1]; adds `loss`, see `segmentation_loss`.

        Returns:
            `logits`, float (B, 1, H, W), and the loss where labels are given.

        Raises:
            ValueError: pixel values or labels of another shape.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes "
                f"(batch, {self.config.num_channels}, height, width)."
            )
        logits = self.network(pixel_values.to(self.dtype))
        loss = None if labels is None else segmentation_loss(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def segment(self, pixel_values: torch.Tensor, largest: int | None = None) -> torch.Tensor:
        """How sure it is of each pixel that it is lung; above 0.5 it says so.

        Args:
            pixel_values: float (B, C, H, W), as the image processor gives them.
            largest: keep so many of the largest connected components of what is above 0.5, two for
                the two lungs, and set all else to 0; None keeps everything.

        Returns:
            float32 (B, H, W) in [0, 1]; an image without lungs has a mask of nothing above 0.5.
            `processor.restore` puts one of them in its image's frame.

        Raises:
            ValueError: see `forward`; `largest` below 1.
        """
        if largest is not None and largest < 1:
            raise ValueError(f"largest is {largest}; it is 1 or more.")
        masks = self(pixel_values).logits[:, 0].float().sigmoid()
        if largest is None:
            return masks
        kept = np.stack([_largest(mask > 0.5, largest) for mask in masks.cpu().numpy()])
        return masks * torch.from_numpy(kept).to(masks.device)


def split_sides(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The right and the left lung of the patient, told apart by where they lie.

    In a chest X-ray as it is hung, the right lung is at the image's left. Each connected component
    of what is above 0.5 goes to one side whole; lungs that touch are cut halfway.

    Args:
        masks: float (B, H, W) in [0, 1], as `segment` gives them.

    Returns:
        Two of the same shape, whose sum is `masks`.
    """
    right = np.stack([_right(mask > 0.5) for mask in masks.cpu().numpy()])
    right = masks * torch.from_numpy(right).to(masks.device)
    return right, masks - right


def _largest(inside: np.ndarray, count: int) -> np.ndarray:
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, sizes.argsort()[::-1][:count]) & inside


def _right(inside: np.ndarray) -> np.ndarray:
    """Which pixels, in or out of the lungs, lie on the patient's right: bool (H, W)."""
    columns = np.arange(inside.shape[1])
    labels, count = ndimage.label(inside)
    if count == 0:
        return np.broadcast_to(columns < inside.shape[1] / 2, inside.shape)
    sizes = np.bincount(labels.ravel())[1:]
    centres = np.array(ndimage.center_of_mass(inside, labels, range(1, count + 1)))[:, 1]
    first, *others = sizes.argsort()[::-1]
    cut = None
    if others and sizes[others[0]] >= SECOND * sizes[first]:
        middle = (centres[first] + centres[others[0]]) / 2
    else:
        middle = (inside.shape[1] - 1) / 2
        ends = np.flatnonzero((labels == first + 1).any(0))[[0, -1]]
        if ends[1] - ends[0] >= inside.shape[1] / 2:  # wider than a lung is
            middle, cut = ends.mean(), first + 1
    sides = np.append(False, centres < middle)[labels]
    by_column = np.broadcast_to(columns < middle, inside.shape)
    return np.where((labels == 0) | (labels == cut), by_column, sides)
