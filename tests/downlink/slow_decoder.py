"""A second decoder of an update, from the docstrings of formats and `downlink.coding` alone.

Plain Python, one value at a time. float32 arithmetic is float64 arithmetic rounded once: products
of two float32 are exact in float64, and for one addition rounding twice changes nothing.
"""

import hashlib
import json
import math
import struct
from collections.abc import Sequence

import zstandard

NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def float32(number: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def decode(data: bytes, base: Sequence[Sequence[float]]) -> list[list[float]]:
    """The new values of each tensor, given the base's in name order, each in C order."""
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    header = json.loads(table["__metadata__"]["cdcca"])
    begin, end = table["payload"]["data_offsets"]
    payload = data[8 + length :][begin:end]
    assert hashlib.sha256(payload).hexdigest() == header["payload_sha256"]
    content = zstandard.ZstdDecompressor().decompress(payload)

    def take(count: int) -> bytes:
        nonlocal content
        piece, content = content[:count], content[count:]
        assert len(piece) == count
        return piece

    assert int.from_bytes(take(8), "little") == header["sequence"]
    bits = header["bits"]
    sent = [tensor for tensor in range(len(base)) if bits[tensor]]
    exponents = {t: int.from_bytes(take(1), "little", signed=True) for t in sent}
    scales = {t: [scale(c, exponents[t]) for c in take(math.ceil(len(base[t]) / 64))] for t in sent}
    levels = {}
    for plane in (8, 4, 2):
        for t in sent:
            if bits[t] == plane:
                packed = take(math.ceil(len(base[t]) * plane / 8))
                levels[t] = [level(packed, i, plane) for i in range(len(base[t]))]
    assert not content
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
