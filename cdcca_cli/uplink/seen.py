"""The frames that a device has sampled before: `cdcca sample --state FILE`.

The file, version 1, is JSON: `{"kind": "seen", "version": 1, "frames": {id: fingerprint}}`. The
fingerprint is a digest of the image file's size and time of last change and of the questions, so a
frame with a new file or other questions is new. All frames of a run are recorded, whether sent or
not; a bad one is tried again when its file changes. Frames that are gone from the source are
forgotten: use one state file for one source. There is no lock: in a cron job, use `flock`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.datasets import Frame, LiveFrames
from cdcca_cli.datasets.frames import Frames
from cdcca_cli.errors import BadData, MissingInput, NewerFormat, SettingError
from cdcca_cli.text import load_json

VERSION = 1


class Seen:
    """The frames of `source` that are not in the state file `path`; all if it is missing or None.

    Raises: BadData, NewerFormat: not a state file; MissingInput: it cannot be read.
    """

    def __init__(self, source: Frames, path: Path | None) -> None:
        self._source = source
        self._path = path
        self._found: dict[str, str] = {}
        self._known: set[str] = set()
        if path is not None:
            before = _read(path)
            self._found = {_key(frame): _fingerprint(frame) for frame in source}
            self._known = {key for key, mark in self._found.items() if before.get(key) == mark}

    def __len__(self) -> int:
        return len(self._source) - len(self._known)

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame in self._source if _key(frame) not in self._known)

    def save(self) -> None:
        """Record every frame of the source; call it when the shards are written."""
        if self._path is not None:
            state = {"kind": "seen", "version": VERSION, "frames": self._found}
            text = json.dumps(state, sort_keys=True, separators=(",", ":"))
            files.atomic_write_bytes(self._path, text.encode() + b"\n")


def unseen(source: Frames | LiveFrames, path: Path | None) -> "Seen | LiveFrames":
    """The frames that are new. A live source has no others. Raises: as Seen; SettingError."""
    if not isinstance(source, LiveFrames):
        return Seen(source, path)
    if path is not None:
        raise SettingError("state", "is for frames that are there again; those of a camera are new")
    return source


def _key(frame: Frame) -> str:
    """The frame's id, with escapes for the bytes of a file name that are not UTF-8."""
    return frame.id.encode("utf-8", "backslashreplace").decode()


def _fingerprint(frame: Frame) -> str:
    try:
        status = os.stat(frame.image)
        version = [status.st_size, status.st_mtime_ns]
    except OSError:  # a broken link, or removed since the folder was read
        version = [0, 0]
    questions = [
        (question.id, question.prompt, question.task, question.choices)
        for question in frame.questions
    ]
    content = json.dumps([*version, questions])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise MissingInput(files.reason(path, error)) from None
    try:
        state: Any = load_json(content, str(path))
    except BadData:
        state = None
    cure = "name another file with `state`, or remove this one to sample every frame again"
    if not isinstance(state, dict) or state.get("kind") != "seen":
        raise BadData(f"{path}: not a state file of cdcca sample: {cure}")
    version, frames = state.get("version"), state.get("frames")
    if isinstance(version, int) and version > VERSION:
        raise NewerFormat(f"{path}: state of version {version}, this cdcca reads {VERSION}: {cure}")
    if version != VERSION or not isinstance(frames, dict):
        raise BadData(f"{path}: damaged state file: {cure}")
    return {name: mark for name, mark in frames.items() if isinstance(mark, str)}
