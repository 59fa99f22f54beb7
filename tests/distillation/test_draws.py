"""Draws: one stream for each seed and number, however large."""

import numpy as np

from cdcca_cli.distillation.draws import draws


def test_small_keys_are_numpy_s_own() -> None:
    """What was drawn before large ones were told apart stays as it was."""
    own = np.random.Generator(np.random.Philox(key=[7, 3]))
    np.testing.assert_array_equal(draws(7, 3).random(5), own.random(5))


def test_large_seeds_and_numbers_are_told_apart() -> None:
    """numpy takes a list with 2^63 and more for floats, which do not tell these apart."""
    places = [(s, n) for s in (0, 2**63, 2**63 + 1, 2**64 - 1) for n in (0, 2**63, 2**63 + 1)]
    firsts = {draws(*place).integers(2**63).item() for place in places}
    assert len(firsts) == len(places)
