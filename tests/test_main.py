"""The command line as a whole: help, usage errors, and every error with its exit code."""

import ast
import errno
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import errors, streams
from cdcca_cli.commands import inspect
from cdcca_cli.main import COMMANDS, GROUPS, main

ROOT = Path(__file__).parents[1]
LIGHT = ("errors", "streams", "remote", "progress", "config", "options", "settings")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {
        "capture_output": True,
        "text": True,
        "env": ENVIRONMENT,
        "timeout": 60,
    }
    return subprocess.run([sys.executable, "-m", "cdcca_cli", *arguments], **given | options)


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that raises this."""

    def command() -> None:
        """Fail."""
        raise error

    monkeypatch.setattr(inspect, "command", command)
    return main(["inspect"])


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.BelowMark("mc is 49.0"), 3, "mc is 49.0"),
        (errors.UsageError("no"), 2, "no"),
        (errors.BadData("a.tokens: cut\nshort"), 65, "a.tokens: cut\\nshort"),
        (errors.MissingInput("gone"), 66, "gone"),
        (errors.Unavailable("no CUDA"), 69, "no CUDA"),
        (errors.CannotWrite("full"), 73, "full"),
        (errors.NewerFormat("new"), 76, "new"),
        (errors.WrongBase("base"), 78, "base"),
        (errors.StaleUpdate("old"), 79, "old"),
        (errors.Terminated(15), 143, "stopped by signal 15"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 73, "x: no space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 73, "x: read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 73, "x: permission denied"),
        (OSError(errno.EDQUOT, "Quota exceeded", "x"), 73, "x: quota exceeded"),
        (MemoryError("20 GB"), 69, "out of memory (20 GB): try a smaller batch_size"),
        (OutOfMemoryError("CUDA"), 69, "out of memory (CUDA): try a smaller batch_size"),
        (
            ValueError("two\nlines"),
            1,
            "a bug in cdcca: ValueError: two lines (CDCCA_DEBUG=1 shows where)",
        ),
        (SystemExit(0), 1, "a bug in cdcca: SystemExit: 0 (CDCCA_DEBUG=1 shows where)"),
    ],
)
def test_every_error_has_its_code_and_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CDCCA_DEBUG", raising=False)
    assert raising(error, monkeypatch) == code
    assert capfd.readouterr() == ("", f"cdcca inspect: {line}\n")


def test_a_closed_pipe_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = os.dup(1)
    try:
        assert raising(BrokenPipeError(), monkeypatch) == 141
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert capfd.readouterr() == ("", "")


def test_a_bug_shows_its_place_on_request(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDCCA_DEBUG", "1")
    assert raising(ValueError("x"), monkeypatch) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err and err.endswith("ValueError: x (CDCCA_DEBUG=1 shows where)\n")


def test_main_leaves_no_trace_in_its_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    raising(errors.BadData("x"), monkeypatch)
    streams.message("not quiet")
    os.write(1, b"free")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    assert capfd.readouterr() == ("free", "cdcca inspect: x\ncdcca: not quiet\n")


def test_no_class_shares_a_code_and_all_are_in_the_table() -> None:
    classes: list[type[errors.CdccaError]] = [
        errors.CdccaError,
        *errors.CdccaError.__subclasses__(),
    ]
    codes = [error.exit_code for error in classes]
    assert len(set(codes)) == len(codes)
    table = dict(errors.exit_codes())
    assert set(codes) | {0, 130, 141} == set(table)
    assert all(meaning and "\n" not in meaning for meaning in table.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "--nonsense"], "--nonsense; see cdcca inspect --help"),
        (["infer", "a", "b"], "unexpected extra argument"),
        (["inspct"], "Did you mean 'inspect'"),
        (["--nonsense"], "see cdcca --help"),
        ([], "no command given"),
    ],
)
def test_usage_errors_are_two_and_one_line(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1


def test_help_goes_to_stdout_and_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for title, rows in GROUPS.items():
        section = out.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        lines = [line.split(maxsplit=1) for line in section.splitlines()]
        assert lines == [[name, purpose] for name, purpose in rows.items()]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_docstring_of_a_command_says_what_the_list_says(name: str) -> None:
    doc = import_module(f"cdcca_cli.commands.{name}").__doc__ or ""
    assert doc.startswith(f"`cdcca {name}`: {COMMANDS[name]}.")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and out.startswith(f"Usage: cdcca {name} ")
    assert "Example" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_file_imports_nothing_heavy_at_its_top(name: str) -> None:
    module = import_module(f"cdcca_cli.commands.{name}")
    tree = ast.parse(Path(module.__file__ or "").read_text())
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "cdcca_cli":
            names = [f"cdcca_cli.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for imported in names:
            allowed = {f"cdcca_cli.{light}" for light in LIGHT} | {"typer"}
            is_light = imported in allowed or imported.endswith(".settings")
            assert is_light or imported.split(".")[0] in sys.stdlib_module_names


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cdcca ")


def test_help_imports_no_numpy_and_no_torch() -> None:
    code = (
        "import sys; from cdcca_cli.main import main; main(['--help']);"
        "print(sorted({'torch', 'numpy', 'transformers', 'PIL', 'rich'} & set(sys.modules)))"
    )
    done = run(env=ENVIRONMENT)  # warms the byte code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    """At most 2.5 times typer's own import, in processor time: other processes do not count."""

    def seconds(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], env=ENVIRONMENT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    library = ["-c", "import typer"]
    ours = ["-m", "cdcca_cli", "--help"]
    both = [(seconds(*ours), seconds(*library)) for _ in range(5)]
    assert min(one for one, _ in both) <= 2.5 * min(other for _, other in both)


def test_nobody_listening_to_errors_changes_no_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("inspect", "gone", capture_output=False, stderr=writer)
    os.close(writer)
    assert done.returncode == 66


def test_help_into_a_closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("--help", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
