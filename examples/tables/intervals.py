"""Means over seeds, and 95 % intervals that hold seeds, selections and frames together.

All seeds of a row are scored on the same F frames, so that seeds and frames are crossed. With
theta_s the score of seed s over all frames (of a difference: of both sides on the same seed), M
seeds, and theta(-f) the mean over seeds without frame f,

    V_seeds  = 1/(M (M - 1)) * sum_s (theta_s - mean)^2
    V_frames = (F - 1)/F * sum_f (theta(-f) - mean of theta(-f))^2       (the jackknife)

    interval = mean -+ t * sqrt(V_seeds + V_frames)

t is Student's 97.5 % quantile with Satterthwaite's degrees of freedom (F. E. Satterthwaite, An
approximate distribution of estimates of variance components, Biometrics Bulletin 2, 1946):

    (V_seeds + V_frames)^2 / (V_seeds^2 / (M - 1) + V_frames^2 / (F - 1))

So few seeds that differ cost what two degrees of freedom cost, 4.3 standard errors and not 2. A
bootstrap of three seeds would understate: its variance is 2/3 of V_seeds, with the tails of a
normal distribution. What seed and frame do together is in both terms, so the interval is too wide
rather than too narrow (as the pigeonhole bootstrap's: A. B. Owen, Annals of Applied Statistics 1,
2007). In simulations with three seeds (tests/test_tables_intervals.py) 93 to 99 % of the intervals
hold the truth. With one seed, or with no difference between seeds, it is an interval over frames.

A selection is drawn with its seed, so V_seeds holds its luck too: which part of this stream was
seen, not which stream. M seeds, F frames, K columns.
"""

from collections.abc import Sequence

import numpy as np

from cdcca_cli.numerics.statistics import CONFIDENCE, Floats, Interval
from cdcca_cli.scoring.statistics import Difference, Sample

ANGLES = np.linspace(0.0, np.pi / 2, 20_001)


def mean(seeds: Sequence[Sample]) -> float:
    """The mean of the seeds' scores."""
    return float(np.mean([sample.value() for sample in seeds]))


def estimate(ours: Sequence[Sample], theirs: Sequence[Sample] | None = None) -> Difference:
    """The mean over seeds, or the mean difference to `theirs`, seed by seed, with its interval.

    Args: a sample a seed, all over the same frames in one order.
    Returns: no interval for fewer than two frames.
    Raises: ValueError if frames or seeds do not match.
    """
    samples = [*ours, *(theirs or ())]
    if len({sample.units for sample in samples}) > 1:
        raise ValueError("samples of different numbers of frames")
    values_M, without_MF = _scores(ours)
    if theirs is not None:
        if len(theirs) != len(ours):
            raise ValueError(f"{len(ours)} seeds against {len(theirs)}")
        their_values_M, their_without_MF = _scores(theirs)
        values_M, without_MF = values_M - their_values_M, without_MF - their_without_MF
    middle = float(values_M.mean())
    return Difference(middle, _interval(values_M, without_MF), ours[0].n)


def _scores(seeds: Sequence[Sample]) -> tuple[Floats, Floats]:
    """Each seed's score over all frames (M,), and without each frame (M, F)."""
    values_M = np.array([sample.value() for sample in seeds])
    without_MF = np.stack(
        [sample.score(sample.rows_UK.sum(0) - sample.rows_UK) for sample in seeds]
    )
    return values_M, without_MF


def _interval(values_M: Floats, without_MF: Floats) -> Interval | None:
    seeds, frames = without_MF.shape
    if frames < 2:
        return None
    of_seeds = float(values_M.var(ddof=1)) / seeds if seeds > 1 else 0.0
    of_frames = float(without_MF.mean(0).var()) * (frames - 1)
    both = of_seeds + of_frames
    middle = float(values_M.mean())
    if both <= 0:
        return Interval(middle, middle)
    spread = of_seeds**2 / max(seeds - 1, 1) + of_frames**2 / (frames - 1)
    half = t_quantile(both**2 / spread) * both**0.5
    return Interval(middle - half, middle + half)


def t_quantile(degrees: float, level: float = CONFIDENCE) -> float:
    """What |t| of Student's distribution stays below with probability `level`; degrees >= 1.

    With t = sqrt(degrees) tan(angle) the density of the angle is cos(angle)^(degrees - 1).
    """
    density = np.cos(ANGLES) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(degrees**0.5 * np.tan(np.interp(level * below[-1], below, ANGLES)))
