"""TENT (Wang et al., ICLR 2021) for a vision-language model: less entropy in its own answers.

The source has a classifier with batch normalisation. Choices that it leaves open here:

- the answer is the student's own, greedy, before the step; the loss is the mean entropy of the
  distributions of its tokens, the end token included (`answer_entropy`);
- the weights and biases of the language model's normalisation layers are trained, the overlay's
  group `norm` (`train` names others);
- there is one step a batch, as in the source, for all epochs; nothing is reset ('continual');
- a teacher, if there is one, only evaluates the held-out part: the last state is written.

Shapes: B batch, A answer tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdcca_cli.distillation.losses import answer_entropy
from cdcca_cli.distillation.methods import Method, MethodContext
from cdcca_cli.models import Spliced
from cdcca_cli.models.decoding import right_padded
from cdcca_cli.models.settings import MAX_NEW_TOKENS


class Tent(Method):
    """Minimises the entropy of the student's own answers."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, {"entropy": 1.0}, context.settings.ema)

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        spliced = self.context.encode(batch).spliced
        answer_BA = own_answers(self.context, batch, spliced)
        logits_BAV = self.context.student.forward(spliced, answer_BA).logits
        return {"entropy": answer_entropy(logits_BAV, answer_BA)}


@torch.no_grad()
def own_answers(context: MethodContext, batch: Sequence[int], spliced: Spliced) -> Tensor:
    """(B, A): the student's greedy answers, at most their task's length, padded with -100."""
    tasks = [context.dataset.examples[number].question.task for number in batch]
    most = [MAX_NEW_TOKENS[task] for task in tasks]
    made = context.student.generate(spliced, max(most))
    rows = [ids[:length] for ids, length in zip(made.ids, most, strict=True)]
    return right_padded(rows).to(context.student.device)
