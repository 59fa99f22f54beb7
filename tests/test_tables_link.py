"""Table 5: link.sh runs small where the kernel lets it; its transfers notice what goes wrong."""

import contextlib
import hashlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.shipped import few_frames
from tests.test_examples import commands, environment  # noqa: F401, the first is a fixture

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "examples" / "tables"
FIVE_RAW_BYTES = 5 * 96 * 96 * 3
NOISE_BYTES = {  # about what cdcca makes of six frames
    "up/five.tokens": 19_000,
    "up/stream.tokens": 9_000,
    "down/overlay.fp32": 817_072,
    "down/update.usq": 43_000,
    "down/update.nf4": 103_000,
    "down/update.paper": 4_000,
}


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TABLES))
    return importlib.import_module("transfer")


@pytest.fixture
def address(transfer: ModuleType) -> Iterator[tuple[str, int]]:
    """Of a receiver on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed below
            transfer.serve(listener)

    receiver = threading.Thread(target=serve, daemon=True)
    receiver.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    receiver.join(timeout=10)


@pytest.mark.parametrize("num_bytes", [0, 1, 1448, (1 << 18) - 1, 1 << 18, 3_000_001])
def test_a_file_arrives_whole(
    transfer: ModuleType, address: tuple[str, int], tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(num_bytes))
    timing = transfer.give(path, hashlib.sha256(path.read_bytes()).digest(), address)
    assert 0 < timing.connect_seconds < timing.seconds


def test_other_content_fails_at_both_ends_and_the_next_one_goes_through(
    transfer: ModuleType,
    address: tuple[str, int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is sent")
    with pytest.raises(transfer.Damaged, match="did not get what was sent"):
        transfer.give(path, hashlib.sha256(b"what was meant").digest(), address)
    transfer.give(path, hashlib.sha256(b"what is sent").digest(), address)
    assert "was announced" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "0 of the header's 40"),
        (b"1234567", "7 of the header's"),
        (None, "3 of 500,000 bytes"),
    ],
)
def test_a_transfer_cut_short_is_refused(
    transfer: ModuleType, sent: bytes | None, said: str
) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(transfer.HEADER.pack(500_000, bytes(32)) + b"abc" if sent is None else sent)
        here.shutdown(socket.SHUT_WR)
        with pytest.raises(transfer.Damaged, match=said):
            transfer.take(there)
        there.close()
        assert here.recv(1) == b"", "nothing is acknowledged"


def test_send_ends_with_code_1_when_the_receiver_goes_away(
    transfer: ModuleType, tmp_path: Path
) -> None:
    """It takes the first transfer, of nothing, and hangs up in the second."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as first:
            transfer.take(first)
        listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        words = ["send", str(path), "127.0.0.1", "--port", str(port), "--times", "1"]
        done = subprocess.run(
            [sys.executable, str(TABLES / "transfer.py"), *words], capture_output=True, text=True
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("send: ")


def test_the_ideal_of_a_megabyte_on_the_phone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 1,448,000 bytes are 1,000 full frames of 1,514, so 12,112,000 bits, 0.6056 s at 20
    Mbit/s; two round trips of 50 ms are 0.1 s more."""
    monkeypatch.syspath_prepend(str(TABLES))
    table = importlib.import_module("link_table")
    assert table.ideal_seconds(1_448_000, 20e6, 0.025) == pytest.approx(0.7056, abs=1e-12)
    assert table.ideal_seconds(0, 1e9, 0.0005) == pytest.approx(0.002, abs=1e-12)


# ---------------------------------------------------------------- the script


def begin(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(TABLES / "link.sh"), str(folder)],
        cwd=folder.parent,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def link(folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """To its end, after which none of its namespaces is there."""
    running = begin(folder, env)
    out, said = running.communicate(timeout=300)
    assert not namespaces(running)
    return subprocess.CompletedProcess(running.args, running.returncode, out, said)


def namespaces(running: subprocess.Popen[str]) -> list[Path]:
    """Those that this link.sh made."""
    return list(Path("/run/netns").glob(f"cdcca-{running.pid}-*"))


def results(folder: Path) -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text())
        for path in (folder / "transfers" / "gigabit").glob("*.json")
    }


def small(commands: Path, frames: Path) -> dict[str, str]:  # noqa: F811
    return environment(
        commands,
        FRAMES=str(frames),
        LINKS="gigabit",
        TIMES="2",
        PYTHON=sys.executable,
        PYTHONPATH=str(ROOT),
    )


def skip_if_not_measured(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    if "\nNot measured: " in done.stdout:
        reason = done.stdout.partition("\nNot measured: ")[2].strip()
        assert reason in done.stderr
        pytest.skip(reason)


@pytest.fixture
def made(tmp_path: Path, commands: Path) -> tuple[Path, dict[str, str]]:  # noqa: F811
    """A folder with all files that go over the link, noise for those of cdcca; the environment."""
    env = small(commands, few_frames(tmp_path / "frames", "stream", 6))
    folder = tmp_path / "table"
    program = str(TABLES / "link_files.py")
    subprocess.run([sys.executable, program, env["FRAMES"], str(folder)], env=env, check=True)
    for name, num_bytes in NOISE_BYTES.items():
        (folder / name).write_bytes(os.urandom(num_bytes))
    for name in ("five", "stream"):
        (folder / f"{name}.json").write_text('{"counts": {"shards": 5}}')
    (folder / "made").touch()
    return folder, env


def test_every_file_goes_over_the_link(made: tuple[Path, dict[str, str]]) -> None:
    """Once as the kernel has it, once with the delay outside of it."""
    folder, env = made
    done = link(folder, env)
    skip_if_not_measured(done)
    first = results(folder)
    assert len(first) == 18, "17 files and the link"
    assert first["up-five.raw"]["bytes"] == FIVE_RAW_BYTES
    assert first["up-stream.raw"]["bytes"] == FIVE_RAW_BYTES * 6 // 5
    for name, found in first.items():
        if name != "link":
            assert len(found["seconds"]) == 2
            # A full bucket sends its burst at once: a quarter of a millisecond on this link.
            least = max(0.002, 8 * found["bytes"] * 1514 / 1448 / 1e9) - 0.0003
            assert min(found["seconds"]) > least, name
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 17 + 4, "the head, the files, the paper"
    assert len({row.count("|") for row in rows}) == 1
    if first["link"]["shaped"] == "netem":
        again = link(folder, env | {"NETEM": "no"})
        assert again.returncode == 0, again.stderr[-2000:]
        assert min(results(folder)["up-five.tokens"]["connect_seconds"]) > 0.001


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_midway_it_leaves_no_namespace(
    made: tuple[Path, dict[str, str]], number: signal.Signals
) -> None:
    folder, env = made
    stopped = begin(folder, env | {"TIMES": "1000000", "WITHIN": "100"})
    assert stopped.stderr is not None
    said = stopped.stderr.readline()
    if "not measured" in said:
        stopped.communicate(timeout=30)
        pytest.skip(said)
    time.sleep(0.5)
    assert namespaces(stopped)
    if number == signal.SIGINT:
        os.killpg(stopped.pid, number)  # as Ctrl-C does
    else:
        stopped.send_signal(number)
    stopped.communicate(timeout=30)
    assert stopped.returncode in (-number, 128 + number)
    assert not namespaces(stopped)


@pytest.mark.slow
def test_from_frames_to_the_table(tmp_path: Path, commands: Path) -> None:  # noqa: F811
    """All of it, with cdcca making the files: a minute of CPU."""
    folder = tmp_path / "table"
    done = link(folder, small(commands, few_frames(tmp_path / "frames", "stream", 6)))
    skip_if_not_measured(done)
    found = results(folder)
    assert len(found) == 22
    names = ("update.usq", "update.nf4", "overlay.fp32", "student.weights")
    sizes = [found[f"down-{name}"]["bytes"] for name in names]
    assert sizes == sorted(sizes)
    assert "five frames, tokens** (5 sent)" in done.stdout


def test_without_ip_it_says_why_and_ends_well(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "mkdir"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True)
        (programs / name).symlink_to(found.stdout.strip())
    done = link(tmp_path / "table", {"PATH": str(programs)})
    assert done.returncode == 0
    assert done.stderr == "link.sh: not measured: there is no `ip` here: install iproute2\n"
    assert "Not measured: there is no `ip` here" in done.stdout
