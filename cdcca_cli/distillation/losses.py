"""The terms of adapter-based knowledge distillation (paper, Eq. 5 and 6) as pure functions.

None of them reduces over the batch: each returns one value per example, so that the caller
takes the mean, and 'masked equals left out' can be tested.

Shapes: B batch, L query tokens (P family: visual tokens), C teacher channels, S student
channels, A answer tokens, V vocabulary.

Does not choose the weights (`taught`) nor compute what is compared (`teacher`, families).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The answer id that is padding."""

Projection = Callable[[Tensor], Tensor]
"""phi of Eq. 5: (B, L, S) -> (B, L, C)."""


def query_alignment(
    teacher_BLC: Tensor, student_BLS: Tensor, phi: Projection, mask_BL: Tensor | None = None
) -> Tensor:
    """How far the student's queries, seen through phi, are from the teacher's (Eq. 5).

    L_query = 1 / (L C) * || Q_t - phi(Q_s) ||^2   for each example;

    the mean over the batch is Eq. 5, 1 / (B L C) * || Q_t - phi(Q_s) ||^2.

    Args:
        teacher_BLC: Q_t, the teacher's queries.
        student_BLS: Q_s, the student's queries.
        phi: a linear layer S -> C; trained with the student, never shipped.
        mask_BL: bool, true where a token exists; L is then the number of true ones in a row.
            None: all exist.
    Returns: (B,), float32 or wider, >= 0; 0 for a row without any token.
    """
    return _mean_square_distance(teacher_BLC, phi(student_BLS), mask_BL)


def representation_alignment(
    teacher_BLC: Tensor, student_BLS: Tensor, phi: Projection, mask_BL: Tensor | None = None
) -> Tensor:
    """Eq. 5 on the multimodal representation: L_repr of Eq. 6.

    The representation is the output of the language model's last attention, at the visual
    positions or where the answer's tokens are predicted (`taught`): L positions. The arguments are
    those of `query_alignment`, with a phi of its own.

    Returns: (B,), float32 or wider, >= 0; 0 for a row without any token.
    """
    return _mean_square_distance(teacher_BLC, phi(student_BLS), mask_BL)


def answer_cross_entropy(logits_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """Cross-entropy against the teacher's own answers, in nats per answer token: L_CE of Eq. 6.

    L_CE = - 1/A * sum_a log p(y_a | y_<a, v, t)

    Args:
        logits_BAV: the student's, `logits_BAV[:, a]` predicting `answer_ids_BA[:, a]`.
        answer_ids_BA: the teacher's answer, padded with -100, which counts for nothing.
    Returns: (B,), float32 or wider, >= 0; 0 for a row without any answer token.
    """
    logits_BVA = _at_least_float32(logits_BAV).transpose(1, 2)
    nats_BA = functional.cross_entropy(
        logits_BVA, answer_ids_BA, ignore_index=IGNORED, reduction="none"
    )
    return nats_BA.sum(1) / (answer_ids_BA != IGNORED).sum(1).clamp(min=1)


def distillation_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """What is minimised (Eq. 6): L = l_query L_query + l_repr L_repr + l_CE L_CE.

    Of any method, whatever its terms are.

    Args: terms: each (B,), by name. weights: the lambda of each of them.
    Returns: (B,).
    """
    return torch.stack([weights[name] * term_B for name, term_B in terms.items()]).sum(0)


def _mean_square_distance(left_BLC: Tensor, right_BLC: Tensor, mask_BL: Tensor | None) -> Tensor:
    square_BL = (_at_least_float32(left_BLC) - _at_least_float32(right_BLC)).square().mean(-1)
    if mask_BL is None:
        return square_BL.mean(-1)
    return square_BL.masked_fill(~mask_BL, 0).sum(-1) / mask_BL.sum(-1).clamp(min=1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
