"""Codes column by column: they come back, at little more than their entropy, and never explode."""

import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import columns
from cdcca_cli.numerics.columns import pack, unpack
from cdcca_cli.numerics.uniform import entropy_bits

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)
ANY = st.one_of(st.just(0), st.integers(-3, 3), st.integers(-(1 << 24), 1 << 24))


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.int32, SHAPES, elements=ANY))
def test_what_is_packed_is_unpacked(codes_RK: np.ndarray) -> None:
    packed = pack(codes_RK)
    found = unpack(packed, *codes_RK.shape)
    assert found.dtype == np.int32 and np.array_equal(found, codes_RK)
    assert pack(codes_RK) == packed


def laplace(rows: int, width: int, top: float) -> np.ndarray:
    """Codes of independent columns whose mean size falls from `top` to a thousandth of it."""
    source = np.random.default_rng(0)
    sizes_K = top * np.logspace(0, -3, width)
    return np.rint(source.laplace(size=(rows, width)) * sizes_K).astype(np.int32)


@pytest.mark.parametrize(("rows", "most"), [(64, 1.1), (360, 1.06)])
def test_bytes_are_near_the_entropy_of_each_column(rows: int, most: float) -> None:
    """The entropy of a Laplace column with the true scale, from its integrals in closed form.

    P(0) = 1 - exp(-1 / 2s), P(+-k) = exp(-k / s) * sinh(1 / 2s): the mean of -log2 P over codes.
    """
    width = 2000
    codes_RK = laplace(rows, width, 3)
    scale_K = 3 * np.logspace(0, -3, width)
    half_K = 0.5 / scale_K
    zero_K = -np.log2(-np.expm1(-half_K))
    # log2 of exp(-k / s) sinh(1 / 2s), without overflow
    rest_RK = (np.abs(codes_RK) / scale_K - half_K - np.log1p(-np.exp(-2 * half_K))) / np.log(2) + 1
    ideal = np.where(codes_RK == 0, zero_K, rest_RK).sum() / 8
    assert ideal < len(pack(codes_RK)) < most * ideal


def test_sorting_of_columns_saves_bytes_but_no_code_depends_on_it() -> None:
    codes_RK = laplace(64, 500, 6)
    shuffled = codes_RK[:, np.random.default_rng(1).permutation(500)]
    assert np.array_equal(unpack(pack(shuffled), 64, 500), shuffled)
    assert len(pack(codes_RK)) < 0.95 * len(pack(shuffled))
    assert len(pack(codes_RK)) < 64 * 500 * entropy_bits(codes_RK) / 8


def test_codes_that_are_too_large_are_refused() -> None:
    with pytest.raises(BadData, match="beyond"):
        pack(np.array([[1 << 25]]))
    with pytest.raises(BadData, match="at most"):
        pack(np.broadcast_to(np.int32(0), (1 << 20, 1 << 20)))


def runs_of(codes_RK: np.ndarray) -> bytes:
    return columns._in_runs(np.ascontiguousarray(codes_RK.T), np.abs(codes_RK).mean(0))


SOUND = runs_of(laplace(60, 60, 3))
FEW = pack(300 * laplace(2, 60, 3))


def test_both_forms_are_tried() -> None:
    assert SOUND[0] and not FEW[0]
    assert len(pack(laplace(1, 2000, 3))) < 0.85 * len(runs_of(laplace(1, 2000, 3)))
    assert pack(laplace(60, 2000, 3)) == runs_of(laplace(60, 2000, 3))


@pytest.mark.parametrize(("packed", "rows"), [(SOUND, 60), (FEW, 2)], ids=["runs", "bytes"])
def test_every_truncation_is_refused(packed: bytes, rows: int) -> None:
    for end in range(len(packed)):
        with pytest.raises(BadData, match=r"^here: "):
            unpack(packed[:end], rows, 60, where="here")


def plain(content: bytes) -> bytes:
    return b"\0" + zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize(
    ("packed", "rows", "width", "reason"),
    [
        (SOUND, 60, 61, "expected 61"),
        (SOUND, 61, 60, "codes: "),
        (SOUND + b"\0", 60, 60, "codes: "),
        (b"", 1, 1, "cut short"),
        (b"\0", 1, 1, "damaged codes"),
        (b"\0x", 0, 1, "no codes"),
        (FEW, 4, 60, "bytes for 240 codes"),
        (FEW + b"\0", 2, 60, "damaged codes"),
        (plain(b"\xff\1\0\0\0"), 1, 1, "1 codes of 255"),
        (plain(b"\1\1\1\0\0"), 1, 1, "0 codes of 255, 1 numbers"),
        (plain(b"\xff\0\0\0\3"), 1, 1, "beyond"),
        (plain(bytes(1 << 20)), 1, 1, "1,048,576 bytes for 1 codes"),
        (b"\x02" + struct.pack("<2I", 1, 0xFFFFFFFF), 1, 0, "4,294,967,296 columns"),
        (SOUND, 1 << 14, 1 << 14, "at most"),
    ],
)
def test_what_does_not_fit_is_refused(packed: bytes, rows: int, width: int, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        unpack(packed, rows, width)


@pytest.mark.parametrize(("packed", "rows"), [(SOUND, 60), (FEW, 2)], ids=["runs", "bytes"])
def test_every_byte_changed_is_refused_or_gives_other_codes(packed: bytes, rows: int) -> None:
    for place in range(len(packed)):
        for value in (0, 1, 255, packed[place] ^ 1):
            data = packed[:place] + bytes([value]) + packed[place + 1 :]
            with suppress(BadData):
                assert unpack(data, rows, 60).shape == (rows, 60)


def test_classes_of_runs_in_another_order_are_refused() -> None:
    """Two runs, the first of class 2: a writer numbers them in order."""
    from cdcca_cli.numerics import planes

    one = np.ones((2, 3), np.int32)
    body = planes.write_body([2, 1], [one, one])
    with pytest.raises(BadData, match="classes"):
        unpack(b"\x02" + struct.pack("<2I", 2, 2) + body, 3, 4)


def test_a_bomb_is_bounded_by_the_limit() -> None:
    """A few bytes that declare 2^26 zeros are refused before memory is taken for them."""
    zeros = pack(np.zeros((1 << 6, 1 << 10), np.int32))
    tracemalloc.start()
    with pytest.raises(BadData, match="at most 65,535"):
        unpack(zeros, 1 << 6, 1 << 10, limit=(1 << 16) - 1)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()
    assert columns.MOST_CODES == 1 << 26
