"""Losses on the distributions of the answer's tokens: KL both ways, entropy, soft cross-entropy.

All are means over an example's answer tokens, in nats a token, and reduce no further: one value per
example. Positions whose answer id is -100 count for nothing; a logit may be -inf.

Shapes: B batch, A answer tokens, V vocabulary.
Does not know who gave the logits (`taught`, `tent`, `cotta`).
"""

import torch
from torch import Tensor

from cdcca_cli.distillation.losses import IGNORED


def forward_kl(
    teacher_BAV: Tensor, student_BAV: Tensor, answer_ids_BA: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) (Hinton et al. 2015): the student covers all the teacher would say.

        tau^2 / A * sum_a sum_v p_av (log p_av - log q_av)

    with p = softmax(t / tau) and q = softmax(s / tau).

    Args: teacher_BAV, student_BAV: logits over one vocabulary. temperature: tau, > 0.
    Returns: (B,), float32 or wider, >= 0.
    """
    return temperature**2 * _mean(
        _kl(_log_p(teacher_BAV, temperature), _log_p(student_BAV, temperature)), answer_ids_BA
    )


def reverse_kl(
    teacher_BAV: Tensor, student_BAV: Tensor, answer_ids_BA: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(student || teacher) (Gu et al. 2024): the student keeps to what the teacher finds likely.

    As `forward_kl` with the two sides exchanged. Returns: (B,), float32 or wider, >= 0.
    """
    return forward_kl(student_BAV, teacher_BAV, answer_ids_BA, temperature)


def answer_entropy(logits_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """What Tent minimises (Wang et al. 2021): the entropy of each answer token's distribution.

        H = - 1/A * sum_a sum_v p_av log p_av

    Returns: (B,), float32 or wider, each in [0, log V].
    """
    log_p_BAV = _log_p(logits_BAV, 1.0)
    return _mean(-_expectation(log_p_BAV.exp(), log_p_BAV), answer_ids_BA)


def soft_cross_entropy(teacher_BAV: Tensor, student_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """CoTTA's consistency (Wang et al. 2022): cross-entropy with the mean teacher's distribution.

        - 1/A * sum_a sum_v p_av log q_av,  p of the teacher, q of the student

    Returns: (B,), float32 or wider, >= 0; at least the teacher's entropy.
    """
    p_BAV, log_q_BAV = _log_p(teacher_BAV, 1.0).exp(), _log_p(student_BAV, 1.0)
    return _mean(-_expectation(p_BAV, log_q_BAV), answer_ids_BA)


def answer_confidence(logits_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """How sure each answer token is: the mean of the largest probability, (B,), each in (0, 1].

    CoTTA compares the frozen source model's, meant over a batch, with its threshold p_th.
    """
    return _mean(_log_p(logits_BAV, 1.0).exp().amax(-1), answer_ids_BA)


def _kl(log_p_BAV: Tensor, log_q_BAV: Tensor) -> Tensor:
    """(B, A)."""
    return _expectation(log_p_BAV.exp(), log_p_BAV - log_q_BAV)


def _expectation(p_BAV: Tensor, values_BAV: Tensor) -> Tensor:
    """sum_v p_v x_v, (B, A); 0 times log 0 is 0, since a logit may be -inf."""
    return (p_BAV * values_BAV.masked_fill(p_BAV == 0, 0)).sum(-1)


def _mean(values_BA: Tensor, answer_ids_BA: Tensor) -> Tensor:
    real_BA = answer_ids_BA != IGNORED
    return values_BA.masked_fill(~real_BA, 0).sum(1) / real_BA.sum(1).clamp(min=1)


def _log_p(logits_BAV: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(logits_BAV.dtype, torch.float32)
    return (logits_BAV.to(wide) / temperature).log_softmax(-1)
