"""Equation 2: per token as the model's pass gives it, and one figure for an answer."""

import math

import pytest
import torch

from cdcca_cli.formats.predictions import ENTROPIES
from cdcca_cli.models.decoding import step_entropy
from cdcca_cli.uplink.entropy import summarise


def slow_entropy(logits: list[float]) -> float:
    """- sum p ln p in float64 loops; 0 ln 0 is 0."""
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def test_equals_the_slow_form() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[2, 5:] = -torch.inf
    slow = [slow_entropy([float(x) for x in row if x > -torch.inf]) for row in logits]
    assert step_entropy(logits).tolist() == pytest.approx(slow, abs=1e-5)


def test_bounds() -> None:
    """ln V for a uniform distribution, 0 for a certain one, and never below."""
    certain = torch.full((1, 9), -torch.inf)
    certain[0, 4] = 1.0
    assert step_entropy(certain).item() == 0
    assert step_entropy(torch.zeros(1, 9)).item() == pytest.approx(math.log(9), abs=1e-6)
    peaked = torch.tensor([[80.0, 0.0, -80.0], [30.0, 29.9, -100.0]])
    assert bool((step_entropy(peaked) >= 0).all())


def test_half_precision_is_taken_in_float32() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    slow = [slow_entropy([float(x) for x in row]) for row in logits]
    assert step_entropy(logits).dtype == torch.float32
    assert step_entropy(logits).tolist() == pytest.approx(slow, abs=1e-5)


def test_figures_of_an_answer() -> None:
    """0.5 + 2 + 1 = 3.5, over three tokens 1.1667, the highest 2, the first 0.5."""
    figures = summarise([0.5, 2.0, 1.0])
    assert figures == {"mean": pytest.approx(3.5 / 3), "sum": 3.5, "max": 2.0, "first": 0.5}
    assert set(figures) == set(ENTROPIES)


def test_one_token_is_all_four() -> None:
    assert set(summarise([0.7]).values()) == {0.7}
