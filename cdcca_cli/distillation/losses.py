"""The terms that the methods minimise, as pure functions.

Each returns one value per example, float32 or wider; the caller takes the mean. Those of the answer
are means over an example's answer tokens, in nats a token; a logit may be -inf.

Shapes: B batch, L query tokens (or positions of a representation), C teacher channels, S student
channels, M real positions of a batch, A answer tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The answer id that is padding."""
EPSILON = 1e-6

Projection = Callable[[Tensor], Tensor]
"""phi of Eq. 5: (B, L, S) -> (B, L, C)."""


# ---------------------------------------------------------------- features


def feature_alignment(
    teacher_BLC: Tensor, student_BLS: Tensor, phi: Projection, mask_BL: Tensor | None = None
) -> Tensor:
    """Mean square distance of the student's features, through phi, to the teacher's (Eq. 5).

        L_query = 1 / (L C) * || Q_t - phi(Q_s) ||^2   for each example;

    the mean over the batch is Eq. 5. For the representation (the output of the language model's
    last attention, at L positions), with a phi of its own, it is L_repr of Eq. 6.

    Args: mask_BL: bool, true where a token exists, and L the number of these. None: all exist.
    Returns: (B,), >= 0; 0 for a row without any token.
    """
    gap_BLC = _at_least_float32(teacher_BLC) - _at_least_float32(phi(student_BLS))
    square_BL = gap_BLC.square().mean(-1)
    if mask_BL is None:
        return square_BL.mean(-1)
    return square_BL.masked_fill(~mask_BL, 0).sum(-1) / mask_BL.sum(-1).clamp(min=1)


def pearson_distance(teacher_BLC: Tensor, student_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    """One minus the correlation of each channel, up to a factor (PKD, Cao et al. 2022).

    A map (N, C, H, W) of the source is (B, C, L, 1) here. Each channel is standardised (unbiased
    deviation, plus 1e-6) over the m = sum(mask) positions of the batch, on either side; then, over
    the batch,

        PKD = 1 / (2 m C) * sum_blc (t^_blc - s^_blc)^2 = (m - 1) / m * (1 - mean_c r_c)

    with Pearson's r_c. One example's value depends on the others in its batch.

    Args: mask_BL: bool, true where a position exists.
    Returns: (B,), >= 0: B / (2 m C) * sum_lc of each example.
    """
    gap_MC = _standardised(teacher_BLC[mask_BL]) - _standardised(student_BLC[mask_BL])
    square_M = gap_MC.square().mean(-1)
    square_BL = square_M.new_zeros(mask_BL.shape).masked_scatter(mask_BL, square_M)
    return square_BL.sum(-1) * (len(mask_BL) / (2 * max(len(square_M), 1)))


def channel_wise_divergence(
    teacher_BLC: Tensor, student_BLC: Tensor, mask_BL: Tensor, tau: float
) -> Tensor:
    """KL divergence of each channel's distribution over the positions (CWD, Shu et al. 2021).

        CWD = tau^2 / C * sum_c KL( softmax_l(t_lc / tau) || softmax_l(s_lc / tau) )

    for each example; the mean over the batch is the source's tau^2 / (N C) * sum.

    Args: mask_BL: bool, true where a position exists; the others take no part in the softmax.
    Returns: (B,), >= 0; 0 for a row without any position.
    """
    log_t_BLC = _log_shares(teacher_BLC, mask_BL, tau)
    log_s_BLC = _log_shares(student_BLC, mask_BL, tau)
    terms_BLC = log_t_BLC.exp() * (log_t_BLC - log_s_BLC)
    return terms_BLC.masked_fill(~mask_BL[..., None], 0).sum(1).mean(-1) * tau**2


# ---------------------------------------------------------------- the answer


def answer_cross_entropy(logits_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """Cross-entropy against the teacher's own answers, in nats per answer token: L_CE of Eq. 6.

        L_CE = - 1/A * sum_a log p(y_a | y_<a, v, t)

    Args: logits_BAV: the student's; those at `a` predict `answer_ids_BA[:, a]`, padded with -100.
    Returns: (B,), >= 0; 0 for a row without any answer token.
    """
    logits_BVA = _at_least_float32(logits_BAV).transpose(1, 2)
    nats_BA = functional.cross_entropy(
        logits_BVA, answer_ids_BA, ignore_index=IGNORED, reduction="none"
    )
    return nats_BA.sum(1) / (answer_ids_BA != IGNORED).sum(1).clamp(min=1)


def outcomes(logits_BAV: Tensor, ids_BAK: Tensor) -> Tensor:
    """Log-probabilities of K tokens and, last, of all others together: (B, A, K + 1).

    With these a divergence over K + 1 outcomes is at most that over V, and equal to it if the
    others' shares among each other are. Args: ids_BAK: -1 where there are fewer.
    """
    logp_BAV = _log_p(logits_BAV, 1.0)
    there_BAK = ids_BAK >= 0
    places_BAK = ids_BAK.clamp(min=0)
    lowest = torch.finfo(torch.float16).min
    own_BAK = logp_BAV.gather(-1, places_BAK).masked_fill(~there_BAK, lowest)
    # Where there are fewer, place 0 is not taken out unless it is one of them.
    taken_BAV = torch.zeros_like(logp_BAV, dtype=torch.bool)
    taken_BAV = taken_BAV.scatter_add(-1, places_BAK, there_BAK)
    rest_BA1 = logp_BAV.masked_fill(taken_BAV, lowest).logsumexp(-1, keepdim=True)
    return torch.cat([own_BAK, rest_BA1], -1)


def forward_kl(
    teacher_BAV: Tensor, student_BAV: Tensor, answer_ids_BA: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) (Hinton et al. 2015): the student covers the teacher's distribution.

        tau^2 / A * sum_a sum_v p_av (log p_av - log q_av)

    with p = softmax(t / tau) and q = softmax(s / tau), tau the temperature. Returns: (B,), >= 0.
    """
    log_p_BAV, log_q_BAV = _log_p(teacher_BAV, temperature), _log_p(student_BAV, temperature)
    nats_BA = _expectation(log_p_BAV.exp(), log_p_BAV - log_q_BAV)
    return temperature**2 * _mean(nats_BA, answer_ids_BA)


def reverse_kl(
    teacher_BAV: Tensor, student_BAV: Tensor, answer_ids_BA: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(student || teacher) (Gu et al. 2024): the student keeps to the teacher's likely tokens."""
    return forward_kl(student_BAV, teacher_BAV, answer_ids_BA, temperature)


def answer_entropy(logits_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """The entropy of each answer token's distribution: Tent's loss (Wang et al. 2021).

        H = - 1/A * sum_a sum_v p_av log p_av

    Returns: (B,), each in [0, log V].
    """
    log_p_BAV = _log_p(logits_BAV, 1.0)
    return _mean(-_expectation(log_p_BAV.exp(), log_p_BAV), answer_ids_BA)


def soft_cross_entropy(teacher_BAV: Tensor, student_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """CoTTA's consistency (Wang et al. 2022): cross-entropy with the mean teacher's distribution.

        - 1/A * sum_a sum_v p_av log q_av,  p of the teacher, q of the student

    Returns: (B,), >= 0; at least the teacher's entropy.
    """
    p_BAV, log_q_BAV = _log_p(teacher_BAV, 1.0).exp(), _log_p(student_BAV, 1.0)
    return _mean(-_expectation(p_BAV, log_q_BAV), answer_ids_BA)


def answer_confidence(logits_BAV: Tensor, answer_ids_BA: Tensor) -> Tensor:
    """The mean largest probability of the answer's tokens, (B,), in (0, 1]: CoTTA's confidence."""
    return _mean(_log_p(logits_BAV, 1.0).exp().amax(-1), answer_ids_BA)


# ---------------------------------------------------------------- together


def distillation_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss of any method, (B,). For akd (Eq. 6) l_query L_query + l_repr L_repr + l_CE L_CE."""
    return torch.stack([weights[name] * term_B for name, term_B in terms.items()]).sum(0)


# ---------------------------------------------------------------- parts


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _standardised(values_MC: Tensor) -> Tensor:
    """Zero mean and unit deviation for each channel over the M real positions."""
    values_MC = _at_least_float32(values_MC)
    centred_MC = values_MC - values_MC.mean(0)
    variance_C = centred_MC.square().sum(0) / max(len(values_MC) - 1, 1)
    # The gradient of sqrt at 0 is infinite: a constant channel stays out of it.
    deviation_C = torch.where(variance_C > 0, variance_C, torch.ones_like(variance_C)).sqrt()
    deviation_C = torch.where(variance_C > 0, deviation_C, torch.zeros_like(deviation_C))
    return centred_MC / (deviation_C + EPSILON)


def _log_shares(values_BLC: Tensor, mask_BL: Tensor, tau: float) -> Tensor:
    """log softmax over the real positions; finite everywhere."""
    scaled_BLC = _at_least_float32(values_BLC) / tau
    lowest = torch.finfo(scaled_BLC.dtype).min / 4
    return scaled_BLC.masked_fill(~mask_BL[..., None], lowest).log_softmax(1)


def _log_p(logits_BAV: Tensor, temperature: float) -> Tensor:
    return (_at_least_float32(logits_BAV) / temperature).log_softmax(-1)


def _expectation(p_BAV: Tensor, values_BAV: Tensor) -> Tensor:
    """sum_v p_v x_v, (B, A); 0 times log 0 is 0, since a logit may be -inf."""
    return (p_BAV * values_BAV.masked_fill(p_BAV == 0, 0)).sum(-1)


def _mean(values_BA: Tensor, answer_ids_BA: Tensor) -> Tensor:
    real_BA = answer_ids_BA != IGNORED
    return values_BA.masked_fill(~real_BA, 0).sum(1) / real_BA.sum(1).clamp(min=1)
