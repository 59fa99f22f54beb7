"""The codec `sign`: one bit per change, and one size per tensor. Its specification.

BitDelta (Liu et al. 2024, arXiv:2402.10193) without its second stage, which trains the sizes. Every
value of a sent tensor changes by the tensor's mean magnitude, up or down.

The payload:

    sequence  8 bytes (`payload`)
    sizes     for every tensor of the base, in name order, float32, little-endian: 0 if it does not
              change, otherwise finite and 2**-126 or more
    signs     for each tensor that changes, of n values in C order, ceil(n / 8) bytes: bit i mod 8,
              counted from the lowest, of byte i div 8 is 1 if value i goes down. Unused bits of
              the last byte are written as zero and not read

Nothing may follow; `coding` in the update's header is empty. The new value is base + size or
base - size, one float32 addition.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Overlay, overlay_with
from cdcca_cli.downlink.codecs.payload import after_sequence, damaged, with_sequence
from cdcca_cli.numerics.uniform import SMALLEST_STEP

CODEC = "sign"

_SIZE = np.dtype("<f4")


def encode(deltas: Sequence[NDArray[np.float32]], sequence: int) -> bytes:
    means = [float(np.abs(delta).mean(dtype=np.float64)) if delta.size else 0.0 for delta in deltas]
    sizes = [mean if mean >= SMALLEST_STEP else 0.0 for mean in means]
    signs = [
        np.packbits(delta.reshape(-1) < 0, bitorder="little").tobytes()
        for delta, size in zip(deltas, sizes, strict=True)
        if size
    ]
    return with_sequence(sequence, b"".join([np.array(sizes, _SIZE).tobytes(), *signs]))


def decode(payload: bytes, sequence: int, base: Overlay) -> dict[str, NDArray[np.float32]]:
    names = sorted(base)
    rest = after_sequence(payload, sequence)
    begin = len(names) * _SIZE.itemsize
    if len(rest) < begin:
        raise damaged("its payload is cut short")
    sizes = np.frombuffer(rest[:begin], _SIZE).astype(np.float32)
    if not ((sizes == 0) | (np.isfinite(sizes) & (sizes >= SMALLEST_STEP))).all():
        raise damaged("a size that is neither 0 nor a normal number")
    needed = [
        -(-base[name].size // 8) if size else 0 for name, size in zip(names, sizes, strict=True)
    ]
    if begin + sum(needed) != len(rest):
        raise damaged(f"sizes and signs of {len(rest):,} bytes, expected {begin + sum(needed):,}")
    deltas: list[NDArray[np.float32] | None] = []
    for name, size, count in zip(names, sizes, needed, strict=True):
        if not size:
            deltas.append(None)
            continue
        packed = np.frombuffer(rest[begin : begin + count], np.uint8)
        begin += count
        signs = np.unpackbits(packed, count=base[name].size, bitorder="little").astype(bool)
        deltas.append(np.where(signs, -size, size).astype(np.float32))
    return overlay_with(base, deltas)
