"""Seeds of what a training draws at random."""

import numpy as np


def mix_seed(*numbers: int) -> int:
    """One seed of several numbers >= 0. torch's generator on the CPU reads no more than 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
