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
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from cdcca_cli import files, streams
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import CannotWrite


class StepLog:
    """Writes each line at once; nothing without a path. Raises: CannotWrite."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._out: TextIO | None = None
        self._start = self._latest = time.monotonic()
        # Unit (epoch or segment), first step and start time.
        self._steps: tuple[str, int, float] | None = None
        if path is not None:
            try:
                self._out = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            except OSError as error:
                raise CannotWrite(files.reason(path, error)) from None

    def close(self) -> None:
        """Close the file; later calls write nothing."""
        if self._out is not None:
            with suppress(OSError):  # reported when it was written
                self._out.close()
            self._out = None

    def start(self) -> None:
        """Start the clock."""
        self._start = self._latest = time.monotonic()

    def begin(self, settings: DistillSettings, lr: float, terms: Sequence[str]) -> None:
        """Before the first step of this process."""
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
        if self._out is None:
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
        if self._out is None:
            return
        try:
            self._out.write(json.dumps(line) + "\n")
        except BrokenPipeError:
            streams.message(f"{self._path}: its reader closed the pipe: logging stops")
            self.close()
        except OSError as error:
            raise CannotWrite(files.reason(str(self._path), error)) from None


def _number(value: float) -> float | None:
    """Rounded to six digits; None if it is not finite, which JSON cannot hold."""
    return round(value, 6) if math.isfinite(value) else None
