"""`cdcca label` as a user runs it: files, pipes, stops, and what distill makes of its labels."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import features

from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Coding, Shard
from cdcca_cli.main import main
from cdcca_cli.models import load
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.payloads import pictures
from cdcca_cli.teachers import local
from cdcca_cli.teachers.labelling import open_labels
from tests import tiny
from tests.commands.test_distill import QUICK, adaptation_in, write
from tests.distillation.conftest import MOST, make_shards
from tests.teachers.lessons import write_lessons
from tests.teachers.reading import labels_in

ROOT = Path(__file__).parents[2]
ON = ("--compute", "cpu", "--threads", "1", "--set", "teacher_batch_size=4")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shards(tiny_pair: tuple[Path, Path]) -> list[Shard]:
    return make_shards(load(tiny_pair[0], compute="cpu"), 6)


@pytest.fixture(scope="module")
def mirror(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label") / "mirror"
    create_device(folder, str(tiny_pair[1]), InitSettings(lora_rank=2))
    return folder


@pytest.fixture(autouse=True)
def models(
    tiny_pair: tuple[Path, Path], mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher and student named by the environment, in an empty working folder."""
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", MOST)
    monkeypatch.setenv("CDCCA_TEACHER", str(tiny_pair[0]))
    monkeypatch.setenv("CDCCA_STUDENT", str(mirror))
    monkeypatch.chdir(tmp_path)


def label(*arguments: object) -> int:
    return main(["label", *map(str, arguments), *ON])


def distill(*arguments: object) -> int:
    given = [*map(str, arguments)]
    return main(["distill", *given, *QUICK, "--holdout", "30%", "--set", "teacher_batch_size=4"])


# ---- what distill makes of them


@pytest.mark.parametrize("method", ["kd", "akd"])
def test_label_then_distill_is_distill(
    method: str, shards: list[Shard], tmp_path: Path, capfd: Capture
) -> None:
    """Byte for byte: labels of the one command are those of the other, and so is what is learnt."""
    tokens = write(tmp_path / "up.tokens", shards)
    assert label(tokens, "-o", "up.labels") == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("cdcca label: 14 labels written")
    assert distill(tokens, "--method", method, "--labels", "own", "-o", "a") == 0
    assert (tmp_path / "up.labels").read_bytes() == (tmp_path / "own").read_bytes()
    assert distill(tokens, "--method", method, "-o", "b") == 0
    os.environ.pop("CDCCA_TEACHER")
    assert distill(tokens, "--method", method, "--labels", "up.labels", "-o", "c") == 0
    made = [(tmp_path / name).read_bytes() for name in "abc"]
    assert made[0] == made[1] == made[2]


def test_files_of_labels_are_joined_by_cat(shards: list[Shard], tmp_path: Path) -> None:
    """Of two shard files, in either order, or named both: what a file of both gives."""
    one, two = write(tmp_path / "1.tokens", shards[:3]), write(tmp_path / "2.tokens", shards[3:])
    for path in (one, two):
        assert label(path, "-o", path.with_suffix(".labels")) == 0
    parts = [(tmp_path / f"{number}.labels").read_bytes() for number in (1, 2)]
    (tmp_path / "12").write_bytes(parts[0] + parts[1])
    (tmp_path / "21").write_bytes(parts[1] + parts[0])
    given = [["12"], ["21"], ["1.labels", "2.labels"], ["2.labels", "1.labels"]]
    for number, names in enumerate(given):
        options = [word for name in names for word in ("--labels", name)]
        assert distill(one, two, *options, "-o", f"{number}.out") == 0
    made = {(tmp_path / f"{number}.out").read_bytes() for number in range(4)}
    assert len(made) == 1
    assert (tmp_path / "12").read_bytes() == parts[0] + parts[1], "nothing is added"


def test_labels_that_are_missing(shards: list[Shard], tmp_path: Path, capfd: Capture) -> None:
    """Some: with a teacher they are asked for, without one left out and said. All: refused."""
    write(tmp_path / "some.tokens", shards[:3])
    write(tmp_path / "all.tokens", shards)
    write(tmp_path / "rest.tokens", shards[3:])
    assert label("some.tokens", "-o", "labels") == 0
    few = (tmp_path / "labels").read_bytes()
    teacher = os.environ.pop("CDCCA_TEACHER")
    capfd.readouterr()
    assert distill("all.tokens", "--labels", "labels", "-o", "some") == 0
    said = capfd.readouterr().err
    assert "labels: 7 of 14 questions have no label, and are left out" in said
    assert ", 7 left out without a label" in said
    assert distill("some.tokens", "--labels", "labels", "-o", "alone") == 0
    both = [adaptation_in((tmp_path / name).read_bytes()) for name in ("some", "alone")]
    assert overlay_digest(both[0].overlay) == overlay_digest(both[1].overlay)
    capfd.readouterr()
    assert distill("rest.tokens", "--labels", "labels", "-o", "none") == 65
    said = capfd.readouterr().err
    assert "labels: 7 of 7 questions have no label: were they sampled again?" in said
    assert not (tmp_path / "none").exists() and (tmp_path / "labels").read_bytes() == few
    os.environ["CDCCA_TEACHER"] = teacher
    assert distill("all.tokens", "--teacher", teacher, "--labels", "labels", "-o", "whole") == 0
    assert (tmp_path / "labels").read_bytes().startswith(few)
    assert distill("all.tokens", "-o", "fresh") == 0
    made = [adaptation_in((tmp_path / name).read_bytes()) for name in ("whole", "fresh")]
    assert made[0].report["num_unlabelled"] == 0
    assert overlay_digest(made[0].overlay) == overlay_digest(made[1].overlay)


def test_labels_without_features_are_for_the_answers_alone(
    shards: list[Shard], tmp_path: Path, capfd: Capture
) -> None:
    tokens = write(tmp_path / "up.tokens", shards)
    assert label(tokens, "-o", "labels", "--set", "features=false") == 0
    capfd.readouterr()
    os.environ.pop("CDCCA_TEACHER")
    assert distill(tokens, "--labels", "labels", "--method", "akd", "-o", "out") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--method akd: the labels have no queries" in line
    assert "use --method kd" in line
    assert not (tmp_path / "out").exists()
    assert distill(tokens, "--labels", "labels", "-o", "out") == 0


def test_labels_of_two_teachers_are_refused(
    shards: list[Shard], tiny_pair: tuple[Path, Path], tmp_path: Path, capfd: Capture
) -> None:
    """Without a teacher; with one its own are taken."""
    tokens = write(tmp_path / "up.tokens", shards)
    for teacher in tiny_pair:
        assert label(tokens, "-o", "labels", "--teacher", teacher) == 0
    both = (tmp_path / "labels").read_bytes()
    for teacher in tiny_pair:
        assert distill(tokens, "--teacher", teacher, "--labels", "labels", "-o", "out") == 0
        assert distill(tokens, "--teacher", teacher, "-o", "alone") == 0
        assert (tmp_path / "out").read_bytes() == (tmp_path / "alone").read_bytes()
    os.environ.pop("CDCCA_TEACHER")
    capfd.readouterr()
    assert distill(tokens, "--labels", "labels", "-o", "none") == 65
    (line,) = capfd.readouterr().err.splitlines()
    assert "labels: holds labels of 2 teachers (sha256:" in line
    assert (tmp_path / "labels").read_bytes() == both and not (tmp_path / "none").exists()


# ---- a file that is continued

# Labels slowly, in a fork for each line that it reads, and prints the number of the process. What a
# run imports is imported once, by a run in this process: with one thread a fork may compute too.
SLOW = """
import os, sys, time
from cdcca_cli.formats import label_stream
from cdcca_cli.main import main
from cdcca_cli.teachers import local
local.MAX_NEW_TOKENS = {"vqa": 3, "caption": 5}
inner = label_stream.Writer.__call__
def slow(self, entry):  # half a record, then the rest
    class Halves:
        def __init__(self, file):
            self.file = file
        def __getattr__(self, name):
            return getattr(self.file, name)
        def write(self, data):
            time.sleep(0.02)
            return self.file.write(data[: max(1, len(data) // 2)])
    if not hasattr(self._file, "file"):
        self._file = Halves(self._file)
    return inner(self, entry)
assert main([*sys.argv[1:], "-o", "warm", "--quiet"]) == 0
label_stream.Writer.__call__ = slow
for path in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(main([*sys.argv[1:], "-o", path.strip()]))
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def until_gone(child: int) -> None:
    """Wait for the end of a process that another waits for."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(child, 0)
            time.sleep(0.001)


def test_a_run_that_was_killed_goes_on(shards: list[Shard], tmp_path: Path, capfd: Capture) -> None:
    """At six sizes of the file, most of them inside of a record: in the end the same bytes."""
    tokens = write(tmp_path / "up.tokens", shards)
    assert label(tokens, "-o", "whole") == 0
    whole, path = (tmp_path / "whole").read_bytes(), tmp_path / "labels"
    source = np.random.default_rng(5)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "label", tokens, *ON],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        for size in sorted(source.integers(1, int(len(whole) * 0.95), 6).tolist()):
            process.stdin.write(f"{path}\n")
            child = int(process.stdout.readline())
            deadline = time.monotonic() + 120
            while not (path.exists() and path.stat().st_size >= size):
                os.kill(child, 0)  # fails if it ended before it could be killed
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            os.kill(child, signal.SIGKILL)
            until_gone(child)
            assert whole.startswith(path.read_bytes())
    finally:
        _, said = process.communicate(timeout=120)
    assert label(tokens, "-o", path) == 0
    assert path.read_bytes() == whole
    said += capfd.readouterr().err
    assert "of an unfinished record at its end are removed and computed again" in said


def test_a_file_that_is_whole_asks_nothing(
    shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:2])
    assert label(tokens, "-o", "labels") == 0
    whole = (tmp_path / "labels").read_bytes()
    monkeypatch.setattr(local.LocalTeacher, "_answer", None)
    capfd.readouterr()
    assert label(tokens, "-o", "labels") == 0
    assert "0 labels written" in capfd.readouterr().err
    assert (tmp_path / "labels").read_bytes() == whole


@pytest.mark.parametrize("strict", [False, True])
def test_one_bad_record_is_named(
    strict: bool, shards: list[Shard], tmp_path: Path, capfd: Capture
) -> None:
    """Its questions are asked again by `label`, and left out by `distill` without a teacher."""
    tokens = write(tmp_path / "up.tokens", shards)
    assert label(tokens, "-o", "labels") == 0
    whole = bytearray((tmp_path / "labels").read_bytes())
    whole[whole.index(b"frame 3") + 2] ^= 1
    (tmp_path / "labels").write_bytes(whole)
    teacher = os.environ.pop("CDCCA_TEACHER")
    options = ("--strict",) if strict else ()
    capfd.readouterr()
    code = 65 if strict else 0
    assert distill(tokens, "--labels", "labels", "-o", "out", *options) == code
    said = capfd.readouterr().err
    assert "damaged, its sum does not match" in said
    if not strict:
        assert ", 1 label record left out" in said and "questions have no label" in said
        assert adaptation_in((tmp_path / "out").read_bytes()).report["num_unlabelled"] == 3
    assert label(tokens, "-o", "labels", "--teacher", teacher, *options) == code
    said = capfd.readouterr().err
    assert "damaged, its sum does not match" in said
    if not strict:
        assert "3 labels written, 1 label record left out" in said
        found = labels_in(open_labels([tmp_path / "labels"]), shards)
        assert all(one is not None for each in found for one in each)


@pytest.mark.parametrize("strict", [False, True])
def test_one_bad_question_is_named_and_left_out(
    strict: bool, shards: list[Shard], tmp_path: Path, capfd: Capture
) -> None:
    long = replace(shards[1].questions[0], id="long", prompt="what is it? " * 60)
    bad = replace(shards[1], questions=[long, *shards[1].questions])
    tokens = write(tmp_path / "up.tokens", [shards[0], bad, shards[2]])
    assert label(tokens, "-o", "labels", *(("--strict",) if strict else ())) == 65 * strict
    said = capfd.readouterr().err
    assert "frame frame 1: question long: for the teacher: " in said
    assert strict or "7 labels written, 1 question left out" in said


# ---- streams


def test_a_pipe_gives_what_a_file_gives(
    shards: list[Shard], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """`cat a b | cdcca label > x`, and of two files."""
    one, two = write(tmp_path / "a", shards[:3]), write(tmp_path / "b", shards[3:])
    assert label(one, two, "-o", "file") == 0
    assert capfdbinary.readouterr().out == b""
    assert label(one, two) == 0
    assert capfdbinary.readouterr().out == (tmp_path / "file").read_bytes()
    program = "from cdcca_cli.teachers import local; from cdcca_cli.main import main; import sys;"
    program += "local.MAX_NEW_TOKENS = {'vqa': 3, 'caption': 5}; sys.exit(main(sys.argv[1:]))"
    piped = subprocess.run(
        [sys.executable, "-c", program, "label", *ON],
        input=one.read_bytes() + two.read_bytes(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == (tmp_path / "file").read_bytes()


def test_several_processes_are_refused(
    shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:1])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert label(tokens, "-o", "labels") == 2
    assert "2 processes cannot write one file of labels" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["nowhere.tokens", "-o", "labels"], 66, "nowhere.tokens: no such file"),
        (["up.tokens", "-o", "labels", "--teacher", "nowhere/at/all"], 66, "nowhere/at/all"),
        (["up.tokens", "-o", "labels", "--teacher", "up.tokens"], 65, "found token shards"),
        (["up.tokens", "-o", "up.tokens"], 65, "up.tokens"),
        (["up.tokens", "-o", "."], 73, "is a directory"),
        (["foreign.tokens", "-o", "labels"], 65, "sample with payload frame"),
        (["cut.tokens", "-o", "labels"], 65, "cut"),
        (["up.tokens", "-o", "labels", "--set", "label_bits=4"], 2, "--set label_bits 4"),
        (["up.tokens", "-o", "labels", "--set", "top=-1"], 2, "--set top -1"),
    ],
)
def test_what_is_refused(
    options: list[str], code: int, said: str, shards: list[Shard], tmp_path: Path, capfd: Capture
) -> None:
    data = write(tmp_path / "up.tokens", shards[:2]).read_bytes()
    write(tmp_path / "foreign.tokens", [replace(shards[0], tower="sha256:" + "1" * 64)])
    (tmp_path / "cut.tokens").write_bytes(data[:-30])
    assert label(*options) == code
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (tmp_path / "up.tokens").read_bytes() == data


# ---- payloads


def test_coded_tokens_need_the_mirrors_codebook(
    shards: list[Shard],
    mirror: Path,
    tmp_path: Path,
    capfd: Capture,
) -> None:
    """The labels are those that distill, which opens the codes first, gets."""
    from tests.commands.test_calibrate import frames

    others, own = frames(tmp_path / "others", 12, seed=1), frames(tmp_path / "frames", 6, seed=4)
    shutil.copytree(mirror, tmp_path / "device")
    made = ["calibrate", str(others), "--student", "device", "--components", "6", "--quiet"]
    assert main([*made, "--set", "vectors=2", "-o", "tokens.codebook"]) == 0
    assert main(["apply", "device", "tokens.codebook", "--quiet"]) == 0
    sample = ["sample", str(own), "-m", "device", "--top", "100%", "--payload", "tokens"]
    assert main([*sample, "--set", "max_new_tokens=1", "-o", "up.tokens", "--quiet"]) == 0
    capfd.readouterr()
    assert label("up.tokens", "-o", "none") == 66
    (line,) = capfd.readouterr().err.splitlines()
    assert "has no codebook sha256:" in line
    assert label("up.tokens", "-o", "labels", "--student", "device") == 0
    assert "6 labels written" in capfd.readouterr().err
    assert distill("up.tokens", "--student", "device", "--labels", "own", "-o", "a") == 0
    assert (tmp_path / "own").read_bytes() == (tmp_path / "labels").read_bytes()


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")
def test_a_teacher_of_another_tower_looks_at_pictures(
    llava: Path, shards: list[Shard], tmp_path: Path, capfd: Capture
) -> None:
    """And refuses tokens, which only the student's tower makes, with the cure."""
    sent = [
        replace(
            shard,
            coding=Coding("frame"),
            picture=pictures.encode(image.resize((48, 48)), pictures.WEBP),
        )
        for shard, image in zip(shards, tiny.images(6, seed=9), strict=True)
    ]
    write(tmp_path / "frames", sent)
    write(tmp_path / "tokens", shards)
    assert label("frames", "-o", "labels", "--teacher", llava) == 0
    capfd.readouterr()
    assert label("tokens", "-o", "none", "--teacher", llava) == 65
    (line,) = capfd.readouterr().err.splitlines()
    assert "frame frame 0: its tokens come from the vision tower" in line
    assert "sample with payload frame" in line
    taught = ("--method", "pseudo-label", "-o")
    assert distill("frames", "--teacher", llava, *taught, "a") == 0
    os.environ.pop("CDCCA_TEACHER")
    assert distill("frames", "--labels", "labels", *taught, "b") == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---- labels of earlier versions


def test_labels_of_earlier_versions_are_read(
    shards: list[Shard], tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    """Made as 0.6 made them, of two frames: the same is learnt of them."""
    tokens = write(tmp_path / "up.tokens", shards[:2])
    assert label(tokens, "-o", "new") == 0
    found = labels_in(open_labels([tmp_path / "new"]), shards[:2])
    whole = [[one for one in each if one is not None] for each in found]
    write_lessons(tmp_path / "old", load(tiny_pair[0], compute="cpu"), shards[:2], whole)
    os.environ.pop("CDCCA_TEACHER")
    for name in ("old", "new"):
        assert distill(tokens, "--labels", name, "--method", "akd", "-o", f"{name}.out") == 0
    made = [adaptation_in((tmp_path / f"{name}.out").read_bytes()) for name in ("old", "new")]
    assert overlay_digest(made[0].overlay) == overlay_digest(made[1].overlay)
    assert made[0].report["teacher"] == made[1].report["teacher"]
