"""8-bit numbers with one scale a row."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.numerics import absmax


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_eight_bits_are_at_most_half_a_scale_off(tokens_NC: np.ndarray) -> None:
    """|x - code * scale| <= scale / 2, but for float32 rounding (2^-20 of the row's largest)."""
    codes_NC, scales_N = absmax.quantize(tokens_NC)
    decoded_NC = absmax.dequantize(codes_NC, scales_N)
    largest_N = np.abs(tokens_NC).max(axis=1)
    assert (np.abs(codes_NC.astype(int)) <= 127).all()
    # Below the smallest scale that float32 has, a row is rounded to zero.
    allowed_N = scales_N.astype(float) / 2 + largest_N * 2.0**-20 + 127 * 2.0**-149
    assert (np.abs(decoded_NC.astype(float) - tokens_NC).max(axis=1) <= allowed_N).all()


def test_eight_bits_by_hand() -> None:
    """Row 0: scale 254 / 127 = 2; 254, -3, 1, 5 give 127, -1.5, 0.5, 2.5, halves to even."""
    tokens = np.array([[254, -3, 1, 5], [0, 0, 0, 0]], np.float32)
    codes, scales = absmax.quantize(tokens)
    assert codes.tolist() == [[127, -2, 0, 2], [0, 0, 0, 0]]
    assert scales.tolist() == [2.0, 0.0]
