"""What one step minimises: the interface of all methods, and what they may use.

The loop (`run`) is the same for all: the same overlay, examples, batches, epochs, optimiser and
held-out part. A method says what a batch costs, term by term, and what happens after a step.

    taught   akd (the paper's), pseudo-label, pkd, cwd: towards what a teacher says
    tent     entropy of the student's own answers
    cotta    consistency with a running mean of the student

`none` is no method: the source model as it is, for tables (`run` does no step).
Does not loop, and chooses no state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cdcca_cli.distillation.batches import Look, Looker
from cdcca_cli.distillation.lessons import Lessons
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainable import Flat, RunningMean
from cdcca_cli.models import LoadedModel

PASS = 8
"""Asks in one pass where nothing is said. On the shipped student a step then takes a quarter longer
than in one pass of 16, in a tenth less memory; and one process and two, with a step's 16 asks, add
up the same parts to the same bits."""


@dataclass(eq=False)
class Course:
    """What a method works with.

    overlay: what is trained of the student. source: the overlay at sequence 0, before any round.
    """

    student: LoadedModel
    overlay: Flat
    lessons: Lessons
    settings: DistillSettings
    looker: Looker
    source: Callable[[], Mapping[str, np.ndarray]]

    def look(self, batch: Sequence[int]) -> Look:
        """Some examples, by their numbers, through the connector and into the prompts."""
        return self.looker([self.lessons.examples[number] for number in batch])


class Method(ABC):
    """One way to adapt.

    weights: of each term of the loss, by name; every term counts. flats: what is trained beside
    the overlay. mean: the running mean that is judged and written instead of the overlay, or None.
    is_of_the_batch: whether an example's loss depends on the others in its batch.
    """

    is_of_the_batch = False

    def __init__(self, course: Course, weights: Mapping[str, float]) -> None:
        self.course = course
        self.weights = dict(weights)
        self.flats: list[Flat] = []
        ema = course.settings.ema
        self.mean = None if ema is None else RunningMean(course.overlay, ema)

    def asks_at_once(self, num_processes: int = 1) -> int:
        """How many asks of a step go through in one pass: `micro_batch_size`, or PASS.

        Fewer where each of the processes has a pass then; but all of them, by one process, where an
        example's loss depends on the others beside it.
        """
        settings = self.course.settings
        if settings.micro_batch_size is not None:
            return settings.micro_batch_size
        if self.is_of_the_batch:
            return settings.batch_size
        return min(PASS, -(-settings.batch_size // num_processes))

    def prepare(self) -> None:  # noqa: B027 -- most need nothing
        """Before the first step, and before a state is restored."""

    @abstractmethod
    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        """Each term of some examples, (B,) each, with gradients."""

    def after_step(self, number: int) -> None:
        """After step `number`, counted from 0 over all epochs."""
        if self.mean is not None:
            self.mean.update()

    def tensors(self) -> dict[str, Tensor]:
        """What a step leaves to the next, live, beside overlay, flats and optimiser."""
        return {} if self.mean is None else {"mean": self.mean.values}

    def result(self) -> Tensor:
        """(P,): the overlay as it would be written now."""
        return self.course.overlay.values if self.mean is None else self.mean.values

    def report(self) -> dict[str, Any]:
        """What the adaptation's header says of the method."""
        return {}
