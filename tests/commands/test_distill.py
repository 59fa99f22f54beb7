"""`cdcca distill` as a user runs it: files, pipes, folders, exit codes."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cdcca_cli.distillation import teacher as teaching
from cdcca_cli.families import load
from cdcca_cli.families.initial import create_device
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard, writer
from cdcca_cli.main import main
from tests.distillation.conftest import make_shards

ROOT = Path(__file__).parents[2]
QUICK = ("--epochs", "1", "--batch-size", "8", "--compute", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def shards(tiny_pair: tuple[Path, Path]) -> list[Shard]:
    return make_shards(load(tiny_pair[0], compute="cpu"), 6)


@pytest.fixture(scope="module")
def mirror(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "mirror"
    create_device(folder, str(tiny_pair[1]), rank=2)
    return folder


@pytest.fixture
def models(
    tiny_pair: tuple[Path, Path],
    mirror: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Teacher and student named by the environment, in an empty working folder."""
    monkeypatch.setattr(teaching, "MAX_NEW_TOKENS", {"vqa": 3, "caption": 5})
    monkeypatch.setenv("CDCCA_TEACHER", str(tiny_pair[0]))
    monkeypatch.setenv("CDCCA_STUDENT", str(mirror))
    monkeypatch.chdir(tmp_path)


def write(path: Path, shards: list[Shard]) -> Path:
    with path.open("wb") as out, writer(out) as put:
        for shard in shards:
            put(shard)
    return path


def adaptation_in(data: bytes) -> Adaptation:
    return read_adaptation(io.BytesIO(data))


def run(*arguments: object) -> int:
    return main(["distill", *map(str, arguments), *QUICK])


@pytest.mark.usefixtures("models")
def test_a_file_becomes_an_adaptation_of_the_mirror(
    tmp_path: Path, shards: list[Shard], mirror: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = write(tmp_path / "up.tokens", shards)
    assert run(tokens, "-o", "out.safetensors") == 0
    made = adaptation_in((tmp_path / "out.safetensors").read_bytes())
    device = Device.open(mirror)
    assert (made.base, made.sequence, made.method) == (device.digest, 0, "akd")
    assert set(made.overlay) == set(device.read_overlay())
    assert made.report["num_asks"] == 14
    said = capfd.readouterr()
    assert said.out == ""
    assert "held out the student now answers" in said.err
    assert said.err.count("\n") == 1


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
def test_work_and_peft_folders(tmp_path: Path, shards: list[Shard]) -> None:
    tokens = write(tmp_path / "up.tokens", shards)
    assert run(tokens, "-o", "first", "--work", "kept", "--peft", "adapter") == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert any(name.startswith("training-") for name in kept)
    assert run(tokens, "-o", "second", "--work", "kept") == 0
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert again == kept
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert run(tokens, "-o", "third", "--peft", "adapter") == 73
    assert not (tmp_path / "third").exists()


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
    assert said["format"] == 2
    assert said["rate_aware"]["step"] == made.rate_aware.step
    assert said["counts"]["held_out_asks"] == made.held_out.num_asks
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
        (["nowhere.tokens"], 66, "nowhere.tokens"),
        (["up.tokens", "--holdout", "ten"], 2, "--holdout"),
        (["up.tokens", "--lr", "0"], 2, "--lr"),
        (["up.tokens", "--bits", "1.2"], 2, "--rate-aware"),
        (["up.tokens", "--bits", "0", "--rate-aware", "5"], 2, "--bits"),
        (["up.tokens", "--rate-aware", "-5"], 2, "--rate-aware"),
        (["up.tokens", "--teacher", "nowhere/at/all"], 66, "nowhere/at/all"),
        (["up.tokens", "--student", "nowhere"], 66, "nowhere"),
        (["up.tokens", "--resume", "up.tokens"], 65, "adaptation"),
    ],
)
def test_what_is_refused_writes_nothing(
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    shards: list[Shard],
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write(tmp_path / "up.tokens", shards[:2]).read_bytes()
    write(tmp_path / "empty.tokens", [])
    write(tmp_path / "foreign.tokens", [replace(shards[0], tower="sha256:" + "1" * 64)])
    (tmp_path / "cut.tokens").write_bytes(data[:-30])
    before = sorted(tmp_path.iterdir())
    assert run(*options, "-o", "out") == code
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
