"""DenseNet-BC (Huang et al. 2017), timm's implementation."""

from collections.abc import Sequence
from typing import Any

from timm.models.densenet import DenseNet

from .configuration_cxr import CxrConfig
from .modeling_cxr import CxrClassifier, register


class CxrDenseNetConfig(CxrConfig):
    """A DenseNet-BC (Huang et al. 2017, table 1); the defaults are DenseNet-121.

    Args:
        block_config: dense layers in each block.
        growth_rate: channels that each dense layer adds.
        kwargs: see `CxrConfig`.
    """

    model_type = "cxr-densenet"

    def __init__(
        self,
        block_config: Sequence[int] = (6, 12, 24, 16),
        growth_rate: int = 32,
        **kwargs: Any,
    ) -> None:
        self.block_config = list(block_config)
        self.growth_rate = growth_rate
        super().__init__(**kwargs)


@register("densenet121")
class CxrDenseNetForImageClassification(CxrClassifier):
    """timm's DenseNet: DenseNet-121 has 6,949,634 parameters with one channel and two classes."""

    config_class = CxrDenseNetConfig
    timm_name = "densenet121"

    def __init__(self, config: CxrDenseNetConfig) -> None:
        super().__init__(config)
        self.network = DenseNet(
            growth_rate=config.growth_rate,
            block_config=tuple(config.block_config),
            num_classes=config.num_labels,
            in_chans=config.num_channels,
            drop_rate=config.dropout,
        )
        self.post_init()
