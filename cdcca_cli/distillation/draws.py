"""What is drawn at random, from a seed, a purpose and a number: the same on every machine."""

from enum import IntEnum

import numpy as np

MASK = 2**64 - 1


class For(IntEnum):
    """What numbers are drawn for: two purposes never have the same ones."""

    ORDER = 0
    """The order of an epoch's examples."""
    INTERVAL = 1
    """The resamples of a bootstrap."""
    VIEWS = 2
    """CoTTA's views of a part of a batch."""
    RESTORE = 3
    """The parameters that CoTTA puts back after a step."""


def draws(seed: int, purpose: For, number: int = 0) -> np.random.Generator:
    """Philox-4x64 keyed by the seed modulo 2^64 and by purpose and number (below 2^56)."""
    # As uint64: of a list that holds 2^63 and more numpy makes floats, and many seeds would be one.
    key = np.array([seed & MASK, (purpose << 56) + number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
