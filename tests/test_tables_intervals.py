"""The intervals of examples/tables: their parts by hand, and how often they hold the truth."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from cdcca_cli.scoring.statistics import Sample, bootstrap_all, mean_percent

TABLES = Path(__file__).parent.parent / "examples" / "tables"
Floats = npt.NDArray[np.float64]


def load(name: str) -> ModuleType:
    """A file of examples/tables, which is no package."""
    spec = importlib.util.spec_from_file_location(name, TABLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


intervals = load("intervals")


def seeds_of(scores_MF: Floats) -> list[Sample]:
    """A question a frame: rows (score in percent, 1)."""
    return [
        Sample(np.stack([row_F / 100, np.ones_like(row_F)], axis=1), mean_percent, len(row_F))
        for row_F in scores_MF
    ]


def drawn(of_seeds: float, of_frames: float, of_both: float, source: np.random.Generator) -> Floats:
    """Scores (3, 200) of mean 0: a seed's own part, a frame's, and what is neither's."""
    parts = source.standard_normal((3, 1)), source.standard_normal((1, 200))
    noise = source.standard_normal((3, 200))
    return of_seeds * parts[0] + of_frames * parts[1] + of_both * noise


def coverage(parts: tuple[float, float, float], times: int) -> float:
    """The share of the intervals that hold the mean of all seeds and frames there could be, 0."""
    source = np.random.default_rng(1)
    found = [intervals.estimate(seeds_of(drawn(*parts, source))).interval for _ in range(times)]
    return float(np.mean([low <= 0 <= high for low, high in found]))


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (1000, 1.9623)]
)
def test_the_quantiles_are_the_printed_tables(degrees: int, expected: float) -> None:
    assert intervals.t_quantile(degrees) == pytest.approx(expected, abs=2e-4)


def test_the_variances_by_hand() -> None:
    """Two seeds of three frames, 10 20 30 and 20 30 70: means 20 and 40.

    V_seeds = ((20 - 30)^2 + (40 - 30)^2) / 2 / 2 = 100. Frames of the mean over seeds are 15, 25,
    50, whose variance is 325, so V_frames = 325 / 3. Degrees: (100 + 325/3)^2 / (100^2 / 1 +
    (325/3)^2 / 2) = 2.7355, and t lies between those of 2 and of 3.
    """
    found = intervals.estimate(seeds_of(np.array([[10.0, 20, 30], [20, 30, 70]])))
    assert found.value == pytest.approx(30)
    assert found.interval is not None
    half = found.interval.high - found.value
    assert found.value - found.interval.low == pytest.approx(half)
    both = 100 + 325 / 3
    assert half == pytest.approx(intervals.t_quantile(2.7355) * both**0.5, rel=1e-4)


def test_one_seed_or_equal_seeds_give_an_interval_over_frames() -> None:
    """mean -+ t(F - 1) * sd / sqrt(F)."""
    row_F = np.random.default_rng(0).normal(50, 10, 40)
    expected = intervals.t_quantile(39) * row_F.std(ddof=1) / 40**0.5
    for scores_MF in (row_F[None], np.stack([row_F] * 3)):
        found = intervals.estimate(seeds_of(scores_MF))
        assert found.interval is not None
        assert found.interval.high - found.value == pytest.approx(expected)


def test_a_difference_is_paired_and_has_two_sides() -> None:
    """What both rows share of seed and frame drops out; the other way round the sign changes."""
    source = np.random.default_rng(2)
    ours_MF, shared_MF = source.normal(1, 2, (3, 50)), 10 * drawn(1, 1, 1, source)[:, :50]
    alone = intervals.estimate(seeds_of(ours_MF))
    ours, theirs = seeds_of(ours_MF + shared_MF), seeds_of(shared_MF)
    paired, turned = intervals.estimate(ours, theirs), intervals.estimate(theirs, ours)
    assert paired.value == pytest.approx(alone.value)
    np.testing.assert_allclose(paired.interval, alone.interval)
    np.testing.assert_allclose(turned.interval, [-end for end in paired.interval[::-1]])
    nothing = intervals.estimate(ours, ours)
    assert nothing.value == 0 and nothing.interval == (0, 0)


def test_seeds_that_differ_widen_it() -> None:
    row_F = np.random.default_rng(3).normal(50, 10, 100)
    widths = []
    for apart in (0.0, 1.0, 3.0):
        seeds = seeds_of(row_F + apart * np.array([[-1.0], [0], [1]]))
        low, high = intervals.estimate(seeds).interval
        widths.append(high - low)
    assert widths == sorted(widths)
    assert widths[2] > 2 * widths[0]


def test_what_does_not_match_is_refused() -> None:
    three, two = seeds_of(np.ones((3, 4))), seeds_of(np.ones((2, 4)))
    with pytest.raises(ValueError, match="seeds"):
        intervals.estimate(three, two)
    with pytest.raises(ValueError, match="frames"):
        intervals.estimate(three, seeds_of(np.ones((3, 5))))
    assert intervals.estimate(seeds_of(np.ones((3, 1)))).interval is None


def test_most_intervals_hold_the_truth() -> None:
    assert 0.91 <= coverage((0.1, 1.0, 1.0), 300) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [(0, 1, 1), (0, 0, 1), (0, 1, 0.2), (0.05, 1, 1), (0.1, 0.3, 1), (0.1, 1, 1), (0.4, 1, 1)],
)
def test_in_no_world_of_three_seeds_they_understate(parts: tuple[float, float, float]) -> None:
    """From seeds that do not differ to seeds that are all that differs; standard error 0.35 %."""
    assert 0.925 <= coverage(parts, 4000) <= 0.995


@pytest.mark.slow
def test_intervals_over_frames_alone_do() -> None:
    """Which is what the tables had: of seeds that differ by 0.4, most miss the truth."""
    source, held = np.random.default_rng(1), []
    for _ in range(300):
        rows_UK = np.mean([one.rows_UK for one in seeds_of(drawn(0.4, 1, 1, source))], axis=0)
        ((low, high),) = bootstrap_all([Sample(rows_UK, mean_percent, 200)])  # type: ignore[misc]
        held.append(low <= 0 <= high)
    assert np.mean(held) < 0.7
