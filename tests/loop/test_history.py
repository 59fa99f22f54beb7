"""The results of rounds: two decimals in the table, at most two in JSON."""

from cdcca_cli.datasets import LabelledAsk, Reference
from cdcca_cli.loop.history import History, Round
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.scores import score


def question(name: str) -> Reference:
    ask = LabelledAsk(name, "?", "vqa", choices=["cat", "dog"], correct_choice_idx=1)
    return Reference(ask, name)


def test_scores_have_two_decimals() -> None:
    """Two of three right are 66.67 %, one of two is 50.00."""
    history = History("probe")
    answers = {"a": Answer("dog", "dog"), "b": Answer("dog", "dog"), "c": Answer("cat", "cat")}
    for names in ("abc", "bc"):
        references = {name: question(name) for name in names}
        history.add("probe", score(references, answers, task="manifest", metrics=["mc"]))
    history.rounds.append(Round(1, 3, 3, 1000, 20, 12.34, "sha256:0", None))
    first, second = history.rows()
    assert first == ["source only", "66.67", None, None, None, None, None]
    assert second == ["round 1", "50.00", None, None, 1000, 20, "12.3"]
    points = history.as_json()["scores"]["probe"]
    assert [point["mc"]["value"] for point in points] == [66.67, 50.0]
    assert history.summary() == "1 round, 1,000 bytes up, 20 bytes down"
