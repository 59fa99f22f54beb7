"""The mark in a device folder that a command has still to be told of a change.

`downlink.notify` says what it is for. The file is called `notify`: JSON in UTF-8, one object, all
keys always present:

    kind "notify", version 1
    current, kept, highest_sequence    as in device.json: what the device had when the command last
                                       succeeded

It is on the disk before the change and goes when the command has succeeded. Meanwhile no overlay
that it names is deleted (`device`). A damaged mark is still a mark.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.device_state import State, parse_overlays
from cdcca_cli.text import read_json

VERSION = 1
FILE_NAME = "notify"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Mark:
    """before: current, kept and highest_sequence; None if the file is damaged, and why."""

    before: State | None
    fault: str = ""


def read_mark(folder: Path) -> Mark | None:
    """The mark of a device folder, None if it has none."""
    path = folder / FILE_NAME
    try:
        return Mark(parse_mark(read_json(path, _MOST_BYTES), str(path)))
    except MissingInput as fault:
        return Mark(None, str(fault)) if path.exists() else None
    except (BadData, NewerFormat) as fault:
        return Mark(None, str(fault))


def parse_mark(data: Any, where: str) -> State:
    """What the device had before, every field checked. Raises: BadData, NewerFormat."""
    if not isinstance(data, dict) or data.get("kind") != "notify":
        raise BadData(f"{where}: is no mark of cdcca")
    version = records.field(data, "version", int, where)
    records.check_version(version, VERSION, "mark", where)
    content = {name: value for name, value in data.items() if name not in ("kind", "version")}
    return parse_overlays(content, where)


def write_mark(folder: Path, before: State) -> None:
    """Put the mark on the disk. Raises: CannotWrite."""
    known = asdict(before)
    content = {name: known[name] for name in ("current", "kept", "highest_sequence")}
    text = records.dump_json({"kind": "notify", "version": VERSION, **content})
    files.atomic_write_bytes(folder / FILE_NAME, f"{text}\n".encode())


def remove_mark(folder: Path) -> None:
    """Take the mark away, durably. Raises: CannotWrite."""
    path = folder / FILE_NAME
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        files.sync_folder(folder)
    except OSError as error:
        raise CannotWrite(files.reason(path, error)) from None


def files_of_mark(folder: Path) -> set[str]:
    """The overlay files that a mark names, as paths in the folder."""
    found = read_mark(folder)
    if found is None or found.before is None:
        return set()
    return {slot.file for slot in (found.before.current, *found.before.kept)}
