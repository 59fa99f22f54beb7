"""Intervals and p-values: known distributions, scipy's own, exact enumeration, slow forms."""

import itertools

import numpy as np
import pytest

from cdcca_cli.numerics.statistics import Interval
from cdcca_cli.scoring.captions.scorers import bleu
from cdcca_cli.scoring.statistics import (
    Difference,
    Floats,
    Sample,
    bootstrap_all,
    compare_all,
    mean_percent,
)


def sample(values: np.ndarray) -> Sample:
    rows = np.stack([values, np.ones(len(values))], 1).astype(float)
    return Sample(rows, mean_percent, len(values))


def paired(a: Sample, b: Sample, resamples: int = 2000) -> Difference:
    return compare_all([(a, b)], resamples=resamples, permutations=0)[0]


def bootstrap(one: Sample, *, seed: int = 0, resamples: int = 2000) -> Interval | None:
    return bootstrap_all([one], seed=seed, resamples=resamples)[0]


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
    monkeypatch.setattr("cdcca_cli.numerics.statistics.DRAWS_AT_ONCE", 77 * 7)
    parts = bootstrap(values, resamples=50)
    assert whole is not None and parts is not None
    # Not bit for bit: how a product of matrices adds up hangs on its height, on some processors.
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


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
    assert paired(sample(np.ones(1)), sample(np.zeros(1))).interval is None


def test_paired_difference_by_hand() -> None:
    """1,000 questions; b gets 20 of them wrong that a gets right, nothing else differs: the
    difference is 2 points, its standard error 100 sqrt(.02 * .98 / 1000) = 0.443, so 2 -+ 0.868.
    Unpaired, at 50 % each, it would be -+ 4.4: the pairing is what makes it visible."""
    a = coins(1000, 0.5)
    b = a.copy()
    b[:20] = 0
    difference = paired(sample(a), sample(b), resamples=4000)
    assert difference.value == pytest.approx(2.0)
    assert difference.interval is not None
    assert difference.interval.low == pytest.approx(2 - 0.868, abs=0.1)
    assert difference.interval.high == pytest.approx(2 + 0.868, abs=0.1)


def test_a_difference_in_words_and_as_an_object() -> None:
    found = Difference(-0.126, Interval(-2.04, 1.26), 7)
    assert found.summary() == "-0.1 (95 % interval -2.0 to +1.3)"
    assert found.summary(places=2) == "-0.13 (95 % interval -2.04 to +1.26)"
    assert found.as_json() == {"value": -0.126, "low": -2.04, "high": 1.26, "n": 7}
    alone = Difference(3.0, None, 1)
    assert alone.summary() == "+3.0"
    assert alone.as_json() == {"value": 3.0, "low": None, "high": None, "n": 1}


def test_paired_with_itself_is_nothing() -> None:
    values = sample(np.random.default_rng(0).random(50))
    difference = paired(values, values)
    assert difference.value == 0
    assert difference.interval is not None
    assert (difference.interval.low, difference.interval.high) == (0, 0)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="3 and 4"):
        paired(sample(np.ones(3)), sample(np.ones(4)))


# Two lists of 300 values that need no generator: squares, and the same shifted by residues.
SQUARES = (np.arange(300) / 300) ** 2
SHIFTED = SQUARES + ((np.arange(300) * 7919 % 300) / 300 - 0.45) * 0.2


def test_intervals_are_scipys() -> None:
    """scipy 1.17.1, stats.bootstrap(method="percentile", n_resamples=400_000, rng=1) of the mean,
    x100: of SQUARES 29.844 to 36.562, of SQUARES - SHIFTED -1.621 to -0.317. With 20,000 resamples
    an end moves by 0.02 standard errors, which are 1.715 and 0.333."""
    alone = bootstrap(sample(SQUARES), resamples=20_000)
    assert alone is not None
    assert (alone.low, alone.high) == pytest.approx((29.8435, 36.5618), abs=0.1)
    paired = compared(SQUARES, SHIFTED, resamples=20_000)
    assert paired.interval is not None
    ends = paired.interval.low, paired.interval.high
    assert ends == pytest.approx((-1.6213, -0.3167), abs=0.02)


def test_p_value_is_scipys() -> None:
    """scipy 1.17.1, stats.permutation_test(permutation_type="samples", n_resamples=400_000, rng=1)
    of the difference of means: 0.00414. Of 10,000 swaps its standard error is 0.00064."""
    p_value = compared(SQUARES, SHIFTED).p_value
    assert p_value == pytest.approx(0.00414, abs=0.0025)


def compared(a: Floats, b: Floats, **settings: int) -> Difference:
    return compare_all([(sample(a), sample(b))], **settings)[0]


def exact_p_value(a: Sample, b: Sample) -> float:
    """The share of all 2^U swaps of units whose difference is as far from 0 as the one found."""
    found = abs(a.value() - b.value())
    as_far = 0
    for swaps in itertools.product((False, True), repeat=a.units):
        chosen = np.array(swaps)[:, None]
        first = np.where(chosen, b.rows_UK, a.rows_UK).sum(0, keepdims=True)
        second = np.where(chosen, a.rows_UK, b.rows_UK).sum(0, keepdims=True)
        as_far += abs(float(a.score(first)[0]) - float(b.score(second)[0])) >= found - 1e-9
    return as_far / 2**a.units


@pytest.mark.parametrize("seed", range(4))
def test_p_value_of_a_mean_equals_the_enumeration(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = sample(draw.random(9)), sample(draw.random(9))
    exact = exact_p_value(a, b)
    found = compare_all([(a, b)], permutations=20_000)[0].p_value
    # Four standard errors of 20,000 swaps.
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_p_value_of_bleu_equals_the_enumeration() -> None:
    """Whole images change sides: BLEU of the totals is taken anew for each swap."""
    draw = np.random.default_rng(0)

    def images() -> Sample:
        guesses = draw.integers(5, 9, size=(8, 1)) - np.arange(4)
        matches = draw.integers(1, guesses + 1)
        lengths = np.stack([guesses[:, 0], guesses[:, 0] + draw.integers(0, 3, 8)], 1)
        rows = np.concatenate([matches, guesses, lengths], axis=1).astype(float)
        return Sample(rows, lambda totals: 100 * bleu(totals), 8)

    a, b = images(), images()
    exact = exact_p_value(a, b)
    assert 0.05 < exact < 0.95
    found = compare_all([(a, b)], permutations=20_000)[0].p_value
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_p_value_by_hand() -> None:
    """Ten units of one question, all better: of 2^10 swaps only none and all are as far, so
    p = 2 / 1024; with 10,000 swaps (1 + k) / 10,001 where k is near 19.5. One unit: p = 1. No
    difference: p = 1. Never 0: five hundred units that all got better have p = 1 / 10,001."""
    ten = compared(np.ones(10), np.zeros(10)).p_value
    assert ten == pytest.approx(2 / 1024, abs=0.0018)
    assert ten is not None and round(ten * 10_001) == pytest.approx(ten * 10_001)
    assert compared(np.ones(1), np.zeros(1)).p_value == 1
    assert compared(np.ones(50), np.ones(50)).p_value == 1
    assert compared(np.ones(500), np.zeros(500)).p_value == pytest.approx(1 / 10_001)
    assert compared(np.ones(0), np.zeros(0)).p_value is None
    assert compared(np.ones(5), np.zeros(5), permutations=0).p_value is None


def test_swapping_the_sides_turns_the_difference_round() -> None:
    there, back = compared(SQUARES, SHIFTED), compared(SHIFTED, SQUARES)
    assert there.value == pytest.approx(-back.value)
    assert there.p_value == back.p_value
    assert there.interval is not None and back.interval is not None
    assert there.interval.low == pytest.approx(-back.interval.high)


def test_together_as_alone() -> None:
    """What else is scored changes no interval and no p-value, not even of as many units."""
    draw = np.random.default_rng(0)
    several = [sample(draw.random(size)) for size in (40, 40, 25, 1, 0)]
    others = [sample(draw.random(size)) for size in (40, 40, 25, 1, 0)]
    for together, one in zip(bootstrap_all(several), several, strict=True):
        alone = bootstrap(one)
        assert (together is None) == (alone is None)
        if together is not None and alone is not None:
            assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    pairs = list(zip(several, others, strict=True))
    for together, pair in zip(compare_all(pairs), pairs, strict=True):
        alone = compare_all([pair])[0]
        assert together.p_value == alone.p_value
        assert together.value == alone.value


def test_chunks_change_no_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compared(SQUARES[:77], SHIFTED[:77], permutations=200)
    monkeypatch.setattr("cdcca_cli.scoring.statistics.DRAWS_AT_ONCE", 77 * 7)
    assert compared(SQUARES[:77], SHIFTED[:77], permutations=200).p_value == whole.p_value


def test_p_values_of_no_difference_are_uniform() -> None:
    """Two sides of one distribution: p <= 5 % in 5 % of 600 pairs, -+ 2.7 points in three standard
    errors, and p <= 20 % in 20 %, -+ 4.9."""
    draw = np.random.default_rng(3)
    found = []
    for seed in range(600):
        base = draw.random(60)
        a, b = base + draw.normal(0, 0.1, 60), base + draw.normal(0, 0.1, 60)
        found.append(compared(a, b, seed=seed, resamples=10, permutations=999).p_value)
    p_values = np.array(found, float)
    assert abs(np.mean(p_values <= 0.05) - 0.05) < 0.027
    assert abs(np.mean(p_values <= 0.2) - 0.2) < 0.049


def test_paired_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % of 800 intervals of a difference of 10 points between coins tossed together; three
    standard errors are 2.3 points, and percentile intervals of 200 units fall short by about
    one."""
    draw = np.random.default_rng(5)
    hits = 0
    for seed in range(800):
        tossed = draw.random(200)
        found = compared(tossed < 0.6, tossed < 0.5, seed=seed, resamples=400, permutations=0)
        assert found.interval is not None
        hits += found.interval.low <= 10 <= found.interval.high
    assert 0.91 < hits / 800 < 0.975
