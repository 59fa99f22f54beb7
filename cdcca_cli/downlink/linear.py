"""Evenly spaced quantisers: int8 for what must be exact, four levels for what may be rough.

Shapes: K blocks, S = 64 values in a block (fewer in a tensor's last one). A value is its level
times its block's scale; levels are whole numbers, so the scale of int8 is its step, and the scale
of the four levels is half of theirs.
"""

import numpy as np
from numpy.typing import NDArray

# A code is a byte: the level in two's complement. -128 is never written.
INT8_LEVELS: NDArray[np.float32] = np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32)
FOUR_LEVELS: NDArray[np.float32] = np.array([-3, -1, 1, 3], np.float32)

_GAUSSIAN_HALF_STEP = 0.4979  # of the best four even levels, for unit variance
_EXPLAINED = 0.8  # of a block's energy; below it, four levels fit the block badly


def int8_scales(blocks_KS: NDArray[np.float32]) -> NDArray[np.float32]:
    """The step of each block, (K,): its largest magnitude over 127."""
    return np.abs(blocks_KS).max(axis=1) / np.float32(127)


def int8_codes(blocks_KS: NDArray[np.float32], scales_K: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest whole multiple of the step, as a byte.

    A step at or above the one that `int8_scales` asks for leaves at most half a step of error.
    """
    relative_KS = blocks_KS / np.where(scales_K > 0, scales_K, 1)[:, None]
    return np.clip(np.rint(relative_KS), -127, 127).astype(np.int8).view(np.uint8)


def four_level_scales(blocks_KS: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of each block, (K,), that leaves the update as long as it was.

    With c in {-3, -1, 1, 3}, the scale of least squared error, <x,c>/<c,c>, makes the update about
    12 % too short, and a short update costs far more of the task than its squared error says. So
    the scale is <x,x>/<x,c>, for which <x, scale·c> = <x,x>. A block that four levels fit badly
    (one large value among zeros) gets the scale of least error, which is never worse than zero.
    """
    exact_KS = blocks_KS.astype(np.float64)
    levels_KS = _levels(exact_KS)
    energy_K = np.square(exact_KS).sum(axis=1)
    product_K = (exact_KS * levels_KS).sum(axis=1)
    size_K = np.square(levels_KS).sum(axis=1)
    fits_K = (product_K > 0) & (np.square(product_K) >= _EXPLAINED * energy_K * size_K)
    full_K = energy_K / np.where(fits_K, product_K, 1)
    return np.where(fits_K, full_K, product_K / size_K).astype(np.float32)


def four_level_codes(
    blocks_KS: NDArray[np.float32], scales_K: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The code in 0..3 of each value: those of the best fit, whatever the scale became."""
    return ((_levels(blocks_KS.astype(np.float64)) + 3) / 2).astype(np.uint8)


def _levels(blocks_KS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sign and size of each value for the best four even levels of its block (two rounds of Lloyd)."""
    magnitudes_KS = np.abs(blocks_KS)
    half_steps_K = _GAUSSIAN_HALF_STEP * np.sqrt(np.square(blocks_KS).mean(axis=1))
    for _ in range(2):
        sizes_KS = np.where(magnitudes_KS > 2 * half_steps_K[:, None], 3.0, 1.0)
        products_K = (magnitudes_KS * sizes_KS).sum(axis=1)
        half_steps_K = products_K / np.square(sizes_KS).sum(axis=1)
    sizes_KS = np.where(magnitudes_KS > 2 * half_steps_K[:, None], 3.0, 1.0)
    return np.where(blocks_KS < 0, -sizes_KS, sizes_KS)
