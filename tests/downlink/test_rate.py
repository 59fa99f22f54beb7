"""The search for a step, against losses made up here; the real one needs a model."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from cdcca_cli.downlink import rate
from cdcca_cli.downlink.change import Change, Overlay
from cdcca_cli.downlink.rate import SAFE_ERROR, Steps, questions_to_tell
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


def quadratic(wanted: Change, weights: Mapping[str, float] | None = None) -> rate.Loss:
    """1 + the mean of the weighted squared error, as if curvature were all of the loss."""

    def loss(overlay: Overlay) -> float:
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
    assert found == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("limit", [1.0015, 1.003, 1.02, 1.1, 1.3, 1.6])
def test_the_result_keeps_the_limit_and_a_quarter_octave_more_does_not(limit: float) -> None:
    loss = quadratic(change())
    found = Steps(change(), 1, loss=loss).within_loss(limit)
    assert found is not None
    search = Steps(change(), 1, loss=loss)
    assert search.loss(found) <= limit
    assert search.loss(float(np.float32(found * 2**0.25))) > limit


def test_how_often_the_loss_is_measured() -> None:
    measured = []

    def loss(overlay: Overlay) -> float:
        measured.append(overlay)
        return quadratic(change())(overlay)

    Steps(change(), 1, loss=loss).within_loss(1.02)
    assert len(measured) <= 7


def stepwise(spoilt: Callable[[float], bool]) -> rate.Loss:
    """1, or 2 for steps that are spoilt; the step is the smallest change that occurs."""

    def loss(overlay: Overlay) -> float:
        every = np.abs(np.concatenate(list(overlay.values())))
        return 2.0 if spoilt(float(every[every > 0].min())) else 1.0

    return loss


def test_a_lucky_step_beyond_a_failed_one_is_not_taken() -> None:
    """From 1.41 up by half octaves: 2 passes, 2.83 fails, 4 would pass again."""
    loss = stepwise(lambda step: 2.7 < step < 3.8)
    found = Steps(change(), 1, loss=loss).within_loss(1.5)
    assert found is not None
    assert found == pytest.approx(2 * 2**0.25, rel=0.01)


def test_an_unlucky_step_makes_it_finer_not_worse() -> None:
    """1.41 fails although 1.68 would do: 1 passes, the quarter between them is tried."""
    loss = stepwise(lambda step: 1.35 < step * 1.001 < 1.9)
    found = Steps(change(), 1, loss=loss).within_loss(1.5)
    assert found is not None
    assert found == pytest.approx(2**0.25, rel=0.01)


def test_a_limit_that_nothing_keeps() -> None:
    assert Steps(change(), 1, loss=lambda _: 2.0).within_loss(1.5) is None


def test_a_limit_that_everything_keeps_still_sends_something() -> None:
    found = Steps(change(), 1, loss=lambda _: 1.0).within_loss(1.5)
    assert found is not None
    assert any(v.any() for v in Steps(change(), 1).overlay(found).values())


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
    with pytest.raises(UsageError, match="`max_error` 1e-09: cannot be reached"):
        Steps(change(), 1).within_error(1e-9)


def test_what_is_judged_is_what_is_sent() -> None:
    """The overlay that the loss sees is bit for bit the decoded payload's."""
    from cdcca_cli.downlink.codecs import usq

    search = Steps(change({"a": 0.1, "b": 1.0, "c": 3.0}), 7)
    for step in (0.5, float(np.float32(1.3)), 2.75):
        seen = search.overlay(step)
        decoded = usq.decode(search.payload(step), 7, search.change.base)
        assert {n: v.tobytes() for n, v in seen.items()} == {
            n: v.tobytes() for n, v in decoded.items()
        }


def test_how_many_questions_tell_a_change() -> None:
    """A standard error of 0.05 / sqrt(n): 1 % at 25, 2 % at 6.25, 5 % at 1; nothing tells 0 %."""
    assert [questions_to_tell(share) for share in (0.01, 0.02, 0.05, 1.0)] == [25, 7, 1, 1]
    assert questions_to_tell(0.0) > 1 << 60


def test_the_safe_error_is_a_little_finer_than_a_step_of_one_root_mean_square() -> None:
    """Step s leaves s / sqrt(12) of a Gaussian: 0.289 at 1, 0.25 at 0.866; 2.1 bits there, and
    log2(1 / 0.866) = 0.2 more here, and the tables of a small file."""
    search = Steps(change(), 1)
    step = search.within_error(SAFE_ERROR)
    assert step == pytest.approx(0.866, rel=0.03)
    assert 2.2 < 8 * len(search.payload(step)) / 9000 < 2.6
