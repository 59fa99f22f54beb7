"""The payload of an update, codec `nf4-mixed`: its specification, and writer and reader of it.

What is known beforehand: the base's tensors in name order, and for each its number of values n and
its bits, 0, 2, 4 or 8, which the list "bits" of `coding` in the update's header holds. A tensor of
0 bits is not in the payload and does not change; a tensor without values has 0 bits. All others are
*sent*. Values are taken in C order and in blocks of 64; the last block of a tensor may be shorter.

The payload is exactly one zstd frame that declares its content size and carries a checksum. Its
content begins with the update's sequence, 8 bytes, unsigned and little-endian, which must be the
header's (everything else in the header is held by a digest or a size; the sequence by this). Then
come five planes, end to end, each holding the sent tensors in name order:

1. exponents: for each sent tensor one signed byte e;
2. scales: for each sent tensor one byte for each block, ceil(n / 64) of them;
3. codes of the tensors of 8 bits: n bytes a tensor;
4. codes of the tensors of 4 bits: ceil(n / 2) bytes a tensor; of the two codes of a byte, the
   first is in its low half;
5. codes of the tensors of 2 bits: ceil(n / 4) bytes a tensor; of the four codes of a byte, the
   first is in its two lowest bits.

Bits of a tensor's last byte that no value needs are written as zero and not read.

A scale byte c with its tensor's exponent e stands for the scale
    0 if c = 0, otherwise (16 + (c mod 16)) * 2**(c div 16) * 2**e
and a code q for the level
    8 bits: q as a signed byte, -128..127
    4 bits: entry q of the NF4 table (`nf4.LEVELS`, rounded to float32)
    2 bits: -3, -1, 1, 3 for q = 0, 1, 2, 3
A value's change is level * scale, one float32 multiplication; the new value is the base's value
plus the change, one float32 addition. A scale, a change or a new value that is not finite makes the
update invalid.

Each plane is given to zstd in blocks of its own, because a Huffman table is for one block and a
scale's bytes are not distributed as a code's. Level 1: on Gaussian changes level 3 is 0.1 % larger,
and level 19 is a hundred times slower for nothing. A reader need not know of either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from cdcca_cli.downlink import linear, nf4, scales
from cdcca_cli.downlink.delta import added
from cdcca_cli.downlink.payload import (
    SEQUENCE_BYTES,
    after_sequence,
    read_frame,
    with_sequence,
)
from cdcca_cli.errors import BadData

CODEC = "nf4-mixed"
BLOCK = 64
BITS = (0, 2, 4, 8)
_LEVEL = 1

Scales = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Codes = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Quantiser:
    """How a block gets its scale, its values their codes, and codes their levels."""

    scales: Scales
    codes: Codes
    levels: NDArray[np.float32]


QUANTISERS = {
    2: Quantiser(linear.four_level_scales, linear.four_level_codes, linear.FOUR_LEVELS),
    4: Quantiser(nf4.scales, nf4.codes, nf4.LEVELS),
    8: Quantiser(linear.int8_scales, linear.int8_codes, linear.INT8_LEVELS),
}


def _packed_levels(bits: int) -> NDArray[np.float32]:
    """(256, 8 / bits): the levels of the codes in each byte, first code first."""
    shifts = np.arange(0, 8, bits)
    codes = (np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)
    return QUANTISERS[bits].levels[codes]


_PACKED_LEVELS = {bits: _packed_levels(bits) for bits in QUANTISERS}


@dataclass(frozen=True)
class CodedTensor:
    """One sent tensor: its part of each plane."""

    bits: int
    exponent: int
    scales: bytes
    codes: bytes


def quantize(delta: NDArray[np.float32], bits: int) -> CodedTensor:
    """Code the finite changes of one tensor, of any shape with at least one value."""
    quantiser = QUANTISERS[bits]
    parts = _blocks(delta)
    wanted_K = np.concatenate([quantiser.scales(part_KS) for part_KS in parts])
    scale_codes_K, exponent = scales.encode(wanted_K)
    scales_K = scales.decode(scale_codes_K, exponent)
    part_scales = np.split(scales_K, [len(parts[0])])[: len(parts)]
    codes = np.concatenate(
        [quantiser.codes(*part).ravel() for part in zip(parts, part_scales, strict=True)]
    )
    return CodedTensor(bits, exponent, scale_codes_K.tobytes(), _pack(codes, bits))


def _blocks(delta: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The full blocks (K, 64), and the last one (1, n mod 64) if there is one."""
    values = np.ascontiguousarray(delta, np.float32).reshape(-1)
    whole = len(values) - len(values) % BLOCK
    parts = [values[:whole].reshape(-1, BLOCK), values[whole:].reshape(1, -1)]
    return [part for part in parts if part.size]


def _pack(codes: NDArray[np.uint8], bits: int) -> bytes:
    in_a_byte = 8 // bits
    padded = np.zeros((-(-len(codes) // in_a_byte), in_a_byte), np.uint8)
    padded.reshape(-1)[: len(codes)] = codes
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(padded << shifts, axis=1).astype(np.uint8).tobytes()


def restore(coded: CodedTensor, num_values: int) -> NDArray[np.float32]:
    """The changes (num_values,) that a coded tensor stands for: level * scale, in float32.

    Raises: BadData if one is not finite.
    """
    packed = np.frombuffer(coded.codes, np.uint8)
    levels = _PACKED_LEVELS[coded.bits][packed].reshape(-1)[:num_values]
    scales_K = scales.decode(np.frombuffer(coded.scales, np.uint8), coded.exponent)
    with np.errstate(over="ignore"):
        delta = np.multiply(levels, np.repeat(scales_K, BLOCK)[:num_values], dtype=np.float32)
    if not np.isfinite(delta).all():
        raise BadData("update: a change is not finite: fetch it again")
    return delta


def write_payload(sequence: int, tensors: Sequence[CodedTensor]) -> bytes:
    """The payload of the sent tensors, in name order. The same tensors give the same bytes."""
    planes = [
        with_sequence(sequence, b""),
        b"".join(tensor.exponent.to_bytes(1, "little", signed=True) for tensor in tensors),
        b"".join(tensor.scales for tensor in tensors),
        *(b"".join(t.codes for t in tensors if t.bits == bits) for bits in (8, 4, 2)),
    ]
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    frame = compressor.compressobj(size=sum(map(len, planes)))
    pieces = []
    for plane in planes:
        if plane:
            pieces += [frame.compress(plane), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*pieces, frame.flush()])


def read_payload(
    payload: bytes, sequence: int, bits: Sequence[int], num_values: Sequence[int]
) -> list[CodedTensor]:
    """The sent tensors of a payload, in name order.

    Nothing is decompressed before the frame is known to be exactly as large as it must be.

    Args: bits, num_values: of every tensor of the base, in name order; bits in {0, 2, 4, 8}.
    Raises: BadData.
    """
    sent = [(b, n) for b, n in zip(bits, num_values, strict=True) if b]
    blocks = [-(-n // BLOCK) for _, n in sent]
    sizes = [-(-n * b // 8) for b, n in sent]
    expected = SEQUENCE_BYTES + len(sent) + sum(blocks) + sum(sizes)
    unfolded = read_frame(payload, expected, "coded changes", has_checksum=True)
    content = BytesIO(after_sequence(unfolded, sequence))
    exponents = np.frombuffer(content.read(len(sent)), np.int8)
    scale_bytes = [content.read(count) for count in blocks]
    order = sorted(range(len(sent)), key=lambda index: -sent[index][0])  # 8, 4, 2; stable
    code_bytes = {index: content.read(sizes[index]) for index in order}
    return [
        CodedTensor(b, int(exponents[index]), scale_bytes[index], code_bytes[index])
        for index, (b, _) in enumerate(sent)
    ]


def decode(
    payload: bytes,
    sequence: int,
    coding: Mapping[str, Any],
    base: Mapping[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """The new overlay. Tensors that do not change are the base's own arrays. Raises: BadData."""
    bits = bits_of(coding)
    names = sorted(base)
    sizes = [base[name].size for name in names]
    if len(bits) != len(names):
        raise BadData(
            f"update: for {len(bits):,} tensors, its base has {len(names):,}: fetch it again"
        )
    for name, size, number in zip(names, sizes, bits, strict=True):
        if number not in BITS or (number and not size):
            raise BadData(
                f"update: {number} bits for {name[:80]}, of {size:,} values: fetch it again"
            )
    tensors = iter(read_payload(payload, sequence, bits, sizes))
    overlay = dict(base)
    for name, size, number in zip(names, sizes, bits, strict=True):
        if number:
            delta = restore(next(tensors), size).reshape(base[name].shape)
            overlay[name] = added(base[name], delta)
    return overlay


def bits_of(coding: Mapping[str, Any]) -> list[int]:
    """The bits of each tensor, as the update's header has them. BadData."""
    bits = coding.get("bits")
    if set(coding) != {"bits"} or type(bits) is not list or any(type(b) is not int for b in bits):
        raise BadData("update: 'coding' of nf4-mixed must be a list of whole numbers, 'bits'")
    return bits
