"""What is bad is named and counted, or stops the run."""

import pytest

from cdcca_cli import streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.skipped import NUM_NAMED, Skipped


def test_the_first_ones_are_named_and_all_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = Skipped()
    streams.set_quiet(True)
    try:
        for number in range(NUM_NAMED + 5):
            skipped.add("frame", BadData(f"{number}.png: damaged"))
    finally:
        streams.set_quiet(False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "cdcca: left out: 0.png: damaged", "also when quiet: it is an error"
    assert len(lines) == NUM_NAMED + 1
    assert "only counted" in lines[-1]
    assert skipped.count == NUM_NAMED + 5


def test_in_a_summary() -> None:
    skipped = Skipped()
    assert str(skipped) == ""
    skipped.add("frame", BadData("a"))
    assert str(skipped) == ", 1 frame left out"
    skipped.add("question", BadData("b"))
    skipped.add("question", BadData("c"))
    assert str(skipped) == ", 1 frame and 2 questions left out"


def test_strict_raises_the_error_itself() -> None:
    error = MissingInput("gone")
    with pytest.raises(MissingInput) as caught:
        Skipped(strict=True).add("frame", error)
    assert caught.value is error


def test_a_run_without_a_sound_member_has_failed() -> None:
    skipped = Skipped()
    skipped.refuse_if_all()
    skipped.add("frame", BadData("a"))
    with pytest.raises(BadData, match="nothing is left: 1 frame left out"):
        skipped.refuse_if_all()
    skipped.num_sound += 1
    skipped.refuse_if_all()


def test_answers_that_are_not_finite_are_the_models_fault() -> None:
    skipped = Skipped()
    skipped.add("frame", BadData("a.png: not an image"))
    assert not skipped.is_models_fault
    skipped.add("answer", BadData("b.png: the model's outputs are not finite"))
    assert skipped.is_models_fault
