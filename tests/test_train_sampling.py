"""Which images an epoch of training draws: alone, by weight, in two processes, in mid-epoch."""

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import BatchSampler

from training.inference import make_loader
from training.sampling import WeightedSampler, training_sampler
from training.seeds import mix_seed


class Rows:
    """A split of which a sampler and a loader need no more."""

    def __init__(self, count, weights=None):
        self.count, self.weights = count, weights

    def __len__(self):
        return self.count

    def __getitems__(self, rows):
        return rows


def test_images_are_drawn_in_proportion_to_their_weights():
    weights = [0, 1, 3, 6]
    draws = list(WeightedSampler(weights, 20_000, seed=1))
    shares = np.bincount(draws, minlength=4) / 20_000
    np.testing.assert_allclose(shares, np.array(weights) / 10, atol=0.015)
    assert shares[0] == 0


def test_a_mixed_seed_tells_all_its_numbers_apart():
    seeds = {mix_seed(*row) for row in np.ndindex(20, 20, 4)}
    assert len(seeds) == 1600
    assert max(seeds) < 2**32  # more, torch's generator on the CPU does not read


def test_an_epochs_draws_depend_on_the_seed_and_its_number_alone():
    def draws(seed, epoch, before=()):
        sampler = WeightedSampler(np.arange(50), 50, seed)
        for earlier in before:
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(1, 3) == draws(1, 3, before=(0, 2, 7))
    assert len({tuple(draws(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_draw_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights of training images are numbers of 0 or more"):
        WeightedSampler(weights, 2, seed=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(9, 4), (8, 4), (10, 4), (3, 2), (2, 2), (5, 8)])
def test_no_batch_of_one_is_ever_trained_on(count, batch_size, weighted):
    split = Rows(count, np.ones(count) if weighted else None)
    batches = list(BatchSampler(training_sampler(split, batch_size, 0), batch_size, False))
    assert min(map(len, batches)) >= 2
    assert sum(map(len, batches)) == count - (count % batch_size == 1)
    if not weighted:
        drawn = [row for batch in batches for row in batch]
        assert len(set(drawn)) == len(drawn)


def epoch_of(split, process, processes, epoch, skipped=0):
    """The batches of row numbers that one process trains on."""
    loader = prepare_data_loader(
        make_loader(split, 4, 3),
        num_processes=processes,
        process_index=process,
        use_seedable_sampler=True,
        data_seed=3,
    )
    loader.set_epoch(epoch)
    return list(skip_first_batches(loader, skipped))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [24, 25, 5])
def test_two_processes_share_the_order_that_one_draws(count, weighted):
    split = Rows(count, np.arange(count) + 1.0 if weighted else None)
    for epoch in (0, 1):
        alone = epoch_of(split, 0, 1, epoch)
        shares = [epoch_of(split, process, 2, epoch) for process in (0, 1)]
        dealt = [batch for pair in zip(*shares) for batch in pair]
        assert dealt[: len(alone) - 1] == alone[:-1]
        assert {len(batch) for batch in dealt} == {4}  # filled up with rows drawn before
        if count == 24 and not weighted:
            assert sorted(sum(dealt, [])) == list(range(24))
        # A resumed epoch is the rest of the unbroken one.
        assert epoch_of(split, 0, 1, epoch, skipped=1) == alone[1:]
        assert epoch_of(split, 1, 2, epoch, skipped=1) == shares[1][1:]
    assert epoch_of(split, 0, 1, 0) != alone
