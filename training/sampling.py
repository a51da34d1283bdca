"""Draws of training images by weight."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class WeightedSampler(Sampler[int]):
    """As many images an epoch as there are, with replacement, each in proportion to its weight.

    The draws of an epoch depend on the seed and its number alone, so that processes agree and a
    resumed run draws what an unbroken one draws. (Accelerate does this for `RandomSampler` only.)

    Args:
        weights: one an image, >= 0, not all 0.
        seed: of the draws.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        draws = torch.multinomial(self.weights, len(self), replacement=True, generator=generator)
        yield from draws.tolist()
