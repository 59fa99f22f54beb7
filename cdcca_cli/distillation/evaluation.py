"""The held-out part: the task loss of any overlay there, and the gain of training.

The same examples, order and batch size give the same bits in training and later in `compress`. The
examples are questions, several about one frame, so the interval of the gain resamples whole frames.

Shapes: E held-out examples, F held-out frames, B of a batch, A answer tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.distillation.dataset import Purpose, draws
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.formats.adaptation import HeldOut
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import (
    FORWARD_POSITIONS,
    Example,
    check_fit,
    encode,
    num_positions,
    passes,
    prompt_length,
)
from cdcca_cli.numerics.statistics import (
    CONFIDENCE,
    RESAMPLES,
    percentile_interval,
    resampled_totals,
)

FORWARD_BATCHES = 4
"""Training batches in one forward pass without gradients, if the prompts are short."""
SMALLEST_EFFECT = 0.01
"""A change of the loss by less than this share counts as none."""


@dataclass(eq=False)
class HeldOutResult:
    """The held-out examples under one state of the student, (E,) float32 each.

    nats_E: cross-entropy per token of the teacher's answer. agrees_E: `agreement`, as 0 or 1.
    """

    nats_E: np.ndarray
    agrees_E: np.ndarray

    @classmethod
    def zeros(cls, num_examples: int) -> "HeldOutResult":
        return cls(np.zeros(num_examples, np.float32), np.zeros(num_examples, np.float32))

    def __len__(self) -> int:
        return len(self.nats_E)

    @property
    def cross_entropy(self) -> float:
        """Mean nats; infinity without examples."""
        return float(self.nats_E.mean(dtype=np.float64)) if len(self) else float("inf")

    @property
    def agreement(self) -> float:
        return float(self.agrees_E.mean(dtype=np.float64))


class Evaluator:
    """Examples with their answers, ready to evaluate a student any number of times."""

    def __init__(
        self,
        student: LoadedModel,
        examples: Sequence[Example],
        answers: Sequence[str],
        batch_size: int,
    ) -> None:
        """Args: batch_size: of training; another one changes the last bits of the loss."""
        self._student, self._examples = student, examples
        lengths = [prompt_length(student, example) for example in examples]
        order = sorted(range(len(examples)), key=lambda place: lengths[place])
        positions = [num_positions(student, examples[place]) for place in order]
        size = FORWARD_BATCHES * batch_size
        self._batches = [
            order[each.start : each.stop] for each in passes(positions, size, FORWARD_POSITIONS)
        ]
        self._answers = [
            student.answer_ids([answers[place] for place in batch]) for batch in self._batches
        ]

    @torch.no_grad()
    def evaluate(self) -> HeldOutResult:
        """The student as it is now, in the order of the examples."""
        held = HeldOutResult.zeros(len(self._examples))
        for batch, answer_BA in zip(self._batches, self._answers, strict=True):
            encoded = encode(self._student, [self._examples[place] for place in batch])
            logits_BAV = self._student.forward(encoded.spliced, answer_BA).logits
            held.nats_E[batch] = answer_cross_entropy(logits_BAV, answer_BA).cpu().numpy()
            held.agrees_E[batch] = agreement(logits_BAV, answer_BA).cpu().numpy()
        return held


def agreement(logits_BAV: Tensor, answer_BA: Tensor) -> Tensor:
    """Whether greedy decoding gives exactly the answer: (B,) bool."""
    agrees_BA = (logits_BAV.argmax(-1) == answer_BA) | (answer_BA == IGNORED)
    return agrees_BA.all(1)


class HeldOutLoss:
    """The loss of overlays on an adaptation's held-out frames; the student's own is put back."""

    def __init__(
        self,
        student: LoadedModel,
        held_out: HeldOut,
        alpha: float,
        batch_size: int = DistillSettings.batch_size,
    ) -> None:
        """Args: alpha: of the device's LoRA. Raises: BadData for frames of another vision tower."""
        for shard in held_out.shards:
            check_fit(shard, student, "student")
        examples = [
            Example(shard, question) for shard in held_out.shards for question in shard.questions
        ]
        answers = [answer for row in held_out.answers for answer in row]
        self._student, self._alpha = student, alpha
        self._evaluator = Evaluator(student, examples, answers, batch_size)

    def __call__(self, overlay: Mapping[str, NDArray[np.float32]]) -> float:
        """Cross-entropy in nats per answer token. Raises: BadData for another student's overlay."""
        student = self._student
        own = student.overlay()
        try:
            student.install_overlay(overlay, self._alpha)
            with student.training_mode():
                return self._evaluator.evaluate().cross_entropy
        finally:
            student.install_overlay(own, self._alpha)


# ---------------------------------------------------------------- before and after


def comparison(
    before: HeldOutResult, after: HeldOutResult, frames: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Before and after, and the paired gain with its 95 % bootstrap interval over frames.

    Args: frames: the frame of each example.
    Returns: an adaptation's report `held_out`; None without examples. The gain, in nats per answer
        token, is positive if training helped. The verdict is "better" or "worse" if the interval
        excludes zero, "equal" if all of it is within 1 % of the loss before, and else (and always
        for a single question) "not measurable".
    """
    if not len(before):
        return None
    gain_E = before.nats_E.astype(np.float64) - after.nats_E.astype(np.float64)
    low, high = bootstrap_interval(gain_E, frames, seed)
    smallest = SMALLEST_EFFECT * before.cross_entropy
    verdict = "not measurable"
    if len(before) > 1 and (low > 0 or high < 0):
        verdict = "better" if low > 0 else "worse"
    elif len(before) > 1 and -smallest <= low and high <= smallest:
        verdict = "equal"
    return {
        "num_frames": len(set(frames)),
        "num_asks": len(before),
        "cross_entropy": {"before": before.cross_entropy, "after": after.cross_entropy},
        "agreement": {"before": before.agreement, "after": after.agreement},
        "gain": {"mean": float(gain_E.mean()), "low": low, "high": high, "level": CONFIDENCE},
        "verdict": verdict,
    }


def bootstrap_interval(
    values_E: np.ndarray, clusters: Sequence[str], seed: int
) -> tuple[float, float]:
    """Interval of the mean, resampling whole clusters, or the values of a single cluster."""
    _, places_E = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    if places_E.max() == 0:
        places_E = np.arange(len(values_E))
    counts_F = np.bincount(places_E).astype(np.float64)
    sums_F2 = np.stack([np.bincount(places_E, weights=values_E), counts_F], 1)
    totals = resampled_totals(sums_F2, draws(seed, Purpose.INTERVAL), RESAMPLES)
    totals_S2 = np.concatenate(list(totals))
    return percentile_interval(totals_S2[:, 0] / totals_S2[:, 1])
