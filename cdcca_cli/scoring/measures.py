"""Each metric's addends for each question or image, which `scores` adds up and resamples.

A questions or images, S resamples, K columns.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from cdcca_cli.datasets import LabelledQuestion, Reference
from cdcca_cli.numerics.statistics import Floats
from cdcca_cli.scoring import vqa
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.captions import scorers
from cdcca_cli.scoring.statistics import mean_percent
from cdcca_cli.scoring.tasks import METRICS

Indices = npt.NDArray[np.int64]
Total = Callable[[Floats], Floats]
_OF_ANSWER = {
    "da": vqa.direct_answer,
    "da_all": vqa.direct_answer,
    "da_norm": vqa.direct_answer_normalized,
    "vqa": vqa.vqav2_accuracy,
    "vqa_min3": vqa.vqav2_accuracy_min3,
}
_OF_CORPUS = {"cider": scorers.cider, "rouge_l": scorers.rouge_l, "spice": scorers.spice}


@dataclass(frozen=True)
class Questions:
    """The questions that a metric scores, sorted by id, and whether each is answered."""

    references: list[Reference]
    answers: list[Answer | None]
    is_answered_A: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.references)

    @cached_property
    def frame_A(self) -> Indices:
        """The number of each question's frame, frames counted in the order of their ids."""
        names = sorted({reference.frame for reference in self.references})
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[reference.frame] for reference in self.references], np.int64)

    def groups(self, group_of: Callable[[Reference], str | None]) -> dict[str, Indices]:
        """The questions of each group, groups sorted by name; those of no group are left out."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for i, reference in enumerate(self.references):
            if group := group_of(reference):
                found[group].append(i)
        return {group: np.array(found[group], np.int64) for group in sorted(found)}


@dataclass(frozen=True)
class Addends:
    """What a metric adds up over questions.

    rows_AK: each question's addends. total: from totals (S, K) to scores (S,), x100. each_A: each
    question's own score, x100; None for BLEU. offset: points to add to the score of the addends
    (METEOR's corpus score is not its images' mean).
    """

    rows_AK: Floats
    total: Total
    each_A: Floats | None
    offset: float = 0.0


@dataclass(eq=False)
class Measures:
    """The metrics of one set of answers; what several of them share is computed once.

    free_choice: a free answer counts as the chosen text if there is no other.
    """

    pairs: list[tuple[Reference, Answer | None]]
    answered_only: bool
    tokenizer: str
    free_choice: bool
    num_remapped: int = 0
    num_not_choices: int = 0
    _questions: dict[str, Questions] = field(default_factory=dict)

    def count(self, metric: str) -> int:
        """The number of questions that a metric scores, answered or not."""
        return sum(counts_for(metric, reference.question) for reference, _ in self.pairs)

    def questions(self, metric: str) -> Questions:
        """The questions that a metric is measured over."""
        shared = "da" if metric == "da" else METRICS[metric].what
        if shared not in self._questions:
            pairs = [pair for pair in self.pairs if counts_for(metric, pair[0].question)]
            if self.answered_only:
                pairs = [pair for pair in pairs if self._is_answered(metric, pair[1])]
            self._questions[shared] = Questions(
                [reference for reference, _ in pairs],
                [answer for _, answer in pairs],
                np.array([self._is_answered(metric, answer) for _, answer in pairs], np.bool_),
            )
        return self._questions[shared]

    def addends(self, metric: str) -> Addends:
        """A metric's addends, in the order of `questions(metric)`. Raises: Unavailable: no Java."""
        what = METRICS[metric].what
        if what == "caption":
            return self._caption(metric)
        questions = self.questions(metric)
        pairs = zip(questions.references, questions.answers, strict=True)
        if what == "choice":
            return _mean([self._choice(reference.question, answer) for reference, answer in pairs])
        credit = _OF_ANSWER[metric]
        return _mean(
            [
                credit(answer.text if answer else None, reference.question.answers or [])
                for reference, answer in pairs
            ]
        )

    def _is_answered(self, metric: str, answer: Answer | None) -> bool:
        if answer is None:
            return False
        if METRICS[metric].what != "choice":
            return answer.text is not None
        return has_choice(answer) or (self.free_choice and answer.text is not None)

    def _choice(self, question: LabelledQuestion, answer: Answer | None) -> float:
        if answer is None:
            return 0.0
        choices = question.choices or []
        chosen = answer.choice
        if chosen is None and self.free_choice:
            chosen = answer.text
        if chosen not in choices:
            self.num_not_choices += chosen is not None
            best = vqa.remapped(choices, answer.choices, answer.choice_scores)
            self.num_remapped += best is not None
            chosen = best
        return vqa.multiple_choice(chosen, choices, question.correct_choice_idx or 0)

    @cached_property
    def _corpus(self) -> scorers.Corpus:
        questions = self.questions("cider")
        texts = [(answer.text if answer else None) or "" for answer in questions.answers]
        human = [reference.question.captions or [] for reference in questions.references]
        return scorers.tokenised(texts, human, self.tokenizer)

    @cached_property
    def _bleu_rows(self) -> Floats:
        return scorers.bleu_statistics(self._corpus)

    def _caption(self, metric: str) -> Addends:
        if metric.startswith("bleu"):
            order = int(metric.removeprefix("bleu"))
            return Addends(self._bleu_rows, partial(_bleu_percent, order=order), None)
        if metric == "cider_domain_idf":
            return _mean(self._cider_by_domain())
        if metric != "meteor":
            return _mean(_OF_CORPUS[metric](self._corpus))
        each_A, over_all = scorers.meteor(self._corpus)
        return replace(_mean(each_A), offset=100 * (over_all - float(each_A.mean())))

    def _cider_by_domain(self) -> Floats:
        """Images of no domain are one of their own."""
        values = np.zeros(len(self.questions("cider")))
        for members in self.questions("cider").groups(lambda one: one.domain or "\0").values():
            values[members] = scorers.cider(self._corpus.part(members))
        return values


def has_choice(answer: Answer) -> bool:
    """Whether it has a chosen text, or scores to choose by."""
    return answer.choice is not None or answer.choice_scores is not None


def counts_for(metric: str, question: LabelledQuestion) -> bool:
    """Whether a question has the labels that a metric needs."""
    what = METRICS[metric].what
    if what == "choice":
        return bool(question.choices) and question.correct_choice_idx is not None
    if what == "answer":
        is_difficult = metric == "da" and question.difficult_direct_answer
        return question.task == "vqa" and bool(question.answers) and not is_difficult
    return question.task == "caption" and bool(question.captions)


def _mean(values: Floats | list[float]) -> Addends:
    """A metric that is the mean of each question's value in [0, 1], or [0, 10] of CIDEr."""
    each_A = np.asarray(values, np.float64)
    return Addends(np.stack([each_A, np.ones(len(each_A))], axis=1), mean_percent, 100 * each_A)


def _bleu_percent(totals_SK: Floats, order: int) -> Floats:
    return 100.0 * scorers.bleu(totals_SK, order)
