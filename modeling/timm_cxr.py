"""The networks of timm, each by its timm name."""

from typing import Any

import timm
import torch
from torch import nn

from .configuration_cxr import CxrConfig
from .modeling_cxr import CxrClassifier, register


class CxrTimmConfig(CxrConfig):
    """Any timm classification network: `architecture` is its timm name."""

    model_type = "cxr-timm"

    def __init__(self, architecture: str = "resnet18", **kwargs: Any) -> None:
        self.architecture = architecture
        super().__init__(**kwargs)


@register("timm")
class CxrTimmForImageClassification(CxrClassifier):
    """Any timm classification network whose heads are linear layers.

    Raises:
        ValueError: a name that timm does not know, or a network with another kind of head.
    """

    config_class = CxrTimmConfig

    def __init__(self, config: CxrTimmConfig) -> None:
        super().__init__(config)
        if not timm.is_model(config.architecture):
            raise ValueError(f"architecture is {config.architecture!r}, which timm does not know.")
        self.network = timm.create_model(
            config.architecture,
            num_classes=config.num_labels,
            in_chans=config.num_channels,
            drop_rate=config.dropout,
            **fixed_size(config.architecture, config.image_size),
        )
        if not all(isinstance(head, nn.Linear) for head in self.heads):
            raise ValueError(
                f"architecture is {config.architecture!r}, whose head is not a linear layer."
            )
        self.post_init()

    @property
    def timm_name(self) -> str:
        """The configuration's `architecture`."""
        return self.config.architecture

    @property
    def map_layer(self) -> nn.Module | None:
        """Of a transformer the `norm1` of its last block; None for `forward_features`."""
        # In a transformer with a class token the head reads no patch token, so that their
        # gradients vanish after the last attention: the maps are those before it.
        blocks = getattr(self.network, "blocks", None)
        return None if blocks is None else getattr(blocks[-1], "norm1", None)

    def to_maps(self, output: Any, size: tuple[int, int]) -> torch.Tensor | None:
        """Feature maps (B, c, h, w) from patch tokens or maps of either layout; None of others."""
        if not torch.is_tensor(output):
            return None
        channels = self.network.num_features
        grid = getattr(getattr(self.network, "patch_embed", None), "grid_size", None)
        if output.ndim == 3 and grid is not None and output.shape[1] >= grid[0] * grid[1]:
            patches = output[:, -grid[0] * grid[1] :]  # class and register tokens come first
            return patches.unflatten(1, grid).permute(0, 3, 1, 2)
        if output.ndim == 4 and output.shape[1] != channels and output.shape[3] == channels:
            return output.permute(0, 3, 1, 2)
        return output if output.ndim == 4 else None


def fixed_size(name: str, image_size: int) -> dict[str, int]:
    """`img_size` for the timm networks that are built for one input size, such as ViTs."""
    pretrained_cfg = timm.get_pretrained_cfg(name)
    fixed = pretrained_cfg is not None and pretrained_cfg.fixed_input_size
    return {"img_size": image_size} if fixed else {}
