import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.downlink import linear

BLOCKS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 64)),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


@given(BLOCKS)
def test_int8_error_is_at_most_half_a_step(blocks: np.ndarray) -> None:
    steps = linear.int8_scales(blocks)
    codes = linear.int8_codes(blocks, steps)
    decoded = linear.INT8_LEVELS[codes].astype(np.float64) * steps[:, None]
    # float32 rounds the step and the quotient: 127 * 2**-23 of a step each.
    assert (np.abs(decoded - blocks) <= steps[:, None] * (0.5 + 1e-4)).all()
    assert (linear.INT8_LEVELS[codes] >= -127).all()


def test_int8_levels_are_two_s_complement() -> None:
    assert linear.INT8_LEVELS[[0, 1, 127, 255, 129, 128]].tolist() == [0, 1, 127, -1, -127, -128]


@given(BLOCKS)
def test_four_levels_are_never_worse_than_sending_nothing(blocks: np.ndarray) -> None:
    scales = linear.four_level_scales(blocks)
    codes = linear.four_level_codes(blocks, scales)
    decoded = linear.FOUR_LEVELS[codes].astype(np.float64) * scales[:, None]
    energy = np.square(blocks, dtype=np.float64).sum(axis=1)
    error = np.square(decoded - blocks).sum(axis=1)
    assert (error <= energy * (1 + 1e-5)).all()


def test_four_levels_keep_the_length_of_a_gaussian_update() -> None:
    """For N(0, 1) and the best even levels the scale of least error explains 0.8812 of the energy
    (1 - 0.1188, the distortion of the 4-level uniform quantiser: Max 1960, table II), so the scale
    of full length leaves 1 / 0.8812 - 1 = 0.135: a relative error of 0.367. Blocks of 64 are fitted
    one by one, which explains a little more.
    """
    blocks = np.random.default_rng(0).standard_normal((4000, 64), np.float32)
    scales = linear.four_level_scales(blocks)
    decoded = linear.FOUR_LEVELS[linear.four_level_codes(blocks, scales)] * scales[:, None]
    along = (decoded * blocks).sum() / np.square(blocks).sum()
    error = np.linalg.norm(decoded - blocks) / np.linalg.norm(blocks)
    assert along == pytest.approx(1, abs=1e-3)
    assert error == pytest.approx(0.367, abs=0.01) and error < 0.367


def test_one_large_value_among_zeros_is_not_smeared() -> None:
    """Four levels have no zero. Here x = e_1, c = (3, 1, ..., 1): <x,c> = 3, <c,c> = 72, explained
    9 / 72 = 0.125 < 0.8, so the scale is that of least error, 3 / 72, and not 1 / 3.
    """
    block = np.zeros((1, 64), np.float32)
    block[0, 0] = 1
    assert linear.four_level_scales(block) == pytest.approx([3 / 72])


def test_a_worked_block_of_four_levels() -> None:
    """x = (3, -3, 1, -1) is its own levels: explained 1, scale <x,x>/<x,c> = 20 / 20 = 1."""
    block = np.array([[3.0, -3.0, 1.0, -1.0]], np.float32)
    assert linear.four_level_scales(block) == pytest.approx([1.0])
    assert linear.four_level_codes(block, np.ones(1, np.float32)).tolist() == [[3, 0, 2, 1]]
