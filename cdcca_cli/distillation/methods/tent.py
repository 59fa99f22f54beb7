"""TENT (Wang et al., ICLR 2021) for a vision-language model: its own answers, made surer.

The source has a classifier with batch normalisation; what it leaves open is decided here:

- the answer is the student's own, greedy, before the step; the loss is the mean entropy of the
  distributions of its tokens, the end token among them (`answer_entropy`);
- there is no batch normalisation, so there are no statistics to compute again: what is trained is
  the weights and biases of the language model's normalisation layers, the overlay's group `norm`
  (`train` names others);
- a step for each batch, as there, but for as many epochs as the other methods take; nothing is ever
  reset ('continual');
- no teacher is asked. One that is named all the same only judges the held-out part: the last state
  is written, however it did.

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
        super().__init__(context, {"entropy": 1.0})

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        spliced = self.context.encode(batch).spliced
        answer_BA = own_answers(self.context, batch, spliced)
        logits_BAV = self.context.student.forward(spliced, answer_BA).logits
        return {"entropy": answer_entropy(logits_BAV, answer_BA)}


@torch.no_grad()
def own_answers(context: MethodContext, batch: Sequence[int], spliced: Spliced) -> Tensor:
    """(B, A): the tokens that the student chooses now, greedy, padded on the right with -100.

    An answer ends where its task's longest does, at the latest.
    """
    tasks = [context.dataset.examples[number].question.task for number in batch]
    most = [MAX_NEW_TOKENS[task] for task in tasks]
    made = context.student.generate(spliced, max(most))
    rows = [ids[:length] for ids, length in zip(made.ids, most, strict=True)]
    return right_padded(rows).to(context.student.device)
