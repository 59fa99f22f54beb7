"""The held-out task loss of any overlay: what training judges by, and `compress` after it.

The batches are made once (padded tokens, prompts, answers); a measurement is the connector and the
language model over them, without gradients. Same examples, same order and same batch size give the
same bits in training and after it.

Shapes: E held-out examples, B of a batch, A answer tokens, V vocabulary.
Does not choose a step or a state (`run`, `rate_aware`, the sender).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.batches import (
    Example,
    check_fit,
    look_at,
    prepare,
    prompt_length,
)
from cdcca_cli.distillation.held_out import Judgement
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.formats.adaptation import HeldOut
from cdcca_cli.models import LoadedModel

FORWARD_BATCHES = 4
"""Without gradients, so many times the training's batch go through at once."""


class Examination:
    """Examples with their answers, ready to judge a student as often as wanted."""

    def __init__(
        self,
        student: LoadedModel,
        examples: Sequence[Example],
        answers: Sequence[str],
        batch_size: int,
    ) -> None:
        """Args: batch_size: examples in a forward pass."""
        self._student = student
        order = sorted(
            range(len(examples)), key=lambda place: prompt_length(student, examples[place])
        )
        self._places = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        self._batches = [
            (
                prepare(student, [examples[place] for place in places]),
                student.answer_ids([answers[place] for place in places]),
            )
            for places in self._places
        ]
        self._size = len(examples)

    @torch.no_grad()
    def judge(self) -> Judgement:
        """The student as it is now, in the order of the examples."""
        nats_E, agrees_E = np.zeros(self._size, np.float32), np.zeros(self._size, np.float32)
        for places, (batch, answer_BA) in zip(self._places, self._batches, strict=True):
            seen = look_at(self._student, batch)
            logits_BAV = self._student.forward(seen.spliced, answer_BA).logits
            nats_E[places] = losses.answer_cross_entropy(logits_BAV, answer_BA).cpu().numpy()
            agrees_E[places] = agreement(logits_BAV, answer_BA).cpu().numpy()
        return Judgement(nats_E, agrees_E)


def agreement(logits_BAV: Tensor, answer_BA: Tensor) -> Tensor:
    """Whether greedy decoding gives the very answer: (B,) bool."""
    agrees_BA = (logits_BAV.argmax(-1) == answer_BA) | (answer_BA == losses.IGNORED)
    return agrees_BA.all(1)


class HeldOutLoss:
    """The loss of an overlay on an adaptation's held-out frames, by a call.

    The student is borrowed: it has its own overlay again after each call.
    """

    def __init__(
        self,
        student: LoadedModel,
        held_out: HeldOut,
        alpha: float,
        batch_size: int = DistillSettings.batch_size,
    ) -> None:
        """Prepare the batches.

        Args:
            student: a device's model (`models.load_device`) of the overlay's kind.
            alpha: of the device's LoRA.
            batch_size: of training; another one changes the loss in its last bits.
        Raises: BadData for frames of another vision tower than the student's.
        """
        for shard in held_out.shards:
            check_fit(shard, student, "student")
        examples = [Example(shard, ask) for shard in held_out.shards for ask in shard.asks]
        answers = [answer for row in held_out.answers for answer in row]
        self._student, self._alpha = student, alpha
        self._examination = Examination(student, examples, answers, FORWARD_BATCHES * batch_size)

    def __call__(self, overlay: Mapping[str, NDArray[np.float32]]) -> float:
        """Mean cross-entropy against the teacher's answers, nats per answer token."""
        return self.judge(overlay).cross_entropy

    def judge(self, overlay: Mapping[str, NDArray[np.float32]]) -> Judgement:
        """The same for each example, in the order of the frames and their asks.

        Raises: BadData for an overlay of another student.
        """
        student = self._student
        own = student.overlay()
        try:
            student.install_overlay(overlay, self._alpha)
            with student.training_mode():
                return self._examination.judge()
        finally:
            student.install_overlay(own, self._alpha)
