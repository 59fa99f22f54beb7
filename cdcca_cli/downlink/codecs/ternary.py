"""The codec `ternary`: the signs of the largest changes, all of one size. Its specification.

ComPEFT (Yadav et al. 2023, arXiv:2311.13171): the k largest magnitudes of the whole change become
+-1, the others 0. A 1 stands for alpha * sigma; sigma is the standard deviation of the whole change
about zero, alpha is tuned on held-out data.

The payload is that of `usq` with codes -1, 0 or 1; `coding` in the update's header is empty.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.codecs import usq
from cdcca_cli.numerics.uniform import SMALLEST_STEP

CODEC = "ternary"
DENSITY = 0.2  # the share of the changes that is kept; ComPEFT tries 5 to 50 %
ALPHAS = (1.5, 1.0, 2.0, 3.0)  # the loss chooses one; without a loss it is the first


def encode(
    deltas: Sequence[NDArray[np.float32]], sequence: int, density: float, alpha: float
) -> bytes:
    """The payload for these changes, in name order; without codes if no valid step is possible."""
    every = np.concatenate([delta.reshape(-1) for delta in deltas] or [np.zeros(0, np.float32)])
    magnitudes = np.abs(every)
    num_kept = min(max(int(density * len(every)), 1), int(np.count_nonzero(magnitudes)))
    mean_square = np.square(every, dtype=np.float64).sum() / max(len(every), 1)
    step = float(np.float32(alpha * np.sqrt(mean_square)))
    if not num_kept or step < SMALLEST_STEP:
        return usq.write_payload(sequence, [np.zeros(d.shape, np.int8) for d in deltas], 1.0)
    least = np.partition(magnitudes, len(magnitudes) - num_kept)[len(magnitudes) - num_kept]
    codes = [
        (np.sign(delta) * (np.abs(delta) >= max(least, np.finfo(np.float32).tiny))).astype(np.int8)
        for delta in deltas
    ]
    return usq.write_payload(sequence, codes, step)
