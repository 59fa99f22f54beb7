"""What training does, as JSON lines: one a step, one for each evaluation of the held-out part.

    {"what": "begin", "method", "epochs", "batch_size", "lr", "terms", "seed"}
    {"what": "step", "step", "of", "epoch", "lr", "loss", each term by its name, "gradient_norm",
     "questions", "seconds", "seconds_left"}
    {"what": "held_out", "epoch", "cross_entropy", "agreement", "seconds"}

The rate-aware steps after the epochs have a "leg" in place of the epoch, and count from 1 again.
Terms are means over the batch, without their weights (with `confidence` the cross-entropy's are in
it); the norm is that of all gradients before it is clipped; seconds are since this process began
to train, with what comes before the first step (scales, gradients). A number that is not finite is
null. A file that exists is added to, so that a run that was stopped and goes on has one log. Each
line is written at once. Where a reader of a pipe goes away, training goes on without a log.
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
    """Writes the lines; nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        """Raises: CannotWrite."""
        self._path = path
        self._out: TextIO | None = None
        self._start = time.monotonic()
        # Where the steps that count together began: what they are in, which was the first, when.
        self._steps: tuple[str, int, float] | None = None
        self._latest = self._start
        if path is not None:
            try:
                self._out = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            except OSError as error:
                raise CannotWrite(files.reason(path, error)) from None

    def close(self) -> None:
        """Close the file; nothing is written any more."""
        if self._out is not None:
            with suppress(OSError):  # what could not be written was reported when it was
                self._out.close()
            self._out = None

    def start(self) -> None:
        """The clock: from now on this process trains."""
        self._start = self._latest = time.monotonic()

    def begin(self, settings: DistillSettings, lr: float, terms: Sequence[str]) -> None:
        """Before the first step of this process, whose clock has been started."""
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
        """After step `number` of `total`, counted from 1. place: its epoch or leg."""
        if self._out is None:
            return
        (what,) = place
        if self._steps is None or self._steps[0] != what:
            self._steps = what, number, self._latest
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
            seconds=round(self._seconds(), 3),
            seconds_left=round(left, 1),
        )

    def judged(self, place: Mapping[str, int], held: HeldOutResult) -> None:
        """After an evaluation of the held-out part; epoch or leg 0 is before the first step."""
        self._write(
            what="held_out",
            **place,
            cross_entropy=_number(held.cross_entropy),
            agreement=round(float(held.agrees_E.mean()), 4),
            seconds=round(self._seconds(), 3),
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _write(self, **line: Any) -> None:
        self._latest = time.monotonic()
        if self._out is None:
            return
        try:
            self._out.write(json.dumps(line) + "\n")
        except BrokenPipeError:
            streams.message(f"{self._path}: its reader went away: nothing more is logged")
            self.close()
        except OSError as error:
            raise CannotWrite(files.reason(str(self._path), error)) from None


def _number(value: float) -> float | None:
    """To six digits; None for what JSON has no word for."""
    return round(value, 6) if math.isfinite(value) else None
