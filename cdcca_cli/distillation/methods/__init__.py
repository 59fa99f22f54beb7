"""What one step minimises: the interface of all methods, and what they may use.

The loop (`trainer`) is the same for all: the same overlay, examples, batches, epochs, optimiser and
held-out part. A method computes the terms of a batch's loss, and what happens after a step.

    akd    akd (the paper's), pseudo-label, pkd, cwd: towards the teacher's outputs
    tent   entropy of the student's own answers
    cotta  consistency with a running mean of the student

`none` is no method: the source model as it is, for tables.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cdcca_cli.distillation.dataset import Dataset
from cdcca_cli.distillation.encoding import EncodedBatch, Encoder
from cdcca_cli.distillation.optimiser import Flat, RunningMean
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.models import LoadedModel

PASS = 8
"""Questions in one forward pass, where no number is given. On the shipped student a step then takes
a quarter longer than in one pass of 16, in a tenth less memory; and one process and two, with 16
questions a step, add up the same parts to the same bits."""

Source = Callable[[], Mapping[str, np.ndarray]]


@dataclass(eq=False)
class MethodContext:
    """What a method works with.

    overlay: what is trained of the student. source: makes the overlay of sequence 0, before any
    round.
    """

    student: LoadedModel
    overlay: Flat
    dataset: Dataset
    settings: DistillSettings
    encoder: Encoder
    source: Source

    def encode(self, batch: Sequence[int]) -> EncodedBatch:
        """Some examples, by their numbers, through the connector and into the prompts."""
        return self.encoder([self.dataset.examples[number] for number in batch])


class Method(ABC):
    """One way to adapt. To be made in the student's training mode.

    weights: of each term of the loss, by name; every term counts. flats: what is trained beside
    the overlay. mean: the running mean that is judged and written instead of the overlay, or None.
    is_of_the_batch: whether an example's loss depends on the others in its batch.
    """

    is_of_the_batch = False

    def __init__(self, context: MethodContext, weights: Mapping[str, float]) -> None:
        self.context, self.settings = context, context.settings
        self.weights = dict(weights)
        self.flats: list[Flat] = []
        ema = self.settings.ema
        self.mean = None if ema is None else RunningMean(context.overlay, ema)

    def pass_size(self, num_processes: int = 1) -> int:
        """How many questions of a step go through in one pass: `micro_batch_size`, or PASS.

        Fewer where each of the processes has a pass then; but all of them, by one process, where an
        example's loss depends on the others beside it.
        """
        settings = self.settings
        if settings.micro_batch_size is not None:
            return settings.micro_batch_size
        if self.is_of_the_batch:
            return settings.batch_size
        return min(PASS, -(-settings.batch_size // num_processes))

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
        return self.context.overlay.values if self.mean is None else self.mean.values

    def report(self) -> dict[str, Any]:
        """What the adaptation's header says of the method."""
        return {}


def create(context: MethodContext) -> Method | None:
    """The method that the settings name; None for the source model as it is."""
    from cdcca_cli.distillation.methods.akd import FeatureDistillation
    from cdcca_cli.distillation.methods.cotta import Cotta
    from cdcca_cli.distillation.methods.tent import Tent

    name = context.settings.method
    if name == "none":
        return None
    if name == "tent":
        return Tent(context)
    return Cotta(context) if name == "cotta" else FeatureDistillation(context)
