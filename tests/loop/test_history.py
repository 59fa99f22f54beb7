"""The results of rounds: two decimals in the table, at most two in JSON."""

from cdcca_cli.datasets import LabelledQuestion, Reference
from cdcca_cli.loop.history import History, Round
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.scores import score


def question(name: str) -> Reference:
    question = LabelledQuestion(name, "?", "vqa", choices=["cat", "dog"], correct_choice_idx=1)
    return Reference(question, name)


def test_scores_have_two_decimals() -> None:
    """Two of three right are 66.67 %, one is 33.33; in JSON 100.0 * 2 / 3 is rounded too."""
    history = History("probe")
    references = {name: question(name) for name in "abc"}
    for right in ("ab", "a"):
        words = {name: "dog" if name in right else "cat" for name in "abc"}
        answers = {name: Answer(word, word) for name, word in words.items()}
        history.add("probe", score(references, answers, task="manifest", metrics=["mc"]))
    history.rounds.append(Round(1, 3, 3, 1000, 20, 12.34, "sha256:0", None))
    first, second = history.rows()
    assert first == ["source only", "66.67", None, None, None, None, None]
    assert second == ["round 1", "33.33", None, None, 1000, 20, "12.3"]
    points = history.as_json()["scores"]["probe"]
    assert [point["mc"]["value"] for point in points] == [66.67, 33.33]
    assert history.summary() == "1 round, 1,000 bytes up, 20 bytes down"


def test_a_round_says_how_far_the_student_has_moved() -> None:
    """In words and in JSON; nothing where it was not measured."""
    drift = {"where": "anchors", "num_asks": 9, "before": 0.0, "after": 0.01234, "share": 1.0}
    done = Round(1, 3, 3, 1000, 20, 12.34, "sha256:0", None, drift)
    assert done.summary().endswith("12 s; drift 0.0123 nats")
    assert done.as_json()["drift"] == drift
    without = Round(1, 3, 3, 1000, 20, 12.34, "sha256:0", None)
    assert without.summary().endswith("12 s")
    assert without.as_json()["drift"] is None
