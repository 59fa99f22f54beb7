"""The uncertainty of scores: bootstrap intervals, alone and paired, and a permutation test.

Every score is a function of column totals over units (frames): a mean is sum / count, BLEU is a
formula of counts. So all resamples together are one matrix of draw counts times the units' rows.
Frames are drawn rather than questions, since the answers about one frame are not independent.

Intervals are percentile intervals, None for fewer than two units. The test of a paired difference
swaps the two sides of each unit with probability 1/2: p = (1 + k) / (1 + P), where k of P swaps
differ by at least as much as the sides themselves. Draws depend only on the seed and the number of
units, so an interval does not change with what else is scored.

U units, K columns, S resamples or swaps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cdcca_cli.numerics.statistics import (
    DRAWS_AT_ONCE,
    RESAMPLES,
    Floats,
    Interval,
    percentile_interval,
    resampled_totals,
)

PERMUTATIONS = 10_000
SAME = 1e-9  # points by which equal scores may differ for the order of their sums


@dataclass(frozen=True)
class Sample:
    """Each unit's addends, the function from totals (S, K) to scores (S,), and n questions."""

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


def words_of(interval: Interval | None, form: str) -> str:
    """For tables: `53.90 to 59.30`, nothing for None."""
    return "" if interval is None else f"{interval.low:{form}} to {interval.high:{form}}"


@dataclass(frozen=True)
class Changes:
    """How many questions or images one side scores better on than the other, worse and the same."""

    better: int
    worse: int
    same: int


@dataclass(frozen=True)
class Difference:
    """a - b over the same units. p_value: two-sided. changes: None for BLEU."""

    value: float
    interval: Interval | None
    n: int
    p_value: float | None = None
    changes: Changes | None = None

    def summary(self, places: int = 1) -> str:
        """Like: +12.3 (95 % interval +9.1 to +15.2)."""
        form = f"+.{places}f"
        span = f" (95 % interval {words_of(self.interval, form)})" if self.interval else ""
        return f"{self.value:{form}}{span}"

    def as_json(self) -> dict[str, float | None]:
        low, high = self.interval or (None, None)
        return {"value": self.value, "low": low, "high": high, "n": self.n}


def mean_percent(totals_S2: Floats) -> Floats:
    """100 x sum / count, of totals (S, 2); 0 where nothing was counted."""
    sums, counts = totals_S2[:, 0], totals_S2[:, 1]
    return 100.0 * np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


def bootstrap_all(
    samples: Sequence[Sample], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval | None]:
    """The interval of each score; None for fewer than two units."""
    intervals: list[Interval | None] = [None] * len(samples)
    for units, members in _by_units(samples).items():
        if units > 1:
            drawn = _resampled([samples[i] for i in members], seed, resamples)
            for i, values_S in zip(members, drawn, strict=True):
                intervals[i] = percentile_interval(values_S)
    return intervals


def compare_all(
    pairs: Sequence[tuple[Sample, Sample]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> list[Difference]:
    """a - b of each pair, whose rows must be the same units. permutations: 0 for no p-values."""
    for a, b in pairs:
        if a.units != b.units:
            raise ValueError(f"paired samples of {a.units} and {b.units} units")
    differences = [Difference(a.value() - b.value(), None, a.n) for a, b in pairs]
    for units, members in _by_units([a for a, _ in pairs]).items():
        if not units:
            continue
        some = [pairs[i] for i in members]
        intervals = _paired_intervals(some, seed, resamples) if units > 1 else [None] * len(some)
        p_values = _p_values(some, seed, permutations) if permutations else [None] * len(some)
        for i, interval, p_value in zip(members, intervals, p_values, strict=True):
            differences[i] = Difference(differences[i].value, interval, pairs[i][0].n, p_value)
    return differences


def _paired_intervals(
    pairs: Sequence[tuple[Sample, Sample]], seed: int, resamples: int
) -> list[Interval | None]:
    drawn = _resampled([side for pair in pairs for side in pair], seed, resamples)
    differences = [a_S - b_S for a_S, b_S in zip(drawn[0::2], drawn[1::2], strict=True)]
    return [percentile_interval(one) for one in differences]


def _resampled(samples: Sequence[Sample], seed: int, resamples: int) -> list[Floats]:
    """The scores (S,) of each sample; all have as many units and share the draws."""
    rows_UC, columns = _beside([sample.rows_UK for sample in samples])
    found: list[list[Floats]] = [[] for _ in samples]
    for totals in resampled_totals(rows_UC, _generator(seed), resamples):
        for sample, part, chunks in zip(samples, columns, found, strict=True):
            chunks.append(sample.score(totals[:, part]))
    return [np.concatenate(chunks) for chunks in found]


def _p_values(
    pairs: Sequence[tuple[Sample, Sample]], seed: int, permutations: int
) -> list[float | None]:
    """A swap moves a unit's a - b from one side's totals to the other's."""
    sides = {(id(a.rows_UK), id(b.rows_UK)): a.rows_UK - b.rows_UK for a, b in pairs}
    moved_UC, columns = _beside([sides[id(a.rows_UK), id(b.rows_UK)] for a, b in pairs])
    totals = [(a.rows_UK.sum(0), b.rows_UK.sum(0)) for a, b in pairs]
    found = [abs(a.value() - b.value()) for a, b in pairs]
    as_far = [0] * len(pairs)
    for swapped in _swapped_totals(moved_UC, seed, permutations):
        for i, ((a, b), part) in enumerate(zip(pairs, columns, strict=True)):
            ours, theirs = totals[i][0] - swapped[:, part], totals[i][1] + swapped[:, part]
            differences = np.abs(a.score(ours) - b.score(theirs))
            as_far[i] += int(np.count_nonzero(differences >= found[i] - SAME))
    return [(1 + count) / (1 + permutations) for count in as_far]


def _by_units(samples: Sequence[Sample]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.units, []).append(i)
    return groups


def _beside(rows: Sequence[Floats]) -> tuple[Floats, list[slice]]:
    """All columns side by side, and where each one's are; the same array is there once."""
    places: dict[int, slice] = {}
    different: list[Floats] = []
    width = 0
    for one in rows:
        if id(one) not in places:
            places[id(one)] = slice(width, width + one.shape[1])
            different.append(one)
            width += one.shape[1]
    return np.concatenate(different, axis=1), [places[id(one)] for one in rows]


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _swapped_totals(rows_UK: Floats, seed: int, permutations: int) -> Iterator[Floats]:
    """Column totals of `permutations` random halves of the U units, in chunks (S', K)."""
    units = len(rows_UK)
    generator = _generator(seed)
    at_once = max(1, DRAWS_AT_ONCE // units)
    num_words = -(-units // 64)
    for start in range(0, permutations, at_once):
        chunk = min(at_once, permutations - start)
        drawn = generator.integers(1 << 64, size=(chunk, num_words), dtype=np.uint64)
        swaps = np.unpackbits(drawn.view(np.uint8), axis=1, count=units)
        yield swaps.astype(np.float64) @ rows_UK
