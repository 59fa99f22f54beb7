"""Equations 7 and 8 of the paper, one tensor at a time.

The quantiser between them is a codec's (`codecs`). Which tensors are sent is `groups`' and
`allocation`'s.
"""

import numpy as np
from numpy.typing import NDArray


def difference(updated: NDArray[np.float32], base: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is quantised: Theta_updated - Theta_base (Eq. 7), elementwise, in float32.

    The base is the device's own state, not the cloud's exact weights: what the last round's
    quantiser rounded off is part of this difference, so errors never add up.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.subtract(updated, base, dtype=np.float32)


def added(base: NDArray[np.float32], delta: NDArray[np.float32]) -> NDArray[np.float32]:
    """The new parameter: Theta_edge = Theta_base + Theta_compressed (Eq. 8), on a copy.

    One addition and one rounding to float32 an element, so that every machine gets the same bits.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add(base, delta, dtype=np.float32)
