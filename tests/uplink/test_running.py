"""The least sure share of an endless stream: as much as was asked, in constant memory."""

import json
import sys
from collections.abc import Callable

import numpy as np
import pytest

from cdcca_cli.uplink.running import Running

SCORES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "exponential": lambda rng, t: rng.exponential(size=len(t)),
    "log-normal": lambda rng, t: np.exp(rng.normal(-6, 2, len(t))),
    "uniform": lambda rng, t: rng.random(len(t)),
    "always the same": lambda rng, t: np.full(len(t), 0.25),
    "mostly zero": lambda rng, t: rng.exponential(size=len(t)) * (rng.random(len(t)) < 0.02),
    "rising to ten times": lambda rng, t: rng.exponential(size=len(t)) * 10 ** (t / len(t)),
    "falling to a tenth": lambda rng, t: rng.exponential(size=len(t)) * 10 ** (-t / len(t)),
    "day and night": lambda rng, t: rng.exponential(size=len(t)) * (2 + np.sin(t / 4000)),
    "a jump": lambda rng, t: rng.exponential(size=len(t)) * np.where(t < len(t) / 2, 0.1, 1),
}


@pytest.mark.parametrize(
    ("name", "share"), [*((name, 0.05) for name in SCORES), ("day and night", 0.01)]
)
def test_the_share_taken_is_the_share_asked(name: str, share: float) -> None:
    """Within a fifth over the 90,000 draws after 10,000, and for a steady stream over the 10,000
    too."""
    rng = np.random.default_rng(0)
    number = 100_000
    running = Running("entropy mean")
    scores = SCORES[name](rng, np.arange(number)).tolist()
    taken = [
        running.takes("vqa", share, score, u)
        for score, u in zip(scores, rng.random(number).tolist(), strict=True)
    ]
    assert np.mean(taken[10_000:]) == pytest.approx(share, rel=0.2)
    if name in ("exponential", "log-normal", "uniform", "always the same", "mostly zero"):
        assert np.mean(taken[:10_000]) == pytest.approx(share, rel=0.2)


def test_the_highest_are_taken() -> None:
    """Of a steady stream nearly those above the true quantile, log 20 of an exponential."""
    rng = np.random.default_rng(1)
    running = Running()
    scores = rng.exponential(size=30_000)
    taken = np.array([running.takes("vqa", 0.05, s, u) for s, u in zip(scores.tolist(), rng.random(30_000).tolist(), strict=True)])  # fmt: skip  # noqa: E501
    true = scores > np.log(20)
    assert (taken & true)[5000:].sum() / true[5000:].sum() > 0.85
    assert scores[5000:][taken[5000:]].min() > np.log(20) * 0.6


def test_an_enemy_cannot_move_the_share() -> None:
    """Gibbs & Candes (2021): off by at most (1 + g) / (T g), g = share / 50, whatever comes. Here
    each score is above all before it, so that the histogram alone would take them all."""
    running, share, number = Running(), 0.1, 20_000
    taken = [running.takes("vqa", share, 1.0005**t * 1e-4, 0.5) for t in range(number)]
    gain = share / 50
    assert abs(np.mean(taken) - share) <= (1 + gain) / (number * gain)


def test_each_task_has_its_own_share() -> None:
    rng = np.random.default_rng(2)
    running = Running()
    taken = {"vqa": 0, "caption": 0}
    for _ in range(5000):
        for task, scale in (("vqa", 1.0), ("caption", 0.001)):
            taken[task] += running.takes(task, 0.1, scale * rng.exponential(), rng.random())
    assert taken["vqa"] == pytest.approx(500, rel=0.15)
    assert taken["caption"] == pytest.approx(500, rel=0.15)


def test_resuming_is_going_on() -> None:
    rng = np.random.default_rng(3)
    whole, parts = Running("margin"), Running("margin")
    for number in range(3000):
        score, drawn = float(rng.exponential()), float(rng.random())
        if number % 500 == 0:
            parts = Running.from_json(json.loads(json.dumps(parts.to_json())))
            parts.begin("margin")
        assert whole.takes("vqa", 0.1, score, drawn) == parts.takes("vqa", 0.1, score, drawn)
    assert whole.to_json() == parts.to_json()


def test_another_rule_begins_anew() -> None:
    running = Running("entropy mean")
    running.takes("vqa", 0.1, 1.0, 0.5)
    running.begin("entropy mean")
    assert running.to_json()["tasks"]
    running.begin("margin mean")
    assert running.to_json() == {"rule": "margin mean", "tasks": {}}


def test_memory_is_constant() -> None:
    running, sizes = Running(), []
    rng = np.random.default_rng(4)
    for number in range(20_001):
        running.takes("vqa", 0.1, float(rng.exponential()), float(rng.random()))
        if number in (10, 20_000):
            kept = running._tasks["vqa"]
            sizes.append(kept.weights.nbytes + sys.getsizeof(kept))
    assert sizes[0] == sizes[1] < 3000
    assert len(json.dumps(running.to_json())) < 8000


def test_scores_at_the_ends() -> None:
    running = Running()
    for score in (0.0, 1e-300, 2.0**-24, 1e9, -0.0):
        running.takes("vqa", 0.5, score, 0.5)
    weights = np.array(running.to_json()["tasks"]["vqa"]["weights"])
    assert np.flatnonzero(weights).tolist() == [0, 255]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"rule": 1, "tasks": {}},
        {"rule": "", "tasks": []},
        {"rule": "", "tasks": {"vqa": {}}},
        {"rule": "", "tasks": {"vqa": []}},
        {"rule": "", "tasks": {"vqa": {"excess": 0, "weights": [0.0] * 256}}},
        {"rule": "", "tasks": {"vqa": {"excess": 9.0, "weights": [0.0] * 256}}},
        {"rule": "", "tasks": {"vqa": {"excess": 0.0, "weights": [0.0] * 255}}},
        {"rule": "", "tasks": {"vqa": {"excess": 0.0, "weights": [-1.0] * 256}}},
        {"rule": "", "tasks": {"vqa": {"excess": 0.0, "weights": [1e300] * 256}}},
        {"rule": "", "tasks": {"vqa": {"excess": 0.0, "weights": [None] * 256}}},
        {"rule": "", "tasks": {"vqa": {"excess": 0.0, "weights": 256}}},
        {"rule": "", "tasks": {"other": {"excess": 0.0, "weights": [0.0] * 256}}},
    ],
)
def test_what_is_damaged_is_refused(value: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Running.from_json(value)
