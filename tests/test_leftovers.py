"""What a killed process leaves beside its target goes with the next write of the same target, and
what another process is writing stays. The names are by hand: `.name.` and 12 hexadecimal digits."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import files

KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from cdcca_cli import files
with files.output(sys.argv[1]) as out:
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "out.cdcca"
    for _ in range(3):
        died = subprocess.run([sys.executable, "-c", KILLED_MIDWAY, str(target)])
        assert died.returncode == -signal.SIGKILL
        assert len(names(tmp_path)) == 1  # its own alone: it removed the one before
    files.atomic_write_bytes(target, b"whole")
    assert names(tmp_path) == {"out.cdcca"}
    assert target.read_bytes() == b"whole"


def test_a_file_that_is_being_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with files.output(target) as first:
        first.write(b"first")
        first.flush()
        files.atomic_write_bytes(target, b"second")
        assert target.read_bytes() == b"second"
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == {"out"}
    assert target.read_bytes() == b"first"


@pytest.mark.parametrize(
    "name",
    [
        ".out.0123456789ab.txt",
        ".out.0123456789a",
        ".out.0123456789abc",
        ".out.0123456789AB",
        ".other.0123456789ab",
        "out.0123456789ab",
        ".out.",
    ],
)
def test_other_names_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".out.0123456789ab").write_bytes(b"left")
    files.atomic_write_bytes(tmp_path / "out", b"data")
    assert names(tmp_path) == {"out", name}


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.0123456789aa").mkdir()
    os.mkfifo(tmp_path / ".out.0123456789ab")
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / ".out.0123456789ac").symlink_to("precious")
    files.atomic_write_bytes(tmp_path / "out", b"data")
    assert len(names(tmp_path)) == 5
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_removed_before_it_was_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the new file for a leftover just before our lock: we make another."""
    real, removed = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not removed:
            (left,) = tmp_path.iterdir()
            left.unlink()
            removed.append(left.name)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    files.atomic_write_bytes(tmp_path / "out", b"data")
    assert removed and names(tmp_path) == {"out"}
    assert (tmp_path / "out").read_bytes() == b"data"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as before, and nothing is removed: nothing tells what is in use."""

    def flock(*_: Any) -> None:
        raise OSError("no locks available")

    (tmp_path / ".out.0123456789ab").write_bytes(b"left")
    monkeypatch.setattr(fcntl, "flock", flock)
    files.atomic_write_bytes(tmp_path / "out", b"data")
    assert names(tmp_path) == {"out", ".out.0123456789ab"}


WRITE_OFTEN = """
import sys
from pathlib import Path
from cdcca_cli import files
for number in range(60):
    files.atomic_write_bytes(Path(sys.argv[1]), b"%06d" % number * 1000)
"""


def test_writers_that_clean_up_beside_each_other(tmp_path: Path) -> None:
    """Four processes write the same target 60 times each: none fails and nothing is left."""
    target = tmp_path / "out"
    children = [
        subprocess.Popen([sys.executable, "-c", WRITE_OFTEN, str(target)]) for _ in range(4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    assert names(tmp_path) == {"out"} and len(target.read_bytes()) == 6000


def test_it_costs_one_listing(tmp_path: Path) -> None:
    """In a folder of 5,000 files a clean-up takes no more than three listings of it."""
    for number in range(5000):
        (tmp_path / f"{number}").touch()

    def seconds(work: Any) -> float:
        found = []
        for _ in range(5):
            began = time.process_time()
            work()
            found.append(time.process_time() - began)
        return min(found)

    listing = seconds(lambda: os.listdir(tmp_path))
    assert seconds(lambda: files._remove_leftovers(str(tmp_path / ".out."))) <= 3 * listing + 1e-3
