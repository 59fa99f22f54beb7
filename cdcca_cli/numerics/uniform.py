"""Uniform quantisation: whole-number codes, one float32 step, and what the codes cost.

The arithmetic that training through the quantiser (`distill --rate-aware`) and the codec `usq`
share, so that what was trained is what is sent. All of it in float32, elementwise:

    code = round(delta / step)      one division; halves go to the even number
    delta' = float32(code) * step   one multiplication; never shrunk towards zero

A step is a float32 that is finite and normal (at least 2^-126), so no product is subnormal and no
machine can flush one; codes are within +-2^24, so their float32 is exact.

Entropy is of order 0: what a coder pays that knows how often each code occurs and nothing else.
This module packs no bits and writes no file.
"""

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData

SMALLEST_STEP = np.float32(2.0**-126)
LARGEST_CODE = 1 << 24

_TABLE_RANGE = 1 << 20  # codes that span less are counted in a table, else by sorting
_FINEST = 2.0**-22  # of the largest value: as fine as `step_for_bits` goes
_BISECTIONS = 60
_CLOSE_BITS = 1e-4


def check_step(step: float, where: str = "the quantiser") -> np.float32:
    """The step as float32. BadData unless it is one already, finite, and not subnormal."""
    with np.errstate(over="ignore", under="ignore"):
        exact = np.float32(step)
    if not (np.isfinite(exact) and exact >= SMALLEST_STEP and float(exact) == float(step)):
        raise BadData(
            f"{where}: the step {float(step):.9g} is not a normal float32 above 0 that is held "
            "exactly"
        )
    return exact


def quantize(delta: NDArray[np.floating], step: float) -> NDArray[np.int32]:
    """round(delta / step), halves to even, in float32.

    Raises: BadData if the step is unsound or a code is beyond +-2^24 (values that are not finite
        included): the step is then far too fine for these values.
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
    return np.asarray(codes).astype(np.float32) * check_step(step)


def entropy_bits(codes: NDArray[np.integer]) -> float:
    """Order-0 entropy, bits per code: - sum_c p_c log2 p_c; 0 for no codes."""
    counts = code_counts(codes)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(max(-(shares * np.log2(shares)).sum(), 0.0))


def code_counts(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """How often each code that occurs occurs, in the order of the codes."""
    flat = np.asarray(codes).ravel()
    if not flat.size:
        return np.zeros(0, np.int64)
    lowest = int(flat.min())
    if int(flat.max()) - lowest < _TABLE_RANGE:
        counts = np.bincount((flat - lowest).astype(np.int64))
        return counts[counts > 0].astype(np.int64)
    return np.unique(flat, return_counts=True)[1].astype(np.int64)


def step_for_bits(delta: NDArray[np.floating], bits: float) -> np.float32:
    """The finest step at which the codes' entropy is at most `bits`, to a ten-thousandth of a bit.

    By bisection on the logarithm of the step. The result always keeps within `bits`; where no step
    down to 2^-22 of the largest value uses them up (few values), it is that finest step.

    Args: delta: every value that will be coded with the step, of any shape. bits: >= 0.
    Returns: a sound step; 1 where there is nothing but zeros.
    Raises: BadData if a value is not finite.
    """
    values = np.asarray(delta, np.float32).ravel()
    largest = float(np.abs(values).max()) if values.size else 0.0
    if not np.isfinite(largest):
        raise BadData("a value of the difference is not finite")
    if largest < float(SMALLEST_STEP):
        return np.float32(1)
    fine = nearest_step(largest * _FINEST)
    if _cost(values, fine) <= bits:
        return fine
    coarse = nearest_step(2.5 * largest)  # every code is 0
    for _ in range(_BISECTIONS):
        middle = nearest_step(float(np.sqrt(float(fine) * float(coarse))))
        if not fine < middle < coarse:
            break
        cost = _cost(values, middle)
        if cost > bits:
            fine = middle
            continue
        coarse = middle
        if bits - cost < _CLOSE_BITS:
            break
    return coarse


def _cost(values: NDArray[np.float32], step: np.float32) -> float:
    return entropy_bits(quantize(values, float(step)))


def nearest_step(step: float) -> np.float32:
    """The step that can be written and is nearest to `step`: a normal float32 above 0, finite."""
    largest = float(np.finfo(np.float32).max)
    return np.float32(min(max(step, float(SMALLEST_STEP)), largest))
