"""Continual learning: hand-worked matrices, the paired interval against its formula, properties."""

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.datasets import LabelledQuestion, Reference
from cdcca_cli.errors import BadData
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.continual import (
    Continual,
    backward_transfer,
    forgetting,
    forward_transfer,
    of_scores,
)
from cdcca_cli.scoring.scores import score


def matrix(
    rounds: Sequence[dict[str, Answer]],
    names: Sequence[str | None],
    references: dict[str, Reference],
    *,
    metric: str,
) -> Continual:
    """Score the answers of each round, and see what the rounds did."""
    scored = [score(references, answers, metrics=(metric,)) for answers in rounds]
    return of_scores(scored, names, metric)


World = tuple[list[dict[str, Answer]], dict[str, Reference]]


def world(right: Sequence[dict[str, int]], num_frames: int = 10) -> World:
    """Rounds of answers of which so many in each domain are right, the first ones."""
    references: dict[str, Reference] = {}
    rounds: list[dict[str, Answer]] = [{} for _ in right]
    for domain in right[0]:
        for number in range(num_frames):
            question = LabelledQuestion(
                f"{domain}{number}", "?", "vqa", choices=["yes", "no"], correct_choice_idx=0
            )
            references[question.id] = Reference(question, f"{domain}{number}.png", domain or None)
            for answers, counts in zip(rounds, right, strict=True):
                answers[question.id] = Answer(choice="yes" if number < counts[domain] else "no")
    return rounds, references


# Ten questions in each of three domains, learnt one after the other.
LEARNT = [
    {"a": 4, "b": 3, "c": 2},
    {"a": 9, "b": 4, "c": 3},
    {"a": 7, "b": 8, "c": 5},
    {"a": 6, "b": 7, "c": 9},
]


def found(names: Sequence[str | None], right: Sequence[dict[str, int]] = LEARNT) -> Continual:
    rounds, references = world(right)
    return matrix(rounds, names, references, metric="mc")


def test_three_domains_by_hand() -> None:
    """R (x100): 40 30 20 / 90 40 30 / 70 80 50 / 60 70 90, learnt a, b, c.

    average   (60 + 70 + 90) / 3
    backward  ((60 - 90) + (70 - 80)) / 2 = -20, over a and b
    forward   ((40 - 30) + (50 - 20)) / 2 = 20, over b and c
    forgotten a max(40, 90, 70) - 60 = 30, b max(30, 40, 80) - 70 = 10, c max(20, 30, 50) - 90 =
              -40; mean of a and b 20
    """
    it = found([None, "a", "b", "c"])
    assert it.domains == ["a", "b", "c"]
    values = [[cell.value for cell in row] for row in it.cells_IJ]
    assert np.allclose(values, [[40, 30, 20], [90, 40, 30], [70, 80, 50], [60, 70, 90]])
    assert [one.value for one in it.averages] == pytest.approx([30, 160 / 3, 200 / 3, 220 / 3])
    assert it.backward_transfer is not None and it.forward_transfer is not None
    assert it.backward_transfer.value == pytest.approx(-20)
    assert it.backward_transfer.over == ("a", "b")
    assert it.forward_transfer.value == pytest.approx(20)
    assert it.forward_transfer.over == ("b", "c")
    assert it.forgetting is not None and it.forgetting.over == ("a", "b")
    assert it.forgetting.value == pytest.approx(20)
    by_domain = {name: one.value for name, one in it.forgetting_by_domain.items()}
    assert by_domain == pytest.approx({"a": 30, "b": 10, "c": -40})
    assert it.left_out == {}


def test_the_best_round_need_not_be_the_one_it_was_learnt_in() -> None:
    """a is learnt in round 1 at 50, is 80 after round 2 and 60 at the end: forgetting 20, backward
    transfer +10. b is 90 from the start and 40 at the end: the source-only row counts, 50."""
    right = [{"a": 2, "b": 9}, {"a": 5, "b": 9}, {"a": 8, "b": 6}, {"a": 6, "b": 4}]
    it = found([None, "a", "a", "b"], right)
    by_domain = {name: one.value for name, one in it.forgetting_by_domain.items()}
    assert by_domain == pytest.approx({"a": 20, "b": 50})
    assert it.backward_transfer is not None  # since a was last learnt, in round 2: 60 - 80
    assert it.backward_transfer.value == pytest.approx(-20)
    assert found([None, "a", "c", "b"], right).backward_transfer is None  # no domain is named c
    it = found([None, "b", "b", "a"], right)
    assert it.forward_transfer is not None  # of a alone, before round 3: 80 - 20
    assert (it.forward_transfer.value, it.forward_transfer.over) == (pytest.approx(60), ("a",))


def test_a_source_that_is_a_domain() -> None:
    """Round 0 learnt `s`: what later rounds did to it is backward transfer, 50 - 90."""
    right = [{"s": 9, "t": 3}, {"s": 5, "t": 8}]
    it = found(["s", "t"], right)
    assert it.domains == ["s", "t"]
    assert it.backward_transfer is not None
    assert (it.backward_transfer.value, it.backward_transfer.over) == (pytest.approx(-40), ("s",))
    assert it.forward_transfer is None and "round 2" in it.left_out["forward_transfer"]
    assert it.forgetting is not None and it.forgetting.value == pytest.approx(40)
    assert found(["before", "t"], right).backward_transfer is None  # any other label is just that


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([None, None, "b", "c"], "round 1 names no domain"),
        ([None, "a", "fgo", "c"], "round 2 is for 'fgo', not a domain of the references"),
    ],
)
def test_without_names(names: list[str | None], words: str) -> None:
    """Matrix, average and forgetting are there; the transfers are not, and it is said why."""
    it = found(names)
    assert it.backward_transfer is None and it.forward_transfer is None
    assert words in it.left_out["backward_transfer"]
    assert it.left_out["forward_transfer"] == it.left_out["backward_transfer"]
    assert it.forgetting is not None and sorted(it.forgetting.over) == ["a", "b"]
    last = found([None] * 4).forgetting
    assert last is not None and sorted(last.over) == ["a", "b", "c"]
    assert last.value == pytest.approx(0)  # (30 + 10 - 40) / 3


def test_nothing_to_forget() -> None:
    it = found([None, "a"], [{"a": 4}, {"a": 7}])
    assert it.forgetting is None and "last round" in it.left_out["forgetting"]


def test_source_alone() -> None:
    it = found([None], LEARNT[:1])
    assert it.averages[0].value == pytest.approx(30)
    assert it.forgetting is None and "forgetting" in it.left_out


def test_references_without_domains() -> None:
    it = found([None, None], [{"": 4}, {"": 7}])
    assert it.domains == ["all"] and it.averages[-1].value == pytest.approx(70)


def test_refused() -> None:
    rounds, references = world(LEARNT)
    free = {question_id: Answer(text="yes") for question_id in references}
    unanswered = [score(references, rounds[0]), score(references, free, metrics=["mc"])]
    some = dict(list(rounds[1].items())[:-3])
    fewer = [score(references, rounds[0]), score(references, some, answered_only=True)]
    with pytest.raises(BadData, match="different questions of 'c'"):
        of_scores(fewer, [None, None], "mc")
    without = {
        question_id: answer for question_id, answer in rounds[1].items() if question_id[0] != "b"
    }
    fewer[1] = score(references, without, answered_only=True)
    with pytest.raises(BadData, match="different questions of 'b'"):
        of_scores(fewer, [None, None], "mc")
    with pytest.raises(BadData, match=r"\(round 0\) has no predictions that cider could score"):
        of_scores(unanswered, [None, None], "cider")


def test_a_missing_prediction_is_wrong_and_counted() -> None:
    rounds, references = world(LEARNT)
    del rounds[3]["a0"], rounds[3]["a9"]  # one of them was right
    it = matrix(rounds, [None, "a", "b", "c"], references, metric="mc")
    cell = it.as_json()["matrix"][3][0]
    assert (cell["score"], cell["missing"], cell["n"]) == (pytest.approx(50), 2, 10)


# ---------------------------------------------------------------- intervals


def test_the_interval_is_paired() -> None:
    """400 frames, 40 of which go from right to wrong, the others alike in both rounds.

    Forgetting is the mean of 400 differences, 40 of them 1: 10 points, with the normal interval
    10 +- 1.96 * 100 * sqrt(0.1 * 0.9 / 400) = 10 +- 2.94. Unpaired it would be +- 6.9.
    """
    draw = random.Random(0)
    right = [draw.random() < 0.5 for _ in range(360)]
    references, before, after = {}, {}, {}
    for number in range(400):
        question = LabelledQuestion(
            str(number), "?", "vqa", choices=["y", "n"], correct_choice_idx=0
        )
        references[question.id] = Reference(question, question.id, "d")
        was = number >= 360 or right[number]
        now = number < 360 and right[number]
        before[question.id], after[question.id] = (
            Answer(choice="y" if one else "n") for one in (was, now)
        )
    it = matrix([before, after], [None, None], references, metric="mc")
    assert it.forgetting is not None and it.forgetting.interval is not None
    assert it.forgetting.value == pytest.approx(10)
    assert it.forgetting.interval.low == pytest.approx(10 - 2.94, abs=0.4)
    assert it.forgetting.interval.high == pytest.approx(10 + 2.94, abs=0.4)


def test_domains_are_drawn_apart() -> None:
    """Two domains of 100 frames with half right: the average's standard error is that of 200.

    1.96 * 100 * sqrt(0.25 / 200) = 6.93; drawn together it would be 9.8, as for one of them.
    """
    rounds, references = world([{"a": 50, "b": 50}], num_frames=100)
    it = matrix(rounds, [None], references, metric="mc")
    average, single = it.averages[0].interval, it.cells_IJ[0][0].interval
    assert average is not None and single is not None
    assert (average.high - average.low) / 2 == pytest.approx(6.93, abs=0.6)
    assert (single.high - single.low) / 2 == pytest.approx(9.8, abs=0.8)


def test_the_order_of_domains_and_answers_changes_nothing() -> None:
    rounds, references = world(LEARNT)
    names = [None, "a", "b", "c"]
    one = matrix(rounds, names, references, metric="mc")
    turned = [dict(reversed(answers.items())) for answers in rounds]
    other = matrix(turned, names, dict(reversed(references.items())), metric="mc")
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.value == pytest.approx(theirs.value)
        ends = (theirs.interval.low, theirs.interval.high)
        assert (mine.interval.low, mine.interval.high) == pytest.approx(ends)


def test_no_interval_of_a_single_frame() -> None:
    rounds, references = world([{"a": 1, "b": 0}, {"a": 0, "b": 1}], num_frames=1)
    it = matrix(rounds, [None, None], references, metric="mc")
    assert it.averages[0].interval is None and it.averages[0].value == 50


# ---------------------------------------------------------------- any metric, and the faces


@pytest.mark.parametrize("metric", ["mc", "da", "bleu4", "cider", "rouge_l"])
def test_any_metric(metric: str) -> None:
    """The cells are what `score` gives for the same answers."""
    draw = random.Random(1)
    words = ["a", "red", "dog", "runs", "on", "the", "grass", "near", "two", "trees"]
    references: dict[str, Reference] = {}
    rounds: list[dict[str, Answer]] = [{}, {}]
    for number in range(12):
        frame, domain = f"{number}.png", "ab"[number % 2]
        vqa = LabelledQuestion(
            f"q{number}",
            "?",
            "vqa",
            choices=words[:4],
            correct_choice_idx=1,
            answers=words[1:2] * 10,
        )
        caption = LabelledQuestion(
            f"c{number}", None, "caption", captions=[" ".join(draw.choices(words, k=8))] * 2
        )
        for question in (vqa, caption):
            references[question.id] = Reference(question, frame, domain)
        for answers in rounds:
            choice = draw.choice(words[:4])
            answers[vqa.id] = Answer(text=choice, choice=choice)
            answers[caption.id] = Answer(text=" ".join(draw.choices(words, k=8)))
    it = matrix(rounds, [None, "b"], references, metric=metric)
    for answers, row in zip(rounds, it.cells_IJ, strict=True):
        scored = {one.key: one.value for one in score(references, answers).scores}
        expected = [scored[metric, "domain", name] for name in it.domains]
        assert [cell.value for cell in row] == pytest.approx(expected)
    assert it.forgetting is not None and it.forgetting.interval is not None


def test_json_and_tables() -> None:
    it = found([None, "a", "b", "c"])
    shown = json.loads(json.dumps(it.as_json(), allow_nan=False))
    assert shown["metric"] == "mc" and shown["domains"] == ["a", "b", "c"]
    assert shown["rounds"][1] == {"round": 1, "adapted_to": "a"}
    assert [cell["score"] for cell in shown["matrix"][2]] == pytest.approx([70, 80, 50])
    assert shown["average"] == shown["averages"][-1]
    assert shown["forgetting"]["domains"].keys() == {"a", "b", "c"}
    assert shown["backward_transfer"]["over"] == ["a", "b"]
    tables = it.tables()
    assert tables[0][2][3][:5] == ["round 3 (c)", " 60.00", " 70.00", " 90.00", " 73.33"]
    assert ["forgetting, mean", "+20.00", tables[1][2][3][2], "a, b"] in tables[1][2]
    for _, columns, rows in tables:
        assert all(len(row) == len(columns) for row in rows)


# ---------------------------------------------------------------- the equations

SEEDS = st.integers(0, 2**32 - 1)


def some_scores(seed: int) -> np.ndarray:
    """Three draws of four rounds of two domains; ties are as common as they are in small tests."""
    return np.random.default_rng(seed).integers(0, 11, (3, 4, 2)) * 10.0


@given(SEEDS, st.lists(st.integers(0, 2), min_size=2, max_size=2))
def test_forgetting_is_at_least_what_was_lost_since_it_was_learnt(
    seed: int, last_J: list[int]
) -> None:
    scores_SIJ = some_scores(seed)
    assert (forgetting(scores_SIJ) >= -backward_transfer(scores_SIJ, last_J)).all()


@given(SEEDS, st.lists(st.integers(1, 3), min_size=2, max_size=2))
def test_equations_as_loops(seed: int, learnt_J: list[int]) -> None:
    scores_SIJ = some_scores(seed)
    for s, j in np.ndindex(3, 2):
        column = [float(scores_SIJ[s, i, j]) for i in range(4)]
        learnt = learnt_J[j]
        assert forgetting(scores_SIJ)[s, j] == max(column[:3]) - column[3]
        assert backward_transfer(scores_SIJ, learnt_J)[s, j] == column[3] - column[learnt]
        assert forward_transfer(scores_SIJ, learnt_J)[s, j] == column[learnt - 1] - column[0]
