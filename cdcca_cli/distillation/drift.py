"""Drift: how far a student has moved from the one of sequence 0.

    drift = mean over questions of KL( student || source student ), in nats an answer token

over the whole vocabulary, with an answer's tokens given (`losses.forward_kl` with the student
first): on the anchors, if there are any, else on the held-out frames of the target domain, with the
teacher's answers. No label and no source frame is needed for the latter. It goes with the loss on
the source domain, over runs of one pair (`examples/tables/RESULTS.md`).

Shapes: P parameters laid end to end, B batch, A answer tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdcca_cli.distillation.losses import forward_kl
from cdcca_cli.distillation.optimiser import Flat
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import FORWARD_POSITIONS, Example, encode, num_positions, passes

MOST = 256
"""Questions that it is measured on, spread evenly."""
SHARES = tuple(share / 16 for share in range(16))
"""Shares of a change that are tried where the whole drifts too far."""


@dataclass(eq=False)
class Drift:
    """Measures overlays against that of sequence 0. where: `anchors` or `held_out`."""

    student: LoadedModel
    overlay: Flat
    source_P: Tensor
    where: str
    examples: Sequence[Example]
    answers: Sequence[str]

    def __post_init__(self) -> None:
        count = len(self.examples)
        chosen = [number * count // min(count, MOST) for number in range(min(count, MOST))]
        positions = [num_positions(self.student, self.examples[number]) for number in chosen]
        runs = passes(positions, MOST, FORWARD_POSITIONS)
        self._batches = [chosen[each.start : each.stop] for each in runs]

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    @torch.no_grad()
    def of(self, values_P: Tensor) -> float:
        """The drift of an overlay, in nats an answer token; 0 for that of sequence 0."""
        total = 0.0
        for batch in self._batches:
            answer_BA = self.student.answer_ids([self.answers[number] for number in batch])
            source_BAV = self._logits(self.source_P, batch, answer_BA)
            own_BAV = self._logits(values_P, batch, answer_BA)
            total += float(forward_kl(own_BAV, source_BAV, answer_BA).double().sum())
        return total / max(len(self), 1)

    def within(self, most: float, start_P: Tensor, values_P: Tensor) -> tuple[float, Tensor]:
        """The largest share, in sixteenths, of a change that does not drift further than `most`.

        Args: start_P: before training. values_P: after it.
        Returns: the share, 0 if nothing of the change may be kept, and the overlay.
        """
        if self.of(values_P) <= most:
            return 1.0, values_P
        for share in reversed(SHARES):
            found_P = torch.lerp(start_P, values_P, share)
            if share == 0 or self.of(found_P) <= most:
                return share, found_P if share else start_P
        raise AssertionError("the last share is 0")

    def report(self, before: float, after: float, share: float) -> dict[str, Any]:
        """The adaptation's report `drift`. Args: share: of the change, that is written."""
        return {
            "where": self.where,
            "num_asks": len(self),
            "before": before,
            "after": after,
            "share": share,
        }

    def _logits(self, values_P: Tensor, batch: Sequence[int], answer_BA: Tensor) -> Tensor:
        with self.overlay.holding(values_P):
            encoded = encode(self.student, [self.examples[number] for number in batch])
            return self.student.forward(encoded.spliced, answer_BA).logits
