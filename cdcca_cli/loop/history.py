"""The results of the rounds: scores before and after each, as a table, in words, as JSON.

Probes are sets of labelled frames. Differences are paired by frame (`scoring.statistics`). The JSON
object is that of `formats.history`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cdcca_cli.scoring import tasks
from cdcca_cli.scoring.scores import Scores, compare
from cdcca_cli.scoring.statistics import Difference
from cdcca_cli.text import counted

NAMES = {name: tasks.METRICS[name].title for name in tasks.TASKS["manifest"].headlines}
METRICS = tuple(name for name in NAMES if name in tasks.ACCEPTANCE_METRICS)
_NOTHING: dict[str, Any] = {"settings": {}, "sources": {}, "parameters": None, "versions": {}}
COLUMNS = ("", *(NAMES[name] for name in METRICS), "uplink bytes", "downlink bytes", "seconds")


@dataclass(frozen=True)
class Round:
    """What one round did.

    held_out: the adaptation's report on its held-out part, None if empty. drift: its report on the
    drift from sequence 0; None if it was not measured.
    """

    number: int
    num_frames: int
    num_questions: int
    uplink_bytes: int
    downlink_bytes: int
    seconds: float
    digest: str
    held_out: dict[str, Any] | None
    drift: dict[str, Any] | None = None

    @property
    def has_gained(self) -> bool:
        """Whether the interval of the held-out gain is above zero; true if nothing was held out."""
        return self.held_out is None or self.held_out["gain"]["low"] > 0

    def summary(self) -> str:
        """One line for people."""
        words = (
            f"round {self.number}: {self.num_frames} frames up in {self.uplink_bytes:,} bytes, "
            f"{self.downlink_bytes:,} bytes down, {self.seconds:.0f} s"
        )
        if self.drift is not None:
            words += f"; drift {self.drift['after']:.3g} nats"
        if self.held_out is None:
            return words
        gain, agreement = self.held_out["gain"], self.held_out["agreement"]
        return (
            f"{words}; held-out gain {gain['mean']:.3f} nats ({gain['low']:.3f} to "
            f"{gain['high']:.3f}), agreement with the teacher {agreement['before']:.0%} to "
            f"{agreement['after']:.0%}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "round": self.number,
            "frames": self.num_frames,
            "questions": self.num_questions,
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "seconds": round(self.seconds, 1),
            "digest": self.digest,
            "held_out": self.held_out,
            "drift": self.drift,
        }


@dataclass
class History:
    """Scores of each probe, source only first, then after each round; the table shows `main`.

    about: settings, sources, parameters and versions, as in `formats.history`.
    """

    main: str
    scores: dict[str, list[Scores]] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=lambda: dict(_NOTHING))
    _scored_after: dict[str, list[int]] = field(default_factory=dict)

    def add(self, probe: str, scores: Scores, after: int | None = None) -> None:
        """Add the scores of a probe after a round, 0 for source only; None: at its next point."""
        points = self.scores.setdefault(probe, [])
        self._scored_after.setdefault(probe, []).append(len(points) if after is None else after)
        points.append(scores)

    def summary(self) -> str:
        """Like: 2 rounds, 12,000 bytes up, 900 bytes down."""
        up = sum(done.uplink_bytes for done in self.rounds)
        down = sum(done.downlink_bytes for done in self.rounds)
        return f"{counted(len(self.rounds), 'round')}, {up:,} bytes up, {down:,} bytes down"

    def rows(self) -> Iterator[list[object]]:
        """One row for source only and one for each round, as `COLUMNS`."""
        points = self.scores.get(self.main, [])
        for number in range(len(self.rounds) + 1):
            found = [points[number].all(name) if number < len(points) else None for name in METRICS]
            values = [None if score is None else f"{score.value:.2f}" for score in found]
            if number == 0:
                yield ["source only", *values, None, None, None]
                continue
            done = self.rounds[number - 1]
            costs = [done.uplink_bytes, done.downlink_bytes, f"{done.seconds:.1f}"]
            yield [f"round {number}", *values, *costs]

    def gains(self, probe: str) -> dict[str, Difference]:
        """Last point minus first, by metric."""
        points = self.scores.get(probe, [])
        if len(points) < 2:
            return {}
        found = compare(points[-1], points[0], permutations=0)
        return {
            metric: gain
            for (metric, by, _), gain in found.items()
            if by == "all" and metric in NAMES
        }

    def gain_words(self, probe: str) -> str:
        """Like: MC +12.3 (95 % interval +9.1 to +15.2), DA ..."""
        return ", ".join(
            f"{NAMES[metric]} {gain.summary()}"
            for metric, gain in self.gains(probe).items()
            if metric in METRICS
        )

    def as_json(self) -> dict[str, Any]:
        return {
            **self.about,
            "rounds": [done.as_json() for done in self.rounds],
            "scores": {
                probe: [_scores_json(point) for point in points]
                for probe, points in self.scores.items()
            },
            "scored_after": self._scored_after,
            "gains": {
                probe: {name: _rounded(gain.as_json()) for name, gain in self.gains(probe).items()}
                for probe in self.scores
            },
        }


def _scores_json(scores: Scores) -> dict[str, Any]:
    made = {}
    for name in NAMES:
        score = scores.all(name)
        if score is not None:
            low = None if score.interval is None else score.interval.low
            high = None if score.interval is None else score.interval.high
            values = {"value": score.value, "low": low, "high": high, "n": score.sample.n}
            made[name] = _rounded(values)
    return made


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 2) if name in ("value", "low", "high") and value is not None else value
        for name, value in values.items()
    }
