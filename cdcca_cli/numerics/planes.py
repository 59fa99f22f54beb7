"""Whole numbers into planes of bits, and back: what an update and a shard code them with.

A reader knows the tensors and their order, and for each its number of values n. Every value
has a code, a whole number within +-2^24. Every tensor has a class, 0..255; all codes of class 0 are
zero and nothing is stored for it. Within a class the tensors are in that order, their values in C
order: N codes end to end. The planes of a class are

    plane k (k = 1..P)   one bit for each code q of |q| >= k-1: 1 if |q| >= k. P is the class's own
                         number of planes, 0..15: a writer's is the largest |q|, 15 at most
    signs                one bit for each code but zero: 1 if it is below zero
    rests                for each code of |q| >= P, W bytes, little-endian: |q| - P; W is the
                         class's own width, 0..3. If W is 0, they are all 0

Bit i of a plane is bit i mod 8, counted from the lowest, of its byte i div 8. Unused bits of the
last byte are written as zero and not read. A plane is stored in one of two forms:

    packed   its bytes as they are
    gaps     for each 1 the number of 0s since the one before (or the beginning), as byte g if
             g < 255, otherwise as 255 and then g - 255 in the same way. 0s after the last 1 are not
             written. At most n div 4 + 1 bytes for a plane of n bits

The body begins with 6 x 4 bytes, the lengths of its six parts in this order; then come the parts:

    header    one byte C, the number of classes, 0..255; for each class c = 1..C: one byte P, one
              byte W, and for each of its planes 5 bytes: 0 (packed) or 1 (gaps), and the number of
              bytes that it is stored in (4 bytes, little-endian)
    classes   one byte for each tensor, its class
    places    plane 1 of every class
    signs     signs of every class, packed
    sizes     planes 2..P of every class
    rests     rests of every class

`header` and `signs` are stored uncompressed; each of the other four is one zstd frame
(`zstd_frames`), or empty if its content is empty. Nothing may follow.

A reader can refuse a bomb before it decompresses. `places` is bounded by the number of codes and
gives the number of signs; these are uncompressed, so a short body has few; `sizes` and `rests` are
bounded by that number: a later plane has at most one bit, a rest 3 bytes, per sign.

The writer stores gaps where fewer than one bit in five is 1, because Huffman's code for packed
bytes then wastes more than 2 %.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.numerics.uniform import LARGEST_CODE
from cdcca_cli.numerics.zstd_frames import damaged, read_frame, write_frame

MOST_PLANES = 15
PARTS = ("header", "classes", "places", "signs", "sizes", "rests")

_LENGTHS = struct.Struct("<6I")
_CLASS = struct.Struct("<BB")
_PLANE = struct.Struct("<BI")
_PACKED, _GAPS = 0, 1
_SPARSE = 5  # gaps where fewer than one bit in this many is 1
_DENSEST_GAPS = 4
_LARGEST_GAP = 255
_GAPS_AT_ONCE = 1 << 16  # each takes some 40 bytes of memory while it is read

Codes = NDArray[np.integer]
Bits = NDArray[np.uint8]


# ---------------------------------------------------------------- writing


def write_body(classes: Sequence[int], codes: Sequence[Codes]) -> bytes:
    """The body of the tensors' codes (any shape, within +-2^24), in order; deterministic.

    Args: classes: of each tensor, 0..255; 0 for zeros only.
    """
    num_classes = max(classes, default=0)
    header = [bytes([num_classes])]
    places, signs, sizes, rests = [], [], [], []
    for number in range(1, num_classes + 1):
        own = [c.reshape(-1) for c, k in zip(codes, classes, strict=True) if k == number]
        joined = np.concatenate(own) if own else np.zeros(0, np.int32)
        is_shown = joined != 0
        shown = joined[np.flatnonzero(is_shown)]
        planes, left = _planes(is_shown, np.abs(shown))
        width = (int(left.max(initial=0)).bit_length() + 7) // 8
        header.append(_CLASS.pack(len(planes), width))
        header += [_PLANE.pack(form, len(data)) for form, data in planes]
        places += [data for _, data in planes[:1]]
        signs.append(np.packbits(shown < 0, bitorder="little").tobytes())
        sizes += [data for _, data in planes[1:]]
        rests.append(left.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
    parts = [
        b"".join(header),
        write_frame([bytes(classes)]),
        write_frame(places),
        b"".join(signs),
        write_frame(sizes),
        write_frame(rests),
    ]
    return b"".join([_LENGTHS.pack(*map(len, parts)), *parts])


def _planes(
    is_shown: NDArray[np.bool_], magnitudes: Codes
) -> tuple[list[tuple[int, bytes]], Codes]:
    """The planes of a class as (form, bytes), and |q| - P of the codes beyond the last plane."""
    largest = int(magnitudes.max(initial=0))
    planes = [_stored(is_shown)] if largest else []
    for number in range(2, min(largest, MOST_PLANES) + 1):
        bits = magnitudes >= number
        planes.append(_stored(bits))
        magnitudes = magnitudes[np.flatnonzero(bits)]
    return planes, magnitudes - len(planes)


def _stored(bits: NDArray[np.bool_]) -> tuple[int, bytes]:
    ones = int(np.count_nonzero(bits))
    if ones * _SPARSE < len(bits):
        return _GAPS, _gaps(np.flatnonzero(bits)).tobytes()
    return _PACKED, np.packbits(bits, bitorder="little").tobytes()


def _gaps(at: NDArray[np.int64]) -> Bits:
    gaps = np.diff(at, prepend=-1) - 1
    whole = gaps // _LARGEST_GAP
    last = np.cumsum(whole + 1) - 1  # where each gap's last byte goes
    stored = np.full(int(last[-1]) + 1 if len(last) else 0, _LARGEST_GAP, np.uint8)
    stored[last] = gaps - whole * _LARGEST_GAP
    return stored


# ---------------------------------------------------------------- reading


def part_lengths(body: bytes) -> dict[str, int]:
    """Bytes of each part and of the lengths, which add up to the body. Raises: BadData."""
    if len(body) < _LENGTHS.size:
        raise damaged("its payload is cut short")
    lengths = _LENGTHS.unpack_from(body)
    expected = _LENGTHS.size + sum(lengths)
    if expected != len(body):
        raise damaged(f"the parts of its payload have {len(body):,} bytes, expected {expected:,}")
    return {"lengths": _LENGTHS.size, **dict(zip(PARTS, lengths, strict=True))}


def read_body(
    body: bytes, num_values: Sequence[int]
) -> tuple[list[int], list[NDArray[np.integer]]]:
    """The class of each tensor, and the codes (N,) of each class from 1 on. Raises: BadData.

    Every size is checked before anything of that size is allocated.
    """
    ends = list(accumulate(part_lengths(body).values()))
    header, classes, places, signs, sizes, rests = (
        body[begin:end] for begin, end in pairwise(ends)
    )
    kinds = _read_header(header)
    of_tensor = list(read_frame(classes, len(num_values), "classes"))
    totals = [0] * (len(kinds) + 1)
    for number, size in zip(of_tensor, num_values, strict=True):
        if number > len(kinds):
            raise damaged(f"a tensor of class {number} of {len(kinds)}")
        totals[number] += size
    for kind, total in zip(kinds, totals[1:], strict=True):
        _expect_possible(kind.planes[:1], total)
    first = _Bytes(read_frame(places, _num_bytes(kind.planes[:1] for kind in kinds), "places"))
    sign = _Bytes(signs)
    decoded = [
        _Magnitudes(kind, total, first, sign) for kind, total in zip(kinds, totals[1:], strict=True)
    ]
    first.expect_end()
    sign.expect_end()
    for kind, one in zip(kinds, decoded, strict=True):
        _expect_possible(kind.planes[1:], one.num_shown)
    second = _Bytes(read_frame(sizes, _num_bytes(kind.planes[1:] for kind in kinds), "sizes"))
    for one in decoded:
        one.read_sizes(second)
    third = _Bytes(read_frame(rests, sum(one.num_rest_bytes for one in decoded), "rests"))
    codes = [one.codes(third) for one in decoded]
    second.expect_end()
    third.expect_end()
    return of_tensor, codes


@dataclass(frozen=True)
class _Class:
    """One class in the header: form and stored bytes of each plane, width of rests."""

    planes: tuple[tuple[int, int], ...]
    width: int


def _num_bytes(planes: Iterable[Sequence[tuple[int, int]]]) -> int:
    return sum(stored for own in planes for _, stored in own)


def _read_header(header: bytes) -> list[_Class]:
    kinds, place = [], 1
    try:
        for _ in range(header[0]):
            num_planes, width = _CLASS.unpack_from(header, place)
            place += _CLASS.size
            planes = tuple(
                _PLANE.unpack_from(header, place + _PLANE.size * number)
                for number in range(num_planes)
            )
            place += _PLANE.size * num_planes
            if num_planes > MOST_PLANES or width > 3 or (width and not planes):
                raise damaged(f"a class of {num_planes} planes and rests of {width} bytes")
            for form, _ in planes:
                if form not in (_PACKED, _GAPS):
                    raise damaged(f"a plane of form {form}, expected 0 or 1")
            kinds.append(_Class(planes, width))
    except (struct.error, IndexError):
        raise damaged("the header of its payload is cut short") from None
    if place != len(header):
        raise damaged("the header of its payload is too long")
    return kinds


def _expect_possible(planes: Sequence[tuple[int, int]], most_bits: int) -> None:
    """Refuse a (form, stored bytes) that is too large for a plane of this many bits."""
    for form, stored in planes:
        most = _packed_bytes(most_bits) if form == _PACKED else _most_gaps(most_bits)
        if stored > most:
            raise damaged(
                f"a plane of {stored:,} bytes for at most {most_bits:,} bits, expected at most "
                f"{most:,}"
            )


def _packed_bytes(num_bits: int) -> int:
    return -(-num_bits // 8)


def _most_gaps(num_bits: int) -> int:
    return num_bits // _DENSEST_GAPS + 1


class _Bytes:
    def __init__(self, data: bytes | Bits) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._place = 0

    def take(self, count: int) -> Bits:
        piece = self._data[self._place : self._place + count]
        if len(piece) != count:
            raise damaged("a part of its payload is cut short")
        self._place += count
        return piece

    def expect_end(self) -> None:
        if self._place != len(self._data):
            raise damaged("a part of its payload is too long")


class _Magnitudes:
    """The codes of one class, read in steps: first plane and signs, other planes, rests."""

    def __init__(self, kind: _Class, total: int, places: _Bytes, signs: _Bytes) -> None:
        plane = kind.planes[:1]
        mask = _bits(places, *plane[0], total) if plane else np.zeros(total, np.uint8)
        self._kind = kind
        self._is_shown = mask.view(np.bool_)
        self.num_shown = int(np.count_nonzero(self._is_shown))
        self._signs = signs.take(_packed_bytes(self.num_shown))

    def read_sizes(self, sizes: _Bytes) -> None:
        """Read the other planes, which determine `num_rest_bytes`."""
        self._magnitudes = np.ones(self.num_shown, np.int8)
        left = np.arange(self.num_shown, dtype=np.int32)
        for form, stored in self._kind.planes[1:]:
            bits = _bits(sizes, form, stored, len(left))
            left = left[np.flatnonzero(bits.view(np.bool_))]
            self._magnitudes[left] += 1
        self.num_rest_bytes = self._kind.width * len(left)
        self._left = left if self.num_rest_bytes else left[:0].copy()

    def codes(self, rests: _Bytes) -> Codes:
        """(N,): int8, or int32 if there are rests."""
        count = self.num_shown
        sign = 1 - 2 * np.unpackbits(self._signs, count=count, bitorder="little").view(np.int8)
        magnitudes: Codes = self._magnitudes
        if self.num_rest_bytes:
            columns = np.zeros((len(self._left), 4), np.uint8)
            width = self._kind.width
            columns[:, :width] = rests.take(self.num_rest_bytes).reshape(-1, width)
            magnitudes = magnitudes.astype(np.int32)
            magnitudes[self._left] += columns.reshape(-1).view("<u4").astype(np.int32)
            if int(magnitudes.max(initial=0)) > LARGEST_CODE:
                raise damaged(f"a code beyond +-{LARGEST_CODE:,}")
        codes = np.zeros(len(self._is_shown), magnitudes.dtype)
        codes[np.flatnonzero(self._is_shown)] = magnitudes * sign
        return codes


def _bits(source: _Bytes, form: int, stored: int, count: int) -> Bits:
    """A plane (count,) of 0 and 1."""
    data = source.take(stored)
    if form == _PACKED:
        if stored != _packed_bytes(count):
            raise damaged(f"{stored:,} bytes for {count:,} bits")
        return np.unpackbits(data, count=count, bitorder="little")
    if stored > _most_gaps(count):
        raise damaged(f"{stored:,} bytes of gaps for {count:,} bits")
    ends_in_one = not stored or data[-1] != _LARGEST_GAP
    bits = np.zeros(count, np.uint8)
    place = 0
    for begin in range(0, stored, _GAPS_AT_ONCE):
        gaps = data[begin : begin + _GAPS_AT_ONCE]
        is_end = gaps != _LARGEST_GAP
        after = np.cumsum(np.add(gaps, is_end, dtype=np.int64)) + place
        place = int(after[-1])
        if place > count or not ends_in_one:
            raise damaged("a 1 beyond the end of its plane")
        bits[after[np.flatnonzero(is_end)] - 1] = 1
    return bits
