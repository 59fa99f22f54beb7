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
`round-1/predictions.jsonl` mean the same, and labels by `.labels`. A numbered folder without such
files is no round, nor is one with device folders and nothing that was answered or learnt: it may be
a group of a fleet. A folder with such files and no rounds counts as a first round. Everything else
is of a fleet: device folders, folders of them, and JSON lines. A folder can be both.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, CdccaError, MissingInput
from cdcca_cli.formats import device_log
from cdcca_cli.formats.device_state import FILE_NAME as DEVICE_FILE
from cdcca_cli.formats.history import FILE_NAME as HISTORY_FILE
from cdcca_cli.formats.kind import HEAD_BYTES, sniff
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import load_json

STREAM, PREDICTIONS = "stream", "predictions"
_ROUND = re.compile(r"(?:round-)?0*([1-9][0-9]{0,5})")
_OF_A_ROUND = ("predictions", "shards", "adaptation", "update", "steps")
_OF_LEARNING = {"shards", "adaptation", "steps"}
"""What makes a folder without rounds a round: updates and verdicts are in a fleet's, too."""
_BINARY = (".tokens", ".safetensors", ".cdcca")
_OURS = (".jsonl", *_BINARY)
_LINES = (".jsonl", ".jsonl.zst")
_MOST_FILES = 10_000
_MOST_FAULTS = 200
_MOST_TORN = 20


@dataclass
class RoundFiles:
    """The files of one round, by kind; predictions by name. damaged: of an unknown kind."""

    number: int
    kinds: dict[str, list[Path]] = field(default_factory=dict)
    predictions: dict[str, Path] = field(default_factory=dict)
    damaged: list[tuple[Path, CdccaError]] = field(default_factory=list)

    @property
    def has_learning(self) -> bool:
        """Whether there are files that no fleet has."""
        return bool(self.predictions or self.kinds.keys() & _OF_LEARNING)

    @property
    def is_empty(self) -> bool:
        return not (self.predictions or self.kinds or self.damaged)


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
                if name == PREDICTIONS:
                    found.setdefault(STREAM, {}).setdefault(one.number - 1, path)
        for one in self.rounds:
            for name, path in one.predictions.items():
                if name != PREDICTIONS:
                    found.setdefault(name, {})[one.number] = path
        return {name: dict(sorted(paths.items())) for name, paths in found.items()}


class Unreadable:
    """What could not be read: each is named on stderr, counted, and kept for the page."""

    def __init__(self) -> None:
        self._skipped = Skipped()
        self.files: list[tuple[str, str]] = []

    def add(self, path: str | Path, error: CdccaError, kind: str = "file") -> None:
        self._skipped.add(kind, error)
        if len(self.files) < _MOST_FAULTS:
            self.files.append((str(path), str(error)))

    @property
    def count(self) -> int:
        return self._skipped.count

    def of_part(self) -> Skipped:
        """For a reader of many members: what it leaves out is added here."""
        return _OfPart(self)

    def __str__(self) -> str:
        return str(self._skipped)


class _OfPart(Skipped):
    def __init__(self, whole: Unreadable) -> None:
        super().__init__(quiet=True)
        self._whole = whole

    def add(self, kind: str, error: CdccaError) -> None:
        super().add(kind, error)
        self._whole.add(str(error).partition(": ")[0], error, kind)


def find(path: Path, bad: Unreadable) -> tuple[Run | None, bool]:
    """The run in a folder, if there is one, and whether to look for devices. MissingInput."""
    if not path.is_dir():
        if not os.path.lexists(path):
            raise MissingInput(f"{path}: no such file or folder")
        return None, True
    if os.path.lexists(path / DEVICE_FILE):
        return None, True
    run, has_groups = Run(path), False
    for entry in _entries(path):
        match = _ROUND.fullmatch(entry.name)
        if entry.is_dir() and (match or entry.name == "start"):
            number = int(match[1]) if match else 0
            if os.path.lexists(entry / DEVICE_FILE):  # a device may be called 7
                continue
            try:
                one = _round(entry, number)
            except MissingInput as error:
                bad.add(entry, error)
                continue
            if not one.has_learning and _has_devices(entry):  # so may a group
                has_groups = True
            elif any(other.number == number for other in run.rounds):
                bad.add(entry, BadData(f"{entry}: a second folder of round {number}"))
            elif not one.is_empty:
                run.rounds.append(one)
        elif entry.is_file() and entry.name == HISTORY_FILE:
            run.history = entry
        elif entry.is_file() and entry.name.endswith(".labels"):
            run.labels.append(entry)
    run.rounds.sort(key=lambda one: one.number)
    damaged = [entry for one in run.rounds for entry in one.damaged]
    if not run.rounds:
        flat = _round(path, 1)
        has_groups = has_groups or _has_devices(path)
        damaged = flat.damaged
        if flat.has_learning:
            run.rounds.append(flat)
        else:  # lines are read with the fleet's
            damaged = [one for one in damaged if not one[0].name.endswith(_LINES)]
    for file, fault in damaged:
        bad.add(file, fault)
    if not run.rounds and run.history is None:
        return None, True
    return run, has_groups


def _has_devices(folder: Path) -> bool:
    """Whether there are device folders below."""
    from cdcca_cli.inspection import fleet_files

    below = fleet_files.find(folder, Skipped(quiet=True))
    return any(found.kind == "device" for found in below)


def name_of(path: Path) -> str:
    """The name of a file of predictions."""
    return path.name.removesuffix(".zst").removesuffix(".jsonl")


def _round(folder: Path, number: int) -> RoundFiles:
    found = RoundFiles(number)
    for entry in _entries(folder):
        if not entry.is_file() or entry.name == HISTORY_FILE:
            continue
        try:
            kind = _kind(entry)
        except CdccaError as error:
            found.damaged.append((entry, error))
            continue
        if kind == "predictions":
            found.predictions[name_of(entry)] = entry
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
        first = _first_line(head, str(path))
        if first is not None and "v" not in first:
            if "what" in first:
                return "steps"
            if device_log.is_line(first):
                return "apply"
        kind = sniff(io.BytesIO(head), str(path))[0]
        if kind in ("annotations", "manifest") and path.name.endswith(_BINARY):
            raise BadData(f"{path}: JSON, which no file of this name is")
    except CdccaError:
        if path.name.removesuffix(".zst").endswith(_OURS):
            raise
        return None
    return kind if kind in (*_OF_A_ROUND, "labels") else None


def _first_line(head: bytes, where: str) -> dict[str, Any] | None:
    """The first of some JSON lines; of a device's log, which power cuts tear, the first sound one.

    None if they are something else. Raises: BadData.
    """
    lines = head.lstrip().split(b"\n", _MOST_TORN)[:_MOST_TORN]
    if not lines[0].startswith(b"{") or len(lines[0]) >= HEAD_BYTES - 1:
        return None
    try:
        first = load_json(lines[0], where)
        return first if isinstance(first, dict) else None
    except BadData:
        for line in lines[1:]:
            with suppress(BadData):
                later = load_json(line, where)
                if device_log.is_line(later):
                    return dict(later)
        raise
