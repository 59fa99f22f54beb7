"""CoTTA (Wang et al., CVPR 2022) for a language model that sees: a mean teacher of its own.

In the source's order, for each batch: the student; the frozen source model's confidence; the mean
teacher's logits, plain, or averaged over augmented views where the confidence is below the
threshold; the loss; the step; the mean teacher's update; some parameters back to the source. What
is judged and written is the mean teacher, as there.

What the source leaves open for a language model and for stored tokens is decided here:

- the answer is the mean teacher's own, greedy; the loss is the cross-entropy of the student's
  distribution of each of its tokens against the mean teacher's (`soft_cross_entropy`);
- confidence: the source model's largest probability at each token of that answer, meant over
  the tokens and the batch (the part of it that goes through at once, as for the views);
- there are no pictures in the cloud, so views are of stored tokens: scaled by 0.9 to 1.1 (as
  contrast), noise of a tenth of each channel's deviation, a tenth of the tokens left out. Nothing
  is mirrored: 'left' would become 'right';
- the source model is the overlay of sequence 0, in every round. Between rounds only what was
  written goes on: the student starts from the mean teacher;
- all that the student's overlay has is trained, as for the other methods.

The views' forward passes are the cost: with all 32, many times that of the other methods.
Shapes: B batch, A answer tokens, V vocabulary, N tokens, C channels, P parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.distillation import processes
from cdcca_cli.distillation.batches import Example, look
from cdcca_cli.distillation.draws import For, draws
from cdcca_cli.distillation.logit_losses import answer_confidence, soft_cross_entropy
from cdcca_cli.distillation.methods import Course, Method
from cdcca_cli.distillation.own_answers import own_answers
from cdcca_cli.distillation.trainable import RunningMean
from cdcca_cli.formats.shard import Shard

SCALES = (0.9, 1.1)
NOISE = 0.1
LEFT_OUT = 0.1


class Cotta(Method):
    """Keeps the student consistent with a running mean of itself."""

    is_of_the_batch = True

    def __init__(self, course: Course) -> None:
        super().__init__(course, {"consistency": 1.0})
        self.how = course.settings.cotta
        self.mean = RunningMean(course.overlay, self.how.ema)
        self.source_P = course.overlay.laid_out(course.source())
        # Parts of batches, and those of them whose views were averaged: of this step, of all.
        self._now_2 = torch.zeros(2, device=self.source_P.device)
        self._counts_2 = torch.zeros_like(self._now_2)

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        student = self.course.student
        teacher_BAV, answer_BA = self._teacher(batch)
        seen = self.course.look(batch)
        logits_BAV = student.forward(seen.spliced, answer_BA).logits
        return {"consistency": soft_cross_entropy(teacher_BAV, logits_BAV, answer_BA)}

    @torch.no_grad()
    def _teacher(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean teacher's logits (B, A, V) and its answers (B, A)."""
        student, overlay = self.course.student, self.course.overlay
        assert self.mean is not None
        with overlay.holding(self.mean.values):
            seen = self.course.look(batch)
            answer_BA = own_answers(self.course, batch, seen.spliced)
            teacher_BAV = student.forward(seen.spliced, answer_BA).logits.float()
        with overlay.holding(self.source_P):
            seen = self.course.look(batch)
            anchor_BAV = student.forward(seen.spliced, answer_BA).logits
        confidence = float(answer_confidence(anchor_BAV, answer_BA).mean())
        is_unsure = confidence < self.how.threshold
        self._now_2 += self._now_2.new_tensor([1, is_unsure])
        if is_unsure:
            with overlay.holding(self.mean.values):
                total_BAV = torch.zeros_like(teacher_BAV)
                for view in self._views(batch):
                    spliced = look(student, view).spliced
                    total_BAV += student.forward(spliced, answer_BA).logits.float()
            teacher_BAV = total_BAV / self.how.views
        return teacher_BAV, answer_BA

    def _views(self, batch: Sequence[int]) -> Iterator[list[Example]]:
        """Augmented copies of a batch; they hang on the seed, the examples and the view alone."""
        examples = [self.course.lessons.examples[number] for number in batch]
        shards = {id(example.shard): example.shard for example in examples}
        first = min(batch)
        for number in range(self.how.views):
            source = draws(self.course.settings.seed, For.VIEWS, (first << 16) + number)
            seen = {place: augmented(shard, source) for place, shard in shards.items()}
            yield [Example(seen[id(example.shard)], example.ask) for example in examples]

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"counts": self._counts_2}

    def after_step(self, number: int) -> None:
        super().after_step(number)
        processes.add_up(self._now_2)
        self._counts_2 += self._now_2
        self._now_2.zero_()
        if not self.how.restore:
            return
        values_P = self.course.overlay.values
        source = draws(self.course.settings.seed, For.RESTORE, number)
        drawn_P = source.random(len(values_P), dtype=np.float32)
        back_P = torch.from_numpy(drawn_P < self.how.restore).to(values_P.device)
        values_P.copy_(torch.where(back_P, self.source_P, values_P))

    def report(self) -> dict[str, object]:
        batches, augmented = map(int, self._counts_2.tolist())
        return {"cotta": {**vars(self.how), "batches": batches, "augmented": augmented}}


def augmented(shard: Shard, source: np.random.Generator) -> Shard:
    """One view of a frame's stored tokens; at least one of them stays."""
    tokens_NC = shard.tokens
    count = len(tokens_NC)
    kept = np.sort(source.permutation(count)[: max(1, round((1 - LEFT_OUT) * count))])
    noise_NC = source.standard_normal(tokens_NC.shape, dtype=np.float32)
    scale = np.float32(source.uniform(*SCALES))
    view_NC = scale * tokens_NC + np.float32(NOISE) * tokens_NC.std(0) * noise_NC
    return replace(
        shard,
        tokens=view_NC[kept].astype(np.float32),
        positions=shard.positions[kept],
        scores=shard.scores[kept],
    )
