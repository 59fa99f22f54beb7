"""The entropy of a step from its likeliest tokens: bounds of the exact figure."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.uplink.entropies import Listed


@given(
    st.integers(3, 400),
    st.integers(1, 30),
    st.floats(0.05, 6.0),
    st.integers(0, 10_000),
)
def test_the_exact_entropy_lies_between_the_bounds(
    size: int, count: int, scale: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).standard_normal(size) * scale
    logps = logits - np.log(np.exp(logits).sum())
    exact = float(-(np.exp(logps) * logps).sum())
    found = Listed.of(np.sort(logps)[::-1][:count].tolist(), size)
    assert found.least - 1e-6 <= exact <= found.most + 1e-6
    assert found.is_exact == (count >= size)
    if found.is_exact:
        assert found.least == found.most == pytest.approx(exact)


def test_the_bounds_by_hand() -> None:
    """Listed 1/2 and 1/8 of 8 tokens; 3/8 is left: three more of 1/8 at least, or six of 1/16."""
    found = Listed.of([math.log(0.125), math.log(0.5)], 8)
    listed = 0.5 * math.log(2) + 0.125 * math.log(8)
    assert found.least == pytest.approx(listed + 0.375 * math.log(8))
    assert found.most == pytest.approx(listed + 0.375 * math.log(16))
    assert found.margin == pytest.approx(0.375) and not found.is_exact


def test_rounded_log_probabilities_give_no_negative_entropy() -> None:
    for logps in ([0.0], [0.0, -700.0], [-1e-9, -30.0], [0.0, -1000.0]):
        found = Listed.of(logps, 50_000)
        assert found.least <= found.most and found.most >= 0 and math.isfinite(found.most)
