"""How training went: curves by term, and what the held-out part and the device's gate said.

Curves are thinned to at most _MOST_STEPS steps a round; the last one is kept.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.errors import BadData
from cdcca_cli.formats import adaptation as adaptations
from cdcca_cli.formats import records
from cdcca_cli.formats.device_log import Entry
from cdcca_cli.inspection import fleet_files
from cdcca_cli.reporting.plain import number, text
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import load_json

_MOST_STEPS = 60
_MOST_TERMS = 12
_MOST_LINES = 1_000_000
_MOST_VERDICTS = 1000
_NO_TERM = {
    "step",
    "of",
    "epoch",
    "segment",
    "lr",
    "gradient_norm",
    "questions",
    "seconds",
    "seconds_left",
    "what",
}


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with streams.text_input(path) as lines:
        for row, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}: line {row}"
            found = load_json(line, where)
            if not isinstance(found, dict) or row > _MOST_LINES:
                raise BadData(f"{where}: expected an object, at most {_MOST_LINES:,} lines")
            yield found


def read_steps(path: Path, round_number: int) -> dict[str, Any]:
    """A round's curves. Raises: CdccaError.

    {"round", "method", "steps": [...], "curves": {term: [...]}, "held_out": [{"epoch",
    "cross_entropy", "agreement"}]}; a value that is missing or was not finite is None.
    """
    method, points = "", _Thinned()
    held_out: list[dict[str, Any]] = []
    for line in _lines(path):
        if line.get("what") == "begin":  # a new process: its log is appended
            method, held_out, points = text(line.get("method", ""), 40), [], _Thinned()
        elif line.get("what") == "step":
            points.add(line)
        elif line.get("what") == "held_out" and "epoch" in line:
            names = ("epoch", "cross_entropy", "agreement")
            held_out.append({name: number(line.get(name)) for name in names})
    lines = points.lines()
    terms = dict.fromkeys(name for line in lines for name in line if name not in _NO_TERM)
    return {
        "round": round_number,
        "method": method,
        "steps": points.numbers(),
        "curves": {
            text(name, 40): [number(line.get(name)) for line in lines]
            for name in list(terms)[:_MOST_TERMS]
        },
        "held_out": held_out[-_MOST_STEPS:],
    }


class _Thinned:
    """Steps at growing distances, so that at most twice _MOST_STEPS are kept, and the last one."""

    def __init__(self) -> None:
        self.total, self.every = 0, 1
        self._kept: list[tuple[int, Mapping[str, Any]]] = []
        self._last: tuple[int, Mapping[str, Any]] | None = None

    def add(self, line: Mapping[str, Any]) -> None:
        self.total += 1
        self._last = self.total, line
        if (self.total - 1) % self.every == 0:
            self._kept.append(self._last)
        if len(self._kept) > _MOST_STEPS:
            self._kept = self._kept[::2]
            self.every *= 2

    def _all(self) -> list[tuple[int, Mapping[str, Any]]]:
        if self._last is None or self._kept[-1] == self._last:
            return self._kept
        return [*self._kept, self._last]

    def lines(self) -> list[Mapping[str, Any]]:
        return [line for _, line in self._all()]

    def numbers(self) -> list[int]:
        return [place for place, _ in self._all()]


def read_adaptation(path: Path, round_number: int) -> dict[str, Any]:
    """What the header of an adaptation says of its round. Raises: CdccaError."""
    where = str(path)
    with streams.binary_input(path) as stream:
        head = records.read_head(stream, limits=adaptations.overlay_format.LIMITS, where=where)
    if head is None:
        raise BadData(f"{where}: empty")
    _, header = records.parse_head(head, where)
    records.expect_kind(header, adaptations.KINDS, where)
    report = records.field(header, "report", dict, where)
    return {
        "round": round_number,
        "method": text(header.get("method", ""), 40),
        "seed": number(header.get("seed")),
        "base": text(header.get("base", "")),
        "teacher": text(report["teacher"]) if report.get("teacher") else None,
        "trained": number(report.get("num_trained")),
        "bytes": os.stat(path).st_size,
        **teaching(report),
    }


def teaching(report: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of the held-out part, and the drift, from an adaptation's or history's report."""
    held, drift = report.get("held_out"), report.get("drift")
    held = held if isinstance(held, dict) else {}
    drift = drift if isinstance(drift, dict) else {}

    def inner(of: str, name: str, places: int = 4) -> Any:
        part = held.get(of)
        return number(part.get(name), places) if isinstance(part, dict) else None

    return {
        "verdict": text(held["verdict"], 40) if held.get("verdict") else None,
        "questions": number(held.get("num_asks")),
        "before": inner("cross_entropy", "before"),
        "after": inner("cross_entropy", "after"),
        "gain": inner("gain", "mean"),
        "low": inner("gain", "low"),
        "high": inner("gain", "high"),
        "agreement_before": inner("agreement", "before"),
        "agreement_after": inner("agreement", "after"),
        "drift_before": number(drift.get("before"), 6),
        "drift_after": number(drift.get("after"), 6),
    }


def read_verdicts(path: Path, round_number: int, skipped: Skipped) -> list[dict[str, Any]]:
    """What a device made of updates: the `apply` lines of its log (`formats.device_log`).

    Args: skipped: takes the lines that are damaged.
    Raises: CdccaError for a file that cannot be read.
    """
    found: deque[dict[str, Any]] = deque(maxlen=_MOST_VERDICTS)
    for entry in fleet_files.log_lines(str(path), skipped):
        if entry.command == "apply":
            found.append(_verdict(entry, round_number))
    return list(found)


def _verdict(entry: Entry, round_number: int) -> dict[str, Any]:
    measured, difference = entry.measured or {}, entry.difference
    span = {name: number(difference.get(name), 2) for name in ("low", "high")}
    return {
        "round": round_number,
        "device": text(entry.device),
        "time": None if entry.time is None else text(entry.time, 40),
        "status": text(entry.status or "", 40),
        "reason": text(entry.reason) if entry.reason else None,
        "sequence": number(entry.sequence),
        "digest": text(entry.digest or ""),
        "metric": text(measured["metric"], 40) if "metric" in measured else None,
        "before": number(measured.get("before"), 2),
        "after": number(measured.get("after"), 2),
        "difference": number(difference.get("value"), 2),
        **(dict.fromkeys(span) if None in span.values() else span),
        "drift": number(measured.get("drift"), 6),
    }
