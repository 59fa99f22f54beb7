"""A log of training in JSON lines: one for each step and each evaluation of the held-out part.

    {"what": "begin", "method", "epochs", "batch_size", "lr", "terms", "seed"}
    {"what": "step", "step", "of", "epoch", "lr", "loss", each term by its name, "gradient_norm",
     "questions", "seconds", "seconds_left"}
    {"what": "held_out", "epoch", "cross_entropy", "agreement", "seconds"}

The rate-aware steps have a "segment" in place of the epoch, and count from 1 again. Terms are means
over the batch (`anchor`: over the step's anchors), without their weights (but with those of
`confidence`); the norm is that of all gradients before clipping; seconds count from the start of
training in this process. A number that is not finite is null. An existing file is appended to. If
the reader of a pipe closes it, training goes on without a log.

The same figures can go to trackers (`trackers`), except those that are null. A tracker that cannot
be opened is an error; one that fails later is named once and left out, and training goes on.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from cdcca_cli import __version__, files, streams
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trackers import GROUPS, Place, Tracker, in_words
from cdcca_cli.errors import CannotWrite

_NAMES = ("work", "labels")  # settings that are names of files, not sent to trackers
_GROUPS = {
    unit: dict(zip(("step", "held_out"), names, strict=True))
    for unit, names in (("epoch", GROUPS[:2]), ("segment", GROUPS[2:]))
}
_NO_FIGURES = ("what", "step", "of")


class StepLog:
    """Writes each line to a file and to trackers, at once; nothing without any.

    Args:
        places: files, and trackers, in which a new run is opened.
        run: what the name of that run begins with.
    Raises: CannotWrite, Unavailable.
    """

    def __init__(self, *places: Path | Place | None, run: str = "distill") -> None:
        self._start = self._latest = time.monotonic()
        # Unit (epoch or segment), first step and start time.
        self._steps: tuple[str, int, float] | None = None
        self._outs: list[_File | _Run] = []
        try:
            for place in places:
                if place is not None:
                    self._outs.append(_File(place) if isinstance(place, Path) else _Run(place, run))
        except BaseException:
            self.close(is_failed=True)
            raise

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(is_failed=kind is not None)

    def close(self, *, is_failed: bool = False) -> None:
        """Close all; later calls write nothing. is_failed: what trackers note of the run."""
        for out in self._outs:
            out.close(is_failed=is_failed)
        self._outs = []

    def start(self) -> None:
        """Start the clock."""
        self._start = self._latest = time.monotonic()

    def begin(self, settings: DistillSettings, lr: float, terms: Sequence[str]) -> None:
        """Before the first step of this process."""
        config = {name: value for name, value in asdict(settings).items() if name not in _NAMES}
        for out in self._outs:
            if isinstance(out, _Run):
                out.begin({**config, "lr": lr, "terms": list(terms), "cdcca": __version__})
        self._write(
            what="begin",
            method=settings.method,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=lr,
            terms=list(terms),
            seed=settings.seed,
        )

    def step(
        self,
        number: int,
        total: int,
        place: Mapping[str, int],
        lr: float,
        means: Mapping[str, float],
        norm: Tensor,
        num_questions: int,
    ) -> None:
        """After step `number` of `total`, counted from 1. place: its epoch or segment."""
        if not self._outs:
            return
        (unit,) = place
        if self._steps is None or self._steps[0] != unit:
            self._steps = unit, number, self._latest
        _, first, began = self._steps
        left = (time.monotonic() - began) / (number - first + 1) * (total - number)
        self._write(
            what="step",
            step=number,
            of=total,
            **place,
            lr=lr,
            **{name: _number(value) for name, value in means.items()},
            gradient_norm=_number(float(norm)),
            questions=num_questions,
            seconds=self._seconds(),
            seconds_left=round(left, 1),
        )

    def held_out(self, place: Mapping[str, int], held: HeldOutResult) -> None:
        """After an evaluation of the held-out part; epoch or segment 0 is before the first step."""
        self._write(
            what="held_out",
            **place,
            cross_entropy=_number(held.cross_entropy),
            agreement=round(held.agreement, 4),
            seconds=self._seconds(),
        )

    def _seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)

    def _write(self, **line: Any) -> None:
        self._latest = time.monotonic()
        for out in self._outs:
            out.write(line)


class _File:
    """A file of JSON lines. Raises: CannotWrite."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._out: TextIO | None = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise CannotWrite(files.reason(path, error)) from None

    def write(self, line: Mapping[str, Any]) -> None:
        if self._out is None:
            return
        try:
            self._out.write(json.dumps(line) + "\n")
        except BrokenPipeError:
            streams.message(f"{self._path}: its reader closed the pipe: logging stops")
            self.close()
        except OSError as error:
            raise CannotWrite(files.reason(str(self._path), error)) from None

    def close(self, *, is_failed: bool = False) -> None:
        if self._out is not None:
            with suppress(OSError):  # reported when it was written
                self._out.close()
            self._out = None


class _Run:
    """A run in a tracker, left at its first fault. Raises: Unavailable if it cannot be opened."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._tracker: Tracker | None = place.open(name)
        self._last: tuple[str, int] | None = None  # unit and number of the latest step

    def begin(self, config: Mapping[str, Any]) -> None:
        with self._named():
            if self._tracker is not None:
                self._tracker.begin(config)

    def write(self, line: Mapping[str, Any]) -> None:
        unit = next((unit for unit in _GROUPS if unit in line), None)
        if unit is None:
            return
        what = str(line["what"])
        if what == "step":
            self._last = unit, line["step"]
        step = self._last[1] if self._last is not None and self._last[0] == unit else 0
        figures = {
            f"{_GROUPS[unit][what]}/{name}": value
            for name, value in line.items()
            if name not in _NO_FIGURES and value is not None
        }
        with self._named():
            if self._tracker is not None:
                self._tracker.log(figures, step)

    def close(self, *, is_failed: bool) -> None:
        tracker, self._tracker = self._tracker, None
        with self._named():
            if tracker is not None:
                tracker.close(is_failed=is_failed)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name a fault, and close the tracker if it lets us."""
        try:
            yield
        except Exception as error:
            streams.complain(f"{self._place}: {in_words(error)}: it gets no more of this log")
            tracker, self._tracker = self._tracker, None
            if tracker is not None:
                with suppress(Exception):
                    tracker.close(is_failed=True)


def _number(value: float) -> float | None:
    """Rounded to six digits; None if it is not finite, which JSON cannot hold."""
    return round(value, 6) if math.isfinite(value) else None
