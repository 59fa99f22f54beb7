"""The log of a device: the JSON lines that `cdcca apply --json` and `cdcca sample --json` write.

A run writes one, also if it fails; not if the command line is wrong, a signal stops it, or the
device's folder cannot be told.

One object a line; `>>` and `cat` join them. Keys that a reader does not know are ignored.

    command    "apply" or "sample"
    time       when it ended, by the device's clock: "2026-11-28T18:40:12Z"
    device     absolute path of the device folder: its last part is the device's name, and the one
               before it the group's
    exit_code  the command's; 0 if nothing was refused
    current    {"sequence": number, "digest": digest}: the overlay that the device has afterwards;
               null if the folder cannot be read

Of `apply`:

    status     "applied", "already applied", "would apply", "rolled back", "refused" (77 is a
               signature, 78 another base, 79 an old update, 80 the device's own frames, ...) or
               "command failed" (81, and the device is back at `current`)
    reason     the message, if the exit code is not 0
    file       null for a rollback, else {"name": as it was given, "bytes": how many were read,
               "content": their SHA-256 as a digest}; zstd is taken off before both
    sequence, digest  of the update; of the current overlay after a rollback or a failed command
    trust, codebook   in their place, if the file is a trust list or a codebook
    measured   of an update that was tested (`acceptance`): {"metric", "before", "after",
               "difference", "drift"}, those that there are; null if the model could not answer

A file that could not be read or believed has none of the last four.

Of `sample`, unless it failed (`status` and `reason` as above):

    frames     how many were looked at; null for a live source
    picked, questions  how many frames and questions were sent
    bytes      how many the output has grown by, as it is on the disk
    output     its name
    left_out   how many frames and answers could not be used

Before 0.10 `apply` wrote `device` as it was given, `status` and what follows `file`; such lines are
read too, and have no time.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cdcca_cli import streams
from cdcca_cli.errors import (
    BadData,
    CdccaError,
    MadeWorse,
    MissingInput,
    NewerFormat,
    NotifyFailed,
    UsageError,
)
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.text import load_json

Command = Literal["apply", "sample"]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_MOST_CHARS = 500
_LINE = {
    "command": Command | None,
    "time": str | None,
    "device": str,
    "exit_code": int | None,
    "current": dict | None,
    "status": str | None,
    "reason": str | None,
    "file": dict | None,
    "sequence": int | None,
    "digest": str | None,
    "measured": dict | None,
    "questions": int | None,
    "bytes": int | None,
}
_CURRENT = {"sequence": int, "digest": str}
_FILE = {"bytes": int, "content": str}
_MEASURED = {
    "metric": str | None,
    "before": float | None,
    "after": float | None,
    "drift": float | None,
    "difference": dict | None,
}
_DIFFERENCE = dict.fromkeys(("value", "low", "high"), float | None)
_EARLIER = {"refused": MadeWorse.exit_code, "command failed": NotifyFailed.exit_code}


@dataclass(frozen=True)
class Entry:
    """One line.

    num_bytes: of the file that was applied, or of the shards. sequence, digest: of the update.
    measured: if tested, without its difference. digest and texts are as the file has them.
    """

    command: Command
    device: str
    time: str | None
    exit_code: int
    status: str | None
    reason: str | None
    current: tuple[int, str] | None
    content: str | None
    num_bytes: int
    sequence: int | None
    digest: str | None
    measured: Mapping[str, Any] | None
    difference: Mapping[str, float | None]
    questions: int


def line(command: Command, device: Path, exit_code: int, **facts: object) -> dict[str, object]:
    """The object of one run, which has just ended."""
    try:
        found = Device.open(device)
        current = {"sequence": found.sequence, "digest": found.digest}
    except (BadData, MissingInput, NewerFormat):
        current = None
    return {
        "command": command,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": _text(os.path.abspath(device)),
        "exit_code": exit_code,
        "current": current,
        **{name: _text(value) for name, value in facts.items()},
    }


def _text(value: Any) -> Any:
    """With escapes for what UTF-8 cannot hold: the bytes of odd file names."""
    if isinstance(value, dict):
        return {name: _text(one) for name, one in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@contextmanager
def noting(command: Command, device: Path) -> Iterator[None]:
    """Print a line of what ends in an error, if it is not the command line's."""
    try:
        yield
    except CdccaError as error:
        if not isinstance(error, UsageError):
            streams.emit_json(line(command, device, error.exit_code, **refusal(error)))
        raise


def refusal(error: CdccaError) -> dict[str, object]:
    """What a line says of a refusal, beside its exit code."""
    return {"status": "refused", **error.report, "reason": streams.spelled(str(error))}


def is_line(value: object) -> bool:
    """Whether a JSON value looks like a line of a device's log."""
    if not isinstance(value, dict) or "device" not in value:
        return False
    return "command" in value or "status" in value


def parse_line(text: str | bytes, where: str) -> Entry:
    """Raises: BadData."""
    data = load_json(text, where)
    if not is_line(data):
        raise BadData(f"{where}: not a line of a device's log")
    found = records.fields(data, _LINE, where, exact=False)
    status, code, time = found["status"], found["exit_code"], found["time"]
    if code is None:  # from before 0.10
        code = _EARLIER.get(status or "", 0)
        if status != "refused" and found["digest"] is not None:
            found["current"] = {name: found[name] for name in _CURRENT}
    current = _part(found["current"], _CURRENT, where)
    file = _part(found["file"], _FILE, where)
    measured = _part(found["measured"], _MEASURED, where)
    difference = _part(measured.pop("difference", None), _DIFFERENCE, where)
    num_bytes = file.get("bytes", found["bytes"] or 0)
    for number in (num_bytes, found["sequence"], found["questions"], current.get("sequence")):
        if number is not None and not 0 <= number < 1 << 53:
            raise BadData(f"{where}: {number} is no count")
    for digest in (*current.values(), file.get("content")):
        if isinstance(digest, str) and not is_digest(digest):
            raise BadData(f"{where}: {digest[:40]!r} is no digest")
    if time is not None and not _TIME.fullmatch(time):
        raise BadData(f"{where}: {time[:40]!r} is no time in UTC")
    return Entry(
        command=found["command"] or "apply",
        device=found["device"],
        time=time,
        exit_code=code,
        status=status and status[:_MOST_CHARS],
        reason=found["reason"] and found["reason"][:_MOST_CHARS],
        current=(current["sequence"], current["digest"]) if current else None,
        content=file.get("content"),
        num_bytes=num_bytes,
        sequence=found["sequence"],
        digest=found["digest"],
        measured={name: value for name, value in measured.items() if value is not None} or None,
        difference=difference,
        questions=found["questions"] or 0,
    )


def _part(value: Any, hints: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An object in a line, or nothing."""
    return {} if value is None else records.fields(value, hints, where, exact=False)
