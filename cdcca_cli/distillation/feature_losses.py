"""What the baselines compare features by: PKD and channel-wise divergence, as pure functions.

Both come from dense prediction and compare maps (N, C, H, W). For tokens a map is (B, C, L, 1):
PKD takes its statistics over B and L, CWD its softmax over L. Where teacher and student differ in
width, a linear phi (of Eq. 5) stands before both; the caller applies it.

As in `losses`, nothing reduces over the batch: each returns one value per example, whose mean over
the batch is what the source computes.

Shapes: B batch, L query tokens (or positions of a representation), C channels, M real positions.
"""

import torch
from torch import Tensor

EPSILON = 1e-6


def pearson_distance(teacher_BLC: Tensor, student_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    """One minus the correlation of each channel, up to a factor (PKD, Cao et al. 2022).

    Each channel is brought to zero mean and unit standard deviation (unbiased, plus 1e-6) over the
    m = sum(mask) positions of the batch, on either side; then, over the batch,

        PKD = 1 / (2 m C) * sum_blc (t^_blc - s^_blc)^2 = (m - 1) / m * (1 - mean_c r_c)

    with Pearson's r_c. It does not see a channel's scale or offset. The statistics are of the whole
    batch, so one example's value depends on the others in it.

    Args: teacher_BLC, student_BLC: alike in shape. mask_BL: bool, true where a position exists.
    Returns: (B,), float32 or wider, >= 0: B / (2 m C) * sum_lc of each example.
    """
    gap_MC = _standardised(teacher_BLC[mask_BL]) - _standardised(student_BLC[mask_BL])
    square_M = gap_MC.square().mean(-1)
    square_BL = square_M.new_zeros(mask_BL.shape).masked_scatter(mask_BL, square_M)
    return square_BL.sum(-1) * (len(mask_BL) / (2 * max(len(square_M), 1)))


def channel_wise_divergence(
    teacher_BLC: Tensor, student_BLC: Tensor, mask_BL: Tensor, tau: float
) -> Tensor:
    """How differently each channel spreads over the positions (CWD, Shu et al. 2021).

        CWD = tau^2 / C * sum_c KL( softmax_l(t_lc / tau) || softmax_l(s_lc / tau) )

    for each example; the mean over the batch is the source's tau^2 / (N C) * sum.

    Args: teacher_BLC, student_BLC: alike in shape. mask_BL: bool, true where a position exists;
        the others take no part in the softmax. tau: temperature, > 0.
    Returns: (B,), float32 or wider, >= 0; 0 for a row without any position.
    """
    log_t_BLC = _log_shares(teacher_BLC, mask_BL, tau)
    log_s_BLC = _log_shares(student_BLC, mask_BL, tau)
    terms_BLC = log_t_BLC.exp() * (log_t_BLC - log_s_BLC)
    return terms_BLC.masked_fill(~mask_BL[..., None], 0).sum(1).mean(-1) * tau**2


def _standardised(values_MC: Tensor) -> Tensor:
    """Zero mean and unit deviation for each channel over the M real positions of the batch."""
    values_MC = _at_least_float32(values_MC)
    centred_MC = values_MC - values_MC.mean(0)
    variance_C = centred_MC.square().sum(0) / max(len(values_MC) - 1, 1)
    # sqrt has no slope at 0: a channel that never varies stays out of the gradient.
    deviation_C = torch.where(variance_C > 0, variance_C, torch.ones_like(variance_C)).sqrt()
    deviation_C = torch.where(variance_C > 0, deviation_C, torch.zeros_like(deviation_C))
    return centred_MC / (deviation_C + EPSILON)


def _log_shares(values_BLC: Tensor, mask_BL: Tensor, tau: float) -> Tensor:
    """log softmax over the real positions; finite everywhere."""
    scaled_BLC = _at_least_float32(values_BLC) / tau
    lowest = torch.finfo(scaled_BLC.dtype).min / 4
    return scaled_BLC.masked_fill(~mask_BL[..., None], lowest).log_softmax(1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
