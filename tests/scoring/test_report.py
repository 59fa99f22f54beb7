"""Marks that name a score, and rounds beside answered_only; the rest is in tests/commands."""

import pytest

from cdcca_cli.datasets import LabelledQuestion, Reference
from cdcca_cli.errors import BelowMark, UsageError
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.evaluation import evaluate
from cdcca_cli.scoring.report import Report
from cdcca_cli.scoring.scores import score
from cdcca_cli.scoring.settings import EvaluationSettings, parse_marks


def report(domain: str, kind: str) -> Report:
    """DA of the domain is 100 and of the kind 50: one of two questions of the kind is in it."""
    questions = [("1", domain, "dog"), ("2", "elsewhere", "cat")]
    references = {
        question_id: Reference(
            LabelledQuestion(question_id, prompt="?", task="vqa", answers=["dog"] * 10, kind=kind),
            frame=question_id,
            domain=place,
        )
        for question_id, place, _ in questions
    }
    return Report(scores=score(references, {i: Answer(text) for i, _, text in questions}))


def test_a_mark_of_a_domain_and_a_kind_of_one_name_is_refused() -> None:
    found = report("number", "number")
    with pytest.raises(UsageError, match=r"write da\.domain\.number or da\.kind\.number"):
        found.require(parse_marks("da.number=30"))
    found.require(parse_marks("da.domain.number=100,da.kind.number=50"))
    with pytest.raises(BelowMark, match=r"^da\.kind\.number is 50\.00, under 51$"):
        found.require(parse_marks("da.domain.number=100,da.kind.number=51"))


def test_a_mark_of_one_score_may_be_short_or_long() -> None:
    found = report("near", "number")
    found.require(
        parse_marks("da=50,da.near=100,da.domain.near=100,da.number=50,da.kind.number=50")
    )
    with pytest.raises(BelowMark, match=r"^da\.kind\.near was not scored \(mark 1\)$"):
        found.require(parse_marks("da.kind.near=1"))


def test_rounds_are_not_scored_over_answered_questions_only() -> None:
    """Each round over questions of its own: their differences would be of questions, not of
    rounds."""
    how = EvaluationSettings(
        references=("r.json",), round=("0.jsonl", "1.jsonl"), answered_only=True
    )
    with pytest.raises(UsageError, match="`answered_only`: would score each `round` over other"):
        evaluate(how)
