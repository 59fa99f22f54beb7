"""Uniform quantisation: whole-number codes, one float32 step, and the entropy of the codes.

Rate-aware training and the codec `usq` share this arithmetic, so the update has the values that
training saw. Everything is in float32, elementwise:

    code = round(delta / step)      one division; halves go to the even number
    delta' = float32(code) * step   one multiplication; never shrunk towards zero

A step is a float32 that is finite and normal (at least 2^-126), so no product is subnormal and no
machine flushes one to zero; codes are within +-2^24, so their float32 is exact.
"""

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData

SMALLEST_STEP = np.float32(2.0**-126)
LARGEST_CODE = 1 << 24

_TABLE_RANGE = 1 << 20  # codes with a smaller span are counted in a table, others by sorting
_FINEST = 2.0**-22  # the finest step of `step_for_bits`, relative to the largest value
_BISECTIONS = 60
_CLOSE_BITS = 1e-4


def check_step(step: float, where: str = "the quantiser") -> np.float32:
    """The step as float32. BadData unless it is exactly a float32, finite and normal."""
    with np.errstate(over="ignore", under="ignore"):
        exact = np.float32(step)
    if not (np.isfinite(exact) and exact >= SMALLEST_STEP and float(exact) == float(step)):
        raise BadData(
            f"{where}: the step {float(step):.9g} is not exactly a normal float32 above 0"
        )
    return exact


def quantize(delta: NDArray[np.floating], step: float) -> NDArray[np.int32]:
    """round(delta / step), halves to even, in float32.

    Raises: BadData if the step is unsound, a value is not finite, or a code is beyond +-2^24.
    """
    exact = check_step(step)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.rint(np.asarray(delta, np.float32) / exact)
        sound = np.abs(codes) <= LARGEST_CODE
    if not sound.all():
        raise BadData(
            f"a value is not finite, or more than 2^24 steps of {float(exact):.3g} from zero: "
            "the step is too fine for these values"
        )
    return codes.astype(np.int32)


def restore(codes: NDArray[np.integer], step: float) -> NDArray[np.float32]:
    """float32(code) * step."""
    with np.errstate(over="ignore"):
        return np.asarray(codes).astype(np.float32) * check_step(step)


def entropy_bits(codes: NDArray[np.integer]) -> float:
    """Order-0 entropy, bits per code: - sum_c p_c log2 p_c; 0 for no codes."""
    flat = np.asarray(codes).ravel()
    if not flat.size:
        return 0.0
    lowest = int(flat.min())
    if int(flat.max()) - lowest < _TABLE_RANGE:
        counts = np.bincount((flat - lowest).astype(np.int64))
        counts = counts[counts > 0]
    else:
        counts = np.unique(flat, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(max(-(shares * np.log2(shares)).sum(), 0.0))


def step_for_bits(delta: NDArray[np.floating], bits: float) -> np.float32:
    """The finest step at which the codes' entropy is at most `bits`, to a ten-thousandth of a bit.

    By bisection on the logarithm of the step, from 2^-22 of the largest value up; 1 if all values
    are zero. Raises: BadData if a value is not finite.
    """
    values = np.asarray(delta, np.float32).ravel()
    largest = float(np.abs(values).max()) if values.size else 0.0
    if not np.isfinite(largest):
        raise BadData("a value of the change is not finite")
    if largest < float(SMALLEST_STEP):
        return np.float32(1)
    fine = nearest_step(largest * _FINEST)

    def cost(step: np.float32) -> float:
        return entropy_bits(quantize(values, float(step)))

    if cost(fine) <= bits:
        return fine
    coarse = nearest_step(2.5 * largest)  # every code is 0
    for _ in range(_BISECTIONS):
        middle = nearest_step(float(np.sqrt(float(fine) * float(coarse))))
        if not fine < middle < coarse:
            break
        spent = cost(middle)
        if spent > bits:
            fine = middle
            continue
        coarse = middle
        if bits - spent < _CLOSE_BITS:
            break
    return coarse


def nearest_step(step: float) -> np.float32:
    """The nearest valid step: a finite, normal float32 above 0."""
    largest = float(np.finfo(np.float32).max)
    return np.float32(min(max(step, float(SMALLEST_STEP)), largest))
