"""A classifier as one graph: what `forward` answers, and its heatmaps in closed form."""

import torch
import torch.nn.functional as F
from torch import nn

from modeling.calibration_cxr import calibrate, to_probabilities
from modeling.heatmap_cxr import min_max
from modeling.modeling_cxr import CxrClassifier

PROBES = 4  # images of noise on which the closed form is compared with `explain`


class ExportGraph(nn.Module):
    """What leaves PyTorch: tensors in, a tuple of tensors out, in the order of `outputs`.

    Attributes:
        outputs: names: "logits" and "probabilities", float32 (B, K), "heatmap", float32
            (B, K, H, W) in [0, 1], the Grad-CAM of each class, where there is a closed form of it,
            and "outlier_score", float32 (B,), where the model has a detector.

    Args:
        model: any family's; it is put in evaluation mode and in float32.
    """

    def __init__(self, model: CxrClassifier) -> None:
        super().__init__()
        self.model = model.eval().float()
        self.head = mean_head(model)
        self.outputs = ["logits", "probabilities"]
        self.outputs += [] if self.head is None else ["heatmap"]
        self.outputs += [] if model.outlier_detector is None else ["outlier_score"]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class; `pixel_values` is float32 (B, C, H, W), of the configuration's size."""
        logits, maps = _logits_and_maps(self.model, pixel_values)
        config = self.model.config
        calibrated = calibrate(logits, config.calibration, config.is_multi_label)
        found = [logits, to_probabilities(calibrated, config.is_multi_label)]
        if self.head is not None:
            found.append(class_activation_maps(maps, self.head, tuple(pixel_values.shape[2:])))
        if self.model.outlier_detector is not None:
            found.append(self.model.outlier_detector(pixel_values))
        return tuple(found)


def export_program(graph: ExportGraph) -> torch.export.ExportedProgram:
    """The graph as `torch.export` writes it down, for any number of images.

    Raises:
        ValueError: the network does something that cannot be written down.
    """
    count = ({0: torch.export.Dim("batch")},)
    try:
        with torch.no_grad():
            return torch.export.export(graph, (noise(graph.model, 2),), dynamic_shapes=count)
    except Exception as error:  # torch raises whatever the network's own code leads it into
        kind = type(error).__name__
        raise ValueError(
            f"a {graph.model.config.model_type} network of this configuration cannot be exported "
            f"({kind}: {str(error).strip().splitlines()[0]})."
        ) from error


def noise(model: CxrClassifier, count: int) -> torch.Tensor:
    """Images of the shape that a model takes, the same at each call: float32 (count, C, H, W)."""
    side = model.config.image_size
    shape = (count, model.config.num_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def class_activation_maps(
    maps: torch.Tensor, head: nn.Linear, size: tuple[int, int]
) -> torch.Tensor:
    """Grad-CAM of each class without a gradient, where a linear head reads the maps' means.

    The gradient of such a class's logit by the maps is the head's weight over the number of places
    (Selvaraju et al. 2017, section 3.1; Zhou et al. 2016). What follows is `make_heatmaps`, for all
    classes at once.

    Args:
        maps: float (B, D, h, w).
        head: of D inputs and K outputs.
        size: height and width of the images, pixels.

    Returns:
        float32 (B, K, H, W) in [0, 1], each scaled to its own extremes.
    """
    weights = head.weight / (maps.shape[2] * maps.shape[3])
    cam = min_max(F.conv2d(maps, weights[:, :, None, None]).clamp(min=0))
    return min_max(F.interpolate(cam, size, mode="bilinear", align_corners=False))


def mean_head(model: CxrClassifier) -> nn.Linear | None:
    """The head that reads plain means of the feature maps; None where `explain` says otherwise.

    Networks differ in what lies between maps and head, and do not say so: each head that would fit
    is tried on images of noise.
    """
    probes = noise(model, PROBES)
    with torch.no_grad():
        _, maps = _logits_and_maps(model, probes)
    if maps is None:
        return None
    classes = range(model.config.num_labels)
    expected = torch.stack([model.grad_cam(probes, target) for target in classes], 1)
    for head in model.heads:
        if head.in_features == maps.shape[1]:
            with torch.no_grad():
                found = class_activation_maps(maps, head, tuple(probes.shape[2:]))
            if expected.any() and torch.allclose(found, expected, atol=1e-3):
                return head
    return None


def _logits_and_maps(
    model: CxrClassifier, pixel_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (B, K), and the feature maps (B, D, h, w) that `explain` reads."""
    kept = []
    layer = model.map_layer
    if layer is None:
        features = model.network.forward_features(pixel_values)
        kept.append(features)
    else:
        hook = layer.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            features = model.network.forward_features(pixel_values)
        finally:
            hook.remove()
    logits = model.network.forward_head(features)
    return logits, model.to_maps(kept[0], tuple(pixel_values.shape[2:]))
