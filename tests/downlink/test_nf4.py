from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.downlink.codecs import nf4
from tests.downlink import earlier

BLOCKS = arrays.arrays(
    np.float32,
    st.integers(1, 64),
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
    np.testing.assert_allclose(nf4.NF4, expected, atol=1e-6)
    assert nf4.NF4[7] == 0 and nf4.NF4[0] == -1 and nf4.NF4[15] == 1


@given(BLOCKS)
def test_error_is_at_most_half_a_step_of_the_table(block: np.ndarray) -> None:
    """Of the scale that the block's byte stands for, which is at or above its largest magnitude."""
    coded = nf4.quantize(block)
    (scale,) = nf4.decode_scales(np.frombuffer(coded.scales, np.uint8), coded.exponent).tolist()
    restored = nf4.restore(coded, block.size).astype(np.float64)
    levels = nf4.NF4.astype(np.float64) * scale
    nearest = np.abs(levels[None] - block[:, None]).min(1)
    assert scale >= np.abs(block).max() * (1 - 2**-20) or not np.abs(block).max() > 1e-4
    assert (np.abs(restored - block) <= nearest + 1e-6 * scale).all()


def test_a_worked_block() -> None:
    """Largest 2, so 2 is level 1 (code 15), -2 level -1 (0), 0 level 0 (7), and 1 = 0.5 * 2 lies
    nearest 0.4407 (12): |0.5 - 0.4407| = 0.059 < |0.5626 - 0.5| = 0.063. Two codes a byte, the
    first in the low half: 0x0F, 0xC7. 2 = 16 * 2**-3, in octave 15: e = -18, byte 15 * 16.
    """
    coded = nf4.quantize(np.array([2.0, -2.0, 0.0, 1.0], np.float32))
    assert coded == nf4.CodedTensor(4, -18, bytes([240]), bytes([0x0F, 0xC7]))
    restored = nf4.restore(coded, 4)
    assert restored == pytest.approx([2, -2, 0, 2 * 0.44070982933044434])


def test_a_block_of_zeros_gets_the_zero_level() -> None:
    assert nf4.quantize(np.zeros(65, np.float32)).codes == 32 * b"\x77" + b"\x07"


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 129, 1000])
def test_the_slow_form_agrees(size: int) -> None:
    """Block by block and value by value, against all 16 levels."""
    delta = np.random.default_rng(size).standard_normal(size, np.float32)
    assert nf4.quantize(delta) == earlier.quantize(delta, 4)


def test_what_does_not_matter_is_not_sent() -> None:
    """A millionth of the squared change at most, together: 1e-7 and 8e-7 of 1 are left out, 2e-7
    more is not."""
    deltas = [np.full(4, value, np.float32) for value in (1.0, 0.0, 1e-3, 2e-3)]
    for energies, bits in (
        ([1.0, 0.0, 1e-7, 8e-7], [4, 0, 0, 0]),
        ([1.0, 0.0, 2e-7, 9e-7], [4, 0, 0, 4]),
        ([0.0] * 4, [0] * 4),
    ):
        assert nf4.encode(deltas, energies, 1)[0] == bits
