"""4-bit NormalFloat, the base quantiser of the paper (Eq. 7).

The 16 levels are those of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E): quantiles of
a normal distribution, scaled to [-1, 1], with an exact zero. A block is 64 values times one scale,
its largest magnitude. Shapes: K blocks, S = 64 values in a block.

Codes and levels only: `scales` codes the scales, `coding` packs both. No double quantisation as
in bitsandbytes, whose second level costs as much as our whole scale.
"""

import numpy as np
from numpy.typing import NDArray

LEVELS: NDArray[np.float32] = np.array(
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
_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2


def scales(blocks_KS: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of each block, (K,): its largest magnitude."""
    return np.abs(blocks_KS).max(axis=1)


def codes(blocks_KS: NDArray[np.float32], scales_K: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The code in 0..15 of the level nearest to each value over its block's scale.

    A scale at or above the block's largest magnitude leaves at most half a step of error.
    """
    relative_KS = blocks_KS / np.where(scales_K > 0, scales_K, np.float32(1))[:, None]
    return np.searchsorted(_BETWEEN, relative_KS).astype(np.uint8)
