import struct
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import zstd_frames
from cdcca_cli.numerics.zstd_frames import read_frame, write_frame


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_what_is_written_is_read(parts: list[bytes]) -> None:
    frame = write_frame(parts)
    content = b"".join(parts)
    assert read_frame(frame, len(content), "codes") == content
    assert write_frame(parts) == frame
    assert bool(frame) == bool(content)


def test_parts_larger_than_a_window() -> None:
    source = np.random.default_rng(0)
    parts = [source.binomial(8, 0.1, 300_000).astype(np.uint8).tobytes() for _ in range(3)]
    assert read_frame(write_frame(parts), 900_000, "codes") == b"".join(parts)


def test_independent_bytes_are_coded_at_their_entropy_and_not_as_zstd_does() -> None:
    """Two codes of a Gaussian a byte: entropy by hand from the counts; level 3 looks for matches
    among them and finds some."""
    source = np.random.default_rng(0)
    codes = np.clip(np.rint(source.standard_normal(400_000)), -7, 7).astype(np.int64) + 7
    data = (codes[::2] * 16 + codes[1::2]).astype(np.uint8)
    shares = np.unique(data, return_counts=True)[1] / len(data)
    entropy_bytes = -(shares * np.log2(shares)).sum() * len(data) / 8
    assert len(write_frame([data.tobytes()])) < 1.02 * entropy_bytes
    assert len(zstandard.ZstdCompressor(level=3).compress(data.tobytes())) > 1.03 * entropy_bytes


def test_a_frame_is_an_ordinary_zstd_frame_that_declares_its_size() -> None:
    frame = write_frame([b"abc", b"", b"def"])
    assert zstandard.get_frame_parameters(frame).content_size == 6
    assert zstandard.ZstdDecompressor().decompress(frame) == b"abcdef"


SOUND = write_frame([bytes(range(200))])


@pytest.mark.parametrize(
    ("frame", "expected", "reason"),
    [
        (SOUND, 199, "declare 200 bytes, expected 199"),
        (SOUND, 0, "expected 0"),
        (b"", 200, "damaged codes"),
        (SOUND[:-1], 200, "damaged codes"),
        (SOUND + b"\0", 200, "damaged codes"),
        (SOUND + SOUND, 200, "damaged codes"),
        (b"no zstd", 200, "damaged codes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(9)), 9, "declare"),
    ],
)
def test_a_frame_that_is_not_exactly_right_is_refused(
    frame: bytes, expected: int, reason: str
) -> None:
    with pytest.raises(BadData, match=reason):
        read_frame(frame, expected, "codes")


def test_a_bomb_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("decompressed")

    monkeypatch.setattr(zstd_frames.zstandard, "ZstdDecompressor", opened)
    with pytest.raises(BadData, match="67,108,864"):
        read_frame(bomb, 100, "codes")


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    """Frames of 256 to 65,791 bytes keep size - 256 in two bytes (RFC 8878, 3.1.1.1)."""
    lying = bytearray(write_frame([np.random.default_rng(0).bytes(2000)]))
    (at,) = [i for i in (5, 6) if struct.unpack_from("<H", lying, i) == (2000 - 256,)]
    struct.pack_into("<H", lying, at, 1500 - 256)
    with pytest.raises(BadData, match="damaged codes"):
        read_frame(bytes(lying), 1500, "codes")
