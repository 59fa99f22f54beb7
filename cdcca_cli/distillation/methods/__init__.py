"""What one step minimises: the interface of all methods, and what they may use.

A method computes the terms of a batch's loss, and what happens after a step; the loop (`trainer`)
is the same for all.

    taught  kd, akd (the paper's), pseudo-label, pkd, cwd: towards the teacher's outputs
    tent    entropy of the student's own answers
    cotta   consistency with a running mean of the student
    none    no step: the student without training
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from cdcca_cli.distillation.dataset import Dataset
from cdcca_cli.distillation.optimiser import Flat
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import (
    EncodedBatch,
    encode,
    num_positions,
    passes,
)


@dataclass(eq=False)
class MethodContext:
    """What a method works with. overlay: what is trained. source: the overlay of sequence 0."""

    student: LoadedModel
    overlay: Flat
    dataset: Dataset
    settings: DistillSettings
    source: Callable[[], Mapping[str, np.ndarray]]
    _positions: dict[int, int] = field(default_factory=dict)

    def encode(self, batch: Sequence[int]) -> EncodedBatch:
        """Examples, by their numbers, through the connector and into the prompts."""
        return encode(self.student, [self.dataset.examples[number] for number in batch])

    def positions(self, numbers: Sequence[int]) -> list[int]:
        """Positions of the prompt of each example."""
        for number in numbers:
            if number not in self._positions:
                found = num_positions(self.student, self.dataset.examples[number])
                self._positions[number] = found
        return [self._positions[number] for number in numbers]


class Method(ABC):
    """One way to adapt. Create it in the student's training mode.

    weights: of each term of the loss, by name. flats: what is trained beside the overlay. mean_P:
    None, or the running mean of the overlay, with this `decay`, which is evaluated and written in
    its place.
    """

    def __init__(
        self, context: MethodContext, weights: Mapping[str, float], decay: float | None
    ) -> None:
        self.context, self.settings = context, context.settings
        self.weights = dict(weights)
        self.flats: list[Flat] = []
        self.decay = decay
        self.mean_P = None if decay is None else context.overlay.values.clone()

    def micro_batches(self, batch: Sequence[int], num_processes: int = 1) -> list[Sequence[int]]:
        """A batch cut into what one forward pass takes (`DistillSettings.pass_limits`)."""
        runs = passes(self.context.positions(batch), *self.settings.pass_limits(num_processes))
        return [batch[each.start : each.stop] for each in runs]

    @abstractmethod
    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        """Each term of some examples, (B,) each, with gradients."""

    def after_step(self, number: int) -> None:
        """After step `number`, counted from 0 over all epochs."""
        if self.mean_P is not None and self.decay is not None:
            self.mean_P.lerp_(self.context.overlay.values, 1 - self.decay)

    def tensors(self) -> dict[str, Tensor]:
        """The method's state between steps, live, beside overlay, flats and optimiser."""
        return {} if self.mean_P is None else {"mean": self.mean_P}

    def result(self) -> Tensor:
        """(P,): the overlay as it would be written now."""
        return self.context.overlay.values if self.mean_P is None else self.mean_P

    def report(self) -> dict[str, Any]:
        """The method's part of the adaptation's header."""
        return {}


class Untrained(Method):
    """The student as it is."""

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        raise NotImplementedError


def create(context: MethodContext) -> Method:
    """The method that the settings name."""
    from cdcca_cli.distillation.methods.cotta import Cotta
    from cdcca_cli.distillation.methods.taught import Taught
    from cdcca_cli.distillation.methods.tent import Tent

    name = context.settings.method
    if name == "none":
        return Untrained(context, {}, None)
    if name == "tent":
        return Tent(context)
    return Cotta(context) if name == "cotta" else Taught(context)
