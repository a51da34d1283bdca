"""Weights in half precision: a model half the size on disk."""

from pathlib import Path

import torch

from modeling.modeling_cxr import CxrPreTrainedModel


def half_state(model: CxrPreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's weights with matrices and kernels in float16, half the size on disk.

    Biases and normalisation, little in size and wide in range, stay as they are.

    Raises:
        ValueError: a weight too large for float16.
    """
    rounded = {}
    for name, value in model.state_dict().items():
        half = value.half() if value.ndim > 1 and value.is_floating_point() else value
        if not half.isfinite().all():
            raise ValueError(f"{name} has a weight beyond float16; keep the model in float32.")
        rounded[name] = half
    return rounded


def save_half(model: CxrPreTrainedModel, folder: str | Path) -> None:
    """`save_pretrained` with the weights of `half_state`.

    The configuration keeps the model's float32, in which `from_pretrained` runs it: load
    `half_state` into the model before making the predictions that are reported for it.
    """
    model.save_pretrained(folder, state_dict=half_state(model))
