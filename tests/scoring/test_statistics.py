"""Intervals: known distributions, exact invariances, and a second form in loops."""

import numpy as np
import pytest

from cdcca_cli.scoring.statistics import Sample, bootstrap, mean_percent, paired_bootstrap


def sample(values: np.ndarray) -> Sample:
    rows = np.stack([values, np.ones(len(values))], 1).astype(float)
    return Sample(rows, mean_percent, len(values))


def coins(count: int, share: float) -> np.ndarray:
    """`count` zeros and ones, of which exactly `share` are ones."""
    return (np.arange(count) < share * count).astype(float)


def test_interval_of_a_share_is_the_binomial_one() -> None:
    """400 questions, half right: standard error 50 / sqrt 400 = 2.5 points, so 50 -+ 4.9."""
    interval = bootstrap(sample(coins(400, 0.5)), resamples=4000)
    assert interval is not None
    assert interval.low == pytest.approx(45.1, abs=0.5)
    assert interval.high == pytest.approx(54.9, abs=0.5)


def test_standard_error_on_aokvqa_as_the_paper_notes_imply() -> None:
    """PAPER: with 1,145 questions at about 48 %, one standard error is 1.48 points."""
    interval = bootstrap(sample(coins(1145, 0.48)), resamples=4000)
    assert interval is not None
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(1.48, rel=0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95 % of 400 intervals should; four standard errors of that are 4.4 points."""
    draw = np.random.default_rng(1)
    hits = 0
    for seed in range(400):
        interval = bootstrap(sample(draw.random(200) < 0.4), seed=seed, resamples=300)
        assert interval is not None
        hits += interval.low <= 40 <= interval.high
    assert 0.90 < hits / 400 <= 0.99


def test_frames_are_drawn_not_questions() -> None:
    """Ten questions about each frame that stand and fall together say no more than one."""
    single = sample(coins(50, 0.5))
    tenfold = Sample(10 * single.rows_UK, mean_percent, 500)
    assert bootstrap(tenfold) == bootstrap(single)


def test_seeded() -> None:
    values = sample(np.random.default_rng(0).random(100))
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample(np.random.default_rng(0).random(77))
    whole = bootstrap(values, resamples=50)
    monkeypatch.setattr("cdcca_cli.scoring.statistics._CHUNK", 77 * 7)
    assert bootstrap(values, resamples=50) == whole


def test_the_slow_form() -> None:
    """The same draws, one resample at a time, as a mean of picked values."""
    values = np.random.default_rng(0).random(30)
    generator = np.random.Generator(np.random.Philox(5))
    scores = [
        100 * np.mean([values[i] for i in draw]) for draw in generator.integers(30, size=(200, 30))
    ]
    interval = bootstrap(sample(values), seed=5, resamples=200)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(
        (np.percentile(scores, 2.5), np.percentile(scores, 97.5)), abs=1e-9
    )


def test_one_unit_has_no_interval() -> None:
    assert bootstrap(sample(np.ones(1))) is None
    assert bootstrap(sample(np.ones(0))) is None
    assert sample(np.ones(0)).value() == 0.0
    assert paired_bootstrap(sample(np.ones(1)), sample(np.zeros(1))).interval is None


def test_paired_difference_by_hand() -> None:
    """1,000 questions; b gets 20 of them wrong that a gets right, nothing else differs: the
    difference is 2 points, its standard error 100 sqrt(.02 * .98 / 1000) = 0.443, so 2 -+ 0.868.
    Unpaired, at 50 % each, it would be -+ 4.4: the pairing is what makes it visible."""
    a = coins(1000, 0.5)
    b = a.copy()
    b[:20] = 0
    difference = paired_bootstrap(sample(a), sample(b), resamples=4000)
    assert difference.value == pytest.approx(2.0)
    assert difference.interval is not None
    assert difference.interval.low == pytest.approx(2 - 0.868, abs=0.1)
    assert difference.interval.high == pytest.approx(2 + 0.868, abs=0.1)


def test_paired_with_itself_is_nothing() -> None:
    values = sample(np.random.default_rng(0).random(50))
    difference = paired_bootstrap(values, values)
    assert difference.value == 0
    assert difference.interval is not None
    assert (difference.interval.low, difference.interval.high) == (0, 0)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="3 and 4"):
        paired_bootstrap(sample(np.ones(3)), sample(np.ones(4)))
