"""The baseline: a small convolutional network, by default of four blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .configuration_cxr import CxrConfig
from .modeling_cxr import CxrClassifier, register


class CxrBaselineConfig(CxrConfig):
    """The baseline CNN: `hidden_sizes` holds the output channels of its blocks."""

    model_type = "cxr-baseline"

    def __init__(self, hidden_sizes: Sequence[int] = (32, 64, 128, 256), **kwargs: Any) -> None:
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**kwargs)


class BaselineCnn(nn.Module):
    """Blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 maximum pooling."""

    def __init__(self, config: CxrBaselineConfig) -> None:
        super().__init__()
        channels = config.num_channels
        self.features = nn.Sequential()
        for width in config.hidden_sizes:
            self.features.extend(
                [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    nn.MaxPool2d(2),
                ]
            )
            channels = width
        self.num_features = channels
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels, config.num_labels)

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, D, h, w) of float (B, C, H, W); each block halves the sides."""
        return self.features(pixel_values)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits (B, K) of feature maps; with `pre_logits` the means (B, D) of the maps instead."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.classifier(self.dropout(pooled))

    def get_classifier(self) -> nn.Linear:
        """The linear layer that gives the logits."""
        return self.classifier

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of float (B, C, H, W)."""
        return self.forward_head(self.forward_features(pixel_values))


@register("baseline")
class CxrBaselineForImageClassification(CxrClassifier):
    """The baseline CNN: 388,834 parameters with four blocks, one channel and two classes."""

    config_class = CxrBaselineConfig

    def __init__(self, config: CxrBaselineConfig) -> None:
        super().__init__(config)
        self.network = BaselineCnn(config)
        self.post_init()
