"""Each loss against a second form in plain float64 loops, and against its own properties."""

import math
import random

import torch

from cdcca_cli.distillation import losses


def _random_list(shape: tuple[int, ...], seed: int) -> list:
    generator = random.Random(seed)

    def fill(sizes: tuple[int, ...]) -> list:
        if len(sizes) == 1:
            return [generator.gauss(0, 1) for _ in range(sizes[0])]
        return [fill(sizes[1:]) for _ in range(sizes[0])]

    return fill(shape)


def _tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _slow_alignment(teacher: list, student: list, weight: list, bias: list, mask: list) -> list:
    """Eq. 5 example by example, channel by channel, over the tokens that exist."""
    result = []
    for teacher_LC, student_LS, mask_L in zip(teacher, student, mask, strict=True):
        total, count = 0.0, 0
        for teacher_C, student_S, exists in zip(teacher_LC, student_LS, mask_L, strict=True):
            if not exists:
                continue
            for channel, target in enumerate(teacher_C):
                seen = bias[channel]
                for value, factor in zip(student_S, weight[channel], strict=True):
                    seen += value * factor
                total += (target - seen) ** 2
                count += 1
        result.append(total / count)
    return result


def test_alignment_equals_the_slow_form():
    teacher, student = _random_list((3, 4, 5), 1), _random_list((3, 4, 2), 2)
    weight, bias = _random_list((5, 2), 3), _random_list((5,), 4)
    mask = [[True] * 4, [True, False, True, True], [False, False, True, False]]
    phi = torch.nn.Linear(2, 5).double()
    with torch.no_grad():
        phi.weight.copy_(_tensor(weight))
        phi.bias.copy_(_tensor(bias))

    got_B = losses.feature_alignment(_tensor(teacher), _tensor(student), phi, torch.tensor(mask))
    torch.testing.assert_close(
        got_B, _tensor(_slow_alignment(teacher, student, weight, bias, mask)), rtol=1e-12, atol=0
    )
    everything = [[True] * 4] * 3
    torch.testing.assert_close(
        losses.feature_alignment(_tensor(teacher), _tensor(student), phi),
        _tensor(_slow_alignment(teacher, student, weight, bias, everything)),
        rtol=1e-12,
        atol=0,
    )


def test_batch_mean_is_equation_5():
    """One example of two tokens and two channels off by (1, 2) and (0, 3), one that fits.

    || Q_t - phi(Q_s) ||^2 = 1 + 4 + 0 + 9 = 14;  B L C = 2 * 2 * 2 = 8;  14 / 8 = 1.75.
    """
    teacher_BLC = torch.tensor([[[1.0, 2.0], [0.0, 3.0]], [[5.0, 6.0], [7.0, 8.0]]])
    student_BLS = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[5.0, 6.0], [7.0, 8.0]]])
    loss_B = losses.feature_alignment(teacher_BLC, student_BLS, phi=lambda values: values)
    assert loss_B.tolist() == [3.5, 0.0]
    assert loss_B.mean().item() == 1.75


def test_masked_tokens_equal_left_out_ones():
    """What stands at a masked position, NaN included, reaches neither the value nor a gradient."""
    torch.manual_seed(0)
    teacher_BLC, student_BLS = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    short_B = losses.feature_alignment(teacher_BLC, student_BLS, lambda values: values)

    padded_BLS = torch.cat([student_BLS, torch.full((2, 2, 4), 7.0)], 1).requires_grad_()
    padded_BLC = torch.cat([teacher_BLC, torch.full((2, 2, 4), -9.0)], 1)
    mask_BL = torch.tensor([[True] * 3 + [False] * 2] * 2)
    long_B = losses.feature_alignment(padded_BLC, padded_BLS, lambda values: values, mask_BL)
    torch.testing.assert_close(long_B, short_B)
    long_B.sum().backward()
    assert padded_BLS.grad is not None
    assert padded_BLS.grad[:, 3:].abs().max() == 0
    assert padded_BLS.grad[:, :3].abs().min() > 0

    padded_BLC[:, 3:] = math.nan
    torch.testing.assert_close(
        losses.feature_alignment(padded_BLC, padded_BLS, lambda values: values, mask_BL), short_B
    )


def test_no_token_is_no_loss():
    values = torch.ones(1, 2, 3)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert losses.feature_alignment(values, 2 * values, lambda x: x, nothing).tolist() == [0.0]


def test_answer_cross_entropy_equals_the_slow_form():
    logits = _random_list((3, 4, 6), 5)
    answers = [[1, 5, 0, 2], [3, 4, -100, -100], [-100, -100, -100, -100]]
    expected = []
    for rows, targets in zip(logits, answers, strict=True):
        nats = []
        for row, target in zip(rows, targets, strict=True):
            if target != -100:
                nats.append(math.log(sum(math.exp(value) for value in row)) - row[target])
        expected.append(sum(nats) / len(nats) if nats else 0.0)
    got_B = losses.answer_cross_entropy(_tensor(logits), torch.tensor(answers))
    torch.testing.assert_close(got_B, _tensor(expected), rtol=1e-12, atol=0)


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    """A uniform guess among 10 tokens costs ln 10 = 2.302585 nats, however long the answer."""
    got_B = losses.answer_cross_entropy(
        torch.zeros(2, 3, 10), torch.tensor([[1, 2, 3], [9, -100, -100]])
    )
    torch.testing.assert_close(got_B, torch.full((2,), 2.302585))


def test_half_precision_is_computed_in_float32():
    """4096 squares of 200 overflow half precision (65504) but not the mean of them: 40000."""
    teacher = torch.full((1, 64, 64), 200.0, dtype=torch.float16)
    got_B = losses.feature_alignment(teacher, torch.zeros_like(teacher), lambda values: values)
    assert got_B.dtype == torch.float32
    assert got_B.tolist() == [40000.0]


def test_equation_6_by_hand():
    """0.5 * (1, 2) + 10 * (3, 4) + 2 * (5, 6) = (0.5 + 30 + 10, 1 + 40 + 12)."""
    terms = {
        "query": torch.tensor([1.0, 2.0]),
        "repr": torch.tensor([3.0, 4.0]),
        "ce": torch.tensor([5.0, 6.0]),
    }
    got_B = losses.distillation_loss(terms, {"query": 0.5, "repr": 10, "ce": 2})
    assert got_B.tolist() == [40.5, 53.0]
