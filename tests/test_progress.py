"""Bars are for people: only on a terminal, only when not quiet, only on stderr."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli import progress

CODE = """
import sys
from cdcca_cli import progress, streams
streams.set_quiet({quiet})
with progress.stage("loading [model]"):
    pass
for item in progress.track(iter("ab"), total=2, description="sampling [frames]"):
    streams.emit(item)
"""


def test_without_a_watcher_it_only_passes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.stage("loading"):
        assert list(progress.track([1, 2, 3], description="counting")) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [True, False])
def test_on_a_terminal_there_is_a_bar_unless_quiet(quiet: bool) -> None:
    master, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(quiet=quiet)],
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
    )
    os.close(child)
    os.set_blocking(master, False)
    try:
        shown = os.read(master, 1 << 16)
    except OSError:
        shown = b""
    os.close(master)
    assert done.stdout == b"a\nb\n"
    if quiet:
        assert shown == b""
    else:
        assert b"sampling [frames]" in shown and b"2/2" in shown
