"""Which training images an epoch draws, and in what order."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import RandomSampler, Sampler

from training.data import PixelDataset
from training.seeds import mix_seed


class WeightedSampler(Sampler[int]):
    """Draws with replacement, each image in proportion to its weight.

    The draws of an epoch depend on the seed and its number alone, so that processes agree and a
    resumed run draws what an unbroken one draws. (Accelerate does this for `RandomSampler` only.)

    Args:
        weights: one an image, >= 0, not all 0.
        num_samples: draws of an epoch.
        seed: of the draws.

    Raises:
        ValueError: weights that are no such numbers.
    """

    def __init__(self, weights: Sequence[float], num_samples: int, seed: int) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if not (self.weights >= 0).all() or not 0 < self.weights.sum() < torch.inf:
            raise ValueError(
                "the weights of training images are numbers of 0 or more, and not all 0."
            )
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draws of the next pass, as Accelerate's loader does for each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        draws = torch.multinomial(
            self.weights, self.num_samples, replacement=True, generator=generator
        )
        yield from draws.tolist()


def training_sampler(split: PixelDataset, batch_size: int, seed: int) -> Sampler[int]:
    """As many images an epoch as there are: shuffled, or drawn by weight where the split has some.

    One less where the last batch would be of one image, which batch normalisation cannot learn from
    where the network's last maps are of one pixel: another image rests in each epoch.
    """
    num_samples = len(split) - (len(split) % batch_size == 1)
    if split.weights is None:
        return RandomSampler(split, num_samples=num_samples)
    return WeightedSampler(split.weights, num_samples, seed)
