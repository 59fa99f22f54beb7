"""The curve as a line that never goes back, and what lies outside of it."""

from dataclasses import replace

import numpy as np
import pytest

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats.codebook import Codebook, Curve, TokenPoint
from cdcca_cli.payloads.curve import point_at, step_for
from tests.payloads.test_klt import made

POINTS = (
    TokenPoint(0.5, 1.5, 800, 0.002, 1.0),
    TokenPoint(1.0, 1.0, 500, 0.020, 0.99),
    TokenPoint(1.5, 0.75, 400, 0.015, 0.98),  # by luck better than the step before
    TokenPoint(3.0, 0.5, 200, 0.080, 0.985),
)


@pytest.fixture
def codebook() -> Codebook:
    return replace(made(), curve=Curve(POINTS))


@pytest.mark.parametrize(
    ("max_loss", "step"),
    [(0.002, 0.5), (0.011, 0.75), (0.02, 1.5), (0.05, 2.25), (0.08, 3.0), (0.5, 3.0)],
)
def test_largest_step_within_a_loss(codebook: Codebook, max_loss: float, step: float) -> None:
    """By hand: half-way from 0.002 to 0.02 is half-way from 0.5 to 1; up to 1.5 it stays 0.02."""
    assert step_for(codebook, max_loss=max_loss) == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize(
    ("bits", "step"), [(1.5, 0.5), (1.25, 0.75), (1, 1), (0.625, 2.25), (0.5, 3)]
)
def test_smallest_step_within_a_rate(codebook: Codebook, bits: float, step: float) -> None:
    assert step_for(codebook, bits=bits) == pytest.approx(step, rel=1e-6)


def test_steps_are_float32_and_monotone(codebook: Codebook) -> None:
    losses = np.linspace(0.002, 0.08, 57)
    steps = [step_for(codebook, max_loss=float(loss)) for loss in losses]
    assert steps == sorted(steps)
    assert all(float(np.float32(step)) == step for step in steps)
    rates = [step_for(codebook, bits=float(bits)) for bits in np.linspace(0.5, 1.5, 57)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"max_loss": 0.001}, "`max_loss` 0.001: the codebook was measured from 0.200% to 8.000%"),
        ({"bits": 0.4}, "`bits` 0.4: the codebook was measured from 0.5 to 1.5"),
        ({"bits": 2.0}, "0.5 to 1.5"),
    ],
)
def test_outside_is_refused_with_the_range(
    codebook: Codebook, wanted: dict[str, float], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        step_for(codebook, **wanted)


def test_a_codebook_without_a_curve(codebook: Codebook) -> None:
    with pytest.raises(BadData, match="no curve"):
        step_for(made(), bits=1)


def test_point_at_a_step(codebook: Codebook) -> None:
    """Half-way from step 1.5 to 3: the loss from 0.02 (of step 1) to 0.08, agreement 0.98."""
    found = point_at(codebook, 2.25)
    expected = TokenPoint(2.25, 0.625, 300, 0.05, 0.98)
    assert vars(found) == pytest.approx(vars(expected))
    assert vars(point_at(codebook, 0.5)) == vars(POINTS[0])
    with pytest.raises(SettingError, match=r"`step` 4: .* 0.5 to 3"):
        point_at(codebook, 4)
