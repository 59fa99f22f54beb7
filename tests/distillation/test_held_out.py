"""The gain and its interval."""

import numpy as np
import pytest

from cdcca_cli.distillation.held_out import (
    Judgement,
    bootstrap_interval,
    comparison,
)


def held(nats: list[float], agrees: list[float]) -> Judgement:
    return Judgement(np.array(nats, np.float32), np.array(agrees, np.float32))


def test_comparison_by_hand() -> None:
    """Gains 1, 0.5, 0 and 0.5: mean 0.5. Agreement 1 of 4, then 3 of 4."""
    report = comparison(
        held([2, 1, 1, 2], [0, 1, 0, 0]), held([1, 0.5, 1, 1.5], [1, 1, 0, 1]), list("aabb"), 0
    )
    assert report is not None
    assert (report["num_frames"], report["num_asks"]) == (2, 4)
    assert report["cross_entropy"] == {"before": 1.5, "after": 1.0}
    assert report["agreement"] == {"before": 0.25, "after": 0.75}
    assert report["gain"]["mean"] == 0.5
    assert (report["gain"]["low"], report["gain"]["high"]) == (0.25, 0.75)


def test_nothing_held_out_is_no_comparison() -> None:
    nothing = held([], [])
    assert comparison(nothing, nothing, [], 0) is None
    assert nothing.cross_entropy == float("inf")


def test_interval_of_many_values_is_the_normal_one() -> None:
    """400 independent draws: mean +- 1.96 s / sqrt(400), to a tenth of its width."""
    values = np.random.default_rng(1).normal(2, 3, 400)
    low, high = bootstrap_interval(values, [str(number) for number in range(400)], 0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_frames_are_drawn_whole() -> None:
    """Each value ten times in its frame is no more evidence than once: the same interval."""
    values = np.random.default_rng(2).normal(0, 1, 50)
    frames = [str(number) for number in range(50)]
    assert bootstrap_interval(np.repeat(values, 10), np.repeat(frames, 10).tolist(), 0) == (
        pytest.approx(bootstrap_interval(values, frames, 0))
    )


def test_one_frame_falls_back_to_its_examples() -> None:
    low, high = bootstrap_interval(np.array([0.0, 1.0] * 20), ["only"] * 40, 0)
    assert 0.3 < low < 0.5 < high < 0.7


def test_interval_depends_on_the_seed_alone() -> None:
    values, frames = np.arange(9.0), list("abcabcabc")
    assert bootstrap_interval(values, frames, 3) == bootstrap_interval(values, frames, 3)
