"""Which device folders and logs there are among some paths, and the lines of a log."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

from cdcca_cli import files, remote, streams
from cdcca_cli.errors import BadData, CdccaError, MissingInput
from cdcca_cli.formats import device_log
from cdcca_cli.formats.device_state import FILE_NAME
from cdcca_cli.formats.kind import kind_of_folder
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import load_json

_DEPTH = 3
_LINE_BYTES = 1 << 20
_MOST_LINES = 20  # after which a file without a sound line is damaged
_ENDINGS = (".jsonl", ".jsonl.zst")


@dataclass(frozen=True)
class Found:
    """kind: "other" is for `look`. device: the device folder that a log lies in."""

    kind: Literal["device", "log", "other"]
    path: str
    device: str | None = None


def find(path: str | Path, skipped: Skipped) -> Iterator[Found]:
    """What a path leads to; a folder that cannot be read is left out."""
    name = str(remote.path_of(str(path)))
    if os.path.basename(name) == FILE_NAME:
        name = os.path.dirname(name) or "."
    if not os.path.isdir(name):
        yield _found_file(str(path), name)
        return
    kind = kind_of_folder(Path(name))
    if kind == "device":
        yield from _in_device(os.path.abspath(name))
        return
    found = list(_search(os.path.abspath(name), _DEPTH, skipped)) if kind == "frames" else []
    yield from found or [Found("other", str(path))]


def has_devices(path: str) -> bool:
    """Whether this is a folder of device folders, or of logs with a sound line."""
    name = str(remote.path_of(path))
    if not os.path.isdir(name) or kind_of_folder(Path(name)) != "frames":
        return False
    for found in _search(os.path.abspath(name), _DEPTH, Skipped(quiet=True)):
        if found.kind == "device" or _is_log(found.path):
            return True
    return False


def _found_file(path: str, name: str) -> Found:
    if not os.path.isfile(name):  # a pipe is read once
        return Found("other", path)
    is_log = _is_log(path)
    if is_log is None:
        is_log = name.endswith(_ENDINGS)
    folder = os.path.dirname(os.path.abspath(name))
    return Found("log", path, _device_of(folder)) if is_log else Found("other", path)


def _is_log(path: str) -> bool | None:
    """Whether the first sound line of a file is one of a log; None: it has none."""
    try:
        with streams.binary_input(path) as source:
            for line in islice(_lines(source), _MOST_LINES):
                with suppress(CdccaError):
                    return device_log.is_line(load_json(line, path))
    except CdccaError:
        pass
    return None


def _device_of(folder: str) -> str | None:
    return folder if os.path.lexists(os.path.join(folder, FILE_NAME)) else None


def _in_device(folder: str) -> Iterator[Found]:
    yield Found("device", folder)
    for name in _names(folder, Skipped(quiet=True))[1]:
        yield from _log(os.path.join(folder, name), folder)


def _search(folder: str, depth: int, skipped: Skipped) -> Iterator[Found]:
    """Device folders and logs, in the order of their names; links are not followed."""
    folders, names = _names(folder, skipped)
    if FILE_NAME in names:
        yield from _in_device(folder)
        return
    for name in names:
        yield from _log(os.path.join(folder, name), None)
    if depth:
        for name in folders:
            yield from _search(os.path.join(folder, name), depth - 1, skipped)


def _names(folder: str, skipped: Skipped) -> tuple[list[str], list[str]]:
    """The folders and the files in a folder, without hidden ones."""
    folders, names = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == FILE_NAME:
                    names.append(entry.name)
                elif entry.name.startswith("."):
                    continue
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.endswith(_ENDINGS) and entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
    except OSError as error:
        skipped.add("folder", MissingInput(files.reason(folder, error)))
    return sorted(folders), sorted(names)


def _log(path: str, device: str | None) -> Iterator[Found]:
    """A file of JSON lines, unless they are of another kind; a damaged one is named later."""
    if path.endswith(_ENDINGS) and _is_log(path) is not False:
        yield Found("log", path, device)


def log_lines(path: str, skipped: Skipped) -> Iterator[device_log.Entry]:
    """The sound lines of a log; the others are left out. Raises: MissingInput, BadData (zstd)."""
    name = streams.input_name(path)
    with streams.binary_input(path) as source:
        for number, line in enumerate(_lines(source), 1):
            if not line.strip():
                continue
            try:
                if len(line) >= _LINE_BYTES:
                    raise BadData(f"{name}:{number}: longer than {_LINE_BYTES:,} bytes")
                entry = device_log.parse_line(line, f"{name}:{number}")
            except CdccaError as fault:
                skipped.add("line", fault)
                continue
            skipped.num_sound += 1
            yield entry


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long, its beginning."""
    while line := source.readline(_LINE_BYTES):
        yield line
        while len(line) == _LINE_BYTES and not line.endswith(b"\n"):
            line = source.readline(_LINE_BYTES)
