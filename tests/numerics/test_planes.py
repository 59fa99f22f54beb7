import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import planes
from cdcca_cli.numerics.uniform import entropy_bits, quantize
from cdcca_cli.numerics.zstd_frames import write_frame
from tests.downlink import slow_decoder
from tests.downlink.bombs import unfolding

SMALL = st.integers(-3, 3)
ANY = st.one_of(SMALL, st.integers(-(1 << 24), 1 << 24), st.integers(-300, 300))
CODES = arrays.arrays(
    np.int32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9), elements=ANY
)


def read(body: bytes, sizes: list[int]) -> tuple[list[int], list[list[int]]]:
    classes, codes = planes.read_body(body, sizes)
    return classes, [one.tolist() for one in codes]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(CODES, st.integers(1, 4)), max_size=5))
def test_what_is_written_is_read_and_the_slow_reader_reads_the_same(
    tensors: list[tuple[np.ndarray, int]],
) -> None:
    """Any shapes, 0-d and empty ones too, in any classes."""
    codes = [code for code, _ in tensors]
    classes = [number if code.any() else 0 for code, number in tensors]
    body = planes.write_body(classes, codes)
    sizes = [code.size for code in codes]
    found = read(body, sizes)
    expected: list[list[int]] = [[] for _ in range(max(classes, default=0))]
    for number, code in zip(classes, codes, strict=True):
        if number:
            expected[number - 1] += code.reshape(-1).tolist()
    assert found == (classes, expected)
    assert found == slow_decoder.planes(body, sizes)
    assert planes.write_body(classes, codes) == body
    assert sum(planes.part_lengths(body).values()) == len(body)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.0003])
def test_sparse_planes_have_gaps_of_every_length(share: float) -> None:
    """0.0003 leaves gaps of thousands: more than one byte of 255."""
    source = np.random.default_rng(0)
    codes = (source.random(20_000) < share) * source.choice(np.array([-1, 1, 40]), 20_000)
    body = planes.write_body([1], [codes])
    assert read(body, [20_000]) == ([1], [codes.tolist()]) == slow_decoder.planes(body, [20_000])


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 765])
def test_a_gap_by_hand(gap: int) -> None:
    """Byte g below 255 ends a gap, 255 goes on: 255 is 255, 0; 510 is 255, 255, 0."""
    codes = np.zeros(1000, np.int32)
    codes[gap] = 1
    body = planes.write_body([1], [codes])
    lengths = planes.part_lengths(body)
    header = body[24 : 24 + lengths["header"]]
    assert header == struct.pack("<BBBBI", 1, 1, 0, 1, gap // 255 + 1)
    assert read(body, [1000]) == ([1], [codes.tolist()])


@pytest.mark.parametrize("bits", [0.3, 0.5, 0.75, 1.0, 1.25, 1.6, 2.2, 3.0, 4.0])
@pytest.mark.parametrize("kind", ["gauss", "tensors that differ", "heavy tails"])
def test_the_size_is_within_two_percent_of_the_entropy(kind: str, bits: float) -> None:
    """Order 0, of all codes together; 200 bytes for header and tables."""
    from cdcca_cli.numerics.uniform import step_for_bits

    source = np.random.default_rng(0)
    values = source.standard_normal(200_000, np.float32)
    if kind == "tensors that differ":
        values *= np.repeat(np.exp(source.standard_normal(100)), 2000).astype(np.float32)
    if kind == "heavy tails":
        values *= np.exp(source.standard_normal(200_000)).astype(np.float32)
    codes = quantize(values, float(step_for_bits(values, bits)))
    entropy = entropy_bits(codes)
    assert 0.9 * bits < entropy <= bits
    assert 8 * len(planes.write_body([1], [codes])) <= 1.02 * entropy * codes.size + 8 * 200


BITS = np.array([0, 1, -2, 0, 3, 0, 0, 1], np.int32)


def body_of(
    header: bytes = bytes([1, 3, 0]) + 3 * struct.pack("<BI", 0, 1),
    classes: bytes = write_frame([b"\1"]),
    places: bytes = write_frame([b"\x96"]),
    signs: bytes = b"\2",
    sizes: bytes = write_frame([b"\6\2"]),
    rests: bytes = b"",
) -> bytes:
    """The body of BITS by hand: places 1, 2, 4, 7 = 0x96; the second is below zero; of four, the
    second and third are above 1 = 6; of those two, the second is above 2 = 2."""
    parts = [header, classes, places, signs, sizes, rests]
    return struct.pack("<6I", *map(len, parts)) + b"".join(parts)


def test_a_body_made_by_hand() -> None:
    assert read(body_of(), [8]) == ([1], [BITS.tolist()])
    rests = body_of(
        rests=write_frame([b"\1\2"]), header=body_of()[24:26] + b"\2" + body_of()[27:42]
    )
    assert read(rests, [8])[1][0] == [0, 1, -2, 0, 3 + 0x201, 0, 0, 1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "cut short"),
        (body_of()[:-1], "the parts of its payload have"),
        (body_of() + b"\0", "the parts of its payload have"),
        (body_of(header=b""), "header"),
        (body_of(header=b"\0"), "class 1 of 0"),
        (body_of(header=bytes([2, 3, 0]) + 3 * struct.pack("<BI", 0, 1)), "cut short"),
        (body_of(header=bytes([1, 3, 0]) + 4 * struct.pack("<BI", 0, 1)), "too long"),
        (body_of(header=bytes([1, 16, 0]) + 16 * struct.pack("<BI", 0, 1)), "16 planes"),
        (body_of(header=bytes([1, 3, 4]) + 3 * struct.pack("<BI", 0, 1)), "4 bytes"),
        (body_of(header=bytes([1, 3, 0]) + 3 * struct.pack("<BI", 2, 1)), "form 2"),
        (
            body_of(header=bytes([1, 3, 0]) + 3 * struct.pack("<BI", 0, 9)),
            "9 bytes for at most 8 bits",
        ),
        (
            body_of(header=bytes([1, 3, 0]) + 3 * struct.pack("<BI", 0, 1 << 31)),
            "bytes for at most 8 bits",
        ),
        (body_of(classes=write_frame([b"\2"])), "class 2 of 1"),
        (body_of(classes=write_frame([b"\1\1"])), "classes declare 2"),
        (body_of(classes=b""), "damaged classes"),
        (body_of(classes=write_frame([b"\0"])), "1 bytes for at most 0 bits"),
        (body_of(places=write_frame([bytes(1 << 24)])), "places declare 16,777,216"),
        (body_of(signs=b""), "cut short"),
        (body_of(signs=b"\2\0"), "too long"),
        (body_of(sizes=write_frame([b"\6"])), "sizes declare 1"),
        (body_of(sizes=b"not zstd"), "damaged sizes"),
        (body_of(sizes=write_frame([b"\6\2"]) + b"\0"), "damaged sizes"),
        (body_of(rests=write_frame([b"\1"])), "of rests, expected 0"),
        (body_of(header=bytes([1, 0, 3])), "rests of 3 bytes"),
    ],
)
def test_a_body_that_is_not_exactly_right_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        planes.read_body(body, [8])


def test_gaps_that_lead_beyond_the_plane_are_refused() -> None:
    header = bytes([1, 1, 0]) + struct.pack("<BI", 1, 2)
    for stored, sound in ((b"\0\6", True), (b"\0\7", False), (b"\0\xff", False)):
        body = body_of(header=header, places=write_frame([stored]), signs=b"\0", sizes=b"")
        if sound:
            assert read(body, [8])[1][0] == [1, 0, 0, 0, 0, 0, 0, 1]
        else:
            with pytest.raises(BadData, match="beyond the end"):
                planes.read_body(body, [8])


def test_a_code_that_float32_cannot_hold_is_refused() -> None:
    header = bytes([1, 2, 3]) + 2 * struct.pack("<BI", 0, 1)
    for rest, sound in ((b"\xfe\xff\xff", True), (b"\xff\xff\xff", False)):
        body = body_of(
            header=header,
            places=write_frame([b"\1"]),
            signs=b"\0",
            sizes=write_frame([b"\1"]),
            rests=write_frame([rest]),
        )
        if sound:
            assert read(body, [8])[1][0][0] == 1 << 24
        else:
            with pytest.raises(BadData, match="beyond"):
                planes.read_body(body, [8])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_body_is_refused_or_read_as_something_of_the_same_size(
    data: st.DataObject,
) -> None:
    """The payload's hash is what finds damage; here nothing but BadData may come of it."""
    body = bytearray(planes.write_body([1, 0, 2], [BITS, np.zeros(4, np.int32), 50 * BITS]))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        classes, codes = planes.read_body(bytes(body), [8, 4, 8])
    except BadData:
        return
    assert len(classes) == 3
    assert sum(one.size for one in codes) <= 20


def test_gaps_denser_than_any_writer_makes_are_refused() -> None:
    """They are what bounds plane 1 in memory; 0s and 1s by turns fit in packed bits."""
    alternating = np.tile(np.array([0, 1], np.int8), 50)
    body = planes.write_body([1], [alternating])
    with pytest.raises(BadData, match="27 bytes of gaps for 100 bits"):
        planes._bits(planes._Bytes(bytes(27)), planes._GAPS, 27, 100)
    assert planes.read_body(body, [100])[1][0].tolist() == alternating.tolist()


def test_gaps_are_read_in_pieces() -> None:
    """7 bytes for each six 1s, 255 the sixth of them: the third piece of 2^16 bytes ends with one,
    3 * 2^16 - 1 being 5 modulo 7."""
    gaps = np.tile(np.array([8, 8, 8, 8, 8, 300]), 1 << 15)
    codes = np.zeros(int((gaps + 1).sum()) + 3, np.int8)
    codes[np.cumsum(gaps + 1) - 1] = 1
    body = planes.write_body([1], [codes])
    assert np.array_equal(planes.read_body(body, [codes.size])[1][0], codes)


MANY = 10**7
PACKED = MANY // 8
GAPS = MANY // 4 + 1


def bomb(
    stored: list[tuple[int, int]], places: bytes, ones: bytes = b"\0", signs: bytes = b""
) -> bytes:
    """A body of one class whose planes (form, bytes) and frames unfold to what the header says."""
    header = bytes([1, len(stored), 0]) + b"".join(struct.pack("<BI", *plane) for plane in stored)
    sizes = unfolding(ones, sum(size for _, size in stored[1:]))
    return body_of(header=header, places=places, signs=signs, sizes=sizes)


@pytest.mark.parametrize(
    ("body", "bytes_a_value", "reason"),
    [
        pytest.param(
            bomb(15 * [(0, MANY)], unfolding(b"\0", MANY)),
            0.01,
            "at most 1,250,000",
            id="all planes of a byte for each value",
        ),
        pytest.param(
            bomb([(1, MANY)], unfolding(b"\0", MANY)),
            0.01,
            "at most 2,500,001",
            id="gaps of a byte for each value",
        ),
        pytest.param(
            bomb([(0, PACKED), *14 * [(0, PACKED)]], unfolding(b"\0", PACKED)),
            1.2,
            "1,250,000 bytes for at most 0 bits",
            id="later planes of codes that are all zero",
        ),
        pytest.param(
            bomb([(0, PACKED), *14 * [(0, PACKED)]], unfolding(b"\xff", PACKED), b"\xff"),
            1.2,
            "cut short",
            id="later planes of codes that have no signs",
        ),
        pytest.param(
            bomb([(1, GAPS - 1), (0, PACKED // 4)], unfolding(b"\0", GAPS - 1), b"\xff"),
            1.6,
            "cut short",
            id="gaps of codes that have no signs",
        ),
    ],
)
def test_a_bomb_is_refused_before_it_unfolds(
    body: bytes, bytes_a_value: float, reason: str
) -> None:
    """1 byte a value is the mask, 1/8 and 1/4 are plane 1 itself; numpy's memory is traced too."""
    tracemalloc.start()
    try:
        with pytest.raises(BadData, match=reason):
            planes.read_body(body, [MANY])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < bytes_a_value * MANY
