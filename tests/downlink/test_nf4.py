from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.downlink import nf4

BLOCKS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 64)),
    elements=st.floats(-1e6, 1e6, width=32),
)


def test_levels_are_the_published_quantiles() -> None:
    """QLoRA's rule: 8 quantiles of N(0, 1) below zero and 7 above it, zero, all over the largest.

    The outermost probability is 0.9677083, half way between those of 15 and 16 equal bins:
    1 - (1/32 + 1/30) / 2. The negative half has 8 steps from it to 0.5, the positive one 7 + zero.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    normal = NormalDist()
    above = [normal.inv_cdf(outermost + (0.5 - outermost) * i / 8) for i in range(8)]
    below = [-normal.inv_cdf(outermost + (0.5 - outermost) * i / 7) for i in range(7)]
    expected = sorted([*above, 0.0, *below])
    expected = [value / expected[-1] for value in expected]
    np.testing.assert_allclose(nf4.LEVELS, expected, atol=1e-6)
    assert nf4.LEVELS[7] == 0 and nf4.LEVELS[0] == -1 and nf4.LEVELS[15] == 1


@given(BLOCKS)
def test_error_is_at_most_half_a_step_of_the_table(blocks: np.ndarray) -> None:
    scales = nf4.scales(blocks)
    codes = nf4.codes(blocks, scales)
    steps = np.diff(nf4.LEVELS.astype(np.float64))
    decoded = nf4.LEVELS[codes].astype(np.float64) * scales[:, None]
    above = np.append(steps, 0)[codes] * (blocks > decoded)
    below = np.insert(steps, 0, 0)[codes] * (blocks < decoded)
    largest = (above + below) * scales[:, None] / 2
    assert (np.abs(decoded - blocks) <= largest + 1e-6 * scales[:, None]).all()


def test_a_worked_block() -> None:
    """Largest 2, so 2 is level 1, -2 level -1, 0 level 0, and 1 = 0.5 * 2 lies nearest 0.4407:
    |0.5 - 0.4407| = 0.059 < |0.5626 - 0.5| = 0.063.
    """
    block = np.array([[2.0, -2.0, 0.0, 1.0]], np.float32)
    assert nf4.scales(block) == pytest.approx([2.0])
    assert nf4.codes(block, nf4.scales(block)).tolist() == [[15, 0, 7, 12]]


def test_a_block_of_zeros_gets_the_zero_level() -> None:
    block = np.zeros((1, 64), np.float32)
    assert (nf4.codes(block, nf4.scales(block)) == 7).all()
