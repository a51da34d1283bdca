"""Conformer (Peng et al. 2021): a CNN and a transformer side by side, coupled block by block."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn
from transformers.initialization import kaiming_normal_, trunc_normal_, zeros_

from .configuration_cxr import CxrConfig, check_heads, check_multiple
from .modeling_cxr import CxrClassifier, register

BatchNorm = partial(nn.BatchNorm2d, eps=1e-6)
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class CxrConformerConfig(CxrConfig):
    """A Conformer (Peng et al. 2021, table 1); the defaults are Conformer-Ti.

    Args:
        channel_ratio: r: the three stages of the CNN have 64 r, 128 r and 256 r channels.
        embed_dim: width of the tokens.
        num_heads: of the attention; they divide `embed_dim`.
        depth: blocks, a third of them in each stage.
        mlp_ratio: width of a transformer block's hidden layer over that of the tokens.
        stem_stride: 4; or 2, without the stem's pooling, for small images.
        kwargs: see `CxrConfig`; `image_size` is a multiple of `patch_size`.

    Raises:
        ValueError: a value outside its range or set, or one that does not fit the others.
    """

    model_type = "cxr-conformer"

    def __init__(
        self,
        channel_ratio: int = 1,
        embed_dim: int = 384,
        num_heads: int = 6,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        stem_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        self.channel_ratio = channel_ratio
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.depth = depth
        self.mlp_ratio = mlp_ratio
        self.stem_stride = stem_stride
        super().__init__(**kwargs)

    @property
    def patch_size(self) -> int:
        """Side of the square of pixels that a token is for: four places of the stem's maps."""
        return 4 * self.stem_stride

    def check(self) -> None:
        """See `CxrConfig`."""
        super().check()
        if self.channel_ratio < 1:
            raise ValueError(f"channel_ratio is {self.channel_ratio}; it is 1 or more.")
        check_heads(self.embed_dim, self.num_heads)
        check_multiple("depth", self.depth, 3, "a third of the blocks in each stage")
        if self.stem_stride not in (2, 4):
            raise ValueError(f"stem_stride is {self.stem_stride}; it can be 2 or 4.")
        check_multiple("image_size", self.image_size, self.patch_size, "the side of a patch")


class ConvBlock(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, a quarter as wide inside, and a residual connection."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, project: bool) -> None:
        super().__init__()
        width = channels_out // 4
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.norm3 = BatchNorm(channels_out)
        self.residual = nn.Identity()
        if project:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.residual = nn.Sequential(projection, BatchNorm(channels_out))

    def inside(self, maps: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """The 3x3 convolution's maps, those that the coupling reads; it adds where that begins."""
        maps = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        if added is not None:
            maps = maps + added
        return F.relu(self.norm2(self.conv2(maps)), inplace=True)

    def outside(self, inside: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """The block's output, of `inside` and what the block was given."""
        return F.relu(self.norm3(self.conv3(inside)) + self.residual(maps), inplace=True)

    def forward(self, maps: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Feature maps (B, channels_out, h / stride, w / stride) of (B, channels_in, h, w)."""
        return self.outside(self.inside(maps, added), maps)


class CouplingDown(nn.Module):
    """The Feature Coupling Unit from feature maps to tokens."""

    def __init__(self, channels: int, embed_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = nn.Conv2d(channels, embed_dim, 1)
        self.norm = LayerNorm(embed_dim)

    def forward(self, maps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What is added to tokens (B, 1 + n, D); their own class token is in front of it."""
        # The paper pools after the projection. Both are linear, and the order changes nothing but
        # the work, which is a sixteenth at a stride of 4.
        maps = self.project(F.avg_pool2d(maps, self.stride))
        patches = F.gelu(self.norm(maps.flatten(2).mT))
        return torch.cat([tokens[:, :1], patches], 1)


class CouplingUp(nn.Module):
    """The Feature Coupling Unit from tokens to feature maps."""

    def __init__(self, embed_dim: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = nn.Conv2d(embed_dim, channels, 1)
        self.norm = BatchNorm(channels)

    def forward(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Feature maps (B, channels, height, width), of all tokens but that of the class."""
        grid = (height // self.stride, width // self.stride)
        maps = tokens[:, 1:].mT.unflatten(2, grid)
        maps = F.relu(self.norm(self.project(maps)), inplace=True)
        return F.interpolate(maps, (height, width))


class CoupledBlock(nn.Module):
    """A block of each branch: the CNN's gives to the transformer's, that to a second CNN's."""

    def __init__(
        self,
        config: CxrConformerConfig,
        channels_in: int,
        channels_out: int,
        token_stride: int,
        last: bool,
    ) -> None:
        super().__init__()
        first = channels_in != channels_out
        inside = channels_out // 4
        self.cnn_block = ConvBlock(channels_in, channels_out, 2 if first else 1, first)
        self.fusion_block = ConvBlock(channels_out, channels_out, 2 if last else 1, last)
        self.down = CouplingDown(inside, config.embed_dim, token_stride)
        self.up = CouplingUp(config.embed_dim, inside, token_stride)
        self.transformer_block = transformer_block(config)

    def forward(
        self, maps: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature maps and tokens (B, 1 + n, D), of those of the block before."""
        inside = self.cnn_block.inside(maps)
        maps = self.cnn_block.outside(inside, maps)
        tokens = self.transformer_block(tokens + self.down(inside, tokens))
        return self.fusion_block(maps, self.up(tokens, *inside.shape[2:])), tokens


def transformer_block(config: CxrConformerConfig) -> Block:
    """Timm's, of layer normalisation, attention and a hidden layer."""
    return Block(
        config.embed_dim, config.num_heads, config.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm
    )


class Conformer(nn.Module):
    """The network: a stem for both branches, `depth` blocks and a head for each branch."""

    def __init__(self, config: CxrConformerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        stem = [
            nn.Conv2d(config.num_channels, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        ]
        pool = [nn.MaxPool2d(3, 2, 1)] if config.stem_stride == 4 else []
        self.stem = nn.Sequential(*stem, *pool)
        # The first block has no coupling.
        channels = 64 * config.channel_ratio
        self.cnn_block = ConvBlock(64, channels, 1, project=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.patch_embed = nn.Conv2d(64, config.embed_dim, 4, 4)
        self.transformer_block = transformer_block(config)
        self.blocks = nn.ModuleList()
        for index in range(1, config.depth):
            stage = 3 * index // config.depth
            channels_in, channels = channels, 64 * config.channel_ratio * 2**stage
            last = index == config.depth - 1
            self.blocks.append(CoupledBlock(config, channels_in, channels, 4 // 2**stage, last))
        self.num_features = channels + config.embed_dim
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.cnn_head = nn.Linear(channels, config.num_labels)
        self.transformer_head = nn.Linear(config.embed_dim, config.num_labels)

    def forward_features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature maps (B, 256 r, h / 2, w / 2) and tokens (B, 1 + h w, D) of float (B, C, H, W).

        h and w are H and W over the configuration's `patch_size`.

        Raises:
            ValueError: a height or width that is no multiple of the patch size.
        """
        height, width = pixel_values.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"pixel_values is of {height} x {width} pixels; this network takes sides that are "
                f"multiples of {self.patch_size}."
            )
        stem = self.stem(pixel_values)
        patches = self.patch_embed(stem).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1)
        maps, tokens = self.cnn_block(stem), self.transformer_block(tokens)
        for block in self.blocks:
            maps, tokens = block(maps, tokens)
        return maps, tokens

    def forward_pooled(
        self, features: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each head reads: the means (B, 256 r) of the maps, and the class token (B, D)."""
        maps, tokens = features
        return maps.mean((2, 3)), self.norm(tokens[:, 0])

    def forward_heads(
        self, features: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K) of the CNN and of the transformer."""
        pooled, token = self.forward_pooled(features)
        return self.cnn_head(self.dropout(pooled)), self.transformer_head(self.dropout(token))

    def forward_head(
        self, features: tuple[torch.Tensor, torch.Tensor], pre_logits: bool = False
    ) -> torch.Tensor:
        """The sum (B, K) of both heads' logits; with `pre_logits` what both read, side by side."""
        if pre_logits:
            return torch.cat(self.forward_pooled(features), 1)
        of_cnn, of_transformer = self.forward_heads(features)
        return of_cnn + of_transformer

    def get_classifier(self) -> tuple[nn.Linear, nn.Linear]:
        """The heads of the CNN and of the transformer."""
        return self.cnn_head, self.transformer_head

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of float (B, C, H, W)."""
        return self.forward_head(self.forward_features(pixel_values))


@register("conformer_tiny")
@register("conformer_small", channel_ratio=4)
@register("conformer_mini", embed_dim=192, num_heads=3, depth=6, stem_stride=2)
class CxrConformerForImageClassification(CxrClassifier):
    """A Conformer; its loss is the mean of both heads', its logits are the sum of theirs.

    With three channels and 1,000 classes Conformer-Ti has 23,524,704 parameters and Conformer-S
    37,673,424 (the paper: 23.53 and 37.67 million). `conformer_mini` is no network of the paper but
    a smaller one with a finer stem, for X-rays of 64 to 128 pixels: 3,422,260 parameters with one
    channel and two classes.
    """

    config_class = CxrConformerConfig

    def __init__(self, config: CxrConformerConfig) -> None:
        super().__init__(config)
        self.network = Conformer(config)
        self.post_init()

    def head_logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `CxrClassifier`."""
        return self.network.forward_heads(self.network.forward_features(pixel_values))

    @property
    def map_layer(self) -> nn.Module:
        """The last block of the CNN: as the head reads means, Grad-CAM has a closed form."""
        return self.network.blocks[-1].fusion_block

    @property
    def token_layer(self) -> nn.Module:
        """What the transformer's last attention reads; see `CxrClassifier`."""
        return self.network.blocks[-1].transformer_block.norm1

    def to_maps(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """See `CxrClassifier`."""
        if output.ndim == 4:
            return output
        height, width = (side // self.config.patch_size for side in size)
        return output[:, 1:].mT.unflatten(2, (height, width))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # As the paper's code does; what is not named here keeps torch's own.
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Conformer):
            trunc_normal_(module.class_token, std=0.02)
