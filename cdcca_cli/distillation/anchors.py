"""Anchors: frames of the source domain at which the student keeps to what it said before.

A fixed set of such frames stays in the cloud. The student as it was at sequence 0 answers their
questions once: that is the label, with the distribution of each of its tokens. In every step some
of these questions are drawn, and

    L_anchor = KL( source student || student )     (`losses.forward_kl`)

is added, so that what is learnt of the target domain costs little of the source. No labels and no
teacher are needed, and nothing is sent. This is learning without forgetting (Li and Hoiem 2016) on
source frames; what they do not cover is not held.

Shapes: B batch, A answer tokens, V vocabulary, O outcomes.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from torch import Tensor

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.dataset import Dataset, Purpose, anchor_dataset, shuffled_batches
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.tops import Tops
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.labels import STUDENT
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import encode, num_positions, passes, prompt_length
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.settings import LabelSettings

TERM = "anchor"
TOP = 64
"""Likeliest tokens kept of each distribution; the rest counts as one."""


class Anchors:
    """The questions about the anchors' frames, with the source student's distributions."""

    def __init__(self, dataset: Dataset, student: LoadedModel, settings: DistillSettings) -> None:
        self.dataset, self._student, self._settings = dataset, student, settings
        self.weights = {TERM: settings.anchor_weight}
        self._tops = Tops(dataset, student)
        train = [dataset.examples[number] for number in dataset.train]
        self._lengths = [prompt_length(student, example) for example in train]
        self._positions = [num_positions(student, example) for example in train]
        self._pass_over = lru_cache(maxsize=1)(self._batches)

    def drawn(self, step: int, num_processes: int = 1) -> list[list[int]]:
        """The questions of a step, cut into what one forward pass takes.

        All questions are passed over in turn, in another order each time. Args: step: from 0.
        """
        train, settings = self.dataset.train, self._settings
        number, place = divmod(step, -(-len(train) // settings.anchor_questions))
        places = self._pass_over(number)[place]
        positions = [self._positions[each] for each in places]
        runs = passes(positions, *settings.pass_limits(num_processes))
        return [[train[each] for each in places[run.start : run.stop]] for run in runs]

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        """(B,): the divergence from the source student, in nats a token, with gradients.

        With its answers alone: their cross-entropy, which is replay of what the student itself
        made (Marek et al. 2026).
        """
        student, dataset = self._student, self.dataset
        encoded = encode(student, [dataset.examples[number] for number in batch])
        answer_BA = student.answer_ids([dataset.answers[number] for number in batch])
        logits_BAV = student.forward(encoded.spliced, answer_BA).logits
        if self._settings.anchor_targets == "answers":
            return {TERM: losses.answer_cross_entropy(logits_BAV, answer_BA)}
        top = self._tops.of(batch, answer_BA)
        own_BAO = losses.outcomes(logits_BAV, top.ids_BAK)
        return {TERM: losses.forward_kl(top.logp_BAO, own_BAO, top.answer_BA)}

    def report(self) -> dict[str, object]:
        """The anchors' part of the adaptation's header."""
        examples = self.dataset.examples
        return {
            "num_frames": len({example.shard.frame for example in examples}),
            "num_asks": len(examples),
            "weight": self.weights[TERM],
            "questions": self._settings.anchor_questions,
        }

    def _batches(self, number: int) -> list[list[int]]:
        size, seed = self._settings.anchor_questions, self._settings.seed
        return [*shuffled_batches(self._lengths, size, seed, number, Purpose.ANCHORS)]


def open_anchors(
    shards: Iterable[Shard],
    student: LoadedModel,
    mirror: Device,
    settings: DistillSettings,
    skipped: Skipped,
) -> Anchors:
    """Anchors from their frames, which the student of sequence 0 answers where no label is kept.

    The student keeps that overlay. Raises: as `anchor_dataset`.
    """
    student.install_overlay(student.source_overlay(), mirror.lora.alpha)
    name = f"{STUDENT}{mirror.model or student.digest}"
    source = LocalTeacher(student, LabelSettings(top=TOP, features=False), name=name)
    return Anchors(anchor_dataset(shards, source, student, settings, skipped), student, settings)
