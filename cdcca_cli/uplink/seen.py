"""What a device that samples from cron has looked at already: `cdcca sample --state FILE`.

The file, version 1, is JSON: `{"kind": "seen", "version": 1, "frames": {id: fingerprint}}`. The
fingerprint is a digest of the image file's size and time of last change and of what is asked of it,
so a file that is written anew, or asked something else, is new. A frame is seen when it was looked
at, sent or not. Frames that are gone from the source are forgotten, so the file stays as large as
the source; use one state file for one source.

Does not lock: two runs at once are kept apart by `flock`, as examples of a cron job do.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cdcca_cli import files
from cdcca_cli.datasets import Frame
from cdcca_cli.datasets.frames import Frames
from cdcca_cli.errors import BadData, MissingInput, NewerFormat
from cdcca_cli.text import load_json

VERSION = 1


class Seen:
    """The frames of `source` that are not in the state file, to be gone through like `source`.

    Args: path: the state file; None, or one that is not there yet: every frame is new.
    Raises: BadData, NewerFormat: not a state file; MissingInput: it, or an image, cannot be read.
    """

    def __init__(self, source: Frames, path: Path | None) -> None:
        self._source = source
        self._path = path
        self._found: dict[str, str] = {}
        self._known: set[str] = set()
        if path is not None:
            before = _read(path)
            self._found = {frame.id: _fingerprint(frame) for frame in source}
            self._known = {name for name, mark in self._found.items() if before.get(name) == mark}

    def __len__(self) -> int:
        return len(self._source) - len(self._known)

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame in self._source if frame.id not in self._known)

    def save(self) -> None:
        """Remember every frame of the source; call it once what came of them is safely written."""
        if self._path is not None:
            state = {"kind": "seen", "version": VERSION, "frames": self._found}
            text = json.dumps(state, sort_keys=True, separators=(",", ":"))
            files.atomic_write_bytes(self._path, text.encode() + b"\n")


def _fingerprint(frame: Frame) -> str:
    try:
        status = os.stat(frame.image)
    except OSError as error:
        raise MissingInput(f"{frame.image}: {error.strerror or error}") from None
    asks = [(ask.id, ask.prompt, ask.task, ask.choices) for ask in frame.asks]
    content = json.dumps([status.st_size, status.st_mtime_ns, asks])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    cure = "name another file with --state, or remove this one to look at every frame again"
    try:
        state = load_json(content, str(path))
    except BadData as error:
        raise BadData(f"{error}: {cure}") from None
    if not isinstance(state, dict) or state.get("kind") != "seen":
        raise BadData(f"{path}: not a state file of cdcca sample: {cure}")
    version, frames = state.get("version"), state.get("frames")
    if type(version) is int and version > VERSION:
        raise NewerFormat(f"{path}: state of version {version}, this cdcca reads {VERSION}: {cure}")
    if type(version) is not int or version != VERSION or not isinstance(frames, dict):
        raise BadData(f"{path}: damaged state file: {cure}")
    return {name: mark for name, mark in frames.items() if isinstance(mark, str)}
