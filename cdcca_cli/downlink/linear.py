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
_ROUNDS = 2
_EXPLAINED = 0.8  # of a block's energy; below it, four levels fit the block badly


def int8_scales(blocks_KS: NDArray[np.float32]) -> NDArray[np.float32]:
    """The step of each block, (K,): its largest magnitude over 127."""
    return np.abs(blocks_KS).max(axis=1) / np.float32(127)


def int8_codes(blocks_KS: NDArray[np.float32], scales_K: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest whole multiple of the step, as a byte.

    A step at or above the one that `int8_scales` asks for leaves at most half a step of error.
    """
    relative_KS = blocks_KS / np.where(scales_K > 0, scales_K, np.float32(1))[:, None]
    return np.clip(np.rint(relative_KS), -127, 127).astype(np.int8).view(np.uint8)


def four_level_scales(blocks_KS: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of each block, (K,), that leaves the update as long as it was.

    With c in {-3, -1, 1, 3}, the scale of least squared error, <x,c>/<c,c>, makes the update about
    12 % too short, and a short update costs far more of the task than its squared error says. So
    the scale is <x,x>/<x,c>, for which <x, scale·c> = <x,x>. A block that four levels fit badly
    (one large value among zeros) gets the scale of least error, which is never worse than zero.
    """
    largest_K = np.abs(blocks_KS).max(axis=1)
    sizes_KS, magnitudes_KS = _best_fit(blocks_KS)
    energy_K = np.square(magnitudes_KS).sum(axis=1)
    product_K = (magnitudes_KS * sizes_KS).sum(axis=1)
    size_K = np.square(sizes_KS).sum(axis=1)
    fits_K = np.square(product_K) > _EXPLAINED * energy_K * size_K
    full_K = energy_K / np.where(fits_K, product_K, 1)
    return largest_K * np.where(fits_K, full_K, product_K / size_K)


def four_level_codes(
    blocks_KS: NDArray[np.float32], scales_K: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The code in 0..3 of each value: those of the best fit, whatever the scale became."""
    sizes_KS, _ = _best_fit(blocks_KS)
    return (np.where(blocks_KS < 0, 3 - sizes_KS, 3 + sizes_KS) / 2).astype(np.uint8)


def _best_fit(
    blocks_KS: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """1 or 3 for each value, as the best four even levels of its block have it (Lloyd's rounds).

    Returns: those, and the magnitudes over the block's largest that they belong to.
    """
    magnitudes_KS = np.abs(blocks_KS)
    largest_K = magnitudes_KS.max(axis=1)
    magnitudes_KS /= np.where(largest_K > 0, largest_K, np.float32(1))[:, None]
    half_steps_K = np.float32(_GAUSSIAN_HALF_STEP) * np.sqrt(np.square(magnitudes_KS).mean(axis=1))
    for _ in range(_ROUNDS):
        sizes_KS = _sizes(magnitudes_KS, half_steps_K)
        products_K = (magnitudes_KS * sizes_KS).sum(axis=1)
        half_steps_K = products_K / np.square(sizes_KS).sum(axis=1)
    return _sizes(magnitudes_KS, half_steps_K), magnitudes_KS


def _sizes(
    magnitudes_KS: NDArray[np.float32], half_steps_K: NDArray[np.float32]
) -> NDArray[np.float32]:
    return np.float32(1) + 2 * (magnitudes_KS > 2 * half_steps_K[:, None]).astype(np.float32)
