"""The codec `usq`: whole multiples of a step, coded at their entropy. Its specification.

The payload:

    sequence  8 bytes (`payload`)
    C         1 byte: the number of steps
    steps     4 bytes each, float32, little-endian: the step of class 1, 2, ... C. Each is a normal
              number above 0 (2**-126 or more) and finite
    body      `numerics.planes`: classes and codes; it has C classes

A tensor of class 0 does not change. For one of class c

    change = float32(code) * step of class c      one float32 multiplication
    new    = base + change                        one float32 addition

A change or a new value that is not finite makes the update invalid. `coding` in the update's header
is empty.

The writer gives all tensors one step (`rate`), as reverse water-filling demands; cdcca 0.1 to 0.3
could write several. Each class has its own tables, so tensors of similar energy share a class if
that makes the payload smaller. The step is not replaced by a centroid, which shrinks the update.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Overlay, overlay_with
from cdcca_cli.downlink.codecs.payload import (
    SEQUENCE_BYTES,
    after_sequence,
    damaged,
    of_update,
    with_sequence,
)
from cdcca_cli.numerics import planes
from cdcca_cli.numerics.uniform import SMALLEST_STEP, quantize

CODEC = "usq"

_STEP = np.dtype("<f4")
_CLASS_PARAMETERS = 48_000  # with fewer, a class costs more than it saves
_MOST_CLASSES = 8
_LARGE = 1 << 22  # from this many parameters on, tables cost next to nothing


def encode(deltas: Sequence[NDArray[np.float32]], sequence: int, step: float) -> bytes:
    """The payload for these changes, in name order. Raises: BadData for a code beyond 2^24."""
    return write_payload(sequence, [_narrow(quantize(delta, step)) for delta in deltas], step)


def write_payload(sequence: int, codes: Sequence[NDArray[np.integer]], step: float) -> bytes:
    """The payload of codes (any shape) in units of this step, in name order."""

    def payload(most_classes: int) -> bytes:
        classes = _classes(codes, most_classes)
        steps = np.full(max(classes, default=0), step, _STEP)
        head = bytes([len(steps)]) + steps.tobytes()
        return with_sequence(sequence, head + planes.write_body(classes, codes))

    is_small = sum(one.size for one in codes) < _LARGE
    tried = (1, _MOST_CLASSES) if is_small else (_MOST_CLASSES,)
    return min(map(payload, tried), key=len)


def _narrow(codes: NDArray[np.int32]) -> NDArray[np.integer]:
    """The codes as int8 if they fit, to save memory."""
    small = codes.astype(np.int8)
    return small if (small == codes).all() else codes


def _classes(codes: Sequence[NDArray[np.integer]], most: int) -> list[int]:
    """The class of each tensor, 0 for zeros only.

    The tensors are sorted by the mean square of their codes and cut into classes of similar size.
    """
    energies = [_mean_square(one) for one in codes]
    classes = [0] * len(codes)
    sent = [tensor for tensor, energy in enumerate(energies) if energy > 0]
    sent.sort(key=lambda tensor: (energies[tensor], tensor))
    total = sum(codes[tensor].size for tensor in sent)
    wanted = min(max(total // _CLASS_PARAMETERS, 1), most)
    before, at, number = 0, -1, 0
    for tensor in sent:
        if before * wanted // total > at:
            at = before * wanted // total
            number += 1
        classes[tensor] = number
        before += codes[tensor].size
    return classes


def _mean_square(codes: NDArray[np.integer]) -> float:
    values = codes.reshape(-1).astype(np.float32)
    return float(values @ values) / max(len(values), 1)


def decode(payload: bytes, sequence: int, base: Overlay) -> dict[str, NDArray[np.float32]]:
    return overlay_with(
        base, changes(payload, sequence, [base[name].size for name in sorted(base)])
    )


def changes(
    payload: bytes, sequence: int, sizes: Sequence[int]
) -> Iterator[NDArray[np.float32] | None]:
    """The change (N,) of each tensor, float32; None if it does not change. Raises: BadData."""
    steps, body = _head(after_sequence(payload, sequence))
    with of_update():
        classes, codes = planes.read_body(body, sizes)
    if len(codes) != len(steps):
        raise damaged(f"{len(steps)} steps for {len(codes)} classes of codes")
    places = [0] * len(codes)
    for size, number in zip(sizes, classes, strict=True):
        if not number:
            yield None
            continue
        begin = places[number - 1]
        places[number - 1] += size
        own = codes[number - 1][begin : begin + size].astype(np.float32)
        with np.errstate(over="ignore"):
            yield np.multiply(own, steps[number - 1], out=own)


def _head(rest: bytes) -> tuple[NDArray[np.float32], bytes]:
    """The checked steps and the body, from the bytes after the sequence."""
    count = rest[0] if rest else 0
    body = 1 + count * _STEP.itemsize
    if len(rest) < body:
        raise damaged("its payload is cut short")
    steps = np.frombuffer(rest[1:body], _STEP).astype(np.float32)
    sound = np.isfinite(steps) & (steps >= SMALLEST_STEP)
    if not sound.all():
        wrong = float(steps[np.argmin(sound)])
        raise damaged(f"a step of {wrong:g}, expected a normal number above 0")
    return steps, rest[body:]


def byte_kinds(payload: bytes) -> dict[str, int]:
    """The uses of the payload's bytes, which add up to its length. Raises: BadData."""
    _, body = _head(payload[SEQUENCE_BYTES:])
    with of_update():
        return {"sequence and steps": len(payload) - len(body), **planes.part_lengths(body)}


def steps_of(payload: bytes) -> list[float]:
    """The distinct steps in a payload. Raises: BadData."""
    steps, _ = _head(payload[SEQUENCE_BYTES:])
    return sorted({float(step) for step in steps})
