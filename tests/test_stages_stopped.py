"""Each stage stopped in the middle: Ctrl-C, a closed pipe, a full disk. Nothing half-made is left.

The stages run as processes of their own on a tiny model. A stage is in the middle of its work when
its hidden output file lies beside its target, or when it waits for the rest of its input.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks at processes through /proc"
)

ROOT = Path(__file__).parent.parent
LABELLED = ROOT / "cdcca_cli" / "assets" / "frames" / "heldout"
WAIT_SECONDS = 120
STAGES = ("infer", "sample", "distill", "compress", "apply", "eval", "inspect")


@pytest.fixture(scope="module")
def world(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A device folder, a folder of frames, and the teacher."""
    from cdcca_cli.models.initial import create_device
    from cdcca_cli.models.settings import InitSettings

    root = tmp_path_factory.mktemp("stopped")
    create_device(root / "device", str(tiny_pair[1]), InitSettings(lora_rank=2))
    (root / "frames").mkdir()
    image = tiny.images(1)[0]
    for number in range(800):
        image.save(root / "frames" / f"{number:04}.bmp")
    return root / "device", root / "frames", tiny_pair[0]


def start(*arguments: object, cwd: Path, **how: object) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "cdcca_cli", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **how,  # type: ignore[call-overload]
    )


def until_hidden_file(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait for the file that a stage writes beside its target."""
    end = time.monotonic() + WAIT_SECONDS
    while not any(path.name.startswith(".out") for path in folder.iterdir()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the stage did not begin to write"
        time.sleep(0.02)


def arguments_of(stage: str, world: tuple[Path, Path, Path]) -> list[object]:
    device, frames, teacher = world
    return {
        "infer": ["infer", frames, "-m", device, "-o", "out"],
        "sample": [
            *("sample", frames, "-m", device, "-o", "out", "--threshold", "0"),
            *("--set", "repeats=true"),  # all frames are alike
        ],
        "distill": ["distill", "--student", device, "--teacher", teacher, "-o", "out"],
        "compress": ["compress", "--base", device, "-o", "out"],
        "apply": ["apply", device],
        "eval": ["eval", "--references", LABELLED, "-o", "out"],
        "inspect": ["inspect", "-", "--json"],
    }[stage]


def state_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c(stage: str, world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """130, one line, the folder empty and the device as it was."""
    before = state_of(world[0])
    reads_stdin = stage not in ("infer", "sample")
    stdin = subprocess.PIPE if reads_stdin else subprocess.DEVNULL
    process = start(*arguments_of(stage, world), cwd=tmp_path, stdin=stdin)
    if reads_stdin:
        until_reading(process)
    else:
        until_hidden_file(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=WAIT_SECONDS)[1].decode()
    # CPython ends by the signal itself if it came while a package in C ran Python code, in its
    # import: a shell sees 130 for both.
    assert process.returncode in (130, -signal.SIGINT)
    assert stderr == f"cdcca {stage}: interrupted\n"
    assert list(tmp_path.iterdir()) == []
    assert state_of(world[0]) == before


def until_reading(process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process sleeps for long: in a read of its standard input, which we hold open."""
    end = time.monotonic() + WAIT_SECONDS
    asleep = 0
    while asleep < 8:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the stage did not begin to read"
        time.sleep(0.1)


@pytest.mark.parametrize("stage", ["infer", "sample"])
def test_a_reader_that_goes_away(
    stage: str, world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """`cdcca infer frames/ | head -1`: 141 as any Unix tool, and silence."""
    arguments = [item for item in arguments_of(stage, world) if item not in ("-o", "out")]
    process = start(*arguments, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if stage == "infer":  # sample writes its frames in groups, here at its end
        assert process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read().decode()
    assert process.wait(timeout=WAIT_SECONDS) == 141
    assert "Traceback" not in stderr and "Broken" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB with nothing free."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.decode().strip()}")
    try:
        (folder / "ballast").write_bytes(b"x" * 65536)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", ["infer", "sample"])
def test_a_full_disk(stage: str, world: tuple[Path, Path, Path], full_disk: Path) -> None:
    """73 and one line that names the file; nothing is left on the disk but what was there."""
    device, frames, _ = world
    process = start(
        *(stage, frames / "0000.bmp", "-m", device, "-o", full_disk / "out"),
        cwd=full_disk,
        stdin=subprocess.DEVNULL,
    )
    stderr = process.communicate(timeout=WAIT_SECONDS)[1].decode()
    assert process.returncode == 73, stderr
    assert "out: no space left on device" in stderr.splitlines()[-1]
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]
