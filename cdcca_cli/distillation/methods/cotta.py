"""CoTTA (Wang et al., CVPR 2022) for a vision-language model, with a mean teacher of its own.

As in the source, for each batch: the student's logits; the frozen source model's confidence; the
mean teacher's logits, averaged over augmented views if the confidence is below the threshold; the
loss; the step; the mean teacher's update; some parameters restored to the source model. The mean
teacher is what is evaluated and written.

Choices that the source leaves open for a language model and for stored tokens:

- the answer is the mean teacher's own, greedy; the loss is the cross-entropy of the student's
  distribution of each of its tokens against the mean teacher's (`soft_cross_entropy`);
- confidence is the source model's largest probability at each token of that answer, averaged over
  the tokens and the micro-batch;
- views are of stored tokens: scaled by 0.9 to 1.1, with noise of a tenth of each channel's
  deviation, without a tenth of the tokens. Nothing is mirrored: 'left' would become 'right';
- the source model is the overlay of sequence 0, in every round. Between rounds only the written
  overlay is kept: the student starts from the mean teacher.

Shapes: B batch, A answer tokens, V vocabulary, N tokens, C channels, P parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import distributed
from cdcca_cli.distillation.dataset import Purpose, draws
from cdcca_cli.distillation.losses import answer_confidence, soft_cross_entropy
from cdcca_cli.distillation.methods import Method, MethodContext
from cdcca_cli.distillation.methods.tent import own_answers
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models.encoding import Example, encode

SCALES = (0.9, 1.1)
NOISE = 0.1
LEFT_OUT = 0.1


class Cotta(Method):
    """Keeps the student consistent with a running mean of itself."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, {"consistency": 1.0}, context.settings.cotta_ema)
        self.source_P = context.overlay.laid_out(context.source())
        # Micro-batches, and those of them whose views were averaged: of this step, of all.
        self._now_2 = torch.zeros(2, device=self.source_P.device)
        self._counts_2 = torch.zeros_like(self._now_2)

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        student = self.context.student
        teacher_BAV, answer_BA = self._teacher(batch)
        encoded = self.context.encode(batch)
        logits_BAV = student.forward(encoded.spliced, answer_BA).logits
        return {"consistency": soft_cross_entropy(teacher_BAV, logits_BAV, answer_BA)}

    @torch.no_grad()
    def _teacher(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean teacher's logits (B, A, V) and its answers (B, A)."""
        student, overlay = self.context.student, self.context.overlay
        assert self.mean_P is not None
        with overlay.holding(self.mean_P):
            encoded = self.context.encode(batch)
            answer_BA = own_answers(self.context, batch, encoded.spliced)
            teacher_BAV = student.forward(encoded.spliced, answer_BA).logits.float()
        with overlay.holding(self.source_P):
            encoded = self.context.encode(batch)
            anchor_BAV = student.forward(encoded.spliced, answer_BA).logits
        confidence = float(answer_confidence(anchor_BAV, answer_BA).mean())
        is_unsure = confidence < self.settings.cotta_threshold
        self._now_2 += self._now_2.new_tensor([1, is_unsure])
        if is_unsure:
            with overlay.holding(self.mean_P):
                total_BAV = torch.zeros_like(teacher_BAV)
                for view in self._views(batch):
                    spliced = encode(student, view).spliced
                    total_BAV += student.forward(spliced, answer_BA).logits.float()
            teacher_BAV = total_BAV / self.settings.cotta_views
        return teacher_BAV, answer_BA

    def _views(self, batch: Sequence[int]) -> Iterator[list[Example]]:
        """Augmented copies of a batch; they depend on seed, examples and view alone."""
        examples = [self.context.dataset.examples[number] for number in batch]
        shards = {id(example.shard): example.shard for example in examples}
        first = min(batch)
        for number in range(self.settings.cotta_views):
            source = draws(self.settings.seed, Purpose.VIEWS, (first << 16) + number)
            seen = {place: augmented(shard, source) for place, shard in shards.items()}
            yield [Example(seen[id(example.shard)], example.question) for example in examples]

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"counts": self._counts_2}

    def after_step(self, number: int) -> None:
        super().after_step(number)
        distributed.add_up(self._now_2)
        self._counts_2 += self._now_2
        self._now_2.zero_()
        if not self.settings.cotta_restore:
            return
        values_P = self.context.overlay.values
        source = draws(self.settings.seed, Purpose.RESTORE, number)
        drawn_P = source.random(len(values_P), dtype=np.float32)
        back_P = torch.from_numpy(drawn_P < self.settings.cotta_restore).to(values_P.device)
        values_P.copy_(torch.where(back_P, self.source_P, values_P))

    def report(self) -> dict[str, object]:
        batches, augmented = map(int, self._counts_2.tolist())
        names = ("ema", "restore", "threshold", "views")
        how = {name: getattr(self.settings, f"cotta_{name}") for name in names}
        return {"cotta": {**how, "batches": batches, "augmented": augmented}}


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
        scores=None if shard.scores is None else shard.scores[kept],
    )
