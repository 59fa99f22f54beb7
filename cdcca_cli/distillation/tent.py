"""Tent (Wang et al., ICLR 2021) for a language model that sees: its own answers, made surer.

The source has a classifier with batch normalisation; what it leaves open is decided here:

- the answer is the student's own, greedy, as it stands before the step; the loss is the mean
  entropy of the distributions of its tokens, the end token among them (`answer_entropy`);
- there is no batch normalisation, so there are no statistics to take anew: what is trained is
  the weights and biases of the language model's normalisation layers, the overlay's group `norm`
  (`--train` names others);
- a step for each batch, as there, but for as many epochs as the other methods take; nothing is ever
  reset ('continual');
- no teacher is asked. One that is named all the same judges the held-out part, and no more: what is
  written is the last state, however it did.
"""

from collections.abc import Sequence

from torch import Tensor

from cdcca_cli.distillation.logit_losses import answer_entropy
from cdcca_cli.distillation.methods import Course, Method
from cdcca_cli.distillation.own_answers import own_answers


class Tent(Method):
    """Minimises the entropy of the student's own answers."""

    def __init__(self, course: Course) -> None:
        super().__init__(course, {"entropy": 1.0})

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        seen = self.course.look(batch)
        answer_BA = own_answers(self.course, batch, seen.spliced)
        logits_BAV = self.course.student.forward(seen.spliced, answer_BA).logits
        return {"entropy": answer_entropy(logits_BAV, answer_BA)}
