"""The history of a run: written and read again; anything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.errors import BadData, CdccaError, NewerFormat
from cdcca_cli.formats.history import read_history, write_history
from tests.reporting.runs import history


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_history(tmp_path, history(20, 3))
    assert read_history(tmp_path / "history.json") == history(20, 3)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["kind"], "histories", "not a history"),
        (["v"], 2, "upgrade"),
        (["rounds"], {}, "'rounds' must be"),
        (["rounds", 0, "round"], -1, "entry 1 of rounds: a number below 0"),
        (["rounds", 0, "uplink_bytes"], 1 << 60, "too large"),
        (["rounds", 0, "digest"], None, "'digest' must be"),
        (["scores", "heldout"], 3, "the scores of 'heldout'"),
        (["scores", "heldout", 0, "mc", "value"], "50", "'value' must be"),
        (["scores", "heldout", 0, "mc"], {"value": 1.0}, "mc"),
        (["scores", "heldout", 0, "mc", "high"], None, "mc: an interval with one end"),
        (["gains", "heldout", "mc", "low"], None, "mc: an interval with one end"),
        (["scored_after", "heldout"], [0, 1, 2], "4 entries after the rounds"),
        (["scored_after", "heldout"], [0, 0, 1, 2], "4 entries after the rounds"),
        (["scored_after"], {}, "'after' must be"),
        (["gains", "heldout"], [1], "the gains of 'heldout'"),
        (["parameters"], 1.5, "'parameters' must be"),
    ],
)
def test_what_is_refused(place: list[Any], value: object, words: str, tmp_path: Path) -> None:
    made: Any = {"v": 1, "kind": "history", **history(20, 3)}
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "history.json"
    path.write_text(json.dumps(made))
    with pytest.raises(CdccaError) as refused:
        read_history(path)
    assert isinstance(refused.value, NewerFormat if words == "upgrade" else BadData)
    assert words in str(refused.value) and str(path) in str(refused.value)
