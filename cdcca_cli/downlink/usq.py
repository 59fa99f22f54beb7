"""The codec `usq`: whole multiples of a step, coded at their entropy. Its specification.

The payload:

    sequence  8 bytes (`payload`)
    C         1 byte: the number of steps
    steps     4 bytes each, float32, little-endian: the step of class 1, 2, ... C. Each is a normal
              number above 0 (2**-126 or more) and finite
    body      `planes`: classes and codes; it has C classes

A tensor of class 0 does not change. For one of class c

    change = float32(code) * step of class c      one float32 multiplication
    new    = base + change                        one float32 addition

A change or a new value that is not finite makes the update invalid. `coding` in the update's header
is empty.

The writer gives all tensors one global step, or one times a multiplier. Several classes may have
the same step, because a class is also what has tables of its own: tensors of alike energy stand
together where that makes the payload smaller. Reconstruction is plain: the
step that is written is the quantiser's own, or that times a gain above 1 for the whole file; never
a centroid, which shrinks the update, and a short update loses far more of the task than its squared
error says. One step for all is what reverse water-filling asks for: tensors that changed little get
few bits by themselves.

Chooses no step: that is `sender`'s.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink import planes
from cdcca_cli.downlink.delta import added
from cdcca_cli.downlink.payload import SEQUENCE_BYTES, after_sequence, with_sequence
from cdcca_cli.errors import BadData
from cdcca_cli.numerics.uniform import SMALLEST_STEP, quantize

CODEC = "usq"

_STEP = np.dtype("<f4")
_CLASS_PARAMETERS = 48_000  # fewer, and a table of their own costs more than it saves
_CLASSES_A_STEP = 8
_LARGE = 1 << 22  # from so many parameters on, tables cost next to nothing

Overlay = Mapping[str, NDArray[np.float32]]


def encode(
    deltas: Sequence[NDArray[np.float32]],
    sequence: int,
    steps: float | Sequence[float],
    gain: float = 1.0,
) -> bytes:
    """The payload for these changes, in name order.

    Args:
        deltas: of every tensor of the base; those that are not to be sent are zeros.
        steps: float32 above 0, one for all, or one for each tensor.
        gain: what a code stands for, in steps.
    Raises: BadData if a value is more than 2^24 steps from zero.
    """
    each = [steps] * len(deltas) if isinstance(steps, float | np.floating) else list(steps)
    codes = [_narrow(quantize(delta, step)) for delta, step in zip(deltas, each, strict=True)]
    return write_payload(sequence, codes, [float(np.float32(step * gain)) for step in each])


def write_payload(
    sequence: int, codes: Sequence[NDArray[np.integer]], steps: Sequence[float]
) -> bytes:
    """The payload of codes (any shape) whose units are these steps, in name order."""
    small = sum(one.size for one in codes) < _LARGE
    tried = (1, _CLASSES_A_STEP) if small else (_CLASSES_A_STEP,)
    return min((_written(sequence, codes, steps, most) for most in tried), key=len)


def _narrow(codes: NDArray[np.int32]) -> NDArray[np.integer]:
    """The same in a quarter of the memory, where that holds them."""
    small = codes.astype(np.int8)
    return small if (small == codes).all() else codes


def _written(
    sequence: int, codes: Sequence[NDArray[np.integer]], steps: Sequence[float], most: int
) -> bytes:
    """The payload with at most so many classes a step."""
    classes, of_class = _classes(codes, steps, most)
    head = bytes([len(of_class)]) + np.array(of_class, _STEP).tobytes()
    return with_sequence(sequence, head + planes.write_body(classes, codes))


def _classes(
    codes: Sequence[NDArray[np.integer]], steps: Sequence[float], most: int
) -> tuple[list[int], list[float]]:
    """The class of each tensor, and the step of each class from 1 on.

    The tensors of a step are sorted by the mean square of their codes and cut into classes of about
    as many parameters each.
    """
    energies = [_mean_square(one) for one in codes]
    classes = [0] * len(codes)
    of_class: list[float] = []
    for step in sorted(set(steps)):
        own = [t for t, energy in enumerate(energies) if energy > 0 and steps[t] == step]
        own.sort(key=lambda tensor: (energies[tensor], tensor))
        total = sum(codes[tensor].size for tensor in own)
        wanted = min(max(total // _CLASS_PARAMETERS, 1), most)
        before, number = 0, -1
        for tensor in own:
            if before * wanted // total > number:
                number = before * wanted // total
                of_class.append(step)
            classes[tensor] = len(of_class)
            before += codes[tensor].size
    return classes, of_class


def _mean_square(codes: NDArray[np.integer]) -> float:
    values = codes.reshape(-1).astype(np.float32)
    return float(values @ values) / max(len(values), 1)


def decode(payload: bytes, sequence: int, base: Overlay) -> dict[str, NDArray[np.float32]]:
    """The new overlay. Tensors that do not change are the base's own arrays. Raises: BadData."""
    names = sorted(base)
    overlay = dict(base)
    deltas = changes(payload, sequence, [base[name].size for name in names])
    for name, delta in zip(names, deltas, strict=True):
        if delta is not None:
            overlay[name] = added(base[name], delta.reshape(base[name].shape))
    return overlay


def changes(
    payload: bytes, sequence: int, sizes: Sequence[int]
) -> Iterator[NDArray[np.float32] | None]:
    """The change of each tensor, (N,) float32, one at a time; None for one that does not change.

    Args: sizes: numbers of values of the base's tensors, in name order.
    Raises: BadData.
    """
    steps, body = _head(after_sequence(payload, sequence))
    classes, codes = planes.read_body(body, sizes)
    if len(codes) != len(steps):
        raise BadData(
            f"update: {len(steps)} steps for {len(codes)} classes of codes: fetch it again"
        )
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
    """The steps, checked, and the body, of what follows the sequence."""
    count = rest[0] if rest else 0
    body = 1 + count * _STEP.itemsize
    if len(rest) < body:
        raise BadData("update: its payload is cut short: fetch it again")
    steps = np.frombuffer(rest[1:body], _STEP).astype(np.float32)
    sound = np.isfinite(steps) & (steps >= SMALLEST_STEP)
    if not sound.all():
        wrong = float(steps[np.argmin(sound)])
        raise BadData(f"update: a step of {wrong:g}: expected a number above 0: fetch it again")
    return steps, rest[body:]


def byte_kinds(payload: bytes) -> dict[str, int]:
    """What the payload's bytes are for; they add up to its length. BadData."""
    _, body = _head(payload[SEQUENCE_BYTES:])
    return {"sequence and steps": len(payload) - len(body), **planes.part_lengths(body)}


def steps_of(payload: bytes) -> list[float]:
    """The different steps in a payload. BadData."""
    steps, _ = _head(payload[SEQUENCE_BYTES:])
    return sorted({float(step) for step in steps})
