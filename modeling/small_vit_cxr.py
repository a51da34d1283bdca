"""A vision transformer for small data sets (Lee, Lee and Song 2021, arXiv 2112.13492)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.initialization import normal_, xavier_normal_, zeros_

from .configuration_cxr import CxrConfig, check_heads, check_multiple
from .modeling_cxr import CxrClassifier, register


class CxrSmallVitConfig(CxrConfig):
    """A ViT with shifted patch tokenization and locality self-attention (Lee et al. 2021).

    The defaults are the paper's for small data sets. Without both it is a plain ViT.

    Args:
        patch_size: side of a patch, pixels; None for an eighth of `image_size`, as the paper has 8
            at 64 pixels.
        shifted_patches: shifted patch tokenization: a patch is seen beside its four neighbours on
            the diagonals, half a patch away.
        local_attention: locality self-attention: no token attends to itself, and each head learns
            its temperature.
        embed_dim: width of the tokens.
        depth: blocks.
        num_heads: of the attention; they divide `embed_dim`.
        mlp_ratio: width of a block's hidden layer over that of the tokens.
        kwargs: see `CxrConfig`; `image_size` is a multiple of the patch's side.

    Raises:
        ValueError: a value outside its range, or one that does not fit the others.
    """

    model_type = "cxr-small-vit"

    def __init__(
        self,
        patch_size: int | None = None,
        shifted_patches: bool = True,
        local_attention: bool = True,
        embed_dim: int = 192,
        depth: int = 9,
        num_heads: int = 12,
        mlp_ratio: float = 2.0,
        **kwargs: Any,
    ) -> None:
        self.patch_size = patch_size
        self.shifted_patches = shifted_patches
        self.local_attention = local_attention
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        super().__init__(**kwargs)

    @property
    def patch_side(self) -> int:
        """Side of a patch, pixels."""
        return self.image_size // 8 if self.patch_size is None else self.patch_size

    def check(self) -> None:
        """See `CxrConfig`."""
        super().check()
        check_heads(self.embed_dim, self.num_heads)
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; it is 1 or more.")
        if self.patch_size is None:
            check_multiple("image_size", self.image_size, 8, "patches on a side")
        if self.shifted_patches:
            check_multiple("patch_size", self.patch_side, 2, "shifts are by half a patch")
        check_multiple("image_size", self.image_size, self.patch_side, "the side of a patch")


class PatchEmbedding(nn.Module):
    """Tokens from patches, which may hold the shifted images, too."""

    def __init__(self, config: CxrSmallVitConfig) -> None:
        super().__init__()
        self.side, self.shifted = config.patch_side, config.shifted_patches
        images = 5 if self.shifted else 1
        values = images * config.num_channels * self.side**2
        # The paper normalises shifted patches alone.
        self.norm = nn.LayerNorm(values) if self.shifted else nn.Identity()
        self.project = nn.Linear(values, config.embed_dim)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tokens (B, n, D) of float (B, C, H, W), row by row."""
        if self.shifted:
            shifts = diagonal_shifts(pixel_values, self.side // 2)
            pixel_values = torch.cat([pixel_values, *shifts], 1)
        patches = pixel_values.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        # (B, C, rows, y, columns, x) to (B, rows, columns, y, x, C)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.project(self.norm(patches))


def diagonal_shifts(images: torch.Tensor, shift: int) -> list[torch.Tensor]:
    """Images (B, C, H, W) moved down and right, down and left, up and right, up and left.

    Args:
        images: float (B, C, H, W).
        shift: pixels; what comes in over an edge is 0.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (shift,) * 4)
    corners = [(top, left) for top in (0, 2 * shift) for left in (0, 2 * shift)]
    return [padded[:, :, top : top + height, left : left + width] for top, left in corners]


class Attention(nn.Module):
    """Attention, with a learned temperature a head where it is local."""

    def __init__(self, config: CxrSmallVitConfig) -> None:
        super().__init__()
        width, self.num_heads = config.embed_dim, config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.scale = None
        if config.local_attention:
            start = (width // self.num_heads) ** -0.5
            self.scale = nn.Parameter(torch.full((self.num_heads,), start))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens (B, n, D) from such; row i of `mask`, bool (n, n), says which of them i reads."""
        queries, keys, values = (
            self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        if self.scale is None:
            mixed = F.scaled_dot_product_attention(queries, keys, values, mask)
        else:  # the fused attention takes a number, not a parameter, as its scale
            queries = queries * self.scale[:, None, None]
            mixed = F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)
        return self.project(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a hidden layer, each after a layer normalisation and with a residual."""

    def __init__(self, config: CxrSmallVitConfig) -> None:
        super().__init__()
        width, hidden = config.embed_dim, round(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens (B, n, D) from such; see `Attention`."""
        tokens = tokens + self.attention(self.norm1(tokens), mask)
        return tokens + self.mlp(self.norm2(tokens))


class SmallVit(nn.Module):
    """The network: patches and a class token with learned positions, blocks, a head."""

    def __init__(self, config: CxrSmallVitConfig) -> None:
        super().__init__()
        self.image_size, self.local = config.image_size, config.local_attention
        self.num_features = config.embed_dim
        self.patch_embed = PatchEmbedding(config)
        tokens = 1 + (config.image_size // config.patch_side) ** 2
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.positions = nn.Parameter(torch.zeros(1, tokens, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.embed_dim, config.num_labels)

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tokens (B, 1 + n, D), that of the class first, of float (B, C, H, W).

        Raises:
            ValueError: images of another size than the configuration's.
        """
        height, width = pixel_values.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values is of {height} x {width} pixels; this network takes "
                f"{self.image_size} x {self.image_size}."
            )
        patches = self.patch_embed(pixel_values)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1)
        tokens, mask = tokens + self.positions, None
        if self.local:
            mask = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits (B, K) of tokens; with `pre_logits` the class token (B, D), normalised."""
        token = self.norm(features[:, 0])
        return token if pre_logits else self.classifier(self.dropout(token))

    def get_classifier(self) -> nn.Linear:
        """The linear layer that gives the logits."""
        return self.classifier

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of float (B, C, H, W)."""
        return self.forward_head(self.forward_features(pixel_values))


@register("small_vit")
class CxrSmallVitForImageClassification(CxrClassifier):
    """The small-data ViT: 2,743,854 parameters at 64 pixels with one channel and two classes."""

    config_class = CxrSmallVitConfig

    def __init__(self, config: CxrSmallVitConfig) -> None:
        super().__init__(config)
        self.network = SmallVit(config)
        self.post_init()

    @property
    def map_layer(self) -> nn.Module:
        """What the last attention reads: after it, no patch's token reaches the head."""
        return self.network.blocks[-1].norm1

    def to_maps(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """See `CxrClassifier`."""
        side = size[0] // self.config.patch_side
        return output[:, 1:].mT.unflatten(2, (side, side))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # As the paper's code does; what is not named here keeps torch's own.
        if isinstance(module, nn.Linear):
            xavier_normal_(module.weight)
            if module.bias is not None:
                zeros_(module.bias)
        elif isinstance(module, SmallVit):
            normal_(module.class_token)
            normal_(module.positions)
