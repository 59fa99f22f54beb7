"""How sure a score is: bootstrap intervals, alone and paired.

Every score here is a function of column totals over units (frames): a mean is sum / count, BLEU is
a formula of counts. So a resample is a draw of U units with replacement, and all resamples together
are one matrix of draw counts times the units' rows. Frames are drawn rather than questions, since
questions about one frame stand or fall together; with one question a frame the two are the same.

The intervals are percentile intervals. They say nothing where a score sits at 0 or 100 for every
unit (the resamples are all alike), and there is none (None) for fewer than two units.

U units, K columns, S resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK = 1 << 20  # draw counts held at once


@dataclass(frozen=True)
class Sample:
    """What a score is made from.

    rows_UK: each unit's addends. score: from totals (S, K) to scores (S,). n: questions or images.
    """

    rows_UK: Floats
    score: Callable[[Floats], Floats]
    n: int

    @property
    def units(self) -> int:
        return len(self.rows_UK)

    def value(self) -> float:
        """The score of all units together; 0.0 of none."""
        if not self.units:
            return 0.0
        return float(self.score(self.rows_UK.sum(0, keepdims=True))[0])


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """a - b over the same units, with its interval (None for fewer than two units)."""

    value: float
    interval: Interval | None
    n: int


def mean_percent(totals_S2: Floats) -> Floats:
    """100 x sum / count, of totals (S, 2); 0 where nothing was counted."""
    sums, counts = totals_S2[:, 0], totals_S2[:, 1]
    return 100.0 * np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


def bootstrap(sample: Sample, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """The 95 % percentile interval of a score."""
    if sample.units < 2:
        return None
    totals = _resampled_totals(sample.rows_UK, seed, resamples)
    return _interval(np.concatenate([sample.score(chunk) for chunk in totals]))


def paired_bootstrap(
    a: Sample, b: Sample, *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """a - b with its 95 % interval: both are scored on the same draws.

    Row i of both must be the same unit. Raises ValueError if the numbers of units differ.
    """
    if a.units != b.units:
        raise ValueError(f"paired samples of {a.units} and {b.units} units")
    value = a.value() - b.value()
    if a.units < 2:
        return Difference(value, None, a.n)
    split = a.rows_UK.shape[1]
    both = np.concatenate([a.rows_UK, b.rows_UK], axis=1)
    differences = [
        a.score(totals[:, :split]) - b.score(totals[:, split:])
        for totals in _resampled_totals(both, seed, resamples)
    ]
    return Difference(value, _interval(np.concatenate(differences)), a.n)


def _resampled_totals(rows_UK: Floats, seed: int, resamples: int) -> Iterator[Floats]:
    """Column totals of `resamples` draws of U units with replacement, in chunks (S', K)."""
    units = len(rows_UK)
    generator = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, _CHUNK // units)
    for start in range(0, resamples, at_once):
        chunk = min(at_once, resamples - start)
        drawn = generator.integers(units, size=(chunk, units))
        drawn += units * np.arange(chunk)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=chunk * units).reshape(chunk, units)
        yield counts.astype(np.float64) @ rows_UK


def _interval(scores_S: Floats) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(scores_S, (tail, 100 - tail))
    return Interval(float(low), float(high))
