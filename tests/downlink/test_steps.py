"""The search for a step, against losses made up here; the real one needs a model."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from cdcca_cli.downlink import steps
from cdcca_cli.downlink.change import Change
from cdcca_cli.downlink.steps import GAINS, Steps, Uniform
from cdcca_cli.errors import UsageError

NAMES = ("a", "b", "c")


def change(sizes: Mapping[str, float] | None = None, count: int = 3000) -> Change:
    """Gaussian changes of these root mean squares, from a base of zeros."""
    source = np.random.default_rng(0)
    sizes = sizes or dict.fromkeys(NAMES, 1.0)
    base = {name: np.zeros(count, np.float32) for name in sizes}
    after = {
        name: (size * source.standard_normal(count)).astype(np.float32)
        for name, size in sizes.items()
    }
    return Change.between(after, base, set(sizes))


def quadratic(wanted: Change, weights: Mapping[str, float] | None = None) -> steps.Loss:
    """1 + the mean of the weighted squared error, as if curvature were all of the loss."""

    def loss(overlay: steps.Overlay) -> float:
        errors = [
            (weights or {}).get(name, 1.0)
            * float(np.square(overlay[name] - wanted.base[name] - delta).mean())
            for name, delta in zip(wanted.names, wanted.deltas, strict=True)
        ]
        return 1 + sum(errors) / len(errors)

    return loss


def test_the_coarsest_step_within_the_limit() -> None:
    """With plain squared error, step s leaves s^2 / 12 for s below the root mean square (Gish and
    Pierce); so a limit of 0.0215 is a step of 0.5, and a quarter octave above it is over."""
    found = Steps(change(), 1, loss=quadratic(change())).within_loss(1.0215)
    assert found is not None and found.how.multipliers is None
    assert found.how.step == pytest.approx(0.5, rel=0.02)
    assert found.loss == pytest.approx(1 + 0.25 / 12, rel=0.01)
    assert found.how.gain == 1.0


@pytest.mark.parametrize("limit", [1.0015, 1.003, 1.02, 1.1, 1.3, 1.6])
def test_the_result_keeps_the_limit_and_a_quarter_octave_more_does_not(limit: float) -> None:
    loss = quadratic(change())
    found = Steps(change(), 1, loss=loss).within_loss(limit)
    assert found is not None
    assert found.loss <= limit
    search = Steps(change(), 1, loss=loss)
    assert search.loss(Uniform(float(np.float32(found.how.step * 2**0.25)))) > limit


def test_how_often_the_loss_is_measured() -> None:
    search = Steps(change(), 1, loss=quadratic(change()))
    search.within_loss(1.02)
    assert search.num_evaluations <= 7


def stepwise(spoilt: Callable[[float], bool]) -> steps.Loss:
    """1, or 2 for steps that are spoilt; the step is the smallest change that occurs."""

    def loss(overlay: steps.Overlay) -> float:
        every = np.abs(np.concatenate(list(overlay.values())))
        return 2.0 if spoilt(float(every[every > 0].min())) else 1.0

    return loss


def test_a_lucky_step_beyond_a_failed_one_is_not_taken() -> None:
    """From 1.41 up by half octaves: 2 passes, 2.83 fails, 4 would pass again."""
    loss = stepwise(lambda step: 2.7 < step < 3.8)
    found = Steps(change(), 1, loss=loss).within_loss(1.5)
    assert found is not None
    assert found.how.step == pytest.approx(2 * 2**0.25, rel=0.01)


def test_an_unlucky_step_makes_it_finer_not_worse() -> None:
    """1.41 fails although 1.68 would do: 1 passes, the quarter between them is tried."""
    loss = stepwise(lambda step: 1.35 < step * 1.001 < 1.9)
    found = Steps(change(), 1, loss=loss).within_loss(1.5)
    assert found is not None
    assert found.how.step == pytest.approx(2**0.25, rel=0.01)


def test_a_limit_that_nothing_keeps() -> None:
    assert Steps(change(), 1, loss=lambda _: 2.0).within_loss(1.5) is None


def test_a_limit_that_everything_keeps_still_sends_something() -> None:
    found = Steps(change(), 1, loss=lambda _: 1.0).within_loss(1.5)
    assert found is not None
    assert any(v.any() for v in Steps(change(), 1).overlay(found.how).values())


def test_a_gain_makes_up_for_what_coarse_steps_shorten_and_no_more() -> None:
    """A loss that wants four times what was learnt. At 5 bits nothing is short, so none is taken;
    at a step of 3.5 only |x| > 1.75 is sent: E[3.5 |x|; |x| > 1.75] = 7 * 0.0863 = 0.60 of a
    Gaussian, so with a gain of 1.3 it is short still. Plain squared error wants none."""
    wanted = change()
    longer = quadratic(Change(wanted.base, wanted.names, [4 * one for one in wanted.deltas]))
    fine = Steps(wanted, 1, loss=longer, gains=GAINS).within_loss(
        longer(wanted_overlay(wanted)) * 1.001
    )
    assert fine is not None and fine.how.gain == 1.0
    assert Steps(wanted, 1, loss=longer, gains=GAINS).within_bytes(5000, len).gain == 1.0
    few = len(Steps(wanted, 1).payload(Uniform(3.5)))
    assert Steps(wanted, 1)._projection(Uniform(3.5)) == pytest.approx(0.60, abs=0.03)
    assert Steps(wanted, 1, loss=longer, gains=GAINS).within_bytes(few, len).gain == 1.3
    assert Steps(wanted, 1, loss=longer).within_bytes(few, len).gain == 1.0
    assert Steps(wanted, 1, loss=quadratic(wanted), gains=GAINS).within_bytes(few, len).gain == 1.0
    assert Steps(wanted, 1, gains=GAINS).within_bytes(few, len).gain == 1.0


def wanted_overlay(wanted: Change) -> dict[str, np.ndarray]:
    """What would be sent if every bit were; the base is zeros."""
    return dict(zip(wanted.names, wanted.deltas, strict=True))


def test_multipliers_are_taken_only_where_the_loss_says_so() -> None:
    """Tensor c matters 10,000 times as much: steps that are finer there do better at equal size.
    If the sensitivity was wrong (a), the loss sees it and takes none."""
    wanted = change()
    weights = {"a": 1e-2, "b": 1e-2, "c": 1e2}
    loss = quadratic(wanted, weights)
    sound = Steps(wanted, 1, loss=loss, sensitivity=weights).within_bytes(3000, len)
    assert sound.multipliers is not None
    assert sound.multipliers[2] < 1 < sound.multipliers[0]
    plain = Steps(wanted, 1, loss=loss).within_bytes(3000, len)
    assert loss(Steps(wanted, 1).overlay(sound)) < loss(Steps(wanted, 1).overlay(plain))
    wrong = Steps(wanted, 1, loss=loss, sensitivity={"a": 1e2, "b": 1e-2, "c": 1e-2})
    assert wrong.within_bytes(3000, len).multipliers is None


def test_what_multipliers_are() -> None:
    """(g / geometric mean)^-1/4 by hand: of 1/16, 1, 16 the mean is 1: 2, 1, 1/2. Beyond a factor
    of 2 they are cut off; unknown tensors get 1; all alike give none."""

    def found(**sensitivity: float) -> tuple[float, ...] | None:
        return steps._multipliers(change(), sensitivity)

    assert found(a=1 / 16, b=1.0, c=16.0) == (2.0, 1.0, 0.5)
    assert found(a=1e-9, b=1.0, c=1e9) == (2.0, 1.0, 0.5)
    assert found(a=4.0, b=1.0) == (2**-0.25, 2**0.25, 1.0)
    assert found(a=1.0, b=1.0, c=1.0) is None
    assert found(a=0.0, b=0.0) is None
    assert steps._multipliers(change(), None) is None


@pytest.mark.parametrize("budget", [400, 800, 2000, 5000, 20_000])
def test_a_budget_is_used_up_and_kept(budget: int) -> None:
    """Two thousandths of a step are 0.003 bits, or 4 bytes of 9,000 codes; zstd's tables jump by a
    few dozen."""
    search = Steps(change(), 1)
    size = len(search.payload(search.within_bytes(budget, len)))
    assert size <= budget
    assert size >= min(budget - 60, 0.97 * budget) or budget == 20_000


def test_a_budget_that_cannot_be_met_names_one_that_can() -> None:
    search = Steps(change(), 1)
    with pytest.raises(UsageError, match=r"give \d+ or more") as refused:
        search.within_bytes(50, len)
    needed = int(str(refused.value).split("give ")[1].split()[0])
    assert len(search.payload(search.within_bytes(needed, len))) <= needed


@pytest.mark.parametrize("most", [0.9, 0.5, 0.1, 0.01, 0.001])
def test_the_largest_error_is_kept_and_used(most: float) -> None:
    search = Steps(change(), 1)
    found = search.change.relative_error(search.overlay(search.within_error(most)))
    assert 0.98 * most < found <= most


def test_an_error_that_cannot_be_reached() -> None:
    with pytest.raises(UsageError, match="--max-error 1e-09 cannot be reached"):
        Steps(change(), 1).within_error(1e-9)


def test_what_is_judged_is_what_is_sent() -> None:
    """The overlay that the loss sees is bit for bit the decoded payload's."""
    from cdcca_cli.downlink import usq

    search = Steps(change({"a": 0.1, "b": 1.0, "c": 3.0}), 7)
    for how in (Uniform(0.5), Uniform(1.3, 1.1), Uniform(0.7, 1.3, (1.0, 2**0.25, 0.5))):
        seen = search.overlay(how)
        decoded = usq.decode(search.payload(how), 7, search.change.base)
        assert {n: v.tobytes() for n, v in seen.items()} == {
            n: v.tobytes() for n, v in decoded.items()
        }
