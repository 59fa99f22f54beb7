"""A second decoder of an update, from the docstrings of formats and `downlink`'s codecs alone.

Plain Python, one value at a time. float32 arithmetic is float64 arithmetic rounded once: products
of two float32 are exact in float64, and for one addition rounding twice changes nothing.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import zstandard

Tensors = list[list[float]]

NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def float32(number: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def decode(data: bytes, base: Sequence[Sequence[float]]) -> Tensors:
    """The new values of each tensor, given the base's in name order, each in C order."""
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    header = json.loads(table["__metadata__"]["cdcca"])
    begin, end = table["payload"]["data_offsets"]
    payload = data[8 + length :][begin:end]
    signed = header if header["version"] == 1 else header["signed"]
    assert hashlib.sha256(payload).hexdigest() == signed["payload_sha256"]
    coding = {"bits": header["bits"]} if header["version"] == 1 else signed["coding"]
    codecs: dict[str, Callable[[bytes, int, Any, Sequence[Sequence[float]]], Tensors]] = {
        "nf4-mixed": nf4_mixed,
        "usq": usq,
        "ternary": usq,
        "sign": sign,
        "exact": exact,
    }
    return codecs[signed["codec"]](payload, signed["sequence"], coding, base)


class Reader:
    """Bytes, taken off from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        piece, self.data = self.data[:count], self.data[count:]
        assert len(piece) == count
        return piece

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def single(self) -> float:
        (value,) = struct.unpack("<f", self.take(4))
        return float(value)


def unpacked(frame: bytes) -> Reader:
    return Reader(zstandard.ZstdDecompressor().decompress(frame) if frame else b"")


def bits_of(packed: bytes, count: int) -> list[int]:
    return [packed[i // 8] >> (i % 8) & 1 for i in range(count)]


# ---------------------------------------------------------------- nf4-mixed


def nf4_mixed(
    payload: bytes, sequence: int, coding: Any, base: Sequence[Sequence[float]]
) -> Tensors:
    content = unpacked(payload)
    assert content.number(8) == sequence
    bits = coding["bits"]
    sent = [tensor for tensor in range(len(base)) if bits[tensor]]
    exponents = {t: int.from_bytes(content.take(1), "little", signed=True) for t in sent}
    scales = {
        t: [scale(c, exponents[t]) for c in content.take(math.ceil(len(base[t]) / 64))]
        for t in sent
    }
    levels = {}
    for plane in (8, 4, 2):
        for t in sent:
            if bits[t] == plane:
                packed = content.take(math.ceil(len(base[t]) * plane / 8))
                levels[t] = [level(packed, i, plane) for i in range(len(base[t]))]
    assert not content.data
    return [
        [
            float32(value + float32(levels[t][i] * scales[t][i // 64])) if bits[t] else value
            for i, value in enumerate(values)
        ]
        for t, values in enumerate(base)
    ]


def scale(code: int, exponent: int) -> float:
    return math.ldexp(16 + code % 16, code // 16 + exponent) if code else 0.0


def level(packed: bytes, index: int, bits: int) -> float:
    in_a_byte = 8 // bits
    code = packed[index // in_a_byte] >> (index % in_a_byte * bits) & (1 << bits) - 1
    if bits == 8:
        return float(code - 256 if code > 127 else code)
    return NF4[code] if bits == 4 else float(2 * code - 3)


# ---------------------------------------------------------------- usq, ternary


def usq(payload: bytes, sequence: int, coding: Any, base: Sequence[Sequence[float]]) -> Tensors:
    assert coding == {}
    content = Reader(payload)
    assert content.number(8) == sequence
    steps = [content.single() for _ in range(content.number(1))]
    classes, codes = planes(content.data, [len(values) for values in base])
    assert len(codes) == len(steps)
    new = []
    for values, number in zip(base, classes, strict=True):
        if not number:
            new.append(list(values))
            continue
        own, codes[number - 1] = codes[number - 1][: len(values)], codes[number - 1][len(values) :]
        step = steps[number - 1]
        new.append([float32(v + float32(code * step)) for v, code in zip(values, own, strict=True)])
    return new


def planes(body: bytes, sizes: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The class of each tensor, and the codes of each class end to end."""
    content = Reader(body)
    lengths = [content.number(4) for _ in range(6)]
    header, classes, places, signs, above, rests = (content.take(length) for length in lengths)
    assert not content.data
    head = Reader(header)
    kinds = []
    for _ in range(head.number(1)):
        count, width = head.number(1), head.number(1)
        kinds.append(([(head.number(1), head.number(4)) for _ in range(count)], width))
    assert not head.data
    of_tensor = list(unpacked(classes).data)
    assert len(of_tensor) == len(sizes)
    parts = unpacked(places), Reader(signs), unpacked(above), unpacked(rests)
    codes = []
    for number, (forms, width) in enumerate(kinds, 1):
        total = sum(size for size, own in zip(sizes, of_tensor, strict=True) if own == number)
        magnitudes = [0] * total
        reached = list(range(total))
        for plane, (form, stored) in enumerate(forms):
            bits = plane_bits(parts[0 if plane == 0 else 2].take(stored), form, len(reached))
            reached = [place for place, bit in zip(reached, bits, strict=True) if bit]
            for place in reached:
                magnitudes[place] += 1
        shown = [place for place in range(total) if magnitudes[place]]
        below = bits_of(parts[1].take(math.ceil(len(shown) / 8)), len(shown))
        if width:
            for place in reached:
                magnitudes[place] += parts[3].number(width)
        for place, bit in zip(shown, below, strict=True):
            magnitudes[place] *= -1 if bit else 1
        codes.append(magnitudes)
    assert not any(part.data for part in parts)
    return of_tensor, codes


def plane_bits(stored: bytes, form: int, count: int) -> list[int]:
    if form == 0:
        assert len(stored) == math.ceil(count / 8)
        return bits_of(stored, count)
    assert form == 1
    bits = []
    for byte in stored:
        bits += [0] * byte if byte == 255 else [0] * byte + [1]
    return bits + [0] * (count - len(bits))


# ---------------------------------------------------------------- sign, exact


def sign(payload: bytes, sequence: int, coding: Any, base: Sequence[Sequence[float]]) -> Tensors:
    assert coding == {}
    content = Reader(payload)
    assert content.number(8) == sequence
    sizes = [content.single() for _ in base]
    new = []
    for values, size in zip(base, sizes, strict=True):
        down = bits_of(content.take(math.ceil(len(values) / 8)), len(values)) if size else []
        new.append(
            [float32(v - size if d else v + size) for v, d in zip(values, down, strict=True)]
            if size
            else list(values)
        )
    assert not content.data
    return new


def exact(payload: bytes, sequence: int, coding: Any, base: Sequence[Sequence[float]]) -> Tensors:
    assert coding == {}
    content = Reader(payload)
    assert content.number(8) == sequence
    stored = unpacked(content.data).data
    count = sum(map(len, base))
    assert len(stored) == 4 * count
    values = []
    for index, value in enumerate(value for values in base for value in values):
        z = sum(stored[plane * count + index] << 8 * plane for plane in range(4))
        distance = z // 2 if z % 2 == 0 else -(z + 1) // 2
        bits = struct.unpack("<I", struct.pack("<f", value))[0] + distance
        values.append(struct.unpack("<f", struct.pack("<I", bits % 2**32))[0])
    ends = [0]
    for tensor in base:
        ends.append(ends[-1] + len(tensor))
    return [values[begin:end] for begin, end in pairwise(ends)]
