"""The losses on an answer's distributions against plain float64 loops and their identities."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cdcca_cli.distillation.losses import (
    answer_confidence,
    answer_cross_entropy,
    answer_entropy,
    forward_kl,
    reverse_kl,
    soft_cross_entropy,
)

ANSWERS_BA = torch.tensor([[1, 5, 0, 2], [3, 4, -100, -100], [-100, -100, -100, -100]])


LOSSES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "warm forward": partial(forward_kl, temperature=2.5),
    "warm reverse": partial(reverse_kl, temperature=2.5),
    "soft": soft_cross_entropy,
    "entropy": lambda t_BAV, s_BAV, answers_BA: answer_entropy(s_BAV, answers_BA),
    "confidence": lambda t_BAV, s_BAV, answers_BA: answer_confidence(s_BAV, answers_BA),
}
EACH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def _logits(seed: int, shape: tuple[int, ...] = (3, 4, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def _value_and_gradient(loss, teacher_BAV: Tensor, student_BAV: Tensor, answers_BA: Tensor):
    student_BAV = student_BAV.detach().clone().requires_grad_()
    loss_B = loss(teacher_BAV, student_BAV, answers_BA)
    return loss_B.detach(), torch.autograd.grad(loss_B.sum(), student_BAV)[0]


def _softmax(row: list[float], tau: float = 1.0) -> list[float]:
    weights = [math.exp(value / tau) for value in row]
    return [weight / sum(weights) for weight in weights]


def _slow_kl(p: list[float], q: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


SLOW_OF_A_TOKEN = {
    "forward": lambda t, s: _slow_kl(_softmax(t), _softmax(s)),
    "reverse": lambda t, s: _slow_kl(_softmax(s), _softmax(t)),
    "warm forward": lambda t, s: 2.5**2 * _slow_kl(_softmax(t, 2.5), _softmax(s, 2.5)),
    "warm reverse": lambda t, s: 2.5**2 * _slow_kl(_softmax(s, 2.5), _softmax(t, 2.5)),
    "soft": lambda t, s: (
        -sum(x * math.log(y) for x, y in zip(_softmax(t), _softmax(s), strict=True))
    ),
    "entropy": lambda t, s: -sum(y * math.log(y) for y in _softmax(s)),
    "confidence": lambda t, s: max(_softmax(s)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_equals_the_slow_form(name):
    teacher_BAV, student_BAV = _logits(1), _logits(2)
    expected = []
    for teacher, student, answer in zip(
        teacher_BAV.tolist(), student_BAV.tolist(), ANSWERS_BA.tolist(), strict=True
    ):
        values = [
            SLOW_OF_A_TOKEN[name](t, s)
            for t, s, identity in zip(teacher, student, answer, strict=True)
            if identity != -100
        ]
        expected.append(sum(values) / len(values) if values else 0.0)
    got_B = LOSSES[name](teacher_BAV, student_BAV, ANSWERS_BA)
    expected_B = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got_B, expected_B, rtol=1e-12, atol=1e-14)


def test_each_by_hand():
    """Two words. The teacher thinks (3/4, 1/4) of the first token, the student (1/2, 1/2).

    forward  3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2     reverse  1/2 ln(2/3) + 1/2 ln 2
    teacher's entropy  2 ln 2 - 3/4 ln 3     soft cross-entropy  ln 2     confidence  3/4
    Both think (1/2, 1/2) of the second: 0, 0, ln 2, ln 2, 1/2. The third is padding. At a
    temperature of 2, twice the logits give the same distributions, and 2^2 times the divergence.
    """
    ln2, ln3 = math.log(2), math.log(3)
    teacher_BAV = torch.tensor([[[ln3, 0.0], [1.0, 1.0], [9.0, -9.0]]], dtype=torch.float64)
    student_BAV = torch.tensor([[[5.0, 5.0], [0.0, 0.0], [-9.0, 9.0]]], dtype=torch.float64)
    answers_BA = torch.tensor([[0, 1, -100]])
    pair = teacher_BAV, student_BAV, answers_BA
    twice = 2 * teacher_BAV, 2 * student_BAV, answers_BA, 2.0
    forward, reverse = (3 / 4 * ln3 - ln2) / 2, (2 * ln2 - ln3) / 4
    assert forward_kl(*pair).item() == pytest.approx(forward)
    assert forward_kl(*twice).item() == pytest.approx(4 * forward)
    assert reverse_kl(*pair).item() == pytest.approx(reverse)
    assert reverse_kl(*twice).item() == pytest.approx(4 * reverse)
    assert answer_entropy(teacher_BAV, answers_BA).item() == pytest.approx(
        (3 * ln2 - 3 / 4 * ln3) / 2
    )
    assert soft_cross_entropy(*pair).item() == pytest.approx(ln2)
    assert answer_confidence(teacher_BAV, answers_BA).item() == pytest.approx(5 / 8)


def test_divergence_is_cross_entropy_less_entropy():
    teacher_BAV, student_BAV = _logits(3), _logits(4)
    torch.testing.assert_close(
        forward_kl(teacher_BAV, student_BAV, ANSWERS_BA),
        soft_cross_entropy(teacher_BAV, student_BAV, ANSWERS_BA)
        - answer_entropy(teacher_BAV, ANSWERS_BA),
    )


def test_reverse_is_forward_with_the_sides_exchanged():
    teacher_BAV, student_BAV = _logits(5), _logits(6)
    exchanged_B = forward_kl(student_BAV, teacher_BAV, ANSWERS_BA, 2.0)
    assert torch.equal(reverse_kl(teacher_BAV, student_BAV, ANSWERS_BA, 2.0), exchanged_B)
    assert not torch.allclose(forward_kl(teacher_BAV, student_BAV, ANSWERS_BA, 2.0), exchanged_B)


pairs_of_rows = st.lists(
    st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=1, max_size=9
)


@settings(deadline=None, max_examples=100)
@given(pairs_of_rows)
def test_bounds_hold_whatever_the_logits(pairs):
    """0 <= H(p) <= ln V;  1 / V <= max p <= 1;  H(p, q) >= H(p);  KL >= 0."""
    teacher_11V, student_11V = torch.tensor(pairs, dtype=torch.float64).T[:, None, None]
    answers_11, size = torch.tensor([[0]]), len(pairs)
    entropy = answer_entropy(teacher_11V, answers_11).item()
    assert 0 <= entropy <= math.log(size) + 1e-12
    assert 1 / size - 1e-12 <= answer_confidence(teacher_11V, answers_11).item() <= 1
    assert soft_cross_entropy(teacher_11V, student_11V, answers_11).item() >= entropy - 1e-12
    assert forward_kl(teacher_11V, student_11V, answers_11).item() >= -1e-12
    assert reverse_kl(teacher_11V, student_11V, answers_11).item() >= -1e-12


def test_cross_entropy_is_the_entropy_only_of_the_same_distribution():
    teacher_BAV = _logits(7)
    entropy_B = answer_entropy(teacher_BAV, ANSWERS_BA)
    same_B = soft_cross_entropy(teacher_BAV, teacher_BAV + 5, ANSWERS_BA)
    torch.testing.assert_close(same_B, entropy_B)
    near_BAV = teacher_BAV + 0.01 * _logits(8)
    near_B = soft_cross_entropy(teacher_BAV, near_BAV, ANSWERS_BA)
    assert (near_B > entropy_B + 1e-6)[:2].all()


def test_sure_teacher_gives_the_cross_entropy_of_its_answer():
    """exp(-1000) is 0: the teacher's distribution is one-hot at its answer."""
    student_BAV = _logits(9)
    teacher_BAV = torch.zeros_like(student_BAV)
    teacher_BAV.scatter_(-1, ANSWERS_BA.clamp(min=0)[..., None], 1000.0)
    expected_B = answer_cross_entropy(student_BAV, ANSWERS_BA)
    for loss in (soft_cross_entropy, forward_kl):
        torch.testing.assert_close(loss(teacher_BAV, student_BAV, ANSWERS_BA), expected_B)
    assert answer_entropy(teacher_BAV, ANSWERS_BA).tolist() == [0.0] * 3
    assert answer_confidence(teacher_BAV, ANSWERS_BA).tolist() == [1.0, 1.0, 0.0]


@EACH
def test_ignored_tokens_equal_left_out_ones(loss):
    """Neither the value nor the gradient sees them, at the end or in between."""
    teacher_BAV, student_BAV = _logits(10), _logits(11)
    all_BA, places = torch.ones(3, 4, dtype=torch.long), [0, 2, 3, 5]
    short_B, short_BAV = _value_and_gradient(loss, teacher_BAV, student_BAV, all_BA)

    long_BAV = torch.tensor([-1e30] + [1e30] * 5, dtype=torch.float64).repeat(3, 8, 1)
    padded_BAV, answers_BA = long_BAV.flip(-1), torch.full((3, 8), -100)
    long_BAV[:, places], padded_BAV[:, places] = teacher_BAV, student_BAV
    answers_BA[:, places] = all_BA
    padded_B, gradient_BAV = _value_and_gradient(loss, long_BAV, padded_BAV, answers_BA)
    torch.testing.assert_close(padded_B, short_B, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient_BAV[:, places], short_BAV, rtol=1e-14, atol=0)
    assert gradient_BAV[answers_BA == -100].abs().max() == 0


@EACH
def test_no_answer_is_no_loss_and_no_gradient(loss):
    nothing_BA = torch.full((3, 4), -100)
    loss_B, gradient_BAV = _value_and_gradient(loss, _logits(12), _logits(13), nothing_BA)
    assert loss_B.tolist() == [0.0] * 3
    assert gradient_BAV.abs().max() == 0


@EACH
def test_impossible_word_equals_one_left_out_of_the_vocabulary(loss):
    """A logit of -inf on both sides: 0 ln 0 is 0, in the gradient as well."""
    teacher_BAV, student_BAV = _logits(14), _logits(15)
    loss_B, gradient_BAV = _value_and_gradient(loss, teacher_BAV, student_BAV, ANSWERS_BA)
    wide_BAV, student_BAV = (
        functional.pad(logits_BAV, (0, 1), value=-math.inf)
        for logits_BAV in (teacher_BAV, student_BAV)
    )
    wide_B, wide_gradient_BAV = _value_and_gradient(loss, wide_BAV, student_BAV, ANSWERS_BA)
    torch.testing.assert_close(wide_B, loss_B)
    torch.testing.assert_close(wide_gradient_BAV, functional.pad(gradient_BAV, (0, 1)))


def test_student_that_rules_out_the_teachers_word_is_infinitely_far():
    teacher_BAV, student_BAV = _logits(23, (1, 1, 6)), _logits(24, (1, 1, 6))
    student_BAV[..., 2] = -math.inf
    assert forward_kl(teacher_BAV, student_BAV, torch.tensor([[0]])).item() == math.inf
    assert math.isfinite(reverse_kl(teacher_BAV, student_BAV, torch.tensor([[0]])).item())


@EACH
def test_gradient_is_that_of_finite_differences(loss):
    teacher_BAV, student_BAV = _logits(16), _logits(17).requires_grad_()
    assert torch.autograd.gradcheck(lambda s_BAV: loss(teacher_BAV, s_BAV, ANSWERS_BA), student_BAV)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, soft_cross_entropy])
def test_there_is_nothing_to_learn_from_oneself(loss):
    teacher_BAV = _logits(18)
    _, gradient_BAV = _value_and_gradient(loss, teacher_BAV, teacher_BAV + 2, ANSWERS_BA)
    assert gradient_BAV.abs().max() < 1e-14


@EACH
def test_extreme_logits_give_finite_losses_and_gradients(loss):
    teacher_BAV, student_BAV = 1e30 * _logits(19).float(), 1e30 * _logits(20).float()
    loss_B, gradient_BAV = _value_and_gradient(loss, teacher_BAV, student_BAV, ANSWERS_BA)
    assert loss_B.isfinite().all()
    assert gradient_BAV.isfinite().all()


@EACH
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, half):
    teacher_BAV, student_BAV = _logits(21).to(half), _logits(22).to(half)
    got_B = loss(teacher_BAV, student_BAV, ANSWERS_BA)
    assert got_B.dtype == torch.float32
    assert torch.equal(got_B, loss(teacher_BAV.float(), student_BAV.float(), ANSWERS_BA))
    precise_B = loss(_logits(21), _logits(22), ANSWERS_BA).float()
    torch.testing.assert_close(got_B, precise_B, rtol=2e-2, atol=0)
