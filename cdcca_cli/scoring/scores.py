"""Scores of answers against references, over everything and over groups, alone and compared.

A missing prediction counts as wrong; a metric without any prediction is left out and named. `mean`
is the unweighted mean of nocaps' three domains. CIDEr's document frequencies are held fixed in its
intervals and differences.

A questions or images, U units (frames), K columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from cdcca_cli.datasets import Reference
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.numerics.statistics import Floats, Interval
from cdcca_cli.scoring import tasks
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.captions import java
from cdcca_cli.scoring.measures import Addends, Indices, Measures, Questions, Total, has_choice
from cdcca_cli.scoring.statistics import (
    PERMUTATIONS,
    SAME,
    Changes,
    Difference,
    Sample,
    bootstrap_all,
    compare_all,
)

By = Literal["all", "domain", "kind", "mean"]
Key = tuple[str, By, str]
MEAN = "mean_of_domains"


@dataclass(frozen=True)
class Score:
    """One metric over one group. `value` and `interval` are x100; `num_missing` counts as wrong.

    each_A: the value of each question or image, x100, in the order of their ids; None for BLEU.
    offset: points by which `value` and `interval` exceed those of the sample (METEOR's corpus score
    and its images' mean); comparisons of two scores leave it out.
    """

    metric: str
    by: By
    group: str
    sample: Sample
    value: float
    interval: Interval | None
    num_missing: int
    each_A: Floats | None = None
    offset: float = 0.0

    @property
    def key(self) -> Key:
        return self.metric, self.by, self.group

    def as_json(self) -> dict[str, Any]:
        return {
            "score": self.value,
            "interval": self.interval,
            "n": self.sample.n,
            "missing": self.num_missing,
        }

    def without_offset(self) -> "Score":
        interval = _shifted(self.interval, -self.offset)
        return replace(self, value=self.sample.value(), interval=interval, offset=0.0)


@dataclass(frozen=True)
class Scores:
    """Every score of one set of predictions.

    left_out: metrics that no prediction answers, with their numbers of questions. not_scored:
    caption metrics, with what they need. num_not_choices: chosen texts that are not among the
    choices. num_remapped: answers that were replaced by the choice of highest score.
    """

    task: str = "manifest"
    scores: list[Score] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    not_scored: dict[str, str] = field(default_factory=dict)
    unknown_ids: list[str] = field(default_factory=list)
    num_remapped: int = 0
    num_not_choices: int = 0

    def all(self, metric: str) -> Score | None:
        """The score over everything, or None if the metric was not scored."""
        return next((score for score in self.scores if score.key == (metric, "all", "all")), None)


def score(
    references: Mapping[str, Reference],
    answers: Mapping[str, Answer],
    *,
    task: str | None = None,
    answered_only: bool = False,
    tokenizer: str = "python",
    seed: int = 0,
    metrics: Sequence[str] | None = None,
    intervals: bool = True,
) -> Scores:
    """Score answers against references: over everything, by domain and by kind of question.

    metrics: instead of the task's own; with `mc` among them, a free answer is a chosen text where
        there is no other.
    Raises: BadData (65) if no answer belongs to these references; SettingError (2) if they hold
        nothing that a task or metric scores; Unavailable (69) if Java is needed and not installed.
    """
    chosen = task or tasks.task_of(references)
    names = tasks.metrics_of(chosen, metrics, with_java=tokenizer == "java")
    if not answers:
        raise BadData("no predictions to score")
    unknown = sorted(answers.keys() - references.keys())
    if len(unknown) == len(answers):
        raise BadData(
            f"none of the {len(answers)} predictions belongs to these references: their ids, such "
            f"as '{unknown[0]}', are not there"
        )
    measures = Measures(
        [(references[question_id], answers.get(question_id)) for question_id in sorted(references)],
        answered_only=answered_only,
        tokenizer=tokenizer,
        free_choice="mc" in (metrics or ()),
    )
    shared: dict[tuple[By, str], tuple[Floats, Floats]] = {}
    left_out: dict[str, int] = {}
    scores: list[Score] = []
    for metric in names:
        num_questions = measures.count(metric)
        if not num_questions and metrics is not None:
            raise SettingError("metrics", "these references hold nothing that it scores", metric)
        if num_questions and not measures.questions(metric).is_answered_A.any():
            left_out[metric] = num_questions
        elif num_questions:
            found = _Metric(metric, measures.questions(metric), measures.addends(metric), shared)
            scores.extend(found.scores(with_mean=chosen == "nocaps"))
    if not scores and not left_out:
        raise SettingError("task", "these references hold nothing that it scores", chosen)
    if intervals:
        spans = bootstrap_all([one.sample for one in scores], seed=seed)
        scores = [
            replace(one, interval=_shifted(span, one.offset))
            for one, span in zip(scores, spans, strict=True)
        ]
    return Scores(
        task=chosen,
        scores=scores,
        left_out=left_out,
        not_scored=_not_scored(scores),
        unknown_ids=unknown,
        num_remapped=measures.num_remapped,
        num_not_choices=measures.num_not_choices,
    )


def compare(
    ours: Scores, theirs: Scores, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> dict[Key, Difference]:
    """ours - theirs for every score that both have: 95 % interval, p-value, what changed.

    Both must be over the same questions (`in_common`). permutations: 0 for no p-values.
    """
    known = {other.key: other for other in theirs.scores}
    pairs = [(one, known[one.key]) for one in ours.scores if one.key in known]
    found = compare_all(
        [(one.sample, other.sample) for one, other in pairs], seed=seed, permutations=permutations
    )
    return {
        one.key: replace(difference, changes=_changes(one, other))
        for (one, other), difference in zip(pairs, found, strict=True)
    }


def in_common(
    ours: Mapping[str, Answer], theirs: Mapping[str, Answer]
) -> tuple[dict[str, Answer], dict[str, Answer]]:
    """The answers to questions that both sides answered, with what both of them have."""
    mine, other = {}, {}
    for question_id in ours.keys() & theirs.keys():
        a, b = ours[question_id], theirs[question_id]
        without: dict[str, None] = {}
        if a.text is None or b.text is None:
            without["text"] = None
        if not (has_choice(a) and has_choice(b)):
            without |= {"choice": None, "choices": None, "choice_scores": None}
        mine[question_id], other[question_id] = replace(a, **without), replace(b, **without)
    return mine, other


@dataclass(frozen=True)
class _Metric:
    """One metric of some answers. shared: each group's addends, the same ones for all of BLEU."""

    name: str
    questions: Questions
    addends: Addends
    shared: dict[tuple[By, str], tuple[Floats, Floats]]

    def scores(self, *, with_mean: bool) -> Iterator[Score]:
        """Over everything, over each domain, over their mean, over each kind of question."""
        questions = self.questions
        yield self._over("all", "all", np.arange(len(questions)))
        domains = questions.groups(lambda reference: reference.domain)
        for domain, members in domains.items():
            yield self._over("domain", domain, members)
        three = {tasks.nocaps_domain(domain): members for domain, members in domains.items()}
        if with_mean and all(name in three for name in tasks.NOCAPS_DOMAINS):
            yield self._mean([three[name] for name in tasks.NOCAPS_DOMAINS])
        if tasks.METRICS[self.name].what != "caption":
            kinds = questions.groups(lambda reference: reference.question.kind)
            for kind, members in kinds.items():
                yield self._over("kind", kind, members)

    def _over(self, by: By, group: str, members: Indices) -> Score:
        rows_AK, each_A = self.addends.rows_AK, self.addends.each_A
        known = self.shared.get((by, group))
        if known is None or known[0] is not rows_AK:
            known = rows_AK, _by_frame(rows_AK[members], self.questions.frame_A[members])
            self.shared[by, group] = known
        sample = Sample(known[1], self.addends.total, len(members))
        each = None if each_A is None else each_A[members]
        return self._score(by, group, sample, members, each)

    def _mean(self, parts: list[Indices]) -> Score:
        """Each part's addends in columns of their own, so that the score of totals is a mean."""
        rows_AK = self.addends.rows_AK
        width = rows_AK.shape[1]
        wide = np.zeros((len(rows_AK), len(parts) * width))
        for number, part in enumerate(parts):
            wide[part, number * width : (number + 1) * width] = rows_AK[part]
        members = np.sort(np.concatenate(parts))
        rows_UK = _by_frame(wide[members], self.questions.frame_A[members])
        total = partial(_mean_of, total=self.addends.total, num_parts=len(parts))
        return self._score("mean", MEAN, Sample(rows_UK, total, len(members)), members, None)

    def _score(
        self, by: By, group: str, sample: Sample, members: Indices, each: Floats | None
    ) -> Score:
        missing = len(members) - int(np.count_nonzero(self.questions.is_answered_A[members]))
        offset = self.addends.offset
        value = sample.value() + offset
        return Score(self.name, by, group, sample, value, None, missing, each, offset)


def _shifted(interval: Interval | None, by: float) -> Interval | None:
    return None if interval is None else Interval(interval.low + by, interval.high + by)


def _by_frame(rows_AK: Floats, frame_A: Indices) -> Floats:
    """The addends of each frame (U, K), frames in the order of their numbers."""
    frames, unit_of = np.unique(frame_A, return_inverse=True)
    rows_UK = np.zeros((len(frames), rows_AK.shape[1]))
    np.add.at(rows_UK, unit_of, rows_AK)
    return rows_UK


def _mean_of(totals_SK: Floats, *, total: Total, num_parts: int) -> Floats:
    parts = [total(part) for part in np.split(totals_SK, num_parts, axis=1)]
    return np.mean(parts, axis=0)


def _changes(ours: Score, theirs: Score) -> Changes | None:
    if ours.each_A is None or theirs.each_A is None:
        return None
    difference = ours.each_A - theirs.each_A
    better = int(np.count_nonzero(difference > SAME))
    worse = int(np.count_nonzero(difference < -SAME))
    return Changes(better, worse, len(difference) - better - worse)


def _not_scored(scores: Sequence[Score]) -> dict[str, str]:
    names = {one.metric for one in scores}
    if not any(tasks.METRICS[name].what == "caption" for name in names):
        return {}
    absent = "" if java.has_java() else " (no Java is installed here)"
    return {
        name: f"scored only if named among the metrics; needs {needed}{absent}"
        for name, needed in tasks.NEEDS.items()
        if name not in names
    }
