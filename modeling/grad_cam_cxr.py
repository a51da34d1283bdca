"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, section 3) and its kin."""

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


def check_method(method: str) -> None:
    """ValueError for a method that is not one of `CAM_METHODS`."""
    if method not in CAM_METHODS:
        raise ValueError(f"method is {method!r}; it can be {', '.join(CAM_METHODS)}.")


def gap_linear_head(network: nn.Module, features: torch.Tensor) -> nn.Linear | None:
    """The classifier, if the head is a global average pool followed by one linear layer.

    Args:
        network: answers `forward_head` and `get_classifier` as timm's networks do.
        features: its last feature maps, float (B, C, h, w) for such a head.

    Returns:
        The linear layer, or None for any other head. Found by computing both, as the heads of
        timm's networks differ too much in structure to be told apart by their attributes.
    """
    linear = network.get_classifier()
    if not isinstance(linear, nn.Linear) or features.ndim != 4:
        return None
    if features.shape[1] != linear.in_features:
        return None
    expected = network.forward_head(features)
    pooled = linear(features.mean((2, 3)))
    return linear if torch.allclose(pooled, expected, rtol=1e-3, atol=1e-4) else None


def closed_form_grad_cam(
    features: torch.Tensor, weights: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Grad-CAM without a backward pass.

    Behind a global average pool the gradient of a logit by a feature map is the map's classifier
    weight over its area, so Grad-CAM is CAM (Selvaraju et al. 2017, appendix A).

    Args:
        features: float (B, C, h, w).
        weights: classifier row of each image's target class, float (B, C).
        size: height and width of the heatmaps.

    Returns:
        float32 (B, H, W) in [0, 1].
    """
    area = features.shape[2] * features.shape[3]
    cam = torch.einsum("bchw,bc->bhw", features.float(), weights.float()) / area
    cam = _min_max(cam.clamp(min=0))
    cam = F.interpolate(cam[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return _min_max(cam)


def _min_max(cam):
    # The same small term as in the grad-cam library, so that both give the same picture.
    cam = cam - cam.amin((1, 2), keepdim=True)
    return cam / (1e-7 + cam.amax((1, 2), keepdim=True))


def library_cam(
    method: str, network: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """A heatmap by the grad-cam library.

    Args:
        method: a key of `CAM_METHODS`.
        network: a timm network.
        pixel_values: float (B, C, H, W).
        targets: class index of each image, int (B,).

    Returns:
        float32 (B, H, W) in [0, 1].

    Raises:
        ImportError: the grad-cam package is missing.
        ValueError: the network's features have no places in the image.
    """
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise ImportError(
            "this heatmap needs the grad-cam package: pip install grad-cam."
        ) from error

    tapped = _TappedNetwork(network)
    # The library empties the gradients; those of a training in progress are kept aside.
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad(set_to_none=True)
    classes = [ClassifierOutputTarget(int(target)) for target in targets]
    library = getattr(pytorch_grad_cam, CAM_METHODS[method])
    with torch.inference_mode(False), torch.enable_grad():
        # Gradients by the input keep the graph alive when all weights are frozen.
        inputs = pixel_values.detach().clone().requires_grad_()
        with library(tapped, [tapped.target_layer], tapped.to_maps) as cam:
            heatmaps = cam(inputs, classes)
    for parameter, gradient in zip(network.parameters(), gradients):
        parameter.grad = gradient
    return torch.from_numpy(heatmaps).to(pixel_values.device)


class _TappedNetwork(nn.Module):
    """A timm network with a layer to hook between its features and its head."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.tap = nn.Identity()
        blocks = getattr(network, "blocks", None)
        # In a transformer with a class token the head reads no patch token, so that their
        # gradients vanish after the last attention: hook before it.
        tokens = blocks is not None and hasattr(blocks[-1], "norm1")
        self.target_layer = blocks[-1].norm1 if tokens else self.tap

    def forward(self, pixel_values):
        return self.network.forward_head(self.tap(self.network.forward_features(pixel_values)))

    def to_maps(self, features):
        """(B, C, h, w) from (B, tokens, C) or (B, h, w, C)."""
        channels = self.network.num_features
        grid = getattr(getattr(self.network, "patch_embed", None), "grid_size", None)
        if features.ndim == 3 and grid is not None:
            height, width = grid
            features = features[:, -height * width :].unflatten(1, (height, width))
            return features.permute(0, 3, 1, 2)
        if features.ndim == 4 and features.shape[1] != channels and features.shape[3] == channels:
            return features.permute(0, 3, 1, 2)
        if features.ndim == 4:
            return features
        raise ValueError(f"no Grad-CAM for features of shape {tuple(features.shape)}.")
