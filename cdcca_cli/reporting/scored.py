"""Scores by round, and which questions were answered better and worse.

Scores come from the run's history, or are computed from predictions as `cdcca eval` does. A
question's change is that of the first metric that scores it: its choice, then its free answer, then
its caption.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.datasets import Reference
from cdcca_cli.errors import BadData
from cdcca_cli.formats.predictions import Prediction, read_predictions
from cdcca_cli.reporting.plain import number, text
from cdcca_cli.scoring import tasks
from cdcca_cli.scoring.answers import Answers, answers_of
from cdcca_cli.scoring.measures import counts_for
from cdcca_cli.scoring.scores import Scores, compare, score
from cdcca_cli.scoring.statistics import SAME, bootstrap_all
from cdcca_cli.scoring.tasks import METRICS

_LARGEST = {"mc": 100.0, "da": 100.0, "vqa": 100.0, "cider": 1000.0}
"""The metrics of a question in order, and the largest score of each."""
Labels = Mapping[str, Reference]


@dataclass
class Measured:
    """Answers to labelled frames after some round, and their scores."""

    after: int
    answers: Answers
    scores: Scores


@dataclass(frozen=True)
class Change:
    """One question before and after. value: x100, by `metric`."""

    question: str
    metric: str
    before: float
    after: float

    @property
    def by(self) -> float:
        return self.after - self.before


@dataclass
class Series:
    """Predictions on the labelled frames of one name after each round that has them.

    points: from the history, by metric. first, last: the first and last file that was read.
    """

    name: str
    origin: str = "predictions"
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gains: dict[str, dict[str, Any]] = field(default_factory=dict)
    first: Measured | None = None
    last: Measured | None = None

    def add_history(self, history: Mapping[str, Any]) -> None:
        """The points of a run's own history."""
        self.origin = "history"
        after = history["scored_after"][self.name]
        for round_number, point in zip(after, history["scores"][self.name], strict=True):
            for metric, entry in point.items():
                rounded = _rounded(entry)
                if rounded["value"] is not None:
                    self.points.setdefault(metric, []).append({"round": round_number, **rounded})
        gains = history["gains"].get(self.name, {})
        self.gains = {metric: _rounded(entry) for metric, entry in gains.items()}

    def add(self, after: int, answers: Answers, labels: Labels) -> None:
        """Score one file. Raises: CdccaError."""
        scores = score(labels, answers.by_id, intervals=False)
        whole = map(scores.all, METRICS)
        found = Measured(after, answers, replace(scores, scores=[one for one in whole if one]))
        self.first, self.last = self.first or found, found
        if self.origin == "history":
            return
        headlines = tasks.TASKS[scores.task].headlines
        shown = [one for one in found.scores.scores if one.metric in headlines]
        spans = bootstrap_all([one.sample for one in shown])  # of groups there is none to show
        for one, span in zip(shown, spans, strict=True):
            low, high = span or (None, None)
            point = {"value": one.value, "low": low, "high": high, "n": one.sample.n}
            self.points.setdefault(one.metric, []).append({"round": after, **_rounded(point)})

    def finish(self) -> None:
        """Compute the gains if no history has them."""
        if self.origin == "history" or self.first is None or self.last is self.first:
            return
        assert self.last is not None
        differences = compare(self.last.scores, self.first.scores, permutations=0)
        self.gains = {
            metric: _rounded(found.as_json())
            for (metric, by, _), found in differences.items()
            if by == "all" and metric in self.points
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "name": text(self.name, 80),
            "from": self.origin,
            "metrics": [
                {
                    "metric": metric,
                    "title": METRICS[metric].title,
                    "points": points,
                    "gain": self.gains.get(metric),
                }
                for metric, points in sorted(self.points.items(), key=_place)
                if metric in METRICS
            ],
        }

    def changes(self, labels: Labels) -> list[Change]:
        """Every question that both files answer and a metric scores, in the order of the ids."""
        if self.first is None or self.last is None or self.last is self.first:
            return []
        found: dict[str, Change] = {}
        for metric in _LARGEST:
            before, after = self.first.scores.all(metric), self.last.scores.all(metric)
            if before is None or after is None or before.each_A is None or after.each_A is None:
                continue
            asked = [one for one in sorted(labels) if counts_for(metric, labels[one].question)]
            for one, old, new in zip(asked, before.each_A, after.each_A, strict=True):
                is_answered = one in self.first.answers.by_id and one in self.last.answers.by_id
                if is_answered and one not in found:
                    found[one] = Change(one, metric, round(float(old), 2), round(float(new), 2))
        return [found[one] for one in sorted(found)]


def better_and_worse(
    changes: list[Change], labels: Labels, most: int
) -> tuple[list[Change], list[Change]]:
    """The largest changes each way, at most `most` of them and one a frame."""
    ordered = sorted(changes, key=lambda one: (-abs(one.by) / _LARGEST[one.metric], one.question))

    def of_frames(found: Iterable[Change]) -> list[Change]:
        by_frame: dict[str, Change] = {}
        for one in found:
            by_frame.setdefault(labels[one.question].frame, one)
        return [*by_frame.values()][:most]

    return (
        of_frames(one for one in ordered if one.by > SAME),
        of_frames(one for one in ordered if one.by < -SAME),
    )


def _rounded(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Rounded numbers. An interval without one of its ends is none."""
    rounded = {name: number(entry[name], 2) for name in ("value", "low", "high", "n")}
    if rounded["low"] is None or rounded["high"] is None:
        rounded["low"] = rounded["high"] = None
    return rounded


def _place(entry: tuple[str, object]) -> int:
    names = [*METRICS]
    return names.index(entry[0]) if entry[0] in names else len(names)


def read(path: Path, see: Callable[[Prediction], object] = lambda one: None) -> Answers:
    """The answers in a file, each of them seen once. Raises: CdccaError."""
    found, where = Answers(), str(path)
    with streams.text_input(path) as lines:
        for question, answer in answers_of(_seen(read_predictions(lines, where=where), see)):
            found.add(question, answer, where, keep_first=True)
    if not found.by_id:
        raise BadData(f"{where}: no predictions in it")
    return found


def _seen(
    predictions: Iterator[Prediction], see: Callable[[Prediction], object]
) -> Iterator[Prediction]:
    for one in predictions:
        see(one)
        yield one
