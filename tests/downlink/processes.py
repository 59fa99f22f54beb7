"""`cdcca apply` in processes of their own: forked, or started afresh as a user does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from cdcca_cli import main, streams


@dataclass(frozen=True)
class Ended:
    """What became of a process: its exit code (minus the signal that killed it) and its words."""

    code: int
    words: str

    @property
    def status(self) -> str:
        """Of what it printed with --json."""
        return str(json.loads(self.words)["status"])


@dataclass
class Process:
    """A process that runs, and the file that its standard output goes to."""

    number: int
    output: Path

    def wait(self) -> Ended:
        _, status = os.waitpid(self.number, 0)
        words = self.output.read_text() if self.output.exists() else ""
        return Ended(os.waitstatus_to_exitcode(status), words)

    def kill(self, signal_number: int) -> None:
        os.kill(self.number, signal_number)


@cache
def _import_what_apply_needs() -> None:
    """Once, and not in every child."""
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401

    with redirect_stderr(StringIO()):
        main.main(["apply", os.devnull, os.devnull])


def forked(arguments: list[str], output: Path, first: Callable[[], Any] = lambda: None) -> Process:
    """A child that runs this command line; `first` is called in it before."""
    _import_what_apply_needs()
    number = os.fork()
    if number:
        return Process(number, output)
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        streams.release_stdout()
        first()
        code = main.main(arguments)
        os._exit(code)
    finally:
        os._exit(1)


def started(arguments: list[str], output: Path) -> Process:
    """A new interpreter that runs this command line."""
    with output.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "cdcca_cli", *arguments],
            stdout=out,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    child.returncode = 0  # waited for here, not there
    return Process(child.pid, output)
