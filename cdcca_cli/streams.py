"""stdin, stdout and stderr: the only module that touches the standard streams. POSIX only.

- stdout is data. `claim_stdout` points file descriptor 1 at stderr, so that a library that prints
  cannot spoil the data.
- Bytes never go to a terminal, and a terminal is never read.
- zstd is taken off an input (`byte_streams`); an output whose name ends in `.zst` is compressed.
- A name may be an address, such as `s3://...` or `pipe:COMMAND` (`remote`).
"""

import codecs
import json
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, TextIO, cast

from cdcca_cli import files, remote
from cdcca_cli.byte_streams import is_zstd, with_zstd, without_zstd
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, UsageError

_LINE_CHARS = 1 << 24
_MESSAGE_CHARS = 2000
_NAMES = {"stdin": 0, "stdout": 1, "stderr": 2}

_quiet = False
_stage = "cdcca"
_spell: Callable[[str], str] = str
_summary = ""
_claimed: int | None = None  # a private duplicate of the real stdout; -1: it was closed


def claim_stdout() -> None:
    """Keep the real stdout for data, and send what libraries write to fd 1 to stderr."""
    global _claimed
    if _claimed is not None:
        return
    _flush(sys.stdout)
    for descriptor in (0, 2):  # a closed one would be taken by the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            _point_at_devnull(descriptor)
    try:
        _claimed = os.dup(1)
    except OSError:
        _claimed = -1
    os.dup2(2, 1)


def release_stdout() -> None:
    """Undo `claim_stdout`, at the end of `main`."""
    global _claimed
    if _claimed is None:
        return
    _flush(sys.stdout)
    if _claimed >= 0:
        os.dup2(_claimed, 1)
        os.close(_claimed)
    _claimed = None


def abandon_stdout() -> None:
    """Drop what is still buffered for a reader that has closed the pipe."""
    global _claimed
    if _claimed is not None and _claimed >= 0:
        os.close(_claimed)
    _claimed = None
    _point_at_devnull(1)
    _flush(sys.stdout)


def _point_at_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    if devnull != descriptor:
        os.dup2(devnull, descriptor)
        os.close(devnull)


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()


def is_terminal(which: Literal["stdin", "stdout", "stderr"]) -> bool:
    """Whether this is a terminal; for stdout, the real one."""
    descriptor = _NAMES[which]
    if which == "stdout" and _claimed is not None:
        descriptor = _claimed
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def set_quiet(quiet: bool) -> None:
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet


def one_line(text: str) -> str:
    """The text with control characters escaped, which names of files may have."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def set_stage(stage: str, spell: Callable[[str], str] = str) -> None:
    """Begin each line on stderr with `stage`. spell: replaces backticked settings by options."""
    global _stage, _spell, _summary
    _stage, _spell, _summary = stage, spell, ""


def summary(text: str) -> None:
    """Set the line that `end_stage` writes: what the command has done."""
    global _summary
    _summary = text


def end_stage(seconds: float | None) -> None:
    """Write the command's summary; of a long stage also the time it took."""
    if seconds is None:
        if _summary:
            message(_summary)
        return
    took = f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    message(f"{_summary} (in {took})" if _summary else f"done in {took}")


def message(text: str) -> None:
    """One line for people, on stderr, unless quiet."""
    if not _quiet:
        complain(text)


def spelled(text: str) -> str:
    """A message as people read it: options in place of settings, names as they were given."""
    return one_line(_spell(remote.without_copies(text)))


def complain(text: str) -> None:
    """One line on stderr, even when quiet: errors. Cut to _MESSAGE_CHARS: it may quote a file."""
    if sys.stderr is None:
        return
    shown = f"{one_line(_stage)}: {spelled(text)}"
    if len(shown) > _MESSAGE_CHARS:
        shown = f"{shown[:_MESSAGE_CHARS]}..."
    encoding = sys.stderr.encoding or "utf-8"
    line = shown.encode(encoding, "backslashreplace")
    try:
        sys.stderr.write(line.decode(encoding) + "\n")
        sys.stderr.flush()
    except ValueError:  # closed
        pass
    except OSError:  # no reader; Python would report it once more at exit
        _point_at_devnull(2)


def emit(text: str) -> None:
    """A command's result in words, to the real stdout, a newline added."""
    with text_output(None) as out:
        out.write(text + "\n")


def emit_json(result: object) -> None:
    """A command's result as one JSON object on one line."""
    emit(json.dumps(result, ensure_ascii=False, allow_nan=False))


def emit_facts(rows: Iterable[tuple[str, object]]) -> None:
    """A command's result for people: a name and its value on each line, aligned."""
    lines = [(one_line(name), _cell(value)) for name, value in rows]
    width = min(max((len(name) for name, _ in lines), default=0), 40)
    emit("\n".join(f"{name:<{width}}  {value}" for name, value in lines))


def emit_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A command's result for people; plain text if not on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [["" if cell is None else cell for cell in row] for row in rows]
    table = Table(title=Text(one_line(title)) if title else None, title_justify="left")
    table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
    for index, column in enumerate(columns):
        numbers = all(_is_number(line[index]) for line in lines)
        table.add_column(Text(column), justify="right" if numbers else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(_cell(cell)) for cell in line))
    terminal = is_terminal("stdout")
    with text_output(None) as out:
        Console(file=out, force_terminal=terminal, width=None if terminal else 160).print(table)


def _is_number(cell: object) -> bool:
    return not isinstance(cell, str) or re.fullmatch(r"([+-]?[\d,]*\.?\d+)?", cell) is not None


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return one_line(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def input_name(path: str | Path | None) -> str:
    """The name of an input in messages."""
    if _is_standard(path, "stdin"):
        return "standard input"
    return remote.shown(path) if isinstance(path, str) and remote.is_address(path) else str(path)


def _is_standard(path: str | Path | None, which: Literal["stdin", "stdout"]) -> bool:
    number = _NAMES[which]
    known = ("-", f"/dev/{which}", f"/dev/fd/{number}", f"/proc/self/fd/{number}")
    return path is None or str(path) in known


def goes_to_stdout(path: str | Path | None) -> bool:
    """Whether `binary_output` writes to standard output."""
    return not (path is None and is_terminal("stdout")) and _is_standard(path, "stdout")


@contextmanager
def binary_input(path: str | Path | None) -> Iterator[BinaryIO]:
    """Open a file, an address, or standard input for None and "-"; zstd is taken off.

    Raises: UsageError for a terminal or closed input, MissingInput, BadData for damaged zstd,
    Unavailable for an address that needs a package.
    """
    with _raw_input(path) as source:
        yield without_zstd(source, input_name(path))


@contextmanager
def _raw_input(path: str | Path | None) -> Iterator[BinaryIO]:
    path = None if path is None else remote.path_of(path)
    if isinstance(path, str) and remote.is_address(path):
        with remote.reading(path) as source:
            yield source
        return
    file = _standard_input() if path is None or _is_standard(path, "stdin") else path
    try:
        source = open(file, "rb", buffering=1 << 16)  # noqa: SIM115 (closed below)
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path or "standard input", error)) from None
    with source:
        yield source


def _standard_input() -> int:
    """A new descriptor of standard input."""
    if is_terminal("stdin"):
        raise UsageError("no input: name a file, or pipe one in")
    closed = UsageError("no input: standard input is closed; name a file")
    if sys.stdin is None:  # closed when Python started; fd 0 is another file
        raise closed
    try:
        descriptor = os.dup(0)
    except OSError:
        raise closed from None
    os.set_blocking(descriptor, True)
    return descriptor


def has_piped_data() -> bool:
    """Whether standard input is a file or pipe (no device) with data; waits for the first byte."""
    try:
        status = os.fstat(0)
    except OSError:
        return False
    if stat.S_ISREG(status.st_mode):
        return status.st_size > os.lseek(0, 0, os.SEEK_CUR)
    if not (stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        return False
    if not select.select([0], [], [], 1.0)[0]:
        message("waiting for standard input to begin or to end: < /dev/null if nothing will come")
    with _raw_input(None) as source:
        return bool(source.read(1))


@contextmanager
def text_input(path: str | Path | None) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file or standard input, without their newlines; zstd is taken off."""
    with binary_input(path) as source:
        yield lines(source, input_name(path))


def lines(source: BinaryIO, where: str) -> Iterator[str]:
    """UTF-8 lines without their newlines. Raises: BadData if one is not UTF-8, or too long."""
    number = 0
    while line := source.readline(_LINE_CHARS):
        number += 1
        if len(line) == _LINE_CHARS and not line.endswith(b"\n"):
            raise BadData(f"{where}: line {number} is longer than {_LINE_CHARS:,} bytes")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadData(f"{where}: line {number} is not UTF-8 ({error.reason})") from None
        yield text.removesuffix("\n").removesuffix("\r")


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    descriptor = 1 if _claimed is None else _claimed
    try:
        own = os.dup(descriptor)
    except OSError:
        raise CannotWrite("standard output is closed: give -o FILE") from None
    if _claimed is None:
        _flush(sys.stdout)
    os.set_blocking(own, True)  # ssh and some shells leave it otherwise
    with files.buffered(own, "standard output") as out:
        yield out


def _named_output(
    path: str | Path, append: Callable[[BinaryIO], object] | None = None
) -> AbstractContextManager[BinaryIO]:
    path = remote.path_of(path)
    if not (isinstance(path, str) and remote.is_address(path)):
        return files.output(path, append=append)
    if append is not None:
        raise UsageError(f"{remote.shown(path)}: `append` needs a file on this machine")
    return remote.writing(path)


def _packs(path: str | Path) -> bool:
    """Whether an output is compressed; the command of a `pipe:` may do that itself."""
    return str(path).endswith(".zst") and not str(path).startswith("pipe:")


@contextmanager
def binary_output(
    path: str | Path | None,
    usual_name: str,
    *,
    force: bool = False,
    append: Callable[[BinaryIO, str], object] | None = None,
) -> Iterator[BinaryIO]:
    """Open where a command's bytes go. A file is written as a whole, or stays as it was.

    Args:
        path: a file (replaced), an address (replaced at the end), "-" for stdout (refused on a
            terminal), or None for stdout unless it is a terminal, and then for `usual_name` in the
            working folder.
        force: replace that one.
        append: keep what is in the file and write behind it, in zstd if that is (a new file: by its
            name). Called with the content, zstd taken off, and its name, to refuse it.

    Raises: UsageError for bytes to a terminal, CannotWrite.
    """
    terminal = is_terminal("stdout")
    named = path
    if path is None and terminal:
        if os.path.lexists(usual_name) and not force and append is None:
            raise CannotWrite(f"{usual_name} exists: give -o FILE, or `force` to replace it")
        named = usual_name
    elif path is not None and _is_standard(path, "stdout") and terminal:
        raise UsageError("these are bytes, not text for a terminal: give -o FILE, or pipe them on")
    standard = _is_standard(named, "stdout")
    is_packed = not standard and _packs(cast(str, named))

    def check(existing: BinaryIO) -> None:
        nonlocal is_packed
        is_packed = is_zstd(existing.read(4))
        existing.seek(0)
        assert append is not None
        append(without_zstd(existing, str(named)), str(named))

    check_first = None if append is None else check
    opened = _standard_output() if standard else _named_output(cast(str, named), check_first)
    with opened as out, with_zstd(out, is_packed) as writer:
        yield writer
    if path is None and terminal:
        message(f"wrote {usual_name}")


def check_output(path: str | Path) -> None:
    """Refuse a file that `binary_output` could not write, before the work. Raises: CannotWrite."""
    named = remote.path_of(path)
    if not _is_standard(path, "stdout") and not remote.is_address(str(named)):
        files.check_output(named)


@contextmanager
def text_output(path: str | Path | None) -> Iterator[TextIO]:
    """Open a file or address (replaced), or stdout for None and "-", for a command's UTF-8 text."""
    standard = _is_standard(path, "stdout")
    opened = _standard_output() if standard else _named_output(cast(str, path))
    is_packed = not standard and _packs(cast(str, path))
    with opened as out, with_zstd(out, is_packed) as writer:
        yield cast(TextIO, codecs.getwriter("utf-8")(writer, "backslashreplace"))
