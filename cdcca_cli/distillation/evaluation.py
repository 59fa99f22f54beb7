"""The held-out part: the task loss of any overlay there, and what training gained.

The batches are made once (padded tokens, prompts, answers); an evaluation is the connector and the
language model over them, without gradients. Same examples, same order and same batch size give the
same bits in training and in `compress` after it.

The examples are questions, several about one frame, so an interval that took them for independent
would be too narrow: whole frames are resampled.

Shapes: E held-out examples, F held-out frames, B of a batch, A answer tokens, V vocabulary.
Does not choose a step or a state (`trainer`, `rate_aware`, the sender).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.distillation.dataset import Purpose, draws
from cdcca_cli.distillation.encoding import (
    Example,
    batch_inputs,
    check_fit,
    encode_inputs,
    prompt_length,
)
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.formats.adaptation import HeldOut
from cdcca_cli.models import LoadedModel

FORWARD_BATCHES = 4
"""Without gradients, so many times the training's batch go through at once."""
LEVEL = 0.95
RESAMPLES = 2000
SMALLEST_EFFECT = 0.01
"""A change of the loss by less than this share counts as none."""


@dataclass(eq=False)
class HeldOutResult:
    """The held-out examples under one state of the student.

    nats_E: cross-entropy per answer token against the teacher's answer, (E,) float32.
    agrees_E: 1 where greedy decoding gives the teacher's very answer, else 0, (E,) float32.
    """

    nats_E: np.ndarray
    agrees_E: np.ndarray

    def __len__(self) -> int:
        return len(self.nats_E)

    @property
    def cross_entropy(self) -> float:
        """Mean nats; without examples infinity, so that any state is as good."""
        return float(self.nats_E.mean(dtype=np.float64)) if len(self) else float("inf")

    @property
    def agreement(self) -> float:
        return float(self.agrees_E.mean(dtype=np.float64))


class Evaluator:
    """Examples with their answers, ready to evaluate a student as often as wanted."""

    def __init__(
        self,
        student: LoadedModel,
        examples: Sequence[Example],
        answers: Sequence[str],
        batch_size: int = DistillSettings.batch_size,
    ) -> None:
        """Args: batch_size: of training; another one changes the loss in its last bits."""
        self._student = student
        lengths = [prompt_length(student, example) for example in examples]
        order = sorted(range(len(examples)), key=lambda place: lengths[place])
        size = FORWARD_BATCHES * batch_size
        self._places = [order[at : at + size] for at in range(0, len(order), size)]
        self._batches = [
            (
                batch_inputs(student, [examples[place] for place in places]),
                student.answer_ids([answers[place] for place in places]),
            )
            for places in self._places
        ]
        self._num_examples = len(examples)

    @torch.no_grad()
    def evaluate(self) -> HeldOutResult:
        """The student as it is now, in the order of the examples."""
        nats_E, agrees_E = np.zeros((2, self._num_examples), np.float32)
        for places, (batch, answer_BA) in zip(self._places, self._batches, strict=True):
            encoded = encode_inputs(self._student, batch)
            logits_BAV = self._student.forward(encoded.spliced, answer_BA).logits
            nats_E[places] = answer_cross_entropy(logits_BAV, answer_BA).cpu().numpy()
            agrees_E[places] = agreement(logits_BAV, answer_BA).cpu().numpy()
        return HeldOutResult(nats_E, agrees_E)


def agreement(logits_BAV: Tensor, answer_BA: Tensor) -> Tensor:
    """Whether greedy decoding gives the very answer: (B,) bool."""
    agrees_BA = (logits_BAV.argmax(-1) == answer_BA) | (answer_BA == IGNORED)
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
        examples = [
            Example(shard, question) for shard in held_out.shards for question in shard.questions
        ]
        answers = [answer for row in held_out.answers for answer in row]
        self._student, self._alpha = student, alpha
        self._evaluator = Evaluator(student, examples, answers, batch_size)

    def __call__(self, overlay: Mapping[str, NDArray[np.float32]]) -> float:
        """Mean cross-entropy against the teacher's answers, nats per answer token."""
        return self.evaluate(overlay).cross_entropy

    def evaluate(self, overlay: Mapping[str, NDArray[np.float32]]) -> HeldOutResult:
        """The same for each example, in the order of the frames and their questions.

        Raises: BadData for an overlay of another student.
        """
        student = self._student
        own = student.overlay()
        try:
            student.install_overlay(overlay, self._alpha)
            with student.training_mode():
                return self._evaluator.evaluate()
        finally:
            student.install_overlay(own, self._alpha)


# ---------------------------------------------------------------- before and after


def comparison(
    before: HeldOutResult, after: HeldOutResult, frames: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Before and after, and the paired gain with its 95 % bootstrap interval over frames.

    Args: frames: the frame of each example.
    Returns: what an adaptation's report holds under `held_out`; None without examples. The gain is
        in nats per answer token, above zero where training helped. The verdict is "better" or
        "worse" where the interval leaves zero out, "equal" where all of it is within 1 % of the
        loss before, and else "not measurable": there are too few questions to tell. One question
        alone has no interval, and is not measurable.
    """
    if not len(before):
        return None
    gain_E = before.nats_E.astype(np.float64) - after.nats_E.astype(np.float64)
    low, high = bootstrap_interval(gain_E, frames, seed)
    verdict = "not measurable"
    if len(before) > 1:
        smallest = SMALLEST_EFFECT * before.cross_entropy
        if low > 0 or high < 0:
            verdict = "better" if low > 0 else "worse"
        elif -smallest <= low and high <= smallest:
            verdict = "equal"
    return {
        "num_frames": len(set(frames)),
        "num_asks": len(before),
        "cross_entropy": {"before": before.cross_entropy, "after": after.cross_entropy},
        "agreement": {"before": before.agreement, "after": after.agreement},
        "gain": {"mean": float(gain_E.mean()), "low": low, "high": high, "level": LEVEL},
        "verdict": verdict,
    }


def bootstrap_interval(
    values_E: np.ndarray, clusters: Sequence[str], seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean when whole clusters are drawn with replacement.

    With a single cluster its examples are drawn. Depends on values, clusters and seed alone.
    """
    _, places_E = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    if places_E.max() == 0:
        places_E = np.arange(len(values_E))
    sums_F = np.bincount(places_E, weights=values_E)
    counts_F = np.bincount(places_E)
    drawn_SF = draws(seed, Purpose.INTERVAL).integers(len(sums_F), size=(RESAMPLES, len(sums_F)))
    means = sums_F[drawn_SF].sum(1) / counts_F[drawn_SF].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
