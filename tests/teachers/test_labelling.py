"""Asking for what is missing: once, in order, and the same bytes after a stop."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, CannotWrite, MissingInput
from cdcca_cli.formats import label_stream, labels
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import Entry, Label, Source, payload_digest, question_digest
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import Lacks, add_missing, labelled, open_labels
from tests.distillation.conftest import make_shards
from tests.teachers.reading import ASKED, asked, assert_same, given, labels_in
from tests.teachers.test_local import mixed


class Parrot:
    """A teacher without a model: it says the frame's name and the question.

    Questions that end in "?!" have no answer.
    """

    def __init__(self, name: str = "https://host/v1#parrot") -> None:
        self.source = Source(name)
        self.asked: list[str] = []

    def check(self, shard: Shard) -> None:
        if shard.frame == "refused":
            raise BadData("frame refused: not a frame for parrots")

    def announce(self, shards: Iterable[Shard], lacks: Lacks) -> None:
        """Nothing to say."""

    def label(self, shards: Iterable[Shard], lacks: Lacks, skipped: Skipped) -> Iterator[Entry]:
        for shard in shards:
            found = {}
            for place in lacks.of_shard(shard):
                question = shard.questions[place]
                self.asked.append(f"{shard.frame} {question.id}")
                if (question.prompt or "").endswith("?!"):
                    skipped.add("question", BadData(f"frame {shard.frame}: {question.id}: silence"))
                    continue
                found[question_digest(question)] = Label(f"{shard.frame} {question.prompt}")
            if found:
                yield Entry(shard.frame, payload_digest(shard), self.source, found)

    def close(self) -> None:
        pass


def a_shard(number: int, *prompts: str) -> Shard:
    return Shard(
        frame=f"f{number}",
        image="a.png",
        domain=None,
        tokens=np.full((2, 3), number, np.float32),
        positions=np.arange(2, dtype=np.int32),
        num_tokens=2,
        tower="sha256:" + "0" * 64,
        questions=[Question(f"q{place}", prompt, "vqa") for place, prompt in enumerate(prompts)],
    )


SHARDS = [a_shard(number, "what?", "where?") for number in range(5)]


def ask(
    teacher: Parrot | None, shards: list[Shard], *paths: Path, skipped: Skipped | None = None
) -> list[list[str | None]]:
    """The answers."""
    found = labelled(shards, teacher, paths, 32, skipped or Skipped(strict=True))
    return [[one and one.answer for one in each] for each in labels_in(found, shards)]


# ---- any teacher


def test_each_question_is_asked_once(tmp_path: Path) -> None:
    """Whatever was asked before: of the shard's other questions, or in another order."""
    parrot, path = Parrot(), tmp_path / "labels"
    first = ask(parrot, [replace(SHARDS[0], questions=SHARDS[0].questions[1:])], path)
    assert (first, parrot.asked) == ([["f0 where?"]], ["f0 q1"])
    assert ask(parrot, SHARDS[:2], path) == [["f0 what?", "f0 where?"], ["f1 what?", "f1 where?"]]
    assert parrot.asked == ["f0 q1", "f0 q0", "f1 q0", "f1 q1"]
    turned = [replace(one, questions=one.questions[::-1]) for one in SHARDS[1::-1]]
    assert ask(parrot, turned, path) == [["f1 where?", "f1 what?"], ["f0 where?", "f0 what?"]]
    assert ask(None, turned, path) == [["f1 where?", "f1 what?"], ["f0 where?", "f0 what?"]]
    assert len(parrot.asked) == 4


def test_what_is_the_same_question_does_not_depend_on_names(tmp_path: Path) -> None:
    """A frame that is sent again under another id has its labels; a changed choice is new."""
    parrot, path = Parrot(), tmp_path / "labels"
    ask(parrot, SHARDS[:1], path)
    again = replace(
        SHARDS[0], frame="f9", questions=[replace(one, id="other") for one in SHARDS[0].questions]
    )
    assert ask(None, [again], path) == [["f0 what?", "f0 where?"]]
    new = replace(again, questions=[replace(again.questions[0], choices=["a", "b"])])
    assert ask(None, [new], path) == [[None]]
    assert ask(parrot, [new], path) == [["f9 what?"]]
    assert len(parrot.asked) == 3


def test_a_frame_that_comes_twice_is_asked_once(tmp_path: Path) -> None:
    parrot, path = Parrot(), tmp_path / "labels"
    ask(parrot, [*SHARDS, *SHARDS], path)
    once = path.read_bytes()
    assert len(parrot.asked) == 10
    path.unlink()
    ask(Parrot(), SHARDS, path)
    assert path.read_bytes() == once


def test_two_questions_that_are_the_same_have_one_label(tmp_path: Path) -> None:
    shard = a_shard(0, "what?", "what?")
    assert ask(Parrot(), [shard], tmp_path / "labels") == [["f0 what?", "f0 what?"]]


def test_several_files_are_read_and_the_last_is_written(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    parrot = Parrot()
    ask(parrot, SHARDS[:1], one)
    ask(parrot, SHARDS[1:2], two)
    kept = one.read_bytes(), two.read_bytes()
    made = ask(parrot, SHARDS, one, two, three)
    assert made == [[f"f{n} what?", f"f{n} where?"] for n in range(5)]
    assert len(parrot.asked) == 10
    assert (one.read_bytes(), two.read_bytes()) == kept
    assert len(open_labels([three])) == 6
    assert ask(None, SHARDS, three, two, one) == made
    joined = tmp_path / "joined"
    joined.write_bytes(b"".join(path.read_bytes() for path in (three, one, two)))
    assert ask(None, SHARDS, joined) == made
    with pytest.raises(MissingInput, match="four: no such file"):
        ask(None, SHARDS, one, tmp_path / "four")


def test_the_same_labels_are_the_same_bytes_however_often_it_was_stopped(tmp_path: Path) -> None:
    """The file is cut at each of 60 places, in a record and between two: what is whole is kept."""
    path = tmp_path / "labels"
    ask(Parrot(), SHARDS, path)
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole), 60).astype(int).tolist():
        path.write_bytes(whole[:end])
        ask(Parrot(), SHARDS, path)
        assert path.read_bytes() == whole, f"cut at {end}"


def test_a_bad_record_is_named_and_its_questions_are_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One byte in the record of frame 2. A strict run stops; without a teacher it is left out."""
    path = tmp_path / "labels"
    ask(Parrot(), SHARDS, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"f2 what?") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadData, match=r"labels at byte [\d,]+: damaged, its sum"):
        ask(None, SHARDS, path)
    skipped = Skipped()
    assert ask(None, SHARDS, path, skipped=skipped)[1:4] == [
        *(["f1 what?", "f1 where?"], [None, None], ["f3 what?", "f3 where?"])
    ]
    assert str(skipped) == ", 1 label record left out"
    assert "damaged, its sum does not match" in capsys.readouterr().err
    parrot, skipped = Parrot(), Skipped()
    made = ask(parrot, SHARDS, path, skipped=skipped)
    assert made[2] == ["f2 what?", "f2 where?"]
    assert parrot.asked == ["f2 q0", "f2 q1"]
    assert path.read_bytes().startswith(bytes(data)), "nothing is thrown away"


def test_a_question_without_an_answer_is_asked_again_and_named_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [*SHARDS[:2], a_shard(7, "why?!", "what?")]
    parrot, path = Parrot(), tmp_path / "labels"
    for _ in range(2):
        skipped = Skipped()
        assert ask(parrot, shards, path, skipped=skipped)[2] == [None, "f7 what?"]
        assert str(skipped) == ", 1 question left out"
        assert "frame f7: q0: silence" in capsys.readouterr().err
    assert parrot.asked[-2:] == ["f7 q1", "f7 q0"]


def test_a_shard_that_the_teacher_cannot_answer_is_refused(tmp_path: Path) -> None:
    """Even if all labels are there."""
    path, refused = tmp_path / "labels", replace(SHARDS[0], frame="refused")
    ask(Parrot(), SHARDS[:1], path)
    with pytest.raises(BadData, match="not a frame for parrots"):
        ask(Parrot(), [refused], path)
    ask(None, [refused], path)


def test_labels_of_two_teachers(tmp_path: Path) -> None:
    """With a teacher its own count; without one its name has to be said."""
    path, other = tmp_path / "labels", Parrot("https://host/v1#macaw")
    ask(Parrot(), SHARDS[:2], path)
    ask(other, SHARDS[1:3], path)
    assert other.asked == ["f1 q0", "f1 q1", "f2 q0", "f2 q1"]
    again = Parrot()
    ask(again, SHARDS[:2], path)
    assert again.asked == []
    with pytest.raises(BadData, match=r"holds labels of 2 teachers \(https://host/v1#macaw, https"):
        open_labels([path])
    with pytest.raises(BadData, match="holds labels of 2 teachers"):
        ask(None, SHARDS, path)
    assert len(open_labels([path], "https://host/v1#macaw")) == 4


def test_a_stream_that_cannot_be_read_back(tmp_path: Path) -> None:
    """All labels, without looking for any: the same bytes as in a file."""
    with (tmp_path / "stream").open("wb") as out:
        write = label_stream.Writer(out, "the labels", 32, None)
        assert add_missing(Parrot(), iter(SHARDS), write, Lacks(), Skipped()) == 10
    ask(Parrot(), SHARDS, tmp_path / "file")
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_frame_without_questions_is_not_asked_about(tmp_path: Path) -> None:
    parrot = Parrot()
    assert ask(parrot, [a_shard(0), SHARDS[1]], tmp_path / "l") == [[], ["f1 what?", "f1 where?"]]


# ---- a checkpoint


def test_what_was_said_is_read_again(
    teacher: LoadedModel,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    """Whatever the batch size, and in another order."""
    path = tmp_path / "labels"
    first = asked(teacher, shards, path)
    assert_same(first, asked(teacher, shards))
    monkeypatch.setattr(teacher, "generate", never)
    assert_same(first, asked(teacher, shards, path, replace(ASKED, teacher_batch_size=3)))
    assert_same(first[::-1], asked(teacher, shards[::-1], path))


def test_only_what_is_new_is_computed(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(teacher, shards[:6], tmp_path / "labels")
    rows: list[int] = []
    inner = teacher.generate
    monkeypatch.setattr(teacher, "generate", lambda s, most: rows.append(len(s)) or inner(s, most))
    one = replace(ASKED, teacher_batch_size=1)
    asked(teacher, shards[6:] + shards[:6], tmp_path / "labels", one)
    assert sum(rows) == sum(len(shard.questions) for shard in shards[6:])


def test_a_pass_that_was_cut_anywhere_ends_with_the_same_bytes(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chunk of which one label is missing is computed whole, as it was first."""
    path = tmp_path / "labels"
    asked(teacher, shards, path)
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 8).astype(int):
        path.write_bytes(whole[:end])
        asked(teacher, shards, path)
        assert path.read_bytes() == whole, f"cut at {end}"
    assert "computed again" in capsys.readouterr().err


def test_another_teacher_adds_labels_of_its_own(
    teacher: LoadedModel, shards: list[Shard], tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    path, other = tmp_path / "labels", load(tiny_pair[1], compute="cpu")
    own = asked(teacher, shards[:3], path)
    others = asked(other, shards[:3], path)
    assert_same(others, asked(other, shards[:3]))
    assert_same(own, asked(teacher, shards[:3], path))
    with pytest.raises(BadData, match="holds labels of 2 teachers"):
        open_labels([path])


def test_a_whole_file_need_not_be_writable(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only file system, which this one is told to be."""
    path = tmp_path / "labels"
    made = asked(teacher, shards[:3], path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    assert_same(asked(teacher, shards[:3], path), made)
    with pytest.raises(CannotWrite, match="read-only file system"):
        asked(teacher, shards[:4], path)


@pytest.mark.parametrize(("bits", "most"), [(16, 5e-4), (8, 5e-3)])
def test_fewer_bits_are_near_and_smaller(
    bits: int, most: float, teacher: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    """Relative to the largest value of a row: half a step of 127, or of 2^11."""
    exact = given(teacher, shards[:3], tmp_path / "32")
    coded = given(teacher, shards[:3], tmp_path / "few", replace(ASKED, label_bits=bits))
    assert (tmp_path / "few").stat().st_size < (tmp_path / "32").stat().st_size
    for one, other in zip(chain(*exact), chain(*coded), strict=True):
        assert one.answer == other.answer
        for name in ("queries", "visual", "answer_rows"):
            ours, theirs = vars(one)[name], vars(other)[name]
            assert np.abs(ours - theirs).max() <= most * np.abs(ours).max()


@pytest.mark.parametrize("again", ["teacher", "labels"])
def test_what_cannot_be_read_is_named_and_left_out(
    again: str,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the run that asks the teacher, and in later ones; a strict run with the teacher stops."""
    bad = [*mixed(shards), *shards[3:]]
    good = [shard for number, shard in enumerate(shards) if number != 1]
    how = DistillSettings(epochs=1, batch_size=8, holdout=0.3, labels=(str(tmp_path / "labels"),))
    skipped = Skipped()
    made = distill(bad, teacher, mirror, how, skipped=skipped)
    assert str(skipped) == ", 2 questions left out"
    assert capsys.readouterr().err.count("left out: frame frame") == 2
    alone = distill(good, teacher, mirror, replace(how, labels=()))
    names = ("num_asks", "num_trained", "num_unanswered")
    assert [made.report[name] for name in names] == [alone.report[name] for name in names]
    later, skipped = teacher if again == "teacher" else None, Skipped()
    second = distill(bad, later, mirror, how, skipped=skipped)
    assert overlay_digest(second.overlay) == overlay_digest(made.overlay)
    said = capsys.readouterr().err
    if again == "teacher":
        assert str(skipped) == ", 2 questions left out"
        assert "question long: for the teacher: " in said
        with pytest.raises(BadData, match="frame 0: question long: "):
            distill(bad, later, mirror, how)
    else:
        assert str(skipped) == ""
        assert "labels: 2 of 28 questions have no label, and are left out" in said


def test_a_question_that_is_too_long_for_the_student_alone_is_left_out(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher and without one."""
    monkeypatch.setattr(teacher.language, "max_positions", 10_000)
    bad = [*mixed(shards), *shards[3:]]
    for method, needed in (("pseudo-label", teacher), ("tent", None)):
        settings = DistillSettings(method=method, epochs=1, batch_size=8, holdout=0)
        skipped = Skipped()
        distill(bad, needed, mirror, settings, skipped=skipped)
        assert str(skipped) == ", 2 questions left out"
    with pytest.raises(BadData, match=r"question long: for the student: .* has 256: ask a shorter"):
        distill(bad, teacher, mirror, settings)


def test_a_file_of_something_else_is_refused(teacher: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(b"not labels at all" * 20)
    with pytest.raises(BadData, match="labels"):
        asked(teacher, make_shards(teacher, 1), path)
    assert path.read_bytes() == b"not labels at all" * 20


def test_values_that_are_not_finite_are_no_labels() -> None:
    label = Label("a", queries=np.array([[np.nan]], np.float32))
    digest = "sha256:" + "0" * 64
    with pytest.raises(BadData, match="queries has values that are not finite"):
        labels.encode(Entry("f", digest, Source("t"), {digest: label}), 32)
