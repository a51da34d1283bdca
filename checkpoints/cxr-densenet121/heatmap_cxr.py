"""Where a network looked: Grad-CAM (Selvaraju et al. 2017) and its kin."""

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
    cam = min_max(cam.clamp(min=0))
    size = tuple(pixel_values.shape[2:])
    cam = F.interpolate(cam[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return min_max(cam)


def min_max(cam: torch.Tensor) -> torch.Tensor:
    """Maps (..., h, w) scaled to their own extremes, to [0, 1]."""
    # The same small term as in the grad-cam library, so that both give the same picture.
    cam = cam - cam.amin((-2, -1), keepdim=True)
    return cam / (1e-7 + cam.amax((-2, -1), keepdim=True))


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
