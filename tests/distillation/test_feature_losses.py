"""PKD and CWD against plain float64 loops, their sources' forms, and their own properties."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdcca_cli.distillation.losses import channel_wise_divergence, pearson_distance

EACH = pytest.mark.parametrize(
    "loss", [pearson_distance, partial(channel_wise_divergence, tau=4.0)], ids=["PKD", "CWD"]
)
MASK_BL = torch.tensor([[True] * 4, [True, False, True, True], [False, False, True, False]])
ALL_BL = torch.ones_like(MASK_BL)


def _features(seed: int, num_channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, num_channels, generator=generator, dtype=torch.float64)


def _value_and_gradient(loss, teacher_BLC: Tensor, student_BLC: Tensor, mask_BL: Tensor):
    student_BLC = student_BLC.detach().clone().requires_grad_()
    loss_B = loss(teacher_BLC, student_BLC, mask_BL)
    return loss_B.detach(), torch.autograd.grad(loss_B.sum(), student_BLC)[0]


def _slow_pearson_distance(teacher: list, student: list, mask: list) -> list[float]:
    """Channel by channel, each standardised over the positions that exist in the batch."""
    places = [(b, i) for b, row in enumerate(mask) for i, exists in enumerate(row) if exists]
    num_channels, result = len(teacher[0][0]), [0.0] * len(mask)
    for c in range(num_channels):
        sides = []
        for values in (teacher, student):
            column = [values[b][i][c] for b, i in places]
            mean = sum(column) / len(column)
            variance = sum((x - mean) ** 2 for x in column) / (len(column) - 1)
            sides.append([(x - mean) / (math.sqrt(variance) + 1e-6) for x in column])
        for (b, _), t, s in zip(places, *sides, strict=True):
            result[b] += (t - s) ** 2 / (2 * len(places) * num_channels) * len(mask)
    return result


def _slow_divergence(teacher: list, student: list, mask: list, tau: float) -> list[float]:
    """Example by example, channel by channel, a softmax over the positions that exist."""
    result = []
    for teacher_LC, student_LC, mask_L in zip(teacher, student, mask, strict=True):
        places, total = [i for i, exists in enumerate(mask_L) if exists], 0.0
        num_channels = len(teacher_LC[0])
        for c in range(num_channels):
            p = [math.exp(teacher_LC[i][c] / tau) for i in places]
            q = [math.exp(student_LC[i][c] / tau) for i in places]
            for x, y in zip(p, q, strict=True):
                total += x / sum(p) * math.log(x / sum(p) / (y / sum(q)))
        result.append(tau**2 * total / num_channels)
    return result


def _source_pearson_distance(teacher_BLC: Tensor, student_BLC: Tensor) -> Tensor:
    """As mmrazor has it, on maps (B, C, L, 1)."""

    def normalised(values_BLC: Tensor) -> Tensor:
        maps_BCL1 = values_BLC.transpose(1, 2)[..., None]
        rows_CM = maps_BCL1.permute(1, 0, 2, 3).reshape(maps_BCL1.shape[1], -1)
        deviation_C1 = rows_CM.std(-1, keepdim=True)
        return (rows_CM - rows_CM.mean(-1, keepdim=True)) / (deviation_C1 + 1e-6)

    return functional.mse_loss(normalised(student_BLC), normalised(teacher_BLC)) / 2


@pytest.mark.parametrize("mask_BL", [ALL_BL, MASK_BL], ids=["all", "some"])
def test_both_equal_the_slow_forms(mask_BL):
    teacher_BLC, student_BLC = _features(1), 3 * _features(2) + 1
    lists = teacher_BLC.tolist(), student_BLC.tolist(), mask_BL.tolist()
    close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-14)
    expected_B = torch.tensor(_slow_pearson_distance(*lists), dtype=torch.float64)
    close(pearson_distance(teacher_BLC, student_BLC, mask_BL), expected_B)
    for tau in (1.0, 4.0):
        expected_B = torch.tensor(_slow_divergence(*lists, tau), dtype=torch.float64)
        close(channel_wise_divergence(teacher_BLC, student_BLC, mask_BL, tau), expected_B)


def test_pearson_distance_is_one_minus_the_correlation():
    """(m - 1) / m * (1 - mean_c r_c), with NumPy's r over the m positions of the batch."""
    teacher_BLC = _features(3)
    student_BLC = teacher_BLC + _features(4)
    pairs = zip(teacher_BLC[MASK_BL].T.numpy(), student_BLC[MASK_BL].T.numpy(), strict=True)
    mean_r = np.mean([np.corrcoef(t, s)[0, 1] for t, s in pairs])
    m = int(MASK_BL.sum())
    got = pearson_distance(teacher_BLC, student_BLC, MASK_BL).mean().item()
    assert got == pytest.approx((m - 1) / m * (1 - mean_r), rel=1e-5)


def test_batch_means_are_what_the_sources_compute():
    teacher_BLC, student_BLC = _features(5), 2 * _features(6)
    torch.testing.assert_close(
        pearson_distance(teacher_BLC, student_BLC, ALL_BL).mean(),
        _source_pearson_distance(teacher_BLC, student_BLC),
    )
    tau, (num_examples, _, num_channels) = 4.0, teacher_BLC.shape
    teacher_BCL, student_BCL = (
        values_BLC.transpose(1, 2).contiguous() for values_BLC in (teacher_BLC, student_BLC)
    )
    total = functional.kl_div(
        (student_BCL / tau).log_softmax(-1), (teacher_BCL / tau).softmax(-1), reduction="sum"
    )
    torch.testing.assert_close(
        channel_wise_divergence(teacher_BLC, student_BLC, ALL_BL, tau).mean(),
        total * tau**2 / (num_examples * num_channels),
    )


def test_pearson_distance_by_hand():
    """Four positions, three in the first example and one in the second; two channels.

    First channel:  t = (0, 0, 1; 1), s = (0, 1, 0; 1);  second: t the same, s = (1, 1, 0; 0).
    Each has mean 1/2 and variance 4 * 1/4 / 3 = 1/3, so all stand at +-sqrt(3)/2, and two that
    differ are sqrt(3) apart. B / (2 m C) = 2 / 16; the first example differs in 2 + 3 places:
    2 / 16 * 15 = 1.875; the second in 0 + 1: 2 / 16 * 3 = 0.375.
    Mean: 1.125 = 3/4 * (1 - (0 - 1) / 2), the channels' r being 0 and -1.
    """
    teacher_BLC = torch.tensor([[[0.0, 0], [0, 0], [1, 1]], [[1, 1], [9, 9], [-9, 9]]])
    student_BLC = torch.tensor([[[0.0, 1], [1, 1], [0, 0]], [[1, 0], [7, 7], [7, 7]]])
    mask_BL = torch.tensor([[True, True, True], [True, False, False]])
    got_B = pearson_distance(teacher_BLC, student_BLC, mask_BL)
    torch.testing.assert_close(got_B, torch.tensor([1.875, 0.375]), rtol=1e-5, atol=0)


def test_channel_wise_divergence_by_hand():
    """Two positions, two channels, tau = 2; the second channel is the same on either side.

    t = (2 ln 3, 0) shares as (3/4, 1/4), s = (0, 0) as (1/2, 1/2):
    KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2;
    tau^2 / C * KL = 4 / 2 * KL = 3/2 ln 3 - 2 ln 2 = 0.2616241.
    """
    teacher_BLC = torch.tensor([[[2 * math.log(3), 5.0], [0.0, 6.0]]])
    student_BLC = torch.tensor([[[0.0, 5.0], [0.0, 6.0]]])
    mask_BL = torch.ones(1, 2, dtype=torch.bool)
    got_B = channel_wise_divergence(teacher_BLC, student_BLC, mask_BL, tau=2.0)
    torch.testing.assert_close(got_B, torch.tensor([0.2616241]))


def test_pearson_distance_sees_neither_scale_nor_offset():
    teacher_BLC, student_BLC = _features(7), _features(8)
    scale_C = torch.tensor([0.1, 1, 3, 10, 100], dtype=torch.float64)
    got_B = pearson_distance(teacher_BLC * 7 - 2, student_BLC * scale_C + scale_C, MASK_BL)
    expected_B = pearson_distance(teacher_BLC, student_BLC, MASK_BL)
    torch.testing.assert_close(got_B, expected_B, rtol=1e-4, atol=0)


def test_divergence_sees_no_offset_and_scales_as_tau_squared():
    teacher_BLC, student_BLC = _features(9), _features(10)
    once_B = channel_wise_divergence(teacher_BLC, student_BLC, MASK_BL, 2.0)
    moved_BLC = student_BLC + 5 * _features(11)[:, :1]
    torch.testing.assert_close(
        channel_wise_divergence(teacher_BLC, moved_BLC, MASK_BL, 2.0), once_B
    )
    torch.testing.assert_close(
        channel_wise_divergence(3 * teacher_BLC, 3 * student_BLC, MASK_BL, 6.0), 9 * once_B
    )


@EACH
@pytest.mark.parametrize("garbage", [7.0, 1e35, math.nan])
def test_masked_positions_equal_left_out_ones(loss, garbage):
    """What stands at a masked position, NaN included, reaches neither the value nor a gradient."""
    teacher_BLC, student_BLC = _features(12).float(), _features(13).float()
    short_B, short_BLC = _value_and_gradient(loss, teacher_BLC, student_BLC, MASK_BL)

    mask_BL = functional.pad(MASK_BL, (0, 2))
    teacher_BLC = functional.pad(teacher_BLC, (0, 0, 0, 2))
    student_BLC = functional.pad(student_BLC, (0, 0, 0, 2))
    teacher_BLC[~mask_BL], student_BLC[~mask_BL] = -garbage, garbage
    long_B, long_BLC = _value_and_gradient(loss, teacher_BLC, student_BLC, mask_BL)
    torch.testing.assert_close(long_B, short_B)
    torch.testing.assert_close(long_BLC, functional.pad(short_BLC, (0, 0, 0, 2)))
    assert long_BLC[~mask_BL].abs().max() == 0


@EACH
@pytest.mark.parametrize("num_positions", [0, 1])
def test_fewer_than_two_positions_are_no_loss_and_no_gradient(loss, num_positions):
    few_BL = torch.zeros_like(MASK_BL)
    few_BL[1, :num_positions] = True
    loss_B, gradient_BLC = _value_and_gradient(loss, _features(14), _features(15), few_BL)
    assert loss_B.tolist() == [0.0] * 3
    assert gradient_BLC.abs().max() == 0


@EACH
def test_example_without_a_position_leaves_the_others_as_they_are(loss):
    pair, two_BL = (_features(16), _features(17)), functional.pad(MASK_BL[:2], (0, 0, 0, 1))
    loss_B, gradient_BLC = _value_and_gradient(loss, *pair, two_BL)
    short_B, _ = _value_and_gradient(loss, *(side[:2] for side in pair), MASK_BL[:2])
    share = 3 / 2 if loss is pearson_distance else 1  # of a batch of 3, 2 carry its whole mean
    torch.testing.assert_close(loss_B, functional.pad(share * short_B, (0, 1)))
    assert gradient_BLC[2].abs().max() == 0


@EACH
def test_gradient_is_that_of_finite_differences(loss):
    teacher_BLC, student_BLC = _features(18, 2), _features(19, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s_BLC: loss(teacher_BLC, s_BLC, MASK_BL), student_BLC)


@EACH
def test_there_is_nothing_to_learn_from_oneself(loss):
    """Nor, for PKD, from oneself on another scale."""
    teacher_BLC = _features(20)
    for scale in (1, 3) if loss is pearson_distance else (1,):
        student_BLC = scale * teacher_BLC
        loss_B, gradient_BLC = _value_and_gradient(loss, teacher_BLC, student_BLC, MASK_BL)
        assert loss_B.abs().max() < 1e-11
        assert gradient_BLC.abs().max() < 1e-6


def test_constant_channel_costs_half_and_has_the_sources_gradient():
    """s^ = 0, so sum t^2 / (2 m) = (m - 1) / (2 m) = 11/24 for m = 12."""
    teacher_BLC = _features(21, 1)
    student_BLC = torch.full_like(teacher_BLC, 0.5).requires_grad_()
    got = pearson_distance(teacher_BLC, student_BLC, ALL_BL).mean()
    assert got.item() == pytest.approx(11 / 24, rel=1e-5)
    (got_BLC,) = torch.autograd.grad(got, student_BLC)
    expected = _source_pearson_distance(teacher_BLC, student_BLC)
    (expected_BLC,) = torch.autograd.grad(expected, student_BLC)
    assert expected_BLC.isfinite().all()
    torch.testing.assert_close(got_BLC, expected_BLC)


def test_extreme_features_diverge_by_a_finite_amount():
    teacher_BLC, student_BLC = 1e30 * _features(22).float(), -1e30 * _features(23).float()
    loss = partial(channel_wise_divergence, tau=1.0)
    loss_B, gradient_BLC = _value_and_gradient(loss, teacher_BLC, student_BLC, MASK_BL)
    assert loss_B.isfinite().all()
    assert gradient_BLC.isfinite().all()


@EACH
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, half):
    teacher_BLC, student_BLC = 100 * _features(24).to(half), 100 * _features(25).to(half)
    got_B = loss(teacher_BLC, student_BLC, MASK_BL)
    assert got_B.dtype == torch.float32
    assert torch.equal(got_B, loss(teacher_BLC.float(), student_BLC.float(), MASK_BL))
    precise_B = loss(100 * _features(24), 100 * _features(25), MASK_BL).float()
    torch.testing.assert_close(got_B, precise_B, rtol=2e-2, atol=2e-2)
