import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.downlink.codecs.nf4 import decode_scales, encode_scales
from cdcca_cli.errors import BadData

POSITIVE = st.floats(2.0**-60, 2.0**60, width=32)


@given(arrays.arrays(np.float32, st.integers(1, 20), elements=POSITIVE))
@example(np.array([1.7042431e13, 5.5844639e17], np.float32))  # 15.5 units and 2**15 times 16
def test_rounded_up_by_one_sixteenth_at_most_or_sent_as_zero(wanted: np.ndarray) -> None:
    """16 units have no code, as 0 stands for zero: they become 17, and so does all from 15.5 on."""
    codes, exponent = encode_scales(wanted)
    decoded = decode_scales(codes, exponent)
    sent = decoded > 0
    assert (decoded[sent] >= wanted[sent]).all()
    most = np.where(codes[sent] == 1, 17 / 15.5, 17 / 16)
    assert (decoded[sent] <= wanted[sent].astype(np.float64) * most).all()
    assert (wanted[~sent] < wanted.max() * 2.0**-15).all()


def test_worked_codes() -> None:
    """1 = 16 * 2**-4. As the largest it stands in octave 15, so e = -4 - 15 = -19 and its code is
    15 * 16 + 0 = 240. 1.01 needs mantissa ceil(16.16) = 17. 1/2 is an octave lower: 224. 0 is 0.
    """
    codes, exponent = encode_scales(np.array([1.0, 1.01, 0.5, 0.0], np.float32))
    assert (codes.tolist(), exponent) == ([240, 241, 224, 0], -19)
    assert decode_scales(codes, exponent).tolist() == [1.0, 17 / 16, 0.5, 0.0]


def test_every_code_but_zero_is_larger_than_the_one_before() -> None:
    """Code 1 is 17 * 2**0, code 255 is 31 * 2**15."""
    decoded = decode_scales(np.arange(256).astype(np.uint8), 0)
    assert (np.diff(decoded) > 0).all()
    assert decoded[[0, 1, 16, 255]].tolist() == [0, 17, 32, 31 * 2**15]


def test_the_mantissa_carries_into_the_next_octave() -> None:
    """31.5 / 16 rounds up to 32 / 16 = 2, and not to a code of another octave."""
    wanted = np.array([31.5 / 16], np.float32)
    assert decode_scales(*encode_scales(wanted)).tolist() == [2.0]


def test_zeros_alone_and_nothing_at_all() -> None:
    assert decode_scales(*encode_scales(np.zeros(3, np.float32))).tolist() == [0, 0, 0]
    assert decode_scales(*encode_scales(np.zeros(0, np.float32))).tolist() == []


@pytest.mark.parametrize("smallest", [1e-45, 1e-38, 2.0**-90])
def test_what_processors_may_flush_to_zero_is_sent_as_zero(smallest: float) -> None:
    codes, exponent = encode_scales(np.array([smallest], np.float32))
    assert exponent >= -100
    assert codes.tolist() == [0] or decode_scales(codes, exponent)[0] >= smallest


def test_a_scale_beyond_float32_is_refused() -> None:
    """31 * 2**15 * 2**109 = 2**128.95; one octave lower it is still a float32."""
    assert np.isfinite(decode_scales(np.array([255], np.uint8), 108)).all()
    with pytest.raises(BadData, match="not finite"):
        decode_scales(np.array([255], np.uint8), 109)
