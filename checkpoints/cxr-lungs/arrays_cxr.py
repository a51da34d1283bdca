"""NumPy arrays and torch tensors by the same lines, where torch need not be installed."""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"


def namespace(array: Array) -> ModuleType:
    """NumPy for its arrays; for a tensor torch, which must have been imported to make it."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def cast(array: Array, dtype: str) -> Array:
    """A copy, or the array itself, of the named dtype; a tensor keeps its gradient."""
    xp = namespace(array)
    return array.astype(dtype) if xp is np else array.to(getattr(xp, dtype))


def like(array: Array, values: Sequence[float] | Sequence[Sequence[float]]) -> Array:
    """Numbers as an array of `array`'s kind, dtype and device."""
    return namespace(array).asarray(values, dtype=array.dtype, device=array.device)
