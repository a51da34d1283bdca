"""The losses a configuration can choose."""

import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from .configuration_cxr import CxrConfig


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, config: CxrConfig
) -> torch.Tensor:
    """Mean loss of what a batch has labels for; 0, with gradients of 0, where it has none.

    Args:
        logits: float (B, K).
        labels: int (B,) class indices, negative for an image without a label; or float (B, K) of
            1, 0 and, for an unknown finding, NaN when the problem is multi-label.
        config: holds `problem_type`, `loss`, `class_weights`, `label_smoothing`, `focal_gamma`
            and `focal_alpha`.

    Returns:
        A scalar. Class weights average as torch's cross-entropy does: over the weights' sum.

    Raises:
        ValueError: labels of another shape or kind, or beyond the classes.
    """
    expected = tuple(logits.shape) if config.is_multi_label else (logits.shape[0],)
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; {config.problem_type} takes {expected}."
        )
    weights = None
    if config.class_weights is not None:
        weights = logits.new_tensor(config.class_weights)
    if config.is_multi_label:
        known = ~labels.isnan()
    elif labels.is_floating_point():
        raise ValueError(f"labels is {labels.dtype}; {config.problem_type} takes class indices.")
    elif len(labels) and labels.max() >= logits.shape[1]:
        raise ValueError(
            f"a label is {labels.max().item()}; the classes are 0 to {logits.shape[1] - 1}."
        )
    else:
        known = labels >= 0
    if not known.any():
        return logits.sum() * 0
    if config.is_multi_label:
        if not known.all():
            logits, labels = logits[known], labels[known]
            weights = None if weights is None else weights.expand(known.shape)[known]
        return _multi_label_loss(logits, labels.to(logits.dtype), weights, config)
    if not known.all():
        logits, labels = logits[known], labels[known]
    if config.loss == "focal":
        return _focal_loss(logits, labels, weights, config)
    return F.cross_entropy(logits, labels, weights, label_smoothing=config.label_smoothing)


def _multi_label_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, config: CxrConfig
) -> torch.Tensor:
    """The mean over all cells, (B, K) or those of them that are known."""
    if config.loss == "focal":
        alpha = -1 if config.focal_alpha is None else config.focal_alpha
        losses = sigmoid_focal_loss(logits, labels, alpha, config.focal_gamma)
        if weights is not None:
            losses = losses * torch.where(labels > 0, weights, 1)
        return losses.mean()
    smoothed = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def _focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, config: CxrConfig
) -> torch.Tensor:
    """Lin et al. 2017, equation 5, with the softmax probability of the true class as p_t."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    losses = -((1 - log_p.exp()) ** config.focal_gamma) * log_p
    if config.focal_alpha is not None:
        losses = losses * torch.where(labels == 1, config.focal_alpha, 1 - config.focal_alpha)
    if weights is None:
        return losses.mean()
    return (weights[labels] * losses).sum() / weights[labels].sum()
