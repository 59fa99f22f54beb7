"""The Typer app, and the only place that turns errors into exit codes.

Nothing heavy is imported here or at the top of a command's file, and for `cdcca apply …` only that
one file is, so a command starts as fast as what it needs. See `errors` for the codes.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cdcca_cli import files, streams
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
    import typer

COMMANDS = (
    *("init", "infer", "sample", "distill", "compress", "apply"),
    *("eval", "inspect", "loop", "demo", "keygen", "sign", "trust"),
)


def build(names: Sequence[str] = COMMANDS) -> "typer.Typer":
    """The app with these commands: each `cdcca_cli/commands/<name>.py` has a `command`.

    The list in `cdcca --help` shows what their module docstrings say after the colon.
    """
    import typer
    from typer.core import TyperCommand

    class Command(TyperCommand):
        """Takes stdout for data once the command line has been read; help still goes there."""

        def invoke(self, ctx: Any) -> Any:
            streams.claim_stdout()
            return super().invoke(ctx)

    app = typer.Typer(
        name="cdcca",
        help="Adapt the small multimodal model on a device with the large one in the cloud.",
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
            typer.Option("--version", is_eager=True, callback=show_version, help="Say which."),
        ] = False,
    ) -> None:
        pass

    for name in names:
        module = import_module(f"cdcca_cli.commands.{name}")
        purpose = (module.__doc__ or "").split("\n")[0].partition(": ")[2].rstrip(".")
        app.command(name, cls=Command, short_help=purpose)(module.command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    debug = os.environ.get("CDCCA_DEBUG", "") not in ("", "0")
    try:
        with _stopped_by_signals():
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
        streams.release_stdout()
        streams.set_quiet(False)


def _run(arguments: list[str]) -> int:
    import typer

    needed = arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS
    command = typer.main.get_command(build(needed))
    try:
        # Not command.main(): it has its own idea of Ctrl-C, closed pipes and exit codes.
        with command.make_context("cdcca", [*arguments] or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        if not arguments:
            raise UsageError("no command given") from None
        return done.exit_code
    return 0


def _named(error: BaseException) -> CdccaError:
    """The error of ours that an error is."""
    if isinstance(error, CdccaError):
        return error
    if hasattr(error, "format_message"):  # typer's own, whose class has moved between versions
        context = getattr(error, "ctx", None)
        cure = f"; see {context.command_path} --help" if context is not None else ""
        return UsageError(error.format_message().rstrip(".") + cure)
    if isinstance(error, OSError) and error.errno in files.NO_ROOM:
        return CannotWrite(f"{error.filename or 'output'}: {(error.strerror or '').lower()}")
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return Unavailable(f"out of memory ({error}): try a smaller --batch-size")
    words = " ".join(str(error).split())
    return CdccaError(
        f"a bug in cdcca: {type(error).__name__}: {words[:300]} (CDCCA_DEBUG=1 shows where)"
    )


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that nothing half-written stays behind."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        with suppress(ValueError):  # not the main thread: somebody else's process
            if (
                signal.getsignal(number) is signal.SIG_DFL
            ):  # under nohup SIGHUP is ignored: leave it
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
