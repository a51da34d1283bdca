"""Where a network looked, Grad-CAM (Selvaraju et al. 2017) and its kin, and how it is drawn.

Grad-CAM scales each image to its own maximum, so that a healthy chest looks as hot as a sick one.
What is drawn is therefore heat, Grad-CAM times the probability of the class it explains: colour and
opacity follow that product, 0 to 1, and mean the same in every image.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Each method by the grad-cam library's class.
CAM_METHODS = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "hires_cam": "HiResCAM",
    "score_cam": "ScoreCAM",
    "layer_cam": "LayerCAM",
}
# Grad-CAM of a transformer's tokens, in a network that has feature maps beside them.
TOKEN_METHOD = "token_grad_cam"

# Heat 0, 1/4, 1/2, 3/4, 1: hues no X-ray has, red for the probabilities that matter.
COLOURS = np.array([[255, 236, 110], [255, 196, 61], [250, 128, 30], [222, 45, 38], [165, 0, 60]])
MAX_OPACITY = 0.7

_LEVELS = np.linspace(0, 1, 256)
_STOPS = np.linspace(0, 1, len(COLOURS))
_COLOUR = np.stack([np.interp(_LEVELS, _STOPS, channel) for channel in COLOURS.T], axis=-1)
_OPACITY = MAX_OPACITY * _LEVELS[:, None]
_LAYER = np.concatenate([_COLOUR, 255 * _OPACITY], axis=1).round().astype(np.uint8)
# The colour of every heat level (256) over every grey level (256).
_BLENDED = np.arange(256)[:, None] * (1 - _OPACITY[:, None]) + (_COLOUR * _OPACITY)[:, None]
_BLENDED = _BLENDED.round().astype(np.uint8)


def check_method(method: str, methods: Sequence[str]) -> None:
    """Refuses a method that a model does not have.

    Args:
        method: of heatmaps.
        methods: the model's `heatmap_methods`.

    Raises:
        ValueError: another one.
    """
    if not methods:
        raise ValueError(f"method is {method!r}; this model was exported without heatmaps.")
    if method not in methods:
        raise ValueError(f"method is {method!r}; it can be {', '.join(methods)}.")


def make_heatmaps(
    method: str,
    maps: torch.Tensor,
    gradients: torch.Tensor,
    pixel_values: torch.Tensor,
    network: nn.Module,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Heatmaps from a network's last feature maps.

    Args:
        method: `TOKEN_METHOD` or a key of `CAM_METHODS`; all but Grad-CAM by the grad-cam library.
        maps: float (B, C, h, w).
        gradients: of the explained logits by the maps, float (B, C, h, w).
        pixel_values: float (B, channels, H, W), what the maps were made of.
        network: made them; Score-CAM alone asks it again, for each channel.
        targets: class that each image's heatmap explains, int (B,).

    Returns:
        float32 (B, H, W) in [0, 1], each scaled to its own extremes.

    Raises:
        ImportError: a method of the grad-cam package without it.
    """
    maps, gradients = maps.detach().float(), gradients.float()
    if method in ("grad_cam", TOKEN_METHOD):
        cam = torch.einsum("bchw,bc->bhw", maps, gradients.mean((2, 3)))
    else:
        cam = _library_cam(method, maps, gradients, pixel_values, network, targets)
    cam = _min_max(cam.clamp(min=0))
    size = tuple(pixel_values.shape[2:])
    cam = F.interpolate(cam[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return _min_max(cam)


def _min_max(cam: torch.Tensor) -> torch.Tensor:
    # The same small term as in the grad-cam library, so that both give the same picture.
    cam = cam - cam.amin((1, 2), keepdim=True)
    return cam / (1e-7 + cam.amax((1, 2), keepdim=True))


def _library_cam(
    method: str,
    maps: torch.Tensor,
    gradients: torch.Tensor,
    pixel_values: torch.Tensor,
    network: nn.Module,
    targets: torch.Tensor,
) -> torch.Tensor:
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise ImportError(
            "this heatmap needs the grad-cam package: pip install grad-cam."
        ) from error

    library = getattr(pytorch_grad_cam, CAM_METHODS[method])(_InDtype(network), [])
    classes = [ClassifierOutputTarget(int(target)) for target in targets]
    arrays = maps.cpu().numpy(), gradients.cpu().numpy()
    cam = library.get_cam_image(pixel_values, None, classes, *arrays, eigen_smooth=False)
    return torch.from_numpy(np.asarray(cam)).to(maps)


class _InDtype(nn.Module):
    """The network for images of any precision: Score-CAM multiplies them by float32 maps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values.to(next(self.network.parameters()).dtype))


# ------------------------------------------------------------------------------------- as a picture


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws heat over a grey image.

    Args:
        pixels: uint16 (h, w), 0..65535.
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (h, w, 3); a pixel without heat keeps its grey.
    """
    return _BLENDED[_level(heat), pixels >> 8]


def heat_layer(heat: np.ndarray) -> np.ndarray:
    """Heat alone, to lay over any image.

    Args:
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (h, w, 4), RGBA.
    """
    return _LAYER[_level(heat)]


def _level(heat: np.ndarray) -> np.ndarray:
    return (heat * 255).round().astype(np.uint8)
