"""Weights at one step, and their average over the steps of a training."""

from collections.abc import Sequence

import torch
from torch.optim.swa_utils import AveragedModel


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of weights and buffers on the CPU, contiguous as safetensors needs them."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }


def weight_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and buffers.

    The decay warms up as (1 + t) / (10 + t), so that the first steps are soon forgotten.

    Args:
        model: whose weights are averaged; the average is a copy.
        decay: its final value, in (0, 1).
    """

    def update(
        averaged: Sequence[torch.Tensor],
        current: Sequence[torch.Tensor],
        num_averaged: torch.Tensor | int,
    ) -> None:
        warm = min(decay, (1 + float(num_averaged)) / (10 + float(num_averaged)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - warm)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
