"""Draws: one stream for each seed, purpose and number, however large."""

import numpy as np

from cdcca_cli.distillation.draws import For, draws


def test_the_key_is_the_seed_and_the_purpose_above_the_number() -> None:
    for purpose, number in ((For.ORDER, 3), (For.RESTORE, 5)):
        own = np.random.Generator(np.random.Philox(key=[7, int(purpose) * 2**56 + number]))
        np.testing.assert_array_equal(draws(7, purpose, number).random(5), own.random(5))


def test_seeds_purposes_and_numbers_are_told_apart() -> None:
    """numpy takes a list with 2^63 and more for floats, which do not tell these apart."""
    seeds = (0, 2**63, 2**63 + 1, 2**64 - 1)
    places = [(seed, purpose, n) for seed in seeds for purpose in For for n in (0, 1, 2**55)]
    firsts = {draws(*place).integers(2**63).item() for place in places}
    assert len(firsts) == len(places)
