"""The bootstrap: draws of whole units with replacement, and the interval that they give.

U units, K columns, S resamples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
DRAWS_AT_ONCE = 1 << 20


class Interval(NamedTuple):
    low: float
    high: float


def resampled_totals(
    rows_UK: Floats, generator: np.random.Generator, resamples: int
) -> Iterator[Floats]:
    """Column totals of `resamples` draws of U units with replacement, in chunks (S', K)."""
    units = len(rows_UK)
    at_once = max(1, DRAWS_AT_ONCE // units)
    for start in range(0, resamples, at_once):
        chunk = min(at_once, resamples - start)
        drawn = generator.integers(units, size=(chunk, units))
        drawn += units * np.arange(chunk)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=chunk * units).reshape(chunk, units)
        yield counts.astype(np.float64) @ rows_UK


def percentile_interval(values_S: Floats, level: float = CONFIDENCE) -> Interval:
    """The middle `level` of the values of all resamples."""
    low, high = np.quantile(values_S, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high))
