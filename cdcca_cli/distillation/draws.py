"""What is drawn at random, from a seed and a number: the same on every machine.

Does not say what for: each caller has numbers of its own.
"""

import numpy as np

MASK = 2**64 - 1


def draws(seed: int, number: int) -> np.random.Generator:
    """Philox-4x64 keyed by both, each taken modulo 2^64."""
    # As uint64: of a list that holds 2^63 and more numpy makes floats, and many seeds would be one.
    key = np.array([seed & MASK, number & MASK], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
