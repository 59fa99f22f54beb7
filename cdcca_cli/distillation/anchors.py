"""Anchors: frames of the source domain at which the student keeps to what it said before.

A fixed set of such frames stays in the cloud. The student as it was at sequence 0 answers their
questions once: that is the label, with the distribution of each of its tokens. In every step some
of these questions are drawn, and

    L_anchor = KL( source student || student )     (`losses.forward_kl`)

is added, so that what is learnt of the target domain costs little of the source. No labels and no
teacher are needed, and nothing is sent. This is learning without forgetting (Li and Hoiem 2016) on
source frames; what they do not cover is not held.

Shapes: B batch, P parameters laid end to end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.dataset import Dataset, Purpose, draws
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.tops import Tops
from cdcca_cli.formats.device import Device
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import FORWARD_POSITIONS, encode, num_positions, passes
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.settings import LabelSettings

TERM = "anchor"
TOP = 64
"""Likeliest tokens kept of each distribution; the rest counts as one."""


class Anchors:
    """The questions about the anchors' frames, with the source student's distributions."""

    def __init__(self, dataset: Dataset, student: LoadedModel, settings: DistillSettings) -> None:
        self.dataset, self._student, self._settings = dataset, student, settings
        self._tops = Tops(dataset, student)
        self._positions = [num_positions(student, example) for example in dataset.examples]
        self.weight = settings.anchor_weight

    def drawn(self, step: int, num_processes: int) -> list[list[int]]:
        """The questions of a step, cut into what one forward pass takes."""
        train, settings = self.dataset.train, self._settings
        source = draws(settings.seed, Purpose.ANCHORS, step)
        count = min(settings.anchor_questions, len(train))
        chosen = [train[place] for place in source.permutation(len(train))[:count]]
        positions = [self._positions[number] for number in chosen]
        runs = passes(positions, *settings.pass_limits(num_processes))
        return [chosen[each.start : each.stop] for each in runs]

    def losses(self, batch: Sequence[int]) -> Tensor:
        """(B,): the divergence from the source student, in nats a token, with gradients."""
        student, dataset = self._student, self.dataset
        encoded = encode(student, [dataset.examples[number] for number in batch])
        answer_BA = student.answer_ids([dataset.answers[number] for number in batch])
        logits_BAV = student.forward(encoded.spliced, answer_BA).logits
        top = self._tops.of(batch, answer_BA)
        own_BAO = losses.outcomes(logits_BAV, top.ids_BAK)
        return losses.forward_kl(top.logp_BAO, own_BAO, top.answer_BA)

    def report(self) -> dict[str, object]:
        """The anchors' part of the adaptation's header."""
        examples = self.dataset.examples
        return {
            "num_frames": len({example.shard.frame for example in examples}),
            "num_asks": len(examples),
            "weight": self.weight,
            "questions": self._settings.anchor_questions,
        }

    @torch.no_grad()
    def drift(self) -> float:
        """The mean divergence over all anchors, in nats a token, of the student as it is now."""
        train = self.dataset.train
        positions = [self._positions[number] for number in train]
        total = 0.0
        for run in passes(positions, len(train), FORWARD_POSITIONS):
            total += float(self.losses(train[run.start : run.stop]).sum())
        return total / len(train)


def source_teacher(student: LoadedModel, mirror: Device) -> LocalTeacher:
    """The student of sequence 0 as a teacher: the overlay is taken off it."""
    student.install_overlay(student.source_overlay(), mirror.lora.alpha)
    settings = LabelSettings(top=TOP, features=False)
    return LocalTeacher(student, settings, name=mirror.model)
