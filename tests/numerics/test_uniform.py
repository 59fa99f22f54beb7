"""Codes, steps and what they cost, against hand-made and known figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import uniform

STEPS = st.floats(2.0**-20, 2.0**10, width=32)
VALUES = arrays.arrays(np.float32, st.integers(0, 200), elements=st.floats(-1e3, 1e3, width=32))


def test_by_hand() -> None:
    """Step 0.5: 0.25 and 0.75 are halves (0.5 and 1.5 steps), and go to the even 0 and 2."""
    values = np.array([0.25, 0.75, -0.25, -0.75, 0.26, 1.1, -3.0], np.float32)
    codes = uniform.quantize(values, 0.5)
    assert codes.dtype == np.int32
    assert codes.tolist() == [0, 2, 0, -2, 1, 2, -6]
    assert uniform.restore(codes, 0.5).tolist() == [0, 1, 0, -1, 0.5, 1, -3]


@given(VALUES, STEPS)
@settings(deadline=None, max_examples=200)
def test_the_error_is_half_a_step_at_most(values: np.ndarray, step: float) -> None:
    if values.size and np.abs(values).max() / step > uniform.LARGEST_CODE:
        with pytest.raises(BadData):
            uniform.quantize(values, step)
        return
    restored = uniform.restore(uniform.quantize(values, step), step)
    assert restored.dtype == np.float32
    # Rounding of the quotient and of the product: an ulp of the value each.
    allowed = step / 2 + 2 * np.abs(values.astype(np.float64)) * 2.0**-23
    assert (np.abs(restored.astype(np.float64) - values) <= allowed).all()


@given(VALUES, STEPS)
@settings(deadline=None, max_examples=100)
def test_what_was_restored_gives_its_codes_again(values: np.ndarray, step: float) -> None:
    codes = np.clip(np.rint(values), -1000, 1000).astype(np.int32)
    assert np.array_equal(uniform.quantize(uniform.restore(codes, step), step), codes)


def test_shapes_stay() -> None:
    for shape in ((), (0, 3), (2, 3, 4)):
        codes = uniform.quantize(np.ones(shape, np.float32), 0.25)
        assert codes.shape == uniform.restore(codes, 0.25).shape == shape


@pytest.mark.parametrize(
    "step", [0.0, -1.0, math.nan, math.inf, 1e-40, 2.0**-127, 0.1, 1e39, -math.inf]
)
def test_an_unsound_step_is_refused(step: float) -> None:
    """0.1 is not held exactly by a float32; below 2^-126 they are subnormal."""
    with pytest.raises(BadData, match="step"):
        uniform.restore(np.array([1]), step)
    with pytest.raises(BadData, match="step"):
        uniform.quantize(np.ones(1, np.float32), step)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**25, 3e38])
def test_a_code_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(BadData, match="too fine"):
        uniform.quantize(np.array([0, value], np.float32), 0.5)


# ---- what codes cost


@pytest.mark.parametrize(("count", "bits"), [(1, 0), (2, 1), (5, math.log2(5)), (1024, 10)])
def test_entropy_of_equally_frequent_codes(count: int, bits: float) -> None:
    codes = np.repeat(np.arange(-3, count - 3), 7)
    assert uniform.entropy_bits(codes) == pytest.approx(bits)
    assert uniform.entropy_bits(codes * 5_000_000) == pytest.approx(bits)  # counted by sorting


def test_entropy_by_hand() -> None:
    """Shares 1/2, 1/4, 1/4: 1.5 bits. No codes: 0."""
    assert uniform.entropy_bits(np.array([[7, 7], [1, -3]])) == pytest.approx(1.5)
    assert uniform.entropy_bits(np.zeros(0, np.int32)) == 0


def gaussian_entropy(step: float) -> float:
    """Bits of round(x / step), x ~ N(0, 1): the cells' probabilities from the error function."""

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf(edge / math.sqrt(2)))

    cells = [below((k + 0.5) * step) - below((k - 0.5) * step) for k in range(-2000, 2001)]
    return -sum(p * math.log2(p) for p in cells if p > 0)


@pytest.mark.parametrize("bits", [0.75, 1.2, 2.1, 4.0])
def test_the_step_of_a_gaussian(bits: float) -> None:
    """400,000 draws: the step at which the error function gives these bits, to half a percent."""
    values = np.random.default_rng(0).standard_normal(400_000).astype(np.float32) * 3
    step = uniform.step_for_bits(values, bits)
    assert gaussian_entropy(float(step) / 3) == pytest.approx(bits, abs=0.01)
    spent = uniform.entropy_bits(uniform.quantize(values, float(step)))
    assert bits - 1e-3 < spent <= bits


@given(VALUES, st.floats(0, 12))
@settings(deadline=None, max_examples=150)
def test_a_step_keeps_within_the_bits(values: np.ndarray, bits: float) -> None:
    step = uniform.step_for_bits(values, bits)
    assert uniform.check_step(float(step)) == step
    assert uniform.entropy_bits(uniform.quantize(values, float(step))) <= bits


def test_no_change_and_few_values() -> None:
    assert uniform.step_for_bits(np.zeros(5, np.float32), 1.2) == 1
    assert uniform.step_for_bits(np.zeros(0, np.float32), 1.2) == 1
    assert uniform.step_for_bits(np.array([1e-44], np.float32), 1.2) == 1  # below every step
    two = np.array([1.0, -1.0], np.float32)
    assert uniform.step_for_bits(two, 5) == np.float32(2.0**-22)  # one bit is all they can cost
    assert uniform.quantize(two, float(uniform.step_for_bits(two, 0))).tolist() == [0, 0]
    largest = np.array([np.finfo(np.float32).max, 0, 1], np.float32)
    assert np.isfinite(uniform.step_for_bits(largest, 0.5))


def test_values_that_are_not_finite_have_no_step() -> None:
    with pytest.raises(BadData, match="not finite"):
        uniform.step_for_bits(np.array([1, math.nan], np.float32), 2)
