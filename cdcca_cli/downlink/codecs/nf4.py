"""The codec `nf4-mixed`: 4-bit NormalFloat, the paper's quantiser (Eq. 7). Its specification.

The 16 levels are those of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E): quantiles of
a normal distribution, scaled to [-1, 1], with an exact zero. A block is 64 values times one scale,
its largest magnitude, in one byte. A writer uses 4 bits; files of cdcca 0.1 to 0.3 also have 2 and
8.

A reader knows the base's tensors in name order, and for each its number of values n and its bits,
0, 2, 4 or 8, from the list "bits" of `coding` in the update's header. A tensor of 0 bits is not in
the payload and does not change; a tensor without values has 0 bits. All others are *sent*. Values
are taken in C order and in blocks of 64; the last block of a tensor may be shorter.

The payload is exactly one zstd frame that declares its content size and carries a checksum. Its
content begins with the update's sequence, 8 bytes, unsigned and little-endian, which must equal the
header's. Then come five planes, end to end, each with the sent tensors in name order:

1. exponents: for each sent tensor one signed byte e;
2. scales: for each sent tensor one byte for each block, ceil(n / 64) of them;
3. codes of the tensors of 8 bits: n bytes a tensor;
4. codes of the tensors of 4 bits: ceil(n / 2) bytes a tensor; of the two codes of a byte, the
   first is in its low half;
5. codes of the tensors of 2 bits: ceil(n / 4) bytes a tensor; of the four codes of a byte, the
   first is in its two lowest bits.

Unused bits of a tensor's last byte are written as zero and not read.

A scale byte c with its tensor's exponent e stands for the scale
    0 if c = 0, otherwise (16 + (c mod 16)) * 2**(c div 16) * 2**e    (a float32 exactly)
and a code q for the level
    8 bits: q as a signed byte, -128..127
    4 bits: entry q of the NF4 table (`NF4`, rounded to float32)
    2 bits: -3, -1, 1, 3 for q = 0, 1, 2, 3
A value's change is level * scale, one float32 multiplication; the new value is the base's value
plus the change, one float32 addition. A scale, a change or a new value that is not finite makes the
update invalid.

Shapes: K blocks, S = 64 values in a block (fewer in a tensor's last one).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Overlay, overlay_with
from cdcca_cli.downlink.codecs.payload import (
    SEQUENCE_BYTES,
    after_sequence,
    damaged,
    of_update,
    with_sequence,
)
from cdcca_cli.numerics.zstd_frames import read_frame, write_frame

CODEC = "nf4-mixed"
BLOCK = 64
BITS = (0, 2, 4, 8)
NEGLIGIBLE = 1e-6
"""The total share of the squared change in tensors that are left for the next round."""

NF4: NDArray[np.float32] = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_MANTISSAS = 16
_OCTAVES = 16
# Smaller exponents would give numbers that some processors flush to zero.
_SMALLEST_EXPONENT = -100
_UNITS = np.array(
    [0]
    + [(_MANTISSAS + c % _MANTISSAS) << (c // _MANTISSAS) for c in range(1, _MANTISSAS * _OCTAVES)],
    np.float32,
)
_BETWEEN = (NF4[1:] + NF4[:-1]) / 2
_LEVEL = 1


def _packed_levels(bits: int, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(256, 8 / bits): the levels of the codes in each byte, first code first."""
    shifts = np.arange(0, 8, bits)
    return levels[(np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)]


_PACKED_LEVELS = {
    2: _packed_levels(2, np.array([-3, -1, 1, 3], np.float32)),
    4: _packed_levels(4, NF4),
    8: _packed_levels(8, np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32)),
}


@dataclass(frozen=True)
class CodedTensor:
    """One sent tensor: its part of each plane."""

    bits: int
    exponent: int
    scales: bytes
    codes: bytes


# ---------------------------------------------------------------- writing


def encode(
    deltas: Sequence[NDArray[np.float32]], energies: Sequence[float], sequence: int
) -> tuple[list[int], bytes]:
    """The bits of each tensor and the payload of these finite changes, in name order.

    Args: energies: the squared change of each tensor.
    """
    bits = [4 if matters else 0 for matters in _matter(energies)]
    sent = [quantize(delta) for delta, number in zip(deltas, bits, strict=True) if number]
    return bits, write_payload(sequence, sent)


def _matter(energies: Sequence[float]) -> list[bool]:
    """Whether each tensor is sent: not the smallest, whose squares sum to `NEGLIGIBLE` at most."""
    allowed = NEGLIGIBLE * sum(energies)
    matter = [True] * len(energies)
    left_out = 0.0
    for tensor in sorted(range(len(energies)), key=energies.__getitem__):
        left_out += energies[tensor]
        if left_out > allowed:
            break
        matter[tensor] = False
    return matter


def quantize(delta: NDArray[np.float32]) -> CodedTensor:
    """The nearest level of each value of a tensor of any shape with at least one value."""
    values = np.ascontiguousarray(delta, np.float32).reshape(-1)
    blocks_KS = np.zeros((-(-len(values) // BLOCK), BLOCK), np.float32)
    blocks_KS.reshape(-1)[: len(values)] = values
    scale_codes_K, exponent = encode_scales(np.abs(blocks_KS).max(axis=1))
    scales_K = decode_scales(scale_codes_K, exponent)
    relative_KS = blocks_KS / np.where(scales_K > 0, scales_K, np.float32(1))[:, None]
    codes = np.searchsorted(_BETWEEN, relative_KS).astype(np.uint8).reshape(-1)[: len(values)]
    codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
    packed = codes[0::2] | codes[1::2] << 4
    return CodedTensor(4, exponent, scale_codes_K.tobytes(), packed.tobytes())


def encode_scales(scales_K: NDArray[np.float32]) -> tuple[NDArray[np.uint8], int]:
    """The codes (K,) of finite scales that are not negative, and the tensor's exponent e.

    A scale is rounded up, by 10 % at most, so no value of its block is clipped. Scales more than
    65,000 times smaller than the tensor's largest become 0.
    """
    fraction_K, power_K = np.frexp(scales_K)  # scale = fraction * 2**power, fraction in [1/2, 1)
    mantissa_K = np.ceil(fraction_K * (2 * _MANTISSAS)).astype(np.int64)
    power_K = power_K.astype(np.int64) - 5
    power_K, mantissa_K = (
        np.where(mantissa_K == 2 * _MANTISSAS, power_K + 1, power_K),
        np.where(mantissa_K == 2 * _MANTISSAS, _MANTISSAS, mantissa_K),
    )
    sent_K = scales_K > 0
    if not sent_K.any():
        return np.zeros(len(scales_K), np.uint8), 0
    exponent = max(int(power_K[sent_K].max()) - (_OCTAVES - 1), _SMALLEST_EXPONENT)
    octave_K = power_K - exponent
    codes_K = np.maximum(octave_K * _MANTISSAS + mantissa_K - _MANTISSAS, 1)
    return np.where(sent_K & (octave_K >= 0), codes_K, 0).astype(np.uint8), exponent


def write_payload(sequence: int, tensors: Sequence[CodedTensor]) -> bytes:
    """The payload of the sent tensors, in name order; deterministic."""
    planes = [
        with_sequence(sequence, b""),
        b"".join(tensor.exponent.to_bytes(1, "little", signed=True) for tensor in tensors),
        b"".join(tensor.scales for tensor in tensors),
        *(b"".join(t.codes for t in tensors if t.bits == bits) for bits in (8, 4, 2)),
    ]
    return write_frame(planes, zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True))


# ---------------------------------------------------------------- reading


def restore(coded: CodedTensor, num_values: int) -> NDArray[np.float32]:
    """The changes (num_values,) of a coded tensor: level * scale, float32. Raises: BadData."""
    packed = np.frombuffer(coded.codes, np.uint8)
    levels = _PACKED_LEVELS[coded.bits][packed].reshape(-1)[:num_values]
    scales_K = decode_scales(np.frombuffer(coded.scales, np.uint8), coded.exponent)
    with np.errstate(over="ignore"):
        delta = np.multiply(levels, np.repeat(scales_K, BLOCK)[:num_values], dtype=np.float32)
    if not np.isfinite(delta).all():
        raise damaged("a change is not finite")
    return delta


def read_payload(
    payload: bytes, sequence: int, bits: Sequence[int], num_values: Sequence[int]
) -> list[CodedTensor]:
    """The sent tensors of a payload, in name order. Raises: BadData.

    Args: bits, num_values: of every tensor of the base, in name order; bits in {0, 2, 4, 8}.
    """
    sent = [(b, n) for b, n in zip(bits, num_values, strict=True) if b]
    blocks = [-(-n // BLOCK) for _, n in sent]
    sizes = [-(-n * b // 8) for b, n in sent]
    expected = SEQUENCE_BYTES + len(sent) + sum(blocks) + sum(sizes)
    with of_update():
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
    payload: bytes, sequence: int, coding: Mapping[str, Any], base: Overlay
) -> dict[str, NDArray[np.float32]]:
    bits = bits_of(coding)
    names = sorted(base)
    sizes = [base[name].size for name in names]
    if len(bits) != len(names):
        raise damaged(f"for {len(bits):,} tensors; its base has {len(names):,}")
    for name, size, number in zip(names, sizes, bits, strict=True):
        if number not in BITS or (number and not size):
            raise damaged(f"{number} bits for {name[:80]}, of {size:,} values")
    tensors = iter(read_payload(payload, sequence, bits, sizes))
    deltas = (
        restore(next(tensors), size) if number else None
        for size, number in zip(sizes, bits, strict=True)
    )
    return overlay_with(base, deltas)


def bits_of(coding: Mapping[str, Any]) -> list[int]:
    """The bits of each tensor, from the update's header. Raises: BadData."""
    bits = coding.get("bits")
    if set(coding) != {"bits"} or type(bits) is not list or any(type(b) is not int for b in bits):
        raise damaged("'coding' of nf4-mixed must be 'bits', a list of whole numbers")
    return bits


def decode_scales(codes_K: NDArray[np.uint8], exponent: int) -> NDArray[np.float32]:
    """The scales (K,) of the codes. Raises: BadData if one is too large for float32."""
    with np.errstate(over="ignore"):
        scales_K: NDArray[np.float32] = np.ldexp(_UNITS, exponent)[codes_K]
    if not np.isfinite(scales_K).all():
        raise damaged(f"a block scale is not finite (exponent {exponent})")
    return scales_K
