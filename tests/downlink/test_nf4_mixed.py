import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.downlink.codecs import nf4
from cdcca_cli.errors import BadData
from tests.downlink import earlier

DELTAS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=9),
    elements=st.floats(-1e3, 1e3, width=32),
)
BITS = st.sampled_from([2, 4, 8])


def frame(content: bytes, *, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(content)


@settings(max_examples=50)
@given(st.lists(st.tuples(DELTAS, BITS), max_size=4), st.integers(0, 2**40))
def test_what_is_written_is_read(tensors: list[tuple[np.ndarray, int]], sequence: int) -> None:
    coded = [earlier.quantize(delta, bits) for delta, bits in tensors]
    payload = nf4.write_payload(sequence, coded)
    bits, sizes = [b for _, b in tensors], [delta.size for delta, _ in tensors]
    assert nf4.read_payload(payload, sequence, bits, sizes) == coded
    assert nf4.write_payload(sequence, coded) == payload


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 127, 128, 129, 1000])
def test_every_size_has_its_bytes(bits: int, size: int) -> None:
    """ceil(size / 64) scales, ceil(size * bits / 8) bytes of codes."""
    coded = earlier.quantize(np.linspace(-1, 1, size, dtype=np.float32), bits)
    assert len(coded.scales) == (size + 63) // 64
    assert len(coded.codes) == (size * bits + 7) // 8
    restored = nf4.restore(coded, size)
    assert restored.shape == (size,) and restored.dtype == np.float32


def test_a_payload_made_by_hand() -> None:
    """Three tensors after the docstring, b not sent. a: 8 bits, n = 3, e = -19, scale 240 = 1:
    codes 5, -1, 127. c: 4 bits, n = 3, e = -18, scale 240 = 2: codes 0, 15, 7, packed 0xF0, 0x07:
    -2, 2, 0. d: 2 bits, n = 5, scale 1 at e = 0 = 17: codes 0, 1, 2, 3, 3: packed
    0 + 1 * 4 + 2 * 16 + 3 * 64 = 0xE4 and 0x03.
    """
    exponents = struct.pack("<3b", -19, -18, 0)
    codes = bytes([5, 255, 127]) + bytes([0xF0, 0x07]) + bytes([0xE4, 0x03])
    content = (7).to_bytes(8, "little") + exponents + bytes([240, 240, 1]) + codes
    a, c, d = nf4.read_payload(frame(content), 7, [8, 0, 4, 2], [3, 99, 3, 5])
    assert nf4.restore(a, 3).tolist() == [5, -1, 127]
    assert nf4.restore(c, 3).tolist() == [-2, 2, 0]
    assert nf4.restore(d, 5).tolist() == [-51, -17, 17, 51, 51]


def test_level_1_is_the_right_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Gaussian changes: not above level 3, within 0.1 % of level 19."""
    delta = np.random.default_rng(0).standard_normal(200_000, np.float32)
    coded = [nf4.quantize(delta)]
    sizes = {}
    for level in (1, 3, 19):
        monkeypatch.setattr(nf4, "_LEVEL", level)
        sizes[level] = len(nf4.write_payload(1, coded))
    assert sizes[1] <= sizes[3] and sizes[1] <= 1.001 * sizes[19]


def test_nf4_on_gaussian_changes() -> None:
    """NF4 with blocks of 64 leaves 0.092 with exact scales, and scales rounded up by 3 % on average
    no more than 3 % more. 16 levels hold 3.9 bits, so 3.98 is codes plus scales of half a byte.
    """
    delta = np.random.default_rng(0).standard_normal(400_000, np.float32)
    coded = nf4.quantize(delta)
    error = np.linalg.norm(nf4.restore(coded, delta.size) - delta) / np.linalg.norm(delta)
    assert 0.085 < error < 0.092 * 1.03
    assert 3.8 < 8 * len(nf4.write_payload(1, [coded])) / delta.size < 3.98


SOUND = bytes(8) + bytes([0]) + bytes([240]) + bytes(10)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "damaged coded changes"),
        (b"not zstd at all", "damaged coded changes"),
        (frame(SOUND + b"\0"), "declare 21 bytes"),
        (frame(SOUND[:-1]), "declare 19 bytes"),
        (frame(SOUND)[:-1], "damaged coded changes"),
        (frame(SOUND) + b"\0", "damaged coded changes"),
        (frame(SOUND) + frame(b""), "damaged coded changes"),
        (frame(SOUND, checksum=False), "no checksum"),
        (frame(b"\1" + SOUND[1:]), "its payload 1"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(SOUND), "declare"),
    ],
)
def test_a_payload_that_is_not_exactly_right_is_refused(payload: bytes, reason: str) -> None:
    assert len(nf4.read_payload(frame(SOUND), 0, [8], [10])) == 1
    with pytest.raises(BadData, match=reason):
        nf4.read_payload(payload, 0, [8], [10])


def test_a_bomb_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB in 2 kB: the frame's own size is not the expected one, so nothing is decompressed."""
    bomb = frame(bytes(1 << 26))

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("decompressed")

    monkeypatch.setattr(nf4.zstandard, "ZstdDecompressor", opened)
    with pytest.raises(BadData, match="67,108,864"):
        nf4.read_payload(bomb, 0, [8], [10])


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    """Frames of 256 to 65,791 bytes keep size - 256 in bytes 5 and 6 (RFC 8878, 3.1.1.1).

    1500 = 8 + 1 + 23 + 1468, so the size it claims is that of 1468 values in 8 bits.
    """
    lying = bytearray(frame(np.random.default_rng(0).bytes(2000)))
    assert struct.unpack_from("<H", lying, 5) == (2000 - 256,)
    struct.pack_into("<H", lying, 5, 1500 - 256)
    with pytest.raises(BadData, match="damaged coded changes"):
        nf4.read_payload(bytes(lying), 0, [8], [1468])


def test_a_change_that_is_not_finite_is_refused() -> None:
    """31 * 2**15 * 2**108 is a float32, 127 times it is not; at e = 127 the scale is none."""
    for exponent in (108, 127):
        with pytest.raises(BadData, match="not finite"):
            nf4.restore(nf4.CodedTensor(8, exponent, b"\xff", b"\x7f"), 1)
