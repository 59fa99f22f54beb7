"""A file of labels: what is written is read, what was cut is found again, damage is BadData."""

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
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CannotWrite, CdccaError, MissingInput, NewerFormat
from cdcca_cli.formats import labels, locks, records
from cdcca_cli.formats.labels import Head, LabelEntry, LabelFile, key_of
from cdcca_cli.formats.names import LABEL_BITS
from cdcca_cli.formats.shard import Coding, Question, Shard
from cdcca_cli.inspection.contents import summarize
from tests.golden import make

ROOT = Path(__file__).parents[2]
INVALID = Path(make.__file__).parent / "invalid"
HEAD = Head("sha256:" + "7e" * 32, "sha256:" + "70" * 32, "float32", 32)
LARGE = 65_000.0  # near the end of 16 bits


def key(number: int) -> str:
    return f"sha256:{number:064x}"


def make_entry(seed: int = 0, *, logits: bool = False) -> LabelEntry:
    """Two questions of one input: 3 queries of 4 channels, answers of 2 tokens and of 1."""
    generator = np.random.default_rng(seed)

    def rows(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    return LabelEntry(
        answers=[f"red {seed}", ""],
        nats=[0.25, 1.5],
        inputs=[0, 0],
        queries=[rows(3, 4)],
        visual=[rows(3, 5), rows(3, 5)],
        answer=[rows(2, 5), rows(1, 5)],
        logits=[rows(2, 7), rows(1, 7)] if logits else None,
    )


def write(path: Path, *numbers: int, head: Head = HEAD) -> bytes:
    """The file of these labels, as bytes too."""
    with labels.writing(path, head) as file:
        for number in numbers:
            file.append(key(number), make_entry(number))
    return path.read_bytes()


def read_all(path: Path) -> dict[str, LabelEntry]:
    file = labels.open_labels(path)
    return {name: file.read(name) for name in file.places}


def parts_of(entry: LabelEntry) -> dict[str, list[np.ndarray] | None]:
    return {name: getattr(entry, name) for name in labels.TENSORS}


def assert_same(found: LabelEntry, expected: LabelEntry) -> None:
    assert (found.answers, found.nats, found.inputs) == (
        expected.answers,
        expected.nats,
        expected.inputs,
    )
    for ours, theirs in zip(parts_of(found).values(), parts_of(expected).values(), strict=True):
        assert (ours is None) == (theirs is None)
        for a, b in zip(ours or [], theirs or [], strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- one entry


@st.composite
def any_entry(draw: st.DrawFn) -> LabelEntry:
    count, num_inputs = draw(st.integers(1, 3)), draw(st.integers(1, 2))

    def parts(lengths: list[int], width: int) -> list[np.ndarray]:
        numbers = st.floats(-LARGE, LARGE, width=32)
        return [
            draw(arrays.arrays(np.float32, (length, width), elements=numbers)) for length in lengths
        ]

    def lengths(number: int) -> list[int]:
        return draw(st.lists(st.integers(0, 3), min_size=number, max_size=number))

    tokens, width = lengths(count), draw(st.integers(1, 3))
    return LabelEntry(
        answers=draw(st.lists(st.text(max_size=5), min_size=count, max_size=count)),
        nats=draw(st.lists(st.floats(0, 100), min_size=count, max_size=count)),
        inputs=draw(st.lists(st.integers(0, num_inputs - 1), min_size=count, max_size=count)),
        queries=parts(lengths(num_inputs), draw(st.integers(1, 3))),
        visual=parts(lengths(count), width),
        answer=parts(tokens, width) if draw(st.booleans()) else None,
        logits=parts(tokens, 4) if draw(st.booleans()) else None,
    )


def again(entry: LabelEntry, bits: int) -> LabelEntry:
    data = labels.encode(key(1), entry, bits)
    record = records.read_record(BytesIO(data), kinds=labels.KINDS)
    assert record is not None and record.num_bytes == len(data)
    return labels.decode(record, "here")


def half_a_step(values_RC: np.ndarray, bits: int) -> np.ndarray:
    """(R, C): how far a stored value may be off.

    16 bits: 11 of them are significant, so half a step is 2^-11 of the value, or 2^-25 where steps
    become no smaller. 8 bits: a step is 1 / 127 of the row's largest; computing it in float32 adds
    2^-20 of that, and what float32 itself cannot divide any further.
    """
    sizes_RC = np.abs(values_RC.astype(float))
    if bits == 16:
        return np.maximum(sizes_RC * 2.0**-11, 2.0**-25)
    largest_R1 = sizes_RC.max(axis=1, keepdims=True)
    return largest_R1 / 254 + largest_R1 * 2.0**-20 + 127 * 2.0**-149 + 0 * sizes_RC


@settings(max_examples=40, deadline=None)
@given(any_entry(), st.sampled_from(LABEL_BITS))
def test_a_entry_is_read_again_at_most_half_a_step_off(entry: LabelEntry, bits: int) -> None:
    found = again(entry, bits)
    if bits == 32:
        assert_same(found, entry)
    assert (found.answers, found.nats, found.inputs) == (
        entry.answers,
        entry.nats,
        entry.inputs,
    )
    for ours, theirs in zip(parts_of(found).values(), parts_of(entry).values(), strict=True):
        assert (ours is None) == (theirs is None)
        for a, b in zip(ours or [], theirs or [], strict=True):
            assert a.shape == b.shape and a.dtype == np.float32
            assert not a.size or (np.abs(a.astype(float) - b) <= half_a_step(b, bits)).all()


@pytest.mark.parametrize("bits", LABEL_BITS)
def test_a_number_that_does_not_fit_is_kept_as_it_is(bits: int) -> None:
    """65,520 rounds to infinity in 16 bits; in 8, float32's largest times 127 / 127 may."""
    large = np.float32(65_520 if bits == 16 else np.finfo(np.float32).max)
    entry = replace(make_entry(), visual=[np.full((3, 5), large)] * 2)
    np.testing.assert_allclose(again(entry, bits).visual[1], large, rtol=1e-6)


@pytest.mark.parametrize("bits", LABEL_BITS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_written(value: float, bits: int) -> None:
    entry = make_entry()
    entry.visual[1][2, 4] = value
    with pytest.raises(BadData, match="visual has values that are not finite"):
        labels.encode(key(1), entry, bits)
    with pytest.raises(BadData, match="cross-entropy"):
        labels.encode(key(1), replace(make_entry(), nats=[0.5, value]), bits)


# ---------------------------------------------------------------- what an entry is of

SHARD = Shard(
    frame="f",
    image="f.png",
    domain=None,
    tokens=np.array([[1, 2], [3, 4]], np.float32),
    positions=np.array([0, 3], np.int32),
    scores=np.array([1, 2], np.float32),
    num_tokens=5,
    tower="sha256:" + "5" * 64,
    questions=[Question("q", "What?", "vqa", ["a", "b"], 0.5)],
)


def test_a_key_is_of_what_is_learnt_from() -> None:
    """Not of how its tokens were stored, where the image lies, or how sure the device was."""
    question = replace(SHARD.questions[0], entropy=None)
    same = replace(
        SHARD, coding=Coding("int8"), image="elsewhere.png", domain="night", questions=[question]
    )
    assert key_of(replace(same, scores=None, time=5.0)) == key_of(SHARD)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": SHARD.tokens + np.float32(1e-6)},
        {"positions": SHARD.positions + 1},
        {"frame": "g"},
        {"num_tokens": 6},
        {"tower": "sha256:" + "6" * 64},
        {"questions": []},
        {"questions": [replace(SHARD.questions[0], id="r")]},
        {"questions": [replace(SHARD.questions[0], prompt="Why?")]},
        {"questions": [replace(SHARD.questions[0], task="caption")]},
        {"questions": [replace(SHARD.questions[0], choices=["b", "a"])]},
        {"questions": SHARD.questions * 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_thing_to_learn_from_has_another_key(change: dict[str, Any]) -> None:
    assert key_of(replace(SHARD, **change)) != key_of(SHARD)


# ---------------------------------------------------------------- the file


def test_what_is_appended_is_read_by_its_key(tmp_path: Path) -> None:
    """By the writer while it writes, and by whoever opens the file afterwards, in any order."""
    path = tmp_path / "new folder" / "labels"
    with labels.writing(path, HEAD) as file:
        for number in range(4):
            file.append(key(number), make_entry(number))
            assert_same(file.read(key(number)), make_entry(number))
        assert_same(file.read(key(0)), make_entry(0))
    found = labels.open_labels(path)
    assert found.head == HEAD
    for number in (2, 0, 3, 1):
        assert key(number) in found
        assert_same(found.read(key(number)), make_entry(number))
    with pytest.raises(KeyError):
        found.read(key(4))


def test_a_file_may_have_no_name() -> None:
    with labels.writing(None, HEAD) as file:
        file.append(key(1), make_entry(1))
    assert_same(file.read(key(1)), make_entry(1))


def test_a_file_only_grows(tmp_path: Path) -> None:
    first = write(tmp_path / "labels", 1, 2)
    assert write(tmp_path / "labels", 3).startswith(first)
    assert write(tmp_path / "at once", 1, 2, 3) == (tmp_path / "labels").read_bytes()


def test_a_entry_twice_counts_where_it_stood_last(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with labels.writing(path, HEAD) as file:
        file.append(key(1), make_entry(1))
        file.append(key(2), make_entry(2))
        assert not file.has(key(1), logits=True)
        file.append(key(1), make_entry(3, logits=True))
        assert file.has(key(1), logits=True) and file.has(key(1), logits=False)
        assert_same(file.read(key(1)), make_entry(3, logits=True))
    assert_same(read_all(path)[key(1)], make_entry(3, logits=True))
    assert len(read_all(path)) == 2


def test_bits_are_those_that_a_file_began_with(tmp_path: Path) -> None:
    write(tmp_path / "labels", 1, head=replace(HEAD, bits=8))
    with labels.writing(tmp_path / "labels", replace(HEAD, bits=32)) as file:
        assert file.head == replace(HEAD, bits=8)


def test_labels_of_another_teacher_are_refused_and_left_alone(tmp_path: Path) -> None:
    other = "sha256:" + "0" * 64
    before = write(tmp_path / "labels", 1)
    with (
        pytest.raises(BadData, match=f"of teacher {HEAD.teacher}, not of {other}"),
        labels.writing(tmp_path / "labels", replace(HEAD, teacher=other)),
    ):
        pass
    assert (tmp_path / "labels").read_bytes() == before


# ---------------------------------------------------------------- what was cut


def boundaries(data: bytes) -> list[int]:
    """Where each record ends."""
    stream, ends = BytesIO(data), []
    while records.read_record(stream) is not None:
        ends.append(stream.tell())
    return ends


def test_a_file_cut_anywhere_has_what_is_whole(tmp_path: Path) -> None:
    """At every 5th byte, and next to each boundary."""
    path = tmp_path / "labels"
    whole = write(path, 1, 2, 3)
    ends = boundaries(whole)
    near = {end + by for end in ends for by in (-1, 0, 1, 7, 8, 9)}
    for cut in sorted({*range(1, len(whole), 5), *near} - {*range(len(whole), len(whole) + 10)}):
        path.write_bytes(whole[:cut])
        if cut < ends[0]:
            with pytest.raises(BadData, match="cut short"):
                labels.open_labels(path)
            continue
        num_whole = sum(cut >= end for end in ends[1:])
        assert list(read_all(path)) == [key(number) for number in range(1, 1 + num_whole)], cut


@pytest.mark.parametrize("where", ["in the head", "at its end", "in an entry", "at a boundary"])
def test_the_next_writer_goes_on_from_what_is_whole(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels"
    whole = write(path, 1, 2, 3)
    head, first, second, _ = boundaries(whole)
    cut = {"in the head": 30, "at its end": head, "in an entry": second - 9}.get(where, first)
    path.write_bytes(whole[:cut])
    with labels.writing(path, HEAD) as file:
        have = list(file.places)
        for number in range(len(have) + 1, 4):
            file.append(key(number), make_entry(number))
    assert len(have) == (1 if cut >= first else 0)
    assert path.read_bytes() == whole
    said = capsys.readouterr().err
    assert ("computed again" in said) == (where == "in an entry") and said.count("\n") <= 1


def test_a_short_file_of_something_else_is_not_taken_for_a_cut_head(tmp_path: Path) -> None:
    for content in (b"notes", b"\0" * 8, write(tmp_path / "labels")[:40] + b"x"):
        path = tmp_path / "notes"
        path.write_bytes(content)
        with pytest.raises(BadData), labels.writing(path, HEAD):
            pass
        assert path.read_bytes() == content


def test_a_reader_sees_no_entry_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    data = write(path, 1, 2)
    path.write_bytes(data[:-3])
    found = labels.open_labels(path)
    path.write_bytes(data)
    assert list(found.places) == [key(1)]
    assert_same(found.read(key(1)), make_entry(1))


# ---------------------------------------------------------------- two at once

WRITER = """
import sys
from pathlib import Path
from cdcca_cli.formats import labels
from tests.formats.test_labels import HEAD, key, make_entry
first, path = int(sys.argv[1]), Path(sys.argv[2])
for start in range(first, first + 40, 4):
    with labels.writing(path, HEAD) as file:
        for number in range(start, start + 4):
            file.append(key(number), make_entry(number))
            assert file.read(key(number)).answers == make_entry(number).answers
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
    numbers = [*range(40), *range(100, 140)]
    found = read_all(path)
    assert sorted(found) == [key(number) for number in numbers]
    for number in numbers:
        assert_same(found[key(number)], make_entry(number))
    assert len(boundaries(path.read_bytes())) == 1 + 80


def test_a_second_writer_says_that_it_waits(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with labels.writing(path, HEAD) as file:
        other = start(WRITER, 0, path)
        assert other.stderr is not None
        assert "waiting for another process" in other.stderr.readline()
        file.append(key(99), make_entry(99))
    other.communicate(timeout=120)
    assert other.returncode == 0
    assert list(read_all(path)) == [key(99), *map(key, range(40))]


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


def test_a_entry_that_did_not_fit_is_cut_off_and_never_written_later(tmp_path: Path) -> None:
    """Nor when the file is closed, with room again and another process at it."""
    path = tmp_path / "labels"
    whole = write(path, 1, 2)
    first = boundaries(whole)[1]
    path.write_bytes(whole[:first])

    def fill() -> None:
        with labels.writing(path, HEAD) as file, files_of_at_most(first + 100):
            file.append(key(2), make_entry(2))

    with pytest.raises(CannotWrite, match="file too large"):
        fill()
    gc.collect()
    assert path.read_bytes() == whole[: first + 100]
    assert write(path, 2) == whole


class FullDisk(BytesIO):
    """A file on a disk that fills up while it is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.read_bytes())
        self._file = path.open("rb")

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    write(tmp_path / "labels", 1)
    file = LabelFile(FullDisk(tmp_path / "labels"), "labels")
    with pytest.raises(CannotWrite, match="labels: no space left on device"):
        file.append(key(2), make_entry(2))
    assert list(file.places) == [key(1)]
    if Path("/dev/full").exists():
        with pytest.raises(CannotWrite, match="no space"), labels.writing(Path("/dev/full"), HEAD):
            pass


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "labels", Path("/proc/none/labels")):
        with pytest.raises(CannotWrite), labels.writing(path, HEAD):
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
        with pytest.raises(CannotWrite, match="permission"), labels.writing(tmp_path / name, HEAD):
            pass
    assert list(read_all(tmp_path / "labels")) == [key(1)]


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(CannotWrite, match="locked"), labels.writing(tmp_path / "labels", HEAD):
        pass


# ---------------------------------------------------------------- damage


def test_what_is_no_file_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(MissingInput, match="no such file"):
        labels.open_labels(path)
    path.write_bytes(b"")
    with pytest.raises(BadData, match="empty; expected a teacher's labels"):
        labels.open_labels(path)


@pytest.mark.parametrize("name", [name for name in make.FAULTS if name.endswith(".lessons")])
def test_whoever_reads_by_key_refuses_what_inspect_refuses(name: str) -> None:
    code, words, _ = make.FAULTS[name]
    with pytest.raises((BadData, NewerFormat)) as refused:
        read_all(INVALID / name)
    assert refused.value.exit_code == code
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        make.shard() + make.end(1),
        make.adaptation(),
        make.safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        b'{"id": "1"}\n' * 20,
        bytes(1000),
    ],
    ids=["shards", "adaptation", "foreign safetensors", "JSON", "zeros"],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadData):
        labels.open_labels(path)
    with pytest.raises(BadData), labels.writing(path, HEAD):
        pass
    assert path.read_bytes() == content


def declaring(num_values: int) -> bytes:
    """The first bytes of an entry whose tensors would be so long."""
    table = {"visual": {"dtype": "F32", "shape": [num_values, 1]}}
    table["visual"]["data_offsets"] = [0, 4 * num_values]
    header = make.dumps({**make.LABEL, "sum": make.TARGET})
    return make.safetensors({**table, "__metadata__": {"cdcca": header}}, b"")


@pytest.mark.parametrize("is_sparse", [False, True], ids=["declared", "in a file of holes"])
def test_sizes_that_lie_cost_no_memory(is_sparse: bool, tmp_path: Path) -> None:
    """64 GiB: behind the end of the file it was not finished; in it, more than is read."""
    path = tmp_path / "labels"
    data = write(path, 1) + declaring(1 << 34)
    path.write_bytes(data)
    if is_sparse:
        os.truncate(path, len(data) + (1 << 36))
    tracemalloc.start()
    file = labels.open_labels(path)
    assert_same(file.read(key(1)), make_entry(1))
    assert (make.LABEL["key"] in file) == is_sparse
    if is_sparse:
        with pytest.raises(BadData, match="at most"):
            file.read(str(make.LABEL["key"]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_half_of_a_file_that_vanishes_while_it_is_read_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    whole = write(path, 1, 2)
    for cut in (boundaries(whole)[1] + 20, boundaries(whole)[1], 40):
        path.write_bytes(whole)
        file = labels.open_labels(path)
        os.truncate(path, cut)
        with pytest.raises(BadData, match="cut short"):
            file.read(key(2))


def damaged(data: bytes, source: random.Random) -> bytes:
    """A few bytes changed, or a piece taken out, doubled, or cut off at the end."""
    broken = bytearray(data)
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
        broken[place] = source.choice(
            (source.randrange(256), broken[place] ^ 1, *b'0919{}[],-e"\\')
        )
    return bytes(broken)


def refused(call: Any) -> bool:
    """Whether it raised what it may, in one line; everything else is a failure of the test."""
    try:
        call()
    except (BadData, NewerFormat) as error:
        assert "\n" not in str(error)
        return True
    return False


def sound(path: Path) -> None:
    for entry in read_all(path).values():
        count = len(entry.answers)
        assert count == len(entry.nats) == len(entry.inputs) == len(entry.visual)
        assert all(nats >= 0 for nats in entry.nats)
        assert all(entry.queries[number] is not None for number in entry.inputs)
        for arrays_ in parts_of(entry).values():
            assert all(np.isfinite(rows).all() and rows.ndim == 2 for rows in arrays_ or [])


@pytest.fixture
def quiet() -> Iterator[None]:
    streams.set_quiet(True)
    yield
    streams.set_quiet(False)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("bits", [16, 8])
def test_damage_is_refused_or_what_is_read_is_sound(bits: int, tmp_path: Path) -> None:
    """1,000 times each, for a reader, a writer and inspect; a writer keeps what it found whole."""
    path = tmp_path / "labels"
    data = write(path, 1, 2, head=replace(HEAD, bits=bits))
    source = random.Random(bits)
    num_refused = num_read = 0
    for _ in range(1000):
        broken = damaged(data, source)
        path.write_bytes(broken)
        was_refused = refused(lambda: sound(path))
        num_refused, num_read = num_refused + was_refused, num_read + (not was_refused)
        if broken:
            refused(lambda: summarize("labels", BytesIO(broken), "here"))  # noqa: B023
        if not was_refused and not refused(lambda: write(path, 3)):
            assert path.read_bytes().startswith(
                broken[: labels.open_labels(path).places[key(3)][0]]
            )
            assert_same_answers(path)
    assert num_refused > 250 and num_read > 100


def assert_same_answers(path: Path) -> None:
    assert read_all(path)[key(3)].answers == make_entry(3).answers


def test_every_refusal_is_one_of_ours() -> None:
    """A cut is told apart from damage, but its class has no exit code of its own."""
    assert records.CutShort.exit_code == BadData.exit_code
    assert records.CutShort not in CdccaError.__subclasses__()
