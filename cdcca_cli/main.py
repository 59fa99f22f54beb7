"""The command line: runs one command, and turns errors into messages and exit codes (`errors`).

Only the file of that command is imported, and nothing heavy before it.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cdcca_cli import config, files, packages, remote, streams
from cdcca_cli.errors import (
    CLOSED_PIPE,
    INTERRUPTED,
    CannotWrite,
    CdccaError,
    Terminated,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from cdcca_cli.options import Expanded

GROUPS = {
    "Stages": {
        "infer": "frames to predictions",
        "sample": "frames to token shards, the uplink",
        "label": "token shards to the large model's answers, on the cloud",
        "distill": "token shards to an adaptation, on the cloud",
        "compress": "an adaptation to an update, the downlink",
        "apply": "an update into a device folder",
        "eval": "predictions to scores, and what the link carried",
    },
    "Other commands": {
        "init": "a device folder from a checkpoint",
        "calibrate": "frames to a codebook, by which sample codes tokens",
        "inspect": "what a file or folder holds, or many devices at a glance",
        "report": "one page to look at, from what rounds or a fleet leave",
        "doctor": "what works: this machine, a checkpoint, a pair",
        "loop": "Algorithm 1 on one machine",
        "demo": "the whole loop on the shipped models and frames",
        "export": "what a device holds, as files of llama.cpp, peft or transformers",
        "completion": "a script that completes command lines in a shell",
    },
    "Keys": {
        "keygen": "a key to sign updates with",
        "sign": "one more signature on an update, a trust list or a codebook",
        "trust": "a list of the keys that devices trust",
    },
}
"""The commands in the order of `cdcca --help`; each is `cdcca_cli/commands/<name>.py`."""
COMMANDS = {name: purpose for rows in GROUPS.values() for name, purpose in rows.items()}
_COMPLETE = "_CDCCA_COMPLETE"  # set by the script of `cdcca completion`
_SLOW_SECONDS = 1.0


def expanded(name: str) -> "Expanded":
    """A command with the options that its settings become."""
    from cdcca_cli.options import Expanded

    return Expanded(import_module(f"cdcca_cli.commands.{name}").command, name)


def build(command: "Expanded | None") -> Any:
    """The command line, as a click group in which all commands but `command` are names only."""
    import typer
    from typer.core import TyperCommand, TyperGroup

    from cdcca_cli.options import Command

    class Group(TyperGroup):
        """Shows its commands in groups."""

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            for title, rows in GROUPS.items():
                with formatter.section(title):
                    formatter.write_dl([*rows.items()])

    app = typer.Typer(
        name="cdcca",
        cls=Group,
        help="Adapt the small vision-language model on a device with the large one in the cloud.",
        epilog="Options can also be set in cdcca.toml. Manual: man cdcca",
        add_completion=False,
        rich_markup_mode=None,  # rich's help is 60 ms slower
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            from cdcca_cli import __version__

            typer.echo(f"cdcca {__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", is_eager=True, callback=show_version, help="Print the version."
            ),
        ] = False,
    ) -> None:
        pass

    if command is not None:
        manual = f"Manual: man cdcca-{command.name}"
        app.command(command.name, cls=Command, epilog=manual)(command)
    group: Any = typer.main.get_command(app)
    real = group.commands
    group.commands = {
        name: real.get(name) or TyperCommand(name, short_help=purpose)
        for name, purpose in COMMANDS.items()
    }
    return group


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    debug = os.environ.get("CDCCA_DEBUG", "") not in ("", "0")
    try:
        with _stopped_by_signals():
            if instruction := os.environ.get(_COMPLETE):
                return _complete(instruction)
            return _run(list(arguments))
    except KeyboardInterrupt:
        streams.complain("interrupted")
        return INTERRUPTED
    except Terminated as error:
        streams.complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        streams.abandon_stdout()
        return CLOSED_PIPE
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            import traceback

            traceback.print_exc()
        named = _named(error)
        streams.complain(str(named))
        return named.exit_code
    finally:
        remote.remove_copies()
        streams.release_stdout()
        streams.set_quiet(False)
        streams.set_stage("cdcca")
        config.use(config.Toml())


def _run(arguments: list[str]) -> int:
    import typer

    name = arguments[0] if arguments and arguments[0] in COMMANDS else None
    command = None if name is None else expanded(name)
    if command is not None:
        streams.set_stage(f"cdcca {name}", partial(_spell, command.spelling()))
    group = build(command)
    start = time.monotonic()
    try:
        # Not group.main(), which handles Ctrl-C, closed pipes and exit codes in its own way.
        with group.make_context("cdcca", [*arguments] or ["--help"]) as context:
            if command is not None and not {"-h", "--help"} & set(arguments):
                context.default_map = {command.name: command.defaults(_read_toml(command))}
            group.invoke(context)
    except typer.Exit as done:
        if not arguments:
            raise UsageError("no command given") from None
        return done.exit_code
    seconds = time.monotonic() - start
    streams.end_stage(seconds if seconds >= _SLOW_SECONDS else None)
    return 0


def _read_toml(command: "Expanded") -> "config.Toml":
    """cdcca.toml, with the names checked in the tables that this command reads."""
    toml = config.read(COMMANDS)
    for table in command.tables:
        if table in toml.tables:
            known = command if table == command.name else expanded(table)
            toml.check_names(table, known.names())
    config.use(toml)
    return toml


def _spell(spelling: Mapping[str, str], text: str) -> str:
    """The message, with each setting in backticks replaced by the command's option."""
    return re.sub(r"`([a-z]\w*)`", lambda found: spelling.get(found[1], found[1]), text)


def _complete(instruction: str) -> int:
    """Complete the words that the shell's script passes in the environment."""
    from typer import completion

    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    group = build(expanded(words[1]) if len(words) > 1 and words[1] in COMMANDS else None)
    completion.completion_init()
    try:
        return completion.shell_complete(group, {}, "cdcca", _COMPLETE, instruction)
    except SystemExit as done:  # fish reads the exit code
        return done.code if isinstance(done.code, int) else 0


def _named(error: BaseException) -> CdccaError:
    """The error itself, or the error of this package that describes it."""
    if isinstance(error, CdccaError):
        return error
    if hasattr(error, "format_message"):  # typer's own, whose class has moved between versions
        context = getattr(error, "ctx", None)
        cure = f"; see {context.command_path} --help" if context is not None else ""
        return UsageError(error.format_message().rstrip(".") + cure)
    if isinstance(error, OSError) and error.errno in files.NO_ROOM:
        return CannotWrite(f"{error.filename or 'output'}: {(error.strerror or '').lower()}")
    if isinstance(error, ModuleNotFoundError) and (missing := packages.cure_for(error)):
        return Unavailable(missing)
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return Unavailable(f"out of memory ({error}): try a smaller `batch_size`")
    words = " ".join(str(error).split())
    return CdccaError(
        f"a bug in cdcca: {type(error).__name__}: {words[:300]} (CDCCA_DEBUG=1 shows where)"
    )


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind as Ctrl-C does, so that no half-written file is left."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        with suppress(ValueError):  # not the main thread
            # Under nohup SIGHUP is ignored and must stay so.
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
