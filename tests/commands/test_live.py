"""`cdcca infer` and `cdcca sample` on a camera: answers as they come, and an end in order."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.main import main
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests.datasets import served

pytest.importorskip("av", reason="PyAV is not installed")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def device(blip2_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "device"
    create_device(folder, str(blip2_llama), InitSettings(lora_rank=2))
    return folder


@pytest.fixture
def camera() -> Iterator[str]:
    """An address with passwords; the stream stalls at its end."""

    def write(sink: Any, _: str) -> None:
        served.mpeg_ts(sink, 25, 90)

    with served.serving(write) as server:
        yield server.url("cam?pwd=SECRET").replace("//", "//me:SECRET@")


def start(*arguments: object, **how: Any) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "cdcca_cli", *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        **how,
    )


def test_infer_answers_as_frames_come_and_ends_in_order_at_ctrl_c(
    camera: str, device: Path
) -> None:
    process = start(
        *("infer", camera, "-m", device, "--every", "200ms", "--prompt", "what?"),
        *("--max-new-tokens", "2"),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    begun = time.monotonic()
    second = json.loads(process.stdout.readline())
    assert time.monotonic() - begun < 10  # not a window of 64 frames later: 12.8 s
    assert first["id"] != second["id"] and first["id"] == first["image"]
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    assert all(json.loads(line)["prompt"] == "what?" for line in rest.splitlines())
    lines = stderr.decode().splitlines()
    assert process.returncode == 0, lines
    assert lines[0].endswith("/cam: stopped by SIGINT: what was captured is kept")
    assert len(lines) == 2 and f"{2 + len(rest.splitlines())} questions answered" in lines[1]
    assert "SECRET" not in stderr.decode() + str([first, second]) + rest.decode()


def test_sample_by_threshold_keeps_what_was_captured_at_sigterm(
    camera: str,
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    generate, calls = LoadedModel.generate, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return generate(*arguments, **options)

    monkeypatch.setattr(LoadedModel, "generate", stopped)
    out = tmp_path / "out"
    words = ["--threshold", "0", "--set", "max_new_tokens=1", "--set", "repeats=true"]
    assert main(["sample", camera, "-m", str(device), "-o", str(out), *words]) == 0
    stderr = capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shards = list(read_shards(io.BytesIO(out.read_bytes())))
    assert len(shards) >= 2 and f"{len(shards)} of {len(shards)} frames picked" in stderr
    assert "stopped by SIGTERM: what was captured is kept" in stderr
    assert b"SECRET" not in out.read_bytes()


def test_sample_ranks_the_frames_of_a_duration(
    camera: str, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--every", "0.1", "--duration", "1.5", "--top", "50%"]
    words += ["--set", "max_new_tokens=2", "--set", "repeats=true"]
    assert main(["sample", camera, "-m", str(device), "-o", str(out), *words]) == 0
    shards = list(read_shards(io.BytesIO(out.read_bytes())))
    found = capfd.readouterr().err.splitlines()[-1].split()
    assert len(shards) == int(found[2]) == -(-int(found[4]) // 2)
    assert len(shards) > 1


def test_a_stalled_camera_does_not_hold_the_stage_up_at_ctrl_c(device: Path) -> None:
    def write(sink: Any, _: str) -> None:
        served.mpeg_ts(sink, 100, 1)
        time.sleep(60)

    with served.serving(write) as server:
        process = start(
            *("infer", server.url(), "-m", device, "--max-new-tokens", "1", "--every", "10ms"),
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        stderr = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 0, stderr
        assert time.monotonic() - begun < 8


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sample"], "--top: ranks all questions, and a live source has no end: give --duration"),
        (["sample", "--budget", "9KB"], "--budget: ranks all questions, and a live source has no"),
        (["sample", "--predictions", "p"], "--predictions: are of frames that are there again"),
        (["infer", "--images", "."], "--images: is for manifests"),
        (["infer", "--every", "5x"], "--every 5x: expected a time above 0, like 5s"),
        (["infer", "--every", "1ms"], "--every 0.001: expected 0.01 or more seconds"),
        (["infer", "--duration", "0s"], "--duration 0s: expected a time above 0"),
    ],
)
def test_what_a_live_source_cannot_do(
    words: list[str],
    reason: str,
    camera: str,
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_text("")
    verb, *rest = words
    assert main([verb, camera, "-m", str(device), "-o", "out", *rest]) == 2
    stderr = capfd.readouterr().err
    assert reason in stderr and "SECRET" not in stderr
    assert len([line for line in stderr.splitlines() if "connecting again" not in line]) == 1


@pytest.mark.parametrize("setting", ["--every", "--duration"])
def test_pictures_have_no_times(
    setting: str, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests import tiny

    tiny.images(1)[0].save(tmp_path / "a.png")
    assert main(["infer", str(tmp_path), "-m", str(device), setting, "5s"]) == 2
    assert f"{setting}: is for videos and live sources" in capfd.readouterr().err
