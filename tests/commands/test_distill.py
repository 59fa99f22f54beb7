"""`cdcca distill` as a user runs it: files, pipes, folders, exit codes."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.distillation.settings import METHODS, WEIGHTS
from cdcca_cli.formats import label_stream, records, shard_record
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import Entry, payload_digest, question_digest
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.main import main
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.teachers import local
from cdcca_cli.teachers.labelling import open_labels
from tests.distillation.conftest import MOST, make_shards
from tests.teachers.reading import asked, labels_in

ROOT = Path(__file__).parents[2]
QUICK = ("--epochs", "1", "--batch-size", "8", "--compute", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def shards(tiny_pair: tuple[Path, Path]) -> list[Shard]:
    return make_shards(load(tiny_pair[0], compute="cpu"), 6)


@pytest.fixture(scope="module")
def mirror(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "mirror"
    create_device(folder, str(tiny_pair[1]), InitSettings(lora_rank=2))
    return folder


@pytest.fixture(scope="module")
def kept_labels(
    tiny_pair: tuple[Path, Path], shards: list[Shard], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the teacher says of the first two frames."""
    path = tmp_path_factory.mktemp("kept") / "labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "MAX_NEW_TOKENS", MOST)
        asked(load(tiny_pair[0], compute="cpu"), shards[:2], path)
    return path


@pytest.fixture
def models(
    tiny_pair: tuple[Path, Path],
    mirror: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Teacher and student named by the environment, in an empty working folder."""
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", MOST)
    monkeypatch.setenv("CDCCA_TEACHER", str(tiny_pair[0]))
    monkeypatch.setenv("CDCCA_STUDENT", str(mirror))
    monkeypatch.chdir(tmp_path)


def write(path: Path, shards: list[Shard]) -> Path:
    with path.open("wb") as out, writer(out) as put:
        for shard in shards:
            put(shard)
    return path


def write_some_that_are_no_numbers(path: Path, shards: list[Shard], bad: set[int]) -> Path:
    """A stream in which the tokens of some frames hold a NaN, as a broken tower makes them."""
    with path.open("wb") as out:
        tower = shards[0].tower
        records.write_record(out, {}, {"kind": "shards", "version": 2, "tower": tower})
        for number, shard in enumerate(shards):
            tensors, header = shard_record.encode([shard])
            if number in bad:
                tensors["tokens"] = np.where(tensors["tokens"] > 1e9, 0, np.float32(np.nan))
            records.write_record(out, tensors, shard_record.seal(tensors, header, tower))
        records.write_record(out, {}, {"kind": "end", "version": 2, "count": len(shards)})
    return path


def adaptation_in(data: bytes) -> Adaptation:
    return read_adaptation(io.BytesIO(data))


def run(*arguments: object) -> int:
    given = [*map(str, arguments)]
    holdout = [] if "--holdout" in given else ["--holdout", "30%"]  # frames 0 and 5
    return main(["distill", *given, *QUICK, *holdout])


@pytest.mark.usefixtures("models")
def test_a_file_becomes_an_adaptation_of_the_mirror(
    tmp_path: Path, shards: list[Shard], mirror: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = write(tmp_path / "up.tokens", shards)
    assert run(tokens, "-o", "out.safetensors") == 0
    made = adaptation_in((tmp_path / "out.safetensors").read_bytes())
    device = Device.open(mirror)
    assert (made.base, made.sequence, made.method) == (device.digest, 0, "kd")
    assert set(made.overlay) == set(device.read_overlay())
    assert made.report["num_asks"] == 14
    said = capfd.readouterr()
    assert said.out == ""
    assert "held out the student now answers" in said.err
    assert said.err.count("\n") == 2


@pytest.mark.usefixtures("models")
def test_a_pipe_gives_what_files_give(tmp_path: Path, shards: list[Shard]) -> None:
    """`cat a b | cdcca distill > x` and `cdcca distill a b -o y`: the same bytes."""
    one, two = write(tmp_path / "a", shards[:3]), write(tmp_path / "b", shards[3:])
    piped = subprocess.run(
        [sys.executable, "-m", "cdcca_cli", "distill", *QUICK],
        input=one.read_bytes() + two.read_bytes(),
        capture_output=True,
        env=environment(),
        timeout=300,
    )
    assert piped.returncode == 0, piped.stderr
    files = subprocess.run(
        [sys.executable, "-m", "cdcca_cli", "distill", one, two, "-o", "y", *QUICK],
        capture_output=True,
        env=environment(),
        timeout=300,
    )
    assert (files.returncode, files.stdout) == (0, b"")
    assert (tmp_path / "y").read_bytes() == piped.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.usefixtures("models")
def test_work_folder(tmp_path: Path, shards: list[Shard]) -> None:
    tokens = write(tmp_path / "up.tokens", shards)
    assert run(tokens, "-o", "first", "--work", "kept") == 0
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert any(name.startswith("training-") for name in kept)
    assert run(tokens, "-o", "second", "--work", "kept") == 0
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert again == kept
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.usefixtures("models")
def test_resume(tmp_path: Path, shards: list[Shard], mirror: Path) -> None:
    tokens = write(tmp_path / "up.tokens", shards)
    assert run(tokens, "-o", "first") == 0
    assert run(tokens, "-o", "second", "--resume", "first") == 0
    first, second = (adaptation_in((tmp_path / name).read_bytes()) for name in ("first", "second"))
    assert second.base == first.base == Device.open(mirror).digest
    assert second.report["resumed"] and not first.report["resumed"]
    assert overlay_digest(second.overlay) != overlay_digest(first.overlay)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_an_adaptation_that_names_it(
    method: str, tmp_path: Path, shards: list[Shard], mirror: Path
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:4])
    views = ["--set", "cotta_views=2"] if method == "cotta" else []
    assert run(tokens, "-o", "out", "--method", method, *views) == 0
    made = adaptation_in((tmp_path / "out").read_bytes())
    device = Device.open(mirror)
    assert (made.method, made.base) == (method, device.digest)
    assert set(made.overlay) == set(device.read_overlay())
    assert (overlay_digest(made.overlay) == device.digest) == (method == "none")
    is_taught = method in WEIGHTS
    assert (made.report["held_out"] is not None) == is_taught
    assert (made.report["teacher"] is not None) == is_taught


@pytest.mark.usefixtures("models")
def test_a_teacher_that_is_named_judges_a_method_without_one(
    tmp_path: Path, shards: list[Shard], tiny_pair: tuple[Path, Path], mirror: Path
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:4])
    assert run(tokens, "-o", "out", "--method", "none", "--teacher", tiny_pair[0]) == 0
    made = adaptation_in((tmp_path / "out").read_bytes())
    assert overlay_digest(made.overlay) == Device.open(mirror).digest
    held = made.report["held_out"]
    assert held["cross_entropy"]["before"] == held["cross_entropy"]["after"] > 0


@pytest.mark.usefixtures("models")
def test_a_file_of_labels_stands_in_for_a_teacher_that_is_gone(
    tmp_path: Path,
    shards: list[Shard],
    tiny_pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same bytes; the file is not touched any more, and other methods learn from it too."""
    tokens = write(tmp_path / "up.tokens", shards)
    shutil.copytree(tiny_pair[0], tmp_path / "teacher")
    assert run(tokens, "-o", "first", "--teacher", "teacher", "--labels", "kept/labels") == 0
    shutil.rmtree(tmp_path / "teacher")
    monkeypatch.delenv("CDCCA_TEACHER")
    kept = (tmp_path / "kept/labels").read_bytes()
    capfd.readouterr()
    assert run(tokens, "-o", "second", "--labels", "kept/labels") == 0
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert run(tokens, "-o", "third", "--labels", "kept/labels", "--method", "pkd") == 0
    assert adaptation_in((tmp_path / "third").read_bytes()).method == "pkd"
    assert capfd.readouterr().err.count("\n") == 4
    assert (tmp_path / "kept/labels").read_bytes() == kept


@pytest.mark.usefixtures("models")
def test_earlier_shards_are_learnt_again(tmp_path: Path, shards: list[Shard]) -> None:
    """Two frames of 2 asks and 3; the one that is in both streams counts as new."""
    tokens = write(tmp_path / "up.tokens", shards[:3])
    earlier = write(tmp_path / "earlier.tokens", shards[2:5])
    options = ["--replay", earlier, "--set", "replay_share=100%"]
    assert run(tokens, "-o", "out", *options) == 0
    report = adaptation_in((tmp_path / "out").read_bytes()).report
    assert (report["num_replayed"], report["num_asks"]) == (5, 7 + 5)


@pytest.mark.usefixtures("models")
def test_anchors_are_frames_of_their_own(tmp_path: Path, shards: list[Shard]) -> None:
    """From two files; without them nothing is said of them."""
    tokens = write(tmp_path / "up.tokens", shards[:3])
    options = [
        word
        for number in (3, 4)
        for word in ("--anchors", str(write(tmp_path / f"{number}.tokens", [shards[number]])))
    ]
    reports = []
    for more in (options, []):
        assert run(tokens, "-o", "out", "--force", *more) == 0
        reports.append(adaptation_in((tmp_path / "out").read_bytes()).report)
    held, alone = reports
    assert (held["anchors"]["num_frames"], held["drift"]["where"]) == (2, "anchors")
    assert held["num_frames"] == alone["num_frames"] == 3
    assert "anchor" in held["curves"] and "anchor" not in alone["curves"]
    assert alone["anchors"] is None


@pytest.mark.usefixtures("models")
def test_only_the_groups_that_are_named_change(
    tmp_path: Path, shards: list[Shard], mirror: Path
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:3])
    assert run(tokens, "-o", "out", "--train", "norm,query") == 0
    made = adaptation_in((tmp_path / "out").read_bytes())
    before = Device.open(mirror).read_overlay()
    changed = {name for name in before if made.overlay[name].tobytes() != before[name].tobytes()}
    assert changed and made.report["groups"] == ["norm", "query"]
    assert all("norm" in name.lower() or name == "query_tokens" for name in changed), changed


LOGGED = {
    "begin": {"what", "method", "epochs", "batch_size", "lr", "terms", "seed"},
    "step": {
        *("what", "step", "of", "epoch", "lr", "loss", "ce", "kl", "gradient_norm"),
        *("questions", "seconds", "seconds_left"),
    },
    "held_out": {"what", "epoch", "cross_entropy", "agreement", "seconds"},
}


@pytest.mark.usefixtures("models")
def test_a_log_has_a_line_a_step_and_keeps_out_of_the_pipe(
    tmp_path: Path, shards: list[Shard], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """13 questions or so, 8 a step, twice: what there was before is kept."""
    tokens = write(tmp_path / "up.tokens", shards)
    (tmp_path / "log").write_text('{"what": "earlier"}\n')
    arguments = ["distill", str(tokens), *QUICK, "--epochs", "2", "--log", "log"]
    arguments += ["--holdout", "30%"]
    assert main(arguments) == 0
    piped = capfdbinary.readouterr()
    made = adaptation_in(piped.out)
    assert piped.err.count(b"\n") == 2 and b"{" not in piped.err
    earlier, *lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert earlier == {"what": "earlier"}
    assert [line["what"] for line in lines] == [
        *("begin", "held_out", "step", "step", "held_out", "step", "step", "held_out")
    ]
    assert all(set(line) == LOGGED[line["what"]] for line in lines)
    steps = [line for line in lines if line["what"] == "step"]
    assert [(line["step"], line["of"], line["epoch"]) for line in steps] == [
        *((1, 4, 1), (2, 4, 1), (3, 4, 2), (4, 4, 2))
    ]
    assert sum(line["questions"] for line in steps) == 2 * made.report["num_trained"]
    held_out = [line["cross_entropy"] for line in lines if line["what"] == "held_out"]
    assert held_out == made.report["curves"]["held_out"]
    assert lines[0]["terms"] == ["ce", "kl"]


@pytest.mark.usefixtures("models")
def test_a_frame_whose_tokens_are_no_numbers_is_named_and_left_out(
    tmp_path: Path, shards: list[Shard], capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = write_some_that_are_no_numbers(tmp_path / "up.tokens", shards[:4], {1})
    assert run(tokens, "-o", "out") == 0
    left_out, curves, summary = capfd.readouterr().err.splitlines()
    assert "frame 1" in left_out and "left out" in left_out
    assert re.fullmatch(
        r"cdcca distill: epoch by epoch: ce \(weight 1\) [\d.]+, kl \(weight 1\) [\d.]+",
        curves,
    )
    assert "questions trained on" in summary and ", 1 shard left out" in summary
    write(tmp_path / "rest.tokens", [shards[0], *shards[2:4]])
    assert run("rest.tokens", "-o", "rest") == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "rest").read_bytes()
    write_some_that_are_no_numbers(tmp_path / "none.tokens", shards[:2], {0, 1})
    capfd.readouterr()
    assert run(tokens, "-o", "strict", "--strict") == 65
    assert "frame 1" in capfd.readouterr().err
    assert run("none.tokens", "-o", "none") == 65
    *left_out, refused = capfd.readouterr().err.splitlines()
    assert ["frame 0" in left_out[0], "frame 1" in left_out[1]] == [True, True]
    assert "nothing to learn" in refused and not (tmp_path / "none").exists()


@pytest.mark.usefixtures("models")
def test_a_teacher_that_answers_with_nothing_is_refused(
    tmp_path: Path,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its first token always ends the answer."""
    monkeypatch.setattr(LoadedModel, "decode", lambda _model, _ids: "")
    free = [replace(shard, questions=shard.questions[:1]) for shard in shards[:3]]
    tokens = write(tmp_path / "up.tokens", free)
    assert run(tokens, "-o", "out") == 65
    assert "answers to all 3 questions are empty" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("models")
def test_earlier_shards_of_which_nothing_is_learnt_are_said(
    tmp_path: Path, shards: list[Shard], capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:3])
    assert run(tokens, "-o", "out", "--replay", tokens) == 0
    assert "--replay: none of its 3 frames is trained on again: 3 are in" in capfd.readouterr().err


@pytest.mark.usefixtures("models")
def test_questions_that_the_teacher_does_not_answer_are_said(
    tmp_path: Path,
    shards: list[Shard],
    kept_labels: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = open_labels([kept_labels])
    with label_stream.writing(tmp_path / "labels", 32) as put:
        for number, (shard, labels) in enumerate(
            zip(shards[:2], labels_in(found, shards[:2]), strict=True)
        ):
            whole = [label for label in labels if label is not None]
            if number == 0:
                whole[0].answer = ""
            digests = map(question_digest, shard.questions)
            of_question = dict(zip(digests, whole, strict=True))
            put(Entry(shard.frame, payload_digest(shard), found.sources[0], of_question))
    tokens = write(tmp_path / "up.tokens", shards[:2])
    monkeypatch.delenv("CDCCA_TEACHER")
    assert run(tokens, "-o", "out", "--labels", "labels") == 0
    assert ", 1 left out because the teacher's answer is empty; " in capfd.readouterr().err


@pytest.mark.usefixtures("models")
def test_a_log_that_nobody_reads_any_more_stops_no_training(
    tmp_path: Path, shards: list[Shard], capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = write(tmp_path / "up.tokens", shards[:3])
    reading, writing = os.pipe()
    os.close(reading)
    assert run(tokens, "-o", "out", "--log", f"/dev/fd/{writing}") == 0
    os.close(writing)
    assert "its reader closed the pipe: logging stops" in capfd.readouterr().err
    assert run(tokens, "-o", "alone") == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "cannot share one pipe"),
        (["-", "--labels", "labels"], "cannot share one pipe"),
        (["up.tokens"], "give --labels or --work"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    options: list[str],
    said: str,
    rank: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert run(*options, "-o", "out") == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.usefixtures("models")
def test_rate_aware(tmp_path: Path, shards: list[Shard], capfd: pytest.CaptureFixture[str]) -> None:
    """The steps, their bits and the held-out frames are in the file, and inspect says so."""
    tokens = write(tmp_path / "up.tokens", shards)
    options = ["--rate-aware", 5, "--bits", 0.9, "--holdout", "30%"]
    assert run(tokens, "-o", "out", *options) == 0
    assert "as coded at 0.90 bits a parameter" in capfd.readouterr().err
    made = adaptation_in((tmp_path / "out").read_bytes())
    assert made.rate_aware is not None and made.held_out is not None
    assert made.rate_aware.num_steps == 5
    assert made.rate_aware.bits == pytest.approx(0.9, abs=0.01)
    assert main(["inspect", "out", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["format"] == 3
    assert said["rate_aware"]["step"] == made.rate_aware.step
    assert said["counts"]["held_out_questions"] == made.held_out.num_questions
    assert said["bytes"]["total"] == (tmp_path / "out").stat().st_size
    assert run(tokens, "-o", "plain") == 0
    assert adaptation_in((tmp_path / "plain").read_bytes()).rate_aware is None


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["empty.tokens"], 65, "nothing to learn"),
        (["foreign.tokens"], 65, "vision tower"),
        (["cut.tokens"], 65, "cut"),
        (["template.tokens"], 65, "bare question"),
        (["nowhere.tokens"], 66, "nowhere.tokens"),
        (["up.tokens", "--holdout", "ten"], 2, "--holdout"),
        (["up.tokens", "--lr", "0"], 2, "--lr"),
        (["up.tokens", "--bits", "2"], 2, "--rate-aware"),
        (["up.tokens", "--bits", "0", "--rate-aware", "5"], 2, "--bits"),
        (["up.tokens", "--rate-aware", "-5"], 2, "--rate-aware"),
        (["up.tokens", "--teacher", "nowhere/at/all"], 66, "nowhere/at/all"),
        (["up.tokens", "--teacher", "mistyped.lessons"], 66, "mistyped.lessons: no such"),
        (["up.tokens", "--student", "nowhere"], 66, "nowhere"),
        (["up.tokens", "--resume", "up.tokens"], 65, "adaptation"),
        (["up.tokens", "--replay", "nowhere.tokens"], 66, "nowhere.tokens"),
        (["up.tokens", "--replay", "cut.tokens"], 65, "cut"),
        (["up.tokens", "--anchors", "nowhere.tokens"], 66, "nowhere.tokens"),
        (["up.tokens", "--anchors", "cut.tokens"], 65, "cut"),
        (["up.tokens", "--log", "nowhere/log"], 73, "nowhere/log"),
        (["up.tokens", "--teacher", "labels"], 65, "labels are given as --labels"),
        (["up.tokens", "--teacher", "up.tokens"], 65, "found token shards"),
        (["up.tokens", "--labels", "up.tokens"], 65, "found token shards"),
        (["up.tokens", "--labels", "."], 66, "is a directory"),
    ],
)
def test_what_is_refused_writes_nothing(
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    shards: list[Shard],
    kept_labels: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write(tmp_path / "up.tokens", shards[:2]).read_bytes()
    write(tmp_path / "empty.tokens", [])
    write(tmp_path / "foreign.tokens", [replace(shards[0], tower="sha256:" + "1" * 64)])
    write(tmp_path / "more.tokens", shards[:3])
    asked = Question("q", "Question: What is it? Answer:", "vqa")
    write(tmp_path / "template.tokens", [replace(shards[0], questions=[asked])])
    (tmp_path / "cut.tokens").write_bytes(data[:-30])
    shutil.copy(kept_labels, tmp_path / "labels")
    before = sorted(tmp_path.iterdir())
    assert run(*options, "-o", "out") == code
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "nonsense"], "--method nonsense: expected one of kd, akd, pseudo-label,"),
        (
            ["--method", "tent", "--kl", "forward"],
            "--kl: does nothing with --method tent: it is for kd, akd, ",
        ),
        (["--method", "tent", "--set", "query_weight=1"], "--set query_weight: "),
        (
            ["--method", "cotta", "--set", "confidence=true"],
            "--set confidence: does nothing with --method cotta: it is for kd, akd, ",
        ),
        (
            ["--method", "none", "--rate-aware", "5"],
            "--rate-aware: does nothing with --method none",
        ),
        (["--method", "pseudo-label", "--set", "repr_weight=1"], "use akd"),
        (["--method", "akd", "--set", "kl_weight=2"], "give --kl forward or --kl reverse"),
        (["--method", "akd", "--set", "kl_temperature=2"], "give --kl forward or --kl reverse"),
        (["--kl", "forward", "--set", "kl_weight=0"], "its --set kl_weight is 0"),
        (["--set", "patience=1", "--holdout", "0%"], "--holdout is 0%"),
        (["--set", "tau=2"], "--set tau: does nothing with --method kd: it is for cwd"),
        (["--method", "pseudo-label", "--set", "repr_at=both"], "--set repr_at: does nothing with"),
        (["--method", "tent", "--set", "balance=none"], "--set balance: does nothing with"),
        (["--method", "none", "--replay", "up.tokens"], "--replay: does nothing with"),
        (["--set", "cotta_ema=0"], "--set cotta_ema: does nothing with --method kd"),
        (["--set", "replay_share=50%"], "--set replay_share: is of the frames of --replay: name"),
        (["--set", "replay_questions=9"], "--set replay_questions: is of the frames of --replay"),
        (["--method", "tent", "--anchors", "up.tokens"], "--anchors: does nothing with --method t"),
        (["--method", "none", "--anchors", "up.tokens"], "--anchors: does nothing with --method n"),
        (["--set", "anchor_weight=2"], "--set anchor_weight: is of the frames of --anchors: name"),
        (["--set", "anchor_questions=8"], "--set anchor_questions: is of the frames of --anchors"),
        (["--anchors", "up.tokens", "--set", "anchor_weight=0"], "--set anchor_weight 0.0: expe"),
        (["--max-drift", "0.1", "--rate-aware", "10"], "--max-drift: cannot scale what"),
        (["--max-drift", "0"], "--max-drift 0.0: expected more than 0 nats"),
        (["--set", "choose=first"], "--set choose first: expected one of last, best"),
        (["--log", "-"], "--log -: expected a name on disk"),
        (
            ["--method", "tent", "--teacher-quantize", "nf4"],
            "--teacher-quantize and --set teacher_device_map are for loading a teacher",
        ),
        (
            ["--teacher", "up.tokens", "--set", "teacher_device_map=auto"],
            "are for loading a teacher, and none is loaded",
        ),
        (["--kl", "sideways"], "--kl sideways: expected one of auto, none, forward, reverse"),
        (["--kl", "forward", "--set", "kl_temperature=0"], "--set kl_temperature 0.0"),
        (["--method", "cwd", "--set", "tau=0"], "--set tau 0.0: expected more than 0"),
        (["--set", "balance=scales"], "--set balance scales"),
        (["--set", "repr_at=top"], "--set repr_at top"),
        (["--set", "query_weight=-1"], "--set query_weight -1.0"),
        (["--set", "ce_weight=nan"], "--set ce_weight nan"),
        (
            [f"--set={term}_weight=0" for term in ("query", "repr", "ce", "kl")],
            "there is nothing to learn",
        ),
        (["--set", "confidence=true", "--set", "ce_weight=0"], "--set confidence"),
        (["--train", ""], "--train"),
        (["--train", "norm,tower"], "--train tower: expected"),
        (["--set", "ema=1"], "--set ema 1.0"),
        (["--set", "micro_batch_size=0"], "--set micro_batch_size 0"),
        (["--set", "patience=0"], "--set patience 0"),
        (["--replay", "up.tokens", "--set", "replay_share=200%"], "--set replay_share 200%"),
        (["--set", "label_bits=4"], "--set label_bits 4"),
        (["--method", "cotta", "--set", "cotta_views=0"], "--set cotta_views 0: expected"),
        (["--method", "cotta", "--set", "cotta_ema=2"], "--set cotta_ema 2.0: expected"),
        (["--epochs", "0"], "--epochs"),
        (["--seed", "-1"], "--seed"),
        (["--compute", "abacus"], "--compute"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_loaded(
    options: list[str],
    said: str,
    tmp_path: Path,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("cdcca_cli.models.load", None)
    monkeypatch.setattr("cdcca_cli.models.load_device", None)
    write(tmp_path / "up.tokens", shards[:1])
    assert main(["distill", "up.tokens", "-o", "out", *QUICK, *options]) == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["up.tokens"]
