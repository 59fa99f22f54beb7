"""Which file of a folder is what.

A **run folder** is what `cdcca loop`, `cdcca demo` or `examples/loop.sh` leave: a folder `round-N`
(or `N`) for each round, from 1, `start` for what was measured before the first, and beside them
`history.json` and the teacher's labels. A round's folder holds any of

    predictions.jsonl        the answers on the stream before the round
    NAME.jsonl               predictions on the labelled frames NAME after the round
    uplink.tokens            shards
    adaptation.safetensors   what was learnt; only its header is read
    update.cdcca             the downlink
    steps.jsonl              of distill's log
    apply.jsonl              of apply's JSON

Files are known by their content; predictions also by their names, of which `start/stream.jsonl` and
`round-1/predictions.jsonl` mean the same, and labels by `.labels`. A folder with such files and no
rounds counts as a first round. Everything else is of a fleet: device folders, folders of them, and
JSON lines.
"""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, CdccaError, MissingInput
from cdcca_cli.formats.device_state import FILE_NAME as DEVICE_FILE
from cdcca_cli.formats.history import FILE_NAME as HISTORY_FILE
from cdcca_cli.formats.kind import HEAD_BYTES, sniff
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import load_json

STREAM = "stream"
_ROUND = re.compile(r"(?:round-)?0*([1-9][0-9]{0,5})")
_LINES = {"what": "steps", "status": "apply"}
"""A key of the first of some JSON lines, and what they are then."""
_OF_A_ROUND = ("predictions", "shards", "adaptation", "update", "steps")
_OF_LEARNING = {"shards", "adaptation", "steps"}
"""What makes a folder without rounds a round: updates and verdicts are in a fleet's, too."""
_BINARY = (".tokens", ".safetensors", ".cdcca")
_OURS = (".jsonl", *_BINARY)
_MOST_FILES = 10_000


@dataclass
class RoundFiles:
    """The files of one round, by kind; predictions by name."""

    number: int
    kinds: dict[str, list[Path]] = field(default_factory=dict)
    predictions: dict[str, Path] = field(default_factory=dict)


@dataclass
class Run:
    """A run folder. rounds: in order; 0 is `start`, if it is there."""

    path: Path
    rounds: list[RoundFiles] = field(default_factory=list)
    history: Path | None = None
    labels: list[Path] = field(default_factory=list)

    def series(self) -> dict[str, dict[int, Path]]:
        """Files of predictions by name and by the round after which they were made."""
        found: dict[str, dict[int, Path]] = {}
        for one in self.rounds:
            for name, path in one.predictions.items():
                if name == "predictions":
                    found.setdefault(STREAM, {}).setdefault(one.number - 1, path)
        for one in self.rounds:
            for name, path in one.predictions.items():
                if name != "predictions":
                    found.setdefault(name, {})[one.number] = path
        return {name: dict(sorted(paths.items())) for name, paths in found.items()}


class Unreadable:
    """Files that could not be read: each is named on stderr, counted, and kept for the page."""

    def __init__(self) -> None:
        self._skipped = Skipped()
        self.files: list[tuple[str, str]] = []

    def add(self, path: str | Path, error: CdccaError) -> None:
        self._skipped.add("file", error)
        self.files.append((str(path), str(error)))

    def __str__(self) -> str:
        return str(self._skipped)


def find(path: Path, bad: Unreadable) -> Run | None:
    """The run in a folder; None for parts of a fleet. Raises: MissingInput."""
    if not path.is_dir():
        if not os.path.lexists(path):
            raise MissingInput(f"{path}: no such file or folder")
        return None
    if os.path.lexists(path / DEVICE_FILE):
        return None
    run = Run(path)
    for entry in _entries(path):
        match = _ROUND.fullmatch(entry.name)
        if entry.is_dir() and (match or entry.name == "start"):
            number = int(match[1]) if match else 0
            if os.path.lexists(entry / DEVICE_FILE):  # a device may be called 7
                continue
            if any(one.number == number for one in run.rounds):
                bad.add(entry, BadData(f"{entry}: a second folder of round {number}"))
                continue
            try:
                run.rounds.append(_round(entry, number, bad))
            except MissingInput as error:
                bad.add(entry, error)
        elif entry.is_file() and entry.name == HISTORY_FILE:
            run.history = entry
        elif entry.is_file() and entry.name.endswith(".labels"):
            run.labels.append(entry)
    run.rounds.sort(key=lambda one: one.number)
    if not run.rounds:
        flat = _round(path, 1, bad)
        if flat.predictions or flat.kinds.keys() & _OF_LEARNING:
            run.rounds.append(flat)
    return run if run.rounds or run.history is not None else None


def _round(folder: Path, number: int, bad: Unreadable) -> RoundFiles:
    found = RoundFiles(number)
    for entry in _entries(folder):
        if not entry.is_file() or entry.name == HISTORY_FILE:
            continue
        try:
            kind = _kind(entry)
        except CdccaError as error:
            bad.add(entry, error)
            continue
        if kind == "predictions":
            found.predictions[entry.name.removesuffix(".zst").removesuffix(".jsonl")] = entry
        elif kind is not None:
            found.kinds.setdefault(kind, []).append(entry)
    return found


def _entries(folder: Path) -> Iterator[Path]:
    """What lies in a folder, by name, without hidden files. Raises: MissingInput."""
    try:
        names = sorted(os.listdir(folder))[:_MOST_FILES]
    except OSError as error:
        raise MissingInput(files.reason(folder, error)) from None
    return (folder / name for name in names if not name.startswith("."))


def _kind(path: Path) -> str | None:
    """The kind of a file, from its first bytes; None if a report has no use for it.

    Raises: CdccaError for a file whose name is one of cdcca's and whose content is not.
    """
    try:
        with streams.binary_input(path) as source:
            head = source.read(HEAD_BYTES)
        line = head.lstrip().partition(b"\n")[0]
        if line.startswith(b"{") and len(line) < HEAD_BYTES:
            first = load_json(line, str(path))
            for key, kind in _LINES.items():
                if key in first and "v" not in first:
                    return kind
        kind = sniff(io.BytesIO(head), str(path))[0]
        if kind in ("annotations", "manifest") and path.name.endswith(_BINARY):
            raise BadData(f"{path}: JSON, which no file of this name is")
    except CdccaError:
        if path.name.removesuffix(".zst").endswith(_OURS):
            raise
        return None
    return kind if kind in (*_OF_A_ROUND, "labels") else None
