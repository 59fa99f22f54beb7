"""What a device remembers from one run to the next: `cdcca sample --state FILE`.

The file, version 2, is JSON with these keys; version 1 had the first three:

    kind     "seen"
    version  2
    frames   {id: fingerprint}: a digest of the image file's size and time of last change and of the
             questions, so a frame with a new file or other questions is new
    running  {"rule": text, "tasks": {task: {"excess": x, "weights": 256 numbers}}} (`running`)
    sent     the last pictures sent, at most 256: {"picture": 16 x 16 bytes of grey in base64,
             "questions": digests of what was asked} (`near`)

All frames of a run are recorded, whether sent or not; a bad one is tried again when its file
changes. Frames that are gone from the source are forgotten: use one state file for one source. So
the file grows with the source, about 40 bytes a frame. A live source, whose frames come
once, is not recorded by frame: its file has no `frames` and does not grow, however long it runs.
There is no lock: in a cron job, use `flock`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.datasets import Frame, LiveFrames, num_frames
from cdcca_cli.datasets.frames import Frames
from cdcca_cli.errors import BadData, MissingInput, NewerFormat
from cdcca_cli.text import load_json
from cdcca_cli.uplink.near import SentPictures
from cdcca_cli.uplink.running import Running

VERSION = 2


@dataclass(frozen=True)
class _State:
    frames: dict[str, str] = field(default_factory=dict)
    running: Running = field(default_factory=Running)
    sent: SentPictures = field(default_factory=SentPictures)


class Seen:
    """The frames of `source` that are not in the state file `path`; all if it is missing or None.

    running, sent: what the file has for `sample_frames`, which goes on with them.
    Raises: BadData, NewerFormat: not a state file; MissingInput: it cannot be read.
    """

    def __init__(self, source: Frames | LiveFrames, path: Path | None) -> None:
        self._source = source
        self._path = path
        self._found: dict[str, str] = {}
        self._known: set[str] = set()
        before = _State() if path is None else _read(path)
        self.running, self.sent = before.running, before.sent
        if path is not None and not isinstance(source, LiveFrames):
            self._found = {_key(frame): _fingerprint(frame) for frame in source}
            self._known = {
                key for key, mark in self._found.items() if before.frames.get(key) == mark
            }

    def __len__(self) -> int:
        return (num_frames(self._source) or 0) - len(self._known)

    @property
    def frames(self) -> "Frames | LiveFrames":
        """The new frames; a live source has no others."""
        return self._source if isinstance(self._source, LiveFrames) else self

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame in self._source if _key(frame) not in self._known)

    def save(self) -> None:
        """Record the run; call it when the shards are written."""
        if self._path is not None:
            state = {
                "kind": "seen",
                "version": VERSION,
                "frames": self._found,
                "running": self.running.to_json(),
                "sent": self.sent.to_json(),
            }
            text = json.dumps(state, sort_keys=True, separators=(",", ":"))
            files.atomic_write_bytes(self._path, text.encode() + b"\n")


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


def _read(path: Path) -> _State:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return _State()
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
    damaged = BadData(f"{path}: damaged state file: {cure}")
    if version not in (1, 2) or not isinstance(frames, dict):
        raise damaged
    marks = {name: mark for name, mark in frames.items() if isinstance(mark, str)}
    if version == 1:
        return _State(marks)
    try:
        running, sent = Running.from_json(state["running"]), SentPictures.from_json(state["sent"])
    except (KeyError, TypeError, ValueError):
        raise damaged from None
    return _State(marks, running, sent)
