"""From references and answers to scores: which asks count for which metric, and in which group.

| metric | scores                                                 | one value per |
|--------|--------------------------------------------------------|---------------|
| mc     | asks with choices and a correct one                    | question      |
| da     | questions with answers that are not marked difficult   | question      |
| bleu4  | caption asks with captions                             | image         |
| cider  | the same                                               | image         |

All are x100. A missing prediction counts as wrong and is counted; a metric for which there is no
prediction at all is left out and named. CIDEr's document frequencies are those of the group that
is scored: a domain's for a domain, all images' for `all` (so `all` is the pooled score, not the
mean of the domains). Its interval and its difference keep the document frequencies of the group.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cdcca_cli.datasets import LabelledAsk, Reference
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.scoring import captions, vqa
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.statistics import (
    Difference,
    Floats,
    Interval,
    Sample,
    bootstrap,
    mean_percent,
    paired_bootstrap,
)

METRICS = ("mc", "da", "bleu4", "cider")
By = Literal["all", "domain", "kind"]
Asked = tuple[Reference, Answer | None]


@dataclass(frozen=True)
class Score:
    """One metric over one group. `value` and `interval` are x100; `num_missing` counts as wrong."""

    metric: str
    by: By
    group: str
    sample: Sample
    value: float
    interval: Interval | None
    num_missing: int

    @property
    def key(self) -> tuple[str, By, str]:
        return self.metric, self.by, self.group


@dataclass(frozen=True)
class Scores:
    """Every score of one set of predictions.

    left_out: metrics that the references allow and no prediction answers, with the number of asks.
    """

    scores: list[Score] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    unknown_ids: list[str] = field(default_factory=list)

    def all(self, metric: str) -> Score | None:
        """The score over everything, or None if the metric was not scored."""
        return next((score for score in self.scores if score.key == (metric, "all", "all")), None)


def score(
    references: Mapping[str, Reference],
    answers: Mapping[str, Answer],
    *,
    task: str | None = None,
    answered_only: bool = False,
    seed: int = 0,
) -> Scores:
    """Score answers against references, over all asks and by domain and kind of question.

    task: "vqa" or "caption"; both otherwise. answered_only: leave out asks without a prediction
    instead of counting them as wrong. seed: of the intervals.

    Raises: BadData (65) if no answer belongs to these references, or there is none; UsageError (2)
        for another task.
    """
    if task not in (None, "vqa", "caption"):
        raise UsageError(f"--task is vqa or caption, not '{task}'")
    if not answers:
        raise BadData("no predictions to score")
    unknown = sorted(answers.keys() - references.keys())
    if len(unknown) == len(answers):
        raise BadData(
            f"none of the {len(answers)} predictions belongs to these references: "
            f"'{unknown[0]}' for one is not among their ids"
        )
    result = Scores(unknown_ids=unknown)
    for metric in METRICS:
        asked = [
            (reference, answers.get(ask_id))
            for ask_id, reference in sorted(references.items())
            if _counts_for(metric, reference.ask) and task in (None, reference.ask.task)
        ]
        if not any(_is_answered(metric, answer) for _, answer in asked):
            if asked:
                result.left_out[metric] = len(asked)
            continue
        if answered_only:
            asked = [pair for pair in asked if _is_answered(metric, pair[1])]
        result.scores.extend(_by_group(metric, asked, seed))
    return result


def compare(
    ours: Scores, theirs: Scores, *, seed: int = 0
) -> dict[tuple[str, By, str], Difference]:
    """ours - theirs for every score that both have, with paired 95 % intervals.

    Both must have been scored over the same asks: give `score` the same references, and with
    `answered_only` first leave only the answers that both sides have (`in_common`).
    """
    known = {other.key: other for other in theirs.scores}
    return {
        score.key: paired_bootstrap(score.sample, known[score.key].sample, seed=seed)
        for score in ours.scores
        if score.key in known
    }


def in_common(
    ours: Mapping[str, Answer], theirs: Mapping[str, Answer]
) -> tuple[dict[str, Answer], dict[str, Answer]]:
    """The answers to asks that both sides answered, in the same respects."""
    mine, other = {}, {}
    for ask_id in ours.keys() & theirs.keys():
        a, b = ours[ask_id], theirs[ask_id]
        text, choice = None not in (a.text, b.text), None not in (a.choice, b.choice)
        mine[ask_id] = Answer(a.text if text else None, a.choice if choice else None)
        other[ask_id] = Answer(b.text if text else None, b.choice if choice else None)
    return mine, other


def _counts_for(metric: str, ask: LabelledAsk) -> bool:
    if metric == "mc":
        return bool(ask.choices) and ask.correct_choice_idx is not None
    if metric == "da":
        return ask.task == "vqa" and bool(ask.answers) and not ask.difficult_direct_answer
    return ask.task == "caption" and bool(ask.captions)


def _is_answered(metric: str, answer: Answer | None) -> bool:
    if answer is None:
        return False
    return (answer.choice if metric == "mc" else answer.text) is not None


def _by_group(metric: str, asked: list[Asked], seed: int) -> Iterator[Score]:
    yield _scored(metric, "all", "all", asked, seed)
    groups: list[tuple[By, Callable[[Reference], str | None]]] = [
        ("domain", lambda reference: reference.domain)
    ]
    if metric in ("mc", "da"):
        groups.append(("kind", lambda reference: reference.ask.kind))
    for by, group_of in groups:
        names = sorted({name for reference, _ in asked if (name := group_of(reference))})
        for name in names:
            members = [pair for pair in asked if group_of(pair[0]) == name]
            yield _scored(metric, by, name, members, seed)


def _scored(metric: str, by: By, group: str, asked: list[Asked], seed: int) -> Score:
    rows, score_of = _rows(metric, asked)
    frames, unit_of = np.unique([reference.frame for reference, _ in asked], return_inverse=True)
    units = np.zeros((len(frames), rows.shape[1]))
    np.add.at(units, unit_of, rows)
    sample = Sample(units, score_of, len(asked))
    missing = sum(not _is_answered(metric, answer) for _, answer in asked)
    interval = bootstrap(sample, seed=seed)
    return Score(metric, by, group, sample, sample.value(), interval, missing)


def _rows(metric: str, asked: list[Asked]) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Each ask's addends, (A, K), and the score of their totals."""
    if metric in ("mc", "da"):
        return _with_count([_question(metric, *pair) for pair in asked]), mean_percent
    texts = [(answer.text if answer else None) or "" for _, answer in asked]
    human = [reference.ask.captions or [] for reference, _ in asked]
    if metric == "bleu4":
        return captions.bleu_statistics(texts, human), _bleu_percent
    return _with_count(captions.cider(texts, human)), mean_percent


def _question(metric: str, reference: Reference, answer: Answer | None) -> float:
    ask = reference.ask
    if metric == "da":
        return vqa.direct_answer(answer.text if answer else None, ask.answers or [])
    choice = answer.choice if answer else None
    return vqa.multiple_choice(choice, ask.choices or [], ask.correct_choice_idx or 0)


def _with_count(values: Floats | list[float]) -> Floats:
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)


def _bleu_percent(totals_SK: Floats) -> Floats:
    return 100.0 * captions.bleu(totals_SK)
