"""Streams of labels: finding them in files, adding to one, and files that were cut or joined."""

import errno
import gc
import os
import random
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CannotWrite, NewerFormat
from cdcca_cli.formats import labels, lessons, locks, records
from cdcca_cli.formats.label_stream import Labels, ShardKey, Writer, writing
from cdcca_cli.formats.labels import Entry, Label, Source
from cdcca_cli.inspection.contents import summarize
from tests.formats.test_labels import (
    SERVED,
    SHARD,
    SOURCE,
    assert_alike,
    digest,
    make_entry,
)
from tests.golden import make

ROOT = Path(__file__).parents[2]
INVALID = Path(make.__file__).parent / "invalid"


def key(number: int) -> ShardKey:
    """Of the shard whose labels `make_entry` makes."""
    questions = tuple(make_entry(number).labels)
    return ShardKey(digest(number + 1), questions, partial(digest, 10**9 + number))


def encoded(*numbers: int, source: Source = SOURCE) -> bytes:
    return b"".join(labels.encode(make_entry(number, source), 32) for number in numbers)


def write(path: Path, *numbers: int, source: Source = SOURCE) -> bytes:
    """The file with these labels added, as bytes too."""
    with writing(path, 32) as file:
        for number in numbers:
            file(make_entry(number, source))
    return path.read_bytes()


def found_in(data: bytes, **how: Any) -> Labels:
    return Labels([(BytesIO(data), "it")], **how)


def numbers_of(found: Labels, among: range = range(10)) -> list[int]:
    """The shards of which it has the labels; what it reads is right."""
    there = []
    for number in among:
        expected = list(make_entry(number).labels.values())
        read = [found.read(key(number), place) for place in range(2)]
        for ours, theirs in zip(read, expected, strict=True):
            if ours is not None:
                assert_alike(ours[0], theirs)
        assert len({one is None for one in read}) == 1
        if read[0] is not None:
            there.append(number)
    return there


def boundaries(data: bytes) -> list[int]:
    """Where each record ends."""
    stream, ends = BytesIO(data), []
    while records.read_record(stream) is not None:
        ends.append(stream.tell())
    return ends


@pytest.fixture(autouse=True)
def _quiet_after() -> Iterator[None]:
    yield
    streams.set_quiet(False)


# ---------------------------------------------------------------- the file


def test_what_is_written_is_found_by_its_key(tmp_path: Path) -> None:
    """By the writer while it writes, and by a reader of the file afterwards, in any order."""
    path = tmp_path / "new folder" / "labels"
    with writing(path, 32) as file:
        assert file.labels is not None and not file.labels.has(key(0), 0)
        for number in range(4):
            assert not file.labels.has(key(number), 1)
            file(make_entry(number))
            assert numbers_of(file.labels) == list(range(number + 1))
    assert numbers_of(file.labels) == [0, 1, 2, 3]
    found = found_in(path.read_bytes())
    assert found.sources == [SOURCE] and len(found) == 8
    assert found.has(key(2), 1) and not found.has(key(4), 0)
    assert numbers_of(found) == [0, 1, 2, 3]
    read = found.read(key(3), 1)
    assert read is not None and read[1] == SOURCE


def test_a_label_is_of_the_question_and_not_of_its_place() -> None:
    """The questions of a shard in another order, one twice, and one that was never asked."""
    first, second = key(0).questions
    asked = replace(key(0), questions=(second, first, second, digest(5)))
    found = found_in(encoded(0))
    answers = [read and read[0].answer for read in (found.read(asked, place) for place in range(4))]
    assert answers == ["red 1", "red 0", "red 1", None]


def test_questions_of_one_shard_may_be_in_several_records() -> None:
    whole = make_entry(0)
    parts = [replace(whole, labels={name: label}) for name, label in whole.labels.items()]
    data = b"".join(labels.encode(part, 32) for part in parts)
    assert numbers_of(found_in(data)) == [0]


def test_a_file_may_have_no_name() -> None:
    with writing(None, 32) as file:
        file(make_entry(1))
    assert file.labels is not None and numbers_of(file.labels) == [1]


def test_a_file_only_grows(tmp_path: Path) -> None:
    first = write(tmp_path / "labels", 1, 2)
    assert write(tmp_path / "labels", 3).startswith(first)
    assert write(tmp_path / "at once", 1, 2, 3) == (tmp_path / "labels").read_bytes()
    assert first == encoded(1, 2)


def test_a_stream_that_cannot_be_read_back_gets_the_same_bytes() -> None:
    out = BytesIO()
    file = Writer(out, "it", 32, None)
    for number in (1, 2):
        file(make_entry(number))
    assert out.getvalue() == encoded(1, 2) and file.labels is None


@pytest.mark.parametrize("verify", [False, True])
def test_files_joined_by_cat_are_one(verify: bool) -> None:
    data = encoded(1, 2) + encoded(3) + encoded(4, 0)
    assert numbers_of(found_in(data, verify=verify)) == [0, 1, 2, 3, 4]


def with_answer(entry: Entry, answer: str) -> Entry:
    found = {name: replace(label, answer=answer) for name, label in entry.labels.items()}
    return replace(entry, labels=found)


def test_the_later_of_two_labels_counts(tmp_path: Path) -> None:
    """In one file, while it is written, and of several files in their order."""
    path = tmp_path / "labels"
    with writing(path, 32) as file:
        assert file.labels is not None
        for answer in ("first", "second"):
            file(with_answer(make_entry(1), answer))
            read = file.labels.read(key(1), 0)
            assert read is not None and read[0].answer == answer
    data = path.read_bytes()
    third = labels.encode(with_answer(make_entry(1), "third"), 32)
    for parts in ([data], [third, data], [third + data]):
        read = Labels([(BytesIO(part), "it") for part in parts]).read(key(1), 0)
        assert read is not None and read[0].answer == "second"
    joined = found_in(third).joined(found_in(data))
    read = joined.read(key(1), 0)
    assert read is not None and read[0].answer == "third" and joined.where == "it, it"


def test_teachers_beside_each_other() -> None:
    """Everyone's, the latest first, or those of one."""
    entries = [with_answer(make_entry(1), "local"), with_answer(make_entry(1), "served")]
    for label in entries[1].labels.values():
        label.top = None
    entries[1] = replace(entries[1], source=SERVED)
    data = b"".join(labels.encode(entry, 32) for entry in entries) + encoded(2)
    found = found_in(data)
    assert found.sources == [SOURCE, SERVED] and len(found) == 6
    read = found.read(key(1), 0)
    assert read is not None and (read[0].answer, read[1]) == ("served", SERVED)
    for source, answer in ((SOURCE, "local"), (SERVED, "served")):
        found = found_in(data, teacher=source.name)
        read = found.read(key(1), 0)
        assert read is not None and (read[0].answer, read[1]) == (answer, source)
        assert found.has(key(2), 0) == (source is SOURCE)
        assert found.sources == [source]
    assert len(found_in(data, teacher="sha256:" + "0" * 64)) == 0


# ---------------------------------------------------------------- labels of versions 0.1 to 0.6


def lesson_of(shard_key: str, answers: list[str]) -> bytes:
    """As make.lesson, for another shard."""
    return make.lesson({"key": shard_key, "answers": answers})


def test_lessons_are_found_by_their_own_key() -> None:
    """Of a shard with its questions, the id of each included; for other questions there is none."""
    question = SHARD.questions[0]
    shard = replace(SHARD, questions=[question, replace(question, id="r")])
    of_shard = ShardKey.of(shard)
    assert of_shard.lesson == lessons.key_of(shard)
    assert of_shard.lesson != ShardKey.of(replace(shard, frame="g")).lesson
    found = found_in(make.lessons_file(lesson_of(of_shard.lesson, ["one", "two"])))
    read = [found.read(of_shard, place) for place in range(2)]
    assert [one and one[0].answer for one in read] == ["one", "two"]
    assert read[0] is not None and read[0][1] == Source(make.MODEL, make.BASE, "float32")
    fewer = replace(of_shard, questions=of_shard.questions[:1])
    assert found.read(fewer, 0) is None


def test_new_labels_follow_lessons_in_one_file_and_count_before_them(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    old = make.lessons_file(
        lesson_of(key(1).lesson, ["old", "old"]), lesson_of(key(2).lesson, ["a", "b"])
    )
    path.write_bytes(old)
    assert write(path, 1) == old + encoded(1)
    more = make.lessons_file(lesson_of(key(3).lesson, ["c", "d"]))
    several = [(path.open("rb"), "old and new"), (BytesIO(more), "old")]
    for found in (
        Labels(several),
        found_in(old + encoded(1) + more),
        found_in(more + old + encoded(1)),
    ):
        answers = [
            read and read[0].answer for read in (found.read(key(number), 1) for number in (1, 2, 3))
        ]
        assert answers == ["red 11", "b", "d"]
    with pytest.raises(BadData, match="without their head"):
        found_in(encoded(1) + old[boundaries(old)[0] :])


# ---------------------------------------------------------------- what was cut


def test_a_file_cut_anywhere_has_what_is_whole() -> None:
    """At every 11th byte, and next to each boundary."""
    whole = encoded(0, 1, 2)
    ends = boundaries(whole)
    near = {end + by for end in ends for by in (-1, 0, 1, 7, 8, 9)}
    for cut in sorted({*range(1, len(whole), 11), *near} - {*range(len(whole), len(whole) + 10)}):
        found = found_in(whole[:cut])
        num_whole = sum(cut >= end for end in ends)
        assert found.ends == [ends[num_whole - 1] if num_whole else 0]
        assert [found.has(key(number), 0) for number in range(3)] == [
            number < num_whole for number in range(3)
        ]


@pytest.mark.parametrize("where", ["the first", "a header", "tensors", "a boundary", "a length"])
def test_the_next_writer_goes_on_from_what_is_whole(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels"
    whole = write(path, 0, 1, 2)
    first, second, _ = boundaries(whole)
    cut = {"the first": 30, "a header": first + 90, "tensors": second - 9, "a length": first + 3}
    path.write_bytes(whole[: cut.get(where, first)])
    with writing(path, 32) as file:
        assert file.labels is not None
        have = [number for number in range(3) if file.labels.has(key(number), 0)]
        for number in range(len(have), 3):
            file(make_entry(number))
    assert have == ([] if where == "the first" else [0])
    assert path.read_bytes() == whole
    said = capsys.readouterr().err
    assert ("computed again" in said) == (where != "a boundary") and said.count("\n") <= 1


def test_only_the_record_that_was_cut_is_lost_when_files_are_joined() -> None:
    """Cut in its length, header or tensors; alone in its file or not; before one record or more.

    A record that was cut in its tensors seems to reach into what follows, which is found all the
    same; it is named where it begins.
    """
    for before, behind in (((), (3,)), ((0,), (3,)), ((0,), (3, 4)), ((0, 1), (3, 4, 5))):
        head, cut_one, tail = encoded(*before), encoded(2), encoded(*behind)
        for cut in (1, 7, 8, 9, 40, 300, len(cut_one) - 400, len(cut_one) - 30, len(cut_one) - 1):
            data = head + cut_one[:cut] + tail
            for verify in (False, True):
                refused: list[BadData] = []
                found = found_in(data, refused=refused.append, verify=verify)
                assert numbers_of(found) == [*before, *behind], (cut, before, behind)
                assert found.ends == [len(data)]
                assert len(refused) == 1
                assert f"the labels at byte {len(head):,}: " in str(refused[0])
                with pytest.raises(BadData, match="the labels at byte"):
                    numbers_of(found_in(data, verify=verify))


def test_lessons_joined_behind_what_was_cut_have_their_own_head() -> None:
    other = make.lessons_file(lesson_of(key(3).lesson, ["c", "d"]), teacher=make.TARGET)
    cut_one = make.lessons_file(
        lesson_of(key(1).lesson, ["a", "b"]), lesson_of(key(2).lesson, ["", ""])
    )
    for cut in (5, 200, 600):
        refused: list[BadData] = []
        found = found_in(cut_one[:-cut] + other, refused=refused.append)
        read = [found.read(key(number), 0) for number in (1, 2, 3)]
        assert [one and one[1].name for one in read] == [make.MODEL, None, make.TARGET]
        assert len(refused) == 1


def damaged(data: bytes, begin: int) -> bytes:
    """A bit changed in the tensors of the record that ends there."""
    return data[: begin - 5] + bytes([data[begin - 5] ^ 4]) + data[begin - 4 :]


def test_a_record_whose_sum_is_wrong_is_named_left_out_and_computed_again(tmp_path: Path) -> None:
    """Whether there is one of the same questions before it or not."""
    path = tmp_path / "labels"
    whole = write(path, 0, 1, 2)
    first, second, _ = boundaries(whole)
    path.write_bytes(damaged(whole, second))
    with pytest.raises(BadData, match="its sum does not match"):
        numbers_of(found_in(path.read_bytes()))
    with pytest.raises(BadData, match="its sum does not match"), writing(path, 32):
        pass
    refused: list[BadData] = []
    found = found_in(path.read_bytes(), refused=refused.append)
    assert found.has(key(1), 0) and refused == []  # headers alone were read
    assert numbers_of(found) == [0, 2] and numbers_of(found) == [0, 2]
    (error,) = refused  # once
    assert f"it: the labels at byte {first:,}: damaged, its sum does not match" in str(error)
    assert not found.has(key(1), 0)
    with writing(path, 32, refused=refused.append) as file:
        assert file.labels is not None and len(refused) == 2
        missing = [number for number in range(3) if not file.labels.has(key(number), 0)]
        assert missing == [1]
        file(make_entry(1))
        assert numbers_of(file.labels) == [0, 1, 2]
    assert path.read_bytes() == damaged(whole, second) + encoded(1)
    assert numbers_of(found_in(path.read_bytes(), refused=refused.append)) == [0, 1, 2]
    twice = encoded(1) + damaged(encoded(1), len(encoded(1)))
    assert numbers_of(found_in(twice, refused=refused.append)) == [1]


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    """Behind all records, where a disk that lost power has zeros, and between them."""
    path = tmp_path / "labels"
    for junk in (b"junk junk junk junk", bytes(400), make.shard() + make.end(1), b"\0" * (3 << 20)):
        for data, there in ((encoded(1) + junk, [1]), (encoded(1) + junk + encoded(2), [1, 2])):
            refused: list[BadData] = []
            assert numbers_of(found_in(data, refused=refused.append)) == there
            assert refused
            with pytest.raises(BadData):
                found_in(data)
            path.write_bytes(data)
            with writing(path, 32, refused=refused.append) as file:
                file(make_entry(3))
            assert path.read_bytes() == data + encoded(3)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Short ones too, which a cut record could be."""
    foreign = make.safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    for content in (
        *(b"notes", b"a\n", b"\0" * 8, b"\0" * 30, bytes(1000), encoded(1)[:40] + b"x"),
        *(make.shard() + make.end(1), make.shard()[:60], make.shard()[:-9], make.adaptation()),
        *(make.adaptation()[:70], make.part_2(make.frames())[:50], foreign, foreign[:20]),
        *(b'{"id": "1"}\n' * 20, b"PK\x03\x04" + bytes(90)),
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        for refused in (None, list[BadData]().append):
            with pytest.raises(BadData):
                found_in(content, refused=refused)
            with pytest.raises(BadData), writing(path, 32, refused=refused):
                pass
        assert path.read_bytes() == content


def test_an_empty_file_has_no_labels(tmp_path: Path) -> None:
    assert len(found_in(b"")) == 0
    (tmp_path / "labels").touch()
    assert write(tmp_path / "labels", 1) == encoded(1)


def test_a_newer_format_is_called_newer() -> None:
    newer = make.label({"version": 2})
    for data in (newer, encoded(1) + newer):
        with pytest.raises(NewerFormat, match="upgrade"):
            found_in(data, refused=list[BadData]().append)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in make.FAULTS
        if name.endswith((".lessons", ".labels")) and name != "cut_in_head.lessons"
    ],
)
def test_a_reader_by_key_refuses_what_inspect_refuses(name: str) -> None:
    """By name, or it is left out: what is joined to it is found in any case.

    A file that was cut in its first record may be one that a writer is at.
    """
    code, words, data = make.FAULTS[name]
    with pytest.raises((BadData, NewerFormat)) as refused:
        found_in(data, verify=True)
    assert refused.value.exit_code == code
    assert words in str(refused.value)
    if code == BadData.exit_code:
        errors: list[BadData] = []
        found = found_in(encoded(0) + data + encoded(1), refused=errors.append, verify=True)
        assert numbers_of(found) == [0, 1] and errors
        found = found_in(encoded(0) + data + encoded(1), refused=errors.append)
        assert numbers_of(found) == [0, 1]


def test_a_reader_sees_no_record_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    data = write(path, 1, 2)
    path.write_bytes(data[:-3])
    with path.open("rb", buffering=0) as file:
        found = Labels([(file, "it")])
        path.write_bytes(data)
        assert numbers_of(found) == [1]


def test_a_file_that_is_cut_while_it_is_read_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    whole = write(path, 1, 2)
    for cut in (boundaries(whole)[0] + 20, boundaries(whole)[0], 40):
        path.write_bytes(whole)
        with path.open("rb", buffering=0) as file:
            found = Labels([(file, "it")])
            os.truncate(path, cut)
            with pytest.raises(BadData, match="cut short"):
                found.read(key(2), 0)


# ---------------------------------------------------------------- two at once

WRITER = """
import sys
from pathlib import Path
from cdcca_cli.formats.label_stream import writing
from tests.formats.test_label_stream import key, make_entry
first, path = int(sys.argv[1]), Path(sys.argv[2])
for start in range(first, first + 40, 4):
    with writing(path, 32) as file:
        for number in range(start, start + 4):
            file(make_entry(number))
            assert file.labels.read(key(number), 1)[0].answer == f"red {10 * number + 1}"
"""


def start(program: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    processes = [start(WRITER, first, path) for first in (0, 100)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    data = path.read_bytes()
    assert numbers_of(found_in(data), range(150)) == [*range(40), *range(100, 140)]
    assert len(boundaries(data)) == 80


def test_a_second_writer_says_that_it_waits(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with writing(path, 32) as file:
        other = start(WRITER, 0, path)
        assert other.stderr is not None
        assert "waiting for another process" in other.stderr.readline()
        file(make_entry(99))
    other.communicate(timeout=120)
    assert other.returncode == 0
    assert path.read_bytes() == encoded(99, *range(40))


# ---------------------------------------------------------------- what cannot be written


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The kernel refuses longer ones, as a full disk does: a part is written, then an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_did_not_fit_is_cut_off_and_never_written_later(tmp_path: Path) -> None:
    """Nor when the file is closed, with room again and another process at it."""
    path = tmp_path / "labels"
    whole = write(path, 1, 2)
    (first, _) = boundaries(whole)
    path.write_bytes(whole[:first])

    def fill() -> None:
        with writing(path, 32) as file, files_of_at_most(first + 100):
            file(make_entry(2))

    with pytest.raises(CannotWrite, match="file too large"):
        fill()
    gc.collect()
    assert path.read_bytes() == whole[: first + 100]
    assert write(path, 2) == whole


def test_a_writer_that_is_used_after_its_disk_was_full_leaves_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with writing(path, 32) as file:
        with pytest.raises(CannotWrite), files_of_at_most(100):
            file(make_entry(1))
        assert file.labels is not None and not file.labels.has(key(1), 0)
        file(make_entry(2))
    assert path.read_bytes() == encoded(2)


def test_a_full_disk_is_named() -> None:
    class FullDisk(BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWrite, match="it: no space left on device"):
        Writer(FullDisk(), "it", 32, None)(make_entry(1))
    if Path("/dev/full").exists():
        with (
            pytest.raises(CannotWrite, match="/dev/full: no space"),
            writing(Path("/dev/full"), 32) as file,
        ):
            file(make_entry(1))


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "labels", Path("/proc/none/labels")):
        with pytest.raises(CannotWrite), writing(path, 32):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_named(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write(tmp_path / "labels", 1)
    (tmp_path / "labels").chmod(0o400)
    tmp_path.chmod(0o500)
    request.addfinalizer(lambda: tmp_path.chmod(0o700))
    for name in ("labels", "others"):
        with pytest.raises(CannotWrite, match="permission"), writing(tmp_path / name, 32):
            pass
    assert (tmp_path / "labels").read_bytes() == encoded(1)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(CannotWrite, match="locked"), writing(tmp_path / "labels", 32):
        pass


# ---------------------------------------------------------------- damage and memory


def declaring(num_values: int) -> bytes:
    """The first bytes of a record whose tensors would be so long."""
    table = {"visual": {"dtype": "F32", "shape": [num_values, 1]}}
    table["visual"]["data_offsets"] = [0, 4 * num_values]
    header = make.dumps({**make.LABEL, "sum": make.TARGET})
    return make.safetensors({**table, "__metadata__": {"cdcca": header}}, b"")


LIAR = ShardKey(
    str(make.LABEL["payload"]),
    tuple(make.LABEL["questions"]),  # type: ignore[arg-type]
    partial(digest, 0),
)


@pytest.mark.parametrize("num_values", [1 << 28, 1 << 34])
def test_sizes_that_lie_cost_no_memory(num_values: int, tmp_path: Path) -> None:
    """1 or 64 GiB: not there, and in a file of holes, more than is read."""
    path = tmp_path / "labels"
    data = encoded(1) + declaring(num_values)
    path.write_bytes(data)
    streams.set_quiet(True)
    with path.open("rb", buffering=0) as file:
        tracemalloc.start()
        found = Labels([(file, "it")], verify=True)
        assert numbers_of(found) == [1] and found.ends == [len(encoded(1))]
        path.write_bytes(data + encoded(2))
        refused: list[BadData] = []
        found = Labels([(file, "it")], refused=refused.append, verify=True)
        assert numbers_of(found) == [1, 2] and len(refused) == 1
        if num_values > 1 << 30:
            os.truncate(path, len(data) + 4 * num_values)
            found = Labels([(file, "it")])
            assert found.has(LIAR, 0)
            with pytest.raises(BadData, match="at most"):
                found.read(LIAR, 0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_label_takes_32_bytes_of_memory() -> None:
    """100,000, with what `array` keeps in reserve, and 8 bytes more while they are sorted.

    While it grows an array may move, and be there twice.
    """
    num_records, num_questions = 1000, 100
    questions = [digest(-1 - number) for number in range(num_questions)]
    entry = Entry("f", digest(0), SERVED, {question: Label("red") for question in questions})
    record = labels.encode(entry, 32)

    class Synthetic(BytesIO):
        """Records that are made as they are read, each of another payload."""

        place = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            self.place = num_records * len(record) if whence == os.SEEK_END else offset
            return self.place

        def read(self, size: int | None = -1) -> bytes:
            number, at = divmod(self.place, len(record))
            made = record.replace(digest(0).encode(), digest(number).encode())
            data = made[at : at + (size or 0)]
            self.place += len(data)
            return data

    keys = [
        ShardKey(digest(number), tuple(questions), partial(digest, 0))
        for number in range(num_records)
    ]
    tracemalloc.start()
    found = Labels([(Synthetic(), "it")])
    scanned, scan_peak = tracemalloc.get_traced_memory()
    assert len(found) == num_records * num_questions
    assert all(found.has(key, place) for place, key in enumerate(keys[:num_questions]))
    assert not found.has(replace(keys[0], payload=digest(num_records)), 0)
    asked, ask_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reserve, other = 1.13 * len(found), 200_000
    assert scanned < 24 * reserve + other and asked < 32 * reserve + other
    assert scan_peak < 2 * 24 * reserve + other and ask_peak < 2 * 24 * reserve + other


def broken(data: bytes, source: random.Random) -> bytes:
    """A few bytes changed, or a piece taken out, doubled, or cut off at the end."""
    changed = bytearray(data)
    begin = source.randrange(len(data))
    end = min(len(data), begin + source.choice((1, 2, 8, 60, 600)))
    way = source.randrange(6)
    if way == 0:
        return data[:begin]
    if way == 1:
        return data[:begin] + data[end:]
    if way == 2:
        return data[:end] + data[begin:]
    for _ in range(way - 2):
        place = source.randrange(len(data))
        changed[place] = source.choice(
            (source.randrange(256), changed[place] ^ 1, *b'0919{}[],-e"\\')
        )
    return bytes(changed)


def refused(call: Any) -> bool:
    """Whether it raised what it may, in one line; everything else is a failure of the test."""
    try:
        call()
    except (BadData, NewerFormat) as error:
        assert "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize("first", [encoded(1, 2), make.lessons_file(make.lesson()) + encoded(1, 2)])
def test_damage_is_refused_or_what_is_read_is_right(first: bytes, tmp_path: Path) -> None:
    """For a reader, a writer and inspect: whole records before and behind it are always found."""
    path, source = tmp_path / "labels", random.Random(0)
    streams.set_quiet(True)
    num_refused = num_lost = 0
    for _ in range(60):
        data = broken(first, source)
        num_refused += refused(lambda: numbers_of(found_in(data)))  # noqa: B023
        if data:
            refused(lambda: summarize("labels", BytesIO(data), "here"))  # noqa: B023
        path.write_bytes(encoded(0) + data + encoded(3))
        errors: list[BadData] = []
        try:
            with writing(path, 32, refused=errors.append) as file:
                assert file.labels is not None
                there = numbers_of(file.labels)
                assert {0, 3} <= set(there) <= {0, 1, 2, 3}
                num_lost += len(there) < 4
                missing = [number for number in range(5) if number not in there]
                assert not any(file.labels.has(key(number), 0) for number in missing)
                for number in missing:
                    file(make_entry(number))
        except NewerFormat:
            continue
        assert path.read_bytes() == encoded(0) + data + encoded(3, *missing)
        assert numbers_of(found_in(path.read_bytes(), refused=errors.append)) == [*range(5)]
    assert num_refused > 20 and num_lost > 20
