"""ggml's number types: how many bytes they take, and what the usual ones stand for.

A type stores a row in blocks of several numbers. Formats as in ggml-common.h and ggml-quants.c of
llama.cpp; all little-endian, d and m are float16:

    Q4_0  d q[16]             32 of d (q - 8): the low nibbles, then the high ones
    Q4_1  d m q[16]           d q + m
    Q5_0  d h[4] q[16]        d (q - 16), the fifth bit of number j is bit j of h
    Q5_1  d m h[4] q[16]      d q + m
    Q8_0  d q[32]             d q, q signed
    Q4_K  d m s[12] q[128]    256 in 8 groups of 32: d s_g q - m t_g; s_g, t_g have 6 bits in s
    Q5_K  d m s[12] h[32] q[128]  the same, the fifth bit of group g is bit g of h
    Q6_K  q[128] h[64] s[16] d    256 in 16 groups of 16: d s_g (q - 32), two of six bits in h
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32, F16, BF16 = 0, 1, 30
_BLOCKS = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q8_1": (9, 32, 40),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "Q8_K": (15, 256, 292), "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18), "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136), "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4),
    "I64": (27, 1, 8), "F64": (28, 1, 8), "IQ1_M": (29, 256, 56), "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
}  # fmt: skip
SIZES = {number: (length, size) for number, length, size in _BLOCKS.values()}
"""By the type's number in files: how many numbers a block has, and how many bytes."""
NAMES = {number: name for name, (number, _, _) in _BLOCKS.items()}

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize(rows_RB: Bytes, kind: int) -> Floats | None:
    """The numbers of R rows of B bytes each: (R, C). None for a type that is not known here."""
    read = _READERS.get(kind)
    if read is None:
        return None
    size = SIZES[kind][1]
    blocks_KS = np.ascontiguousarray(rows_RB).reshape(-1, size)
    with np.errstate(all="ignore"):  # a damaged scale may be infinite
        found: Floats = read(blocks_KS).astype(np.float32, copy=False)
    return found.reshape(len(rows_RB), -1)


def _half(blocks_KS: Bytes, at: int) -> Floats:
    """(K, 1): the float16 at a byte of each block."""
    part = np.ascontiguousarray(blocks_KS[:, at : at + 2])
    return part.view("<f2").astype(np.float32)


def _nibbles(bytes_KN: Bytes) -> Bytes:
    """(K, 2 N): all low nibbles, then all high ones."""
    return np.concatenate([bytes_KN & 15, bytes_KN >> 4], axis=1)


def _fifth(bytes_K4: Bytes) -> Bytes:
    """(K, 32): 16 where the bit is set."""
    return np.unpackbits(bytes_K4, axis=1, bitorder="little") * np.uint8(16)


def _f32(blocks: Bytes) -> Any:
    return blocks.view("<f4")


def _f16(blocks: Bytes) -> Any:
    return blocks.view("<f2")


def _bf16(blocks: Bytes) -> Any:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Any:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Any:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Any:
    numbers = _nibbles(blocks[:, 6:]) | _fifth(blocks[:, 2:6])
    return _half(blocks, 0) * (numbers.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Any:
    numbers = _nibbles(blocks[:, 8:]) | _fifth(blocks[:, 4:8])
    return _half(blocks, 0) * numbers + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Any:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """d s_g and m t_g of the 8 groups: (K, 8, 1) each."""
    low, high, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = np.concatenate([low & 63, (both & 15) | (low >> 6 << 4)], axis=1)
    t = np.concatenate([high & 63, (both >> 4) | (high >> 6 << 4)], axis=1)
    return (_half(blocks, 0) * s)[..., None], (_half(blocks, 2) * t)[..., None]


def _groups(bytes_K128: Bytes) -> Bytes:
    """(K, 8, 32): of every 32 bytes, a group of low nibbles and one of high ones."""
    parts = bytes_K128.reshape(-1, 4, 1, 32)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Any:
    scales, offsets = _scales(blocks)
    return scales * _groups(blocks[:, 16:]) - offsets


def _q5_k(blocks: Bytes) -> Any:
    scales, offsets = _scales(blocks)
    bits = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return scales * (_groups(blocks[:, 48:]) | bits << 4) - offsets


def _q6_k(blocks: Bytes) -> Any:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high: Any = pairs >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    numbers = (low | high << 4).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return (_half(blocks, 208) * scales)[..., None] * numbers.reshape(-1, 16, 16)


_READERS: dict[int, Callable[[Bytes], Any]] = {
    F32: _f32,
    F16: _f16,
    BF16: _bf16,
    2: _q4_0,
    3: _q4_1,
    6: _q5_0,
    7: _q5_1,
    8: _q8_0,
    12: _q4_k,
    13: _q5_k,
    14: _q6_k,
}
