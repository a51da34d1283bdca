"""Boxes: torchvision's Faster R-CNN on a timm network."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from .modeling_cxr import CxrPreTrainedModel, register
from .pipeline_cxr import CxrObjectDetectionPipeline

# Of the feature maps that the pyramid is made of; a fifth, of 64, is pooled from the last.
STRIDES = (4, 8, 16, 32)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
POOLED = 7  # cells a side that a proposal is pooled to, of Ren et al. 2015


class CxrDetectorConfig(PretrainedConfig):
    """A Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017).

    Args:
        architecture: timm name of the backbone, as densenet121, resnet50 or mobilenetv3_small_100;
            it needs feature maps of strides 4, 8, 16 and 32.
        image_size: height and width of `pixel_values` in training, pixels; others may be given.
        num_channels: 1 (grey) or 3.
        fpn_channels: of the feature pyramid.
        hidden_size: width of the box head.
        anchor_sizes: sides of the anchors, pixels, one for each stride of the pyramid: 4, 8, 16, 32
            and 64.
        num_proposals: regions of an image that the box head looks at; up to 512 in training.
        nms_threshold: of two boxes of a class with a larger IoU the one of lower score is left out.
            Findings of one kind seldom overlap: it is below the 0.5 of photographs.
        detections_per_image: the most boxes of an image.
        min_score: boxes of lower scores are left out, in [0, 1].
        threshold: score from which a box is shown, as fitted on validation.
        kwargs: `id2label`, `label2id` and transformers' own.

    Raises:
        ValueError: a value outside its range or set.
    """

    model_type = "cxr-detector"

    def __init__(
        self,
        architecture: str = "resnet50",
        image_size: int = 512,
        num_channels: int = 1,
        fpn_channels: int = 256,
        hidden_size: int = 1024,
        anchor_sizes: Sequence[float] = (16, 32, 64, 128, 256),
        num_proposals: int = 1000,
        nms_threshold: float = 0.3,
        detections_per_image: int = 100,
        min_score: float = 0.01,
        threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is {num_channels}; it can be 1 or 3.")
        if len(anchor_sizes) != len(STRIDES) + 1 or min(anchor_sizes) <= 0:
            raise ValueError(
                f"anchor_sizes is {list(anchor_sizes)}; it needs {len(STRIDES) + 1} sides above 0."
            )
        counts = {"fpn_channels": fpn_channels, "hidden_size": hidden_size}
        counts |= {"num_proposals": num_proposals, "detections_per_image": detections_per_image}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it is 1 or more.")
        shares = {"nms_threshold": nms_threshold, "min_score": min_score, "threshold": threshold}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it lies in [0, 1].")
        self.architecture = architecture
        self.image_size = image_size
        self.num_channels = num_channels
        self.fpn_channels = fpn_channels
        self.hidden_size = hidden_size
        self.anchor_sizes = list(anchor_sizes)
        self.num_proposals = num_proposals
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.min_score = min_score
        self.threshold = threshold
        super().__init__(**kwargs)
        self.label2id = {name: index for index, name in self.id2label.items()}


@dataclass
class CxrDetectorOutput(ModelOutput):
    """What a detector gives for a batch: its losses in training, boxes in evaluation.

    Attributes:
        loss: float scalar, the sum of `losses`.
        losses: {name: float scalar}: of the proposals, whether there is something and where, and of
            the box head, what it is and where.
        scores: float32 (B, D) in [0, 1], of each image the highest first; 0 where it has fewer
            boxes than D, the configuration's `detections_per_image`.
        labels: int64 (B, D), class indices; -1 where there is no box.
        boxes: float32 (B, D, 4): left, top, right, bottom in pixels of `pixel_values`.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    scores: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    boxes: torch.Tensor | None = None


class PyramidBackbone(nn.Module):
    """Feature maps of a timm network, and of them a pyramid of five.

    Raises:
        ValueError: a name that timm does not know, or a network without such feature maps.
    """

    def __init__(self, config: CxrDetectorConfig) -> None:
        super().__init__()
        name = config.architecture
        if not timm.is_model(name):
            raise ValueError(f"architecture is {name!r}, which timm does not know.")
        self.body = timm.create_model(name, features_only=True, in_chans=config.num_channels)
        strides = self.body.feature_info.reduction()
        if not set(STRIDES) <= set(strides):
            raise ValueError(
                f"architecture is {name!r}, whose feature maps have strides "
                f"{', '.join(map(str, strides))}; needed are {', '.join(map(str, STRIDES))}, as of "
                "densenet121, resnet50 or mobilenetv3_small_100."
            )
        self.chosen = [strides.index(stride) for stride in STRIDES]
        channels = [self.body.feature_info.channels()[index] for index in self.chosen]
        self.out_channels = config.fpn_channels
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, LastLevelMaxPool())

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """{name: (B, fpn_channels, h, w)}, the finest first."""
        maps = self.body(pixel_values)
        return self.fpn(OrderedDict((str(k), maps[index]) for k, index in enumerate(self.chosen)))


def _faster_rcnn(config: CxrDetectorConfig) -> FasterRCNN:
    backbone = PyramidBackbone(config)
    # Anchors are neither weights nor buffers: on the meta device, where transformers builds a model
    # that it loads, they would stay empty.
    with torch.device("cpu"):
        anchors = AnchorGenerator(
            tuple((side,) for side in config.anchor_sizes),
            (ASPECT_RATIOS,) * len(config.anchor_sizes),
        )
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=2 * config.num_proposals,
        rpn_pre_nms_top_n_test=2 * config.num_proposals,
        rpn_post_nms_top_n_train=config.num_proposals,
        rpn_post_nms_top_n_test=config.num_proposals,
        box_head=TwoMLPHead(config.fpn_channels * POOLED**2, config.hidden_size),
        box_predictor=FastRCNNPredictor(config.hidden_size, config.num_labels + 1),
        box_score_thresh=config.min_score,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.detections_per_image,
        box_batch_size_per_image=min(512, config.num_proposals),
    )


@register("detector")
class CxrDetector(CxrPreTrainedModel):
    """Where findings are: boxes, each with a class and a score.

    `processor.post_process_object_detection` puts them in the frame of the image.
    """

    config_class = CxrDetectorConfig
    base_model_prefix = "network"
    auto_model = "AutoModelForObjectDetection"
    pipelines = {"object-detection": CxrObjectDetectionPipeline}

    def __init__(self, config: CxrDetectorConfig) -> None:
        super().__init__(config)
        self.network = _faster_rcnn(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # timm and torchvision initialise their layers; these alone follow the classes, so that a
        # checkpoint may lack them.
        if module in set(self.network.roi_heads.box_predictor.children()):
            module.reset_parameters()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
    ) -> CxrDetectorOutput:
        """Looks for boxes in a batch, or learns from those that are given.

        Args:
            pixel_values: float (B, C, H, W), as the image processor gives them.
            labels: in training mode, and there alone, for each image `boxes`, float (n, 4): left,
                top, right, bottom in pixels of `pixel_values`, and `class_labels`, int64 (n,). An
                image may have none, and teaches then where nothing is.

        Returns:
            The loss in training mode, else scores, labels and boxes.

        Raises:
            ValueError: pixel values of another shape; labels in evaluation mode or none in training
                mode, for another number of images, of an unknown class, or with a box that is empty
                or leads out of the image.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes "
                f"(batch, {self.config.num_channels}, height, width)."
            )
        if self.training != (labels is not None):
            mode = "training" if self.training else "evaluation"
            needed = "needs labels" if self.training else "takes no labels"
            raise ValueError(f"a detector in {mode} mode {needed}.")
        height, width = pixel_values.shape[2:]
        targets = (
            None if labels is None else self._targets(labels, len(pixel_values), width, height)
        )
        pixel_values = pixel_values.to(self.dtype)
        # Not `self.network(...)`, which would resize and scale once more.
        images = ImageList(pixel_values, [(height, width)] * len(pixel_values))
        features = self.network.backbone(pixel_values)
        proposals, rpn_losses = self.network.rpn(images, features, targets)
        found, losses = self.network.roi_heads(features, proposals, images.image_sizes, targets)
        if self.training:
            losses = rpn_losses | losses
            return CxrDetectorOutput(loss=sum(losses.values()), losses=losses)
        count = self.config.detections_per_image
        scores = pixel_values.new_zeros(len(found), count, dtype=torch.float32)
        labels = torch.full_like(scores, -1, dtype=torch.int64)
        boxes = scores.new_zeros(len(found), count, 4)
        for index, one in enumerate(found):
            kept = slice(len(one["scores"]))
            scores[index, kept], boxes[index, kept] = one["scores"].float(), one["boxes"].float()
            labels[index, kept] = one["labels"] - 1  # the network's class 0 is the background
        return CxrDetectorOutput(scores=scores, labels=labels, boxes=boxes)

    def _targets(
        self, labels: Sequence[Mapping[str, torch.Tensor]], count: int, width: int, height: int
    ) -> list[dict[str, torch.Tensor]]:
        """Labels as torchvision takes them."""
        if len(labels) != count:
            raise ValueError(f"labels has {len(labels)} entries for {count} images.")
        corners = torch.cat([one["boxes"].reshape(-1, 4) for one in labels]).float()
        sides = corners.new_tensor([width, height])
        fits = (corners[:, :2] >= 0) & (corners[:, 2:] <= sides) & (corners[:, :2] < corners[:, 2:])
        if not fits.all():
            box = corners[~fits.all(1)][0].tolist()
            raise ValueError(
                f"the box {[round(side, 2) for side in box]} (left, top, right, bottom) is empty "
                f"or does not lie in an image of {width} x {height} pixels."
            )
        classes = torch.cat([one["class_labels"] for one in labels])
        unknown = classes[(classes < 0) | (classes >= self.config.num_labels)].tolist()
        if unknown:
            raise ValueError(
                f"class_labels has {unknown[0]}; the classes are 0 to {self.config.num_labels - 1}."
            )
        return [
            {"boxes": one["boxes"].reshape(-1, 4).float(), "labels": one["class_labels"] + 1}
            for one in labels
        ]
