"""Which step `usq` gets: from bytes, from an error, or from the loss on held-out frames.

A choice is one global step, a gain (what a code stands for, in steps) and, now and then, a
multiplier for each tensor. What comes out of each is measured, not modelled: the bytes by coding,
the loss by a forward pass over the held-out share.

**From the loss.** Steps are tried on a grid of quarter octaves around the change's root mean
square, beginning where about 1.7 bits a parameter are; half an octave coarser while the loss stays
within its limit, half an octave finer until it does, then the quarter between. The loss is not
exactly monotone in the step: one that comes out well by luck, where a finer one has failed, is not
taken. So the result is the coarsest step below which nothing that was tried has failed, and its own
loss has been measured. That takes some five evaluations.

**Gain.** It is 1 unless it is asked for. Then, at the step that was chosen, those of GAINS are
measured too that make what is sent at most as long as what was learnt (its projection on the change
at most 1), and the best is taken: it costs no bytes. On the shipped pair the held-out loss always
asked for one and was wrong: on frames never sent, an update of 1 bit a parameter had 79.3 and 79.5
MC, 67.2 and 67.9 DA with a gain of 1 (two seeds; 79.0 and 78.1, 67.0 and 67.7 before coding), and
78.5 and 75.2, 66.3 and 61.6 with the gain of least loss.

**Multipliers.** `adaptation.sensitivity` holds the mean squared gradient g of each tensor. Were
the loss quadratic with curvature g, the best step of a tensor would be proportional to g**-1/2 (Eq.
7's 'impact'). Measured, half of that exponent did better than the whole, and often none at all did
best; so multipliers (g / their geometric mean)**-EXPONENT, to the nearest power of 2**(1/4) and
within a factor of 2, are one more choice for the loss to decide on, at equal size.

Does not code (`usq`) and does not know where the loss comes from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, log2

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink import usq
from cdcca_cli.downlink.change import Change, Overlay
from cdcca_cli.downlink.delta import added
from cdcca_cli.errors import UsageError
from cdcca_cli.numerics.uniform import nearest_step, quantize, restore

Loss = Callable[[Overlay], float]
"""Held-out task loss of an overlay, nats per answer token."""
FileBytes = Callable[[bytes], int]
"""The size of the whole update with this payload."""

GAINS = (1.0, 1.1, 1.2, 1.3)
EXPONENT = 0.25
FALLBACK = 0.0
"""In octaves above the root mean square: the step where there is no loss to go by, 2.1 bits."""

_LARGEST = 2e38  # times any gain it is still a float32
_FINEST = 4096  # steps in a root mean square, at most: 14 bits a parameter
_FINEST_CODE = 1 << 20
_GRID = 4  # steps of the search in an octave
_FIRST, _LOWEST, _HIGHEST = 2, -12, 16  # on that grid, from the root mean square
_CLOSE = 1.002  # a search stops at this ratio of steps
_SPARE = 0.001  # or with this share of the bytes to spare
_MULTIPLIERS = 2.0  # the largest, and one over the smallest


@dataclass(frozen=True)
class Uniform:
    """One choice: what `usq` codes with."""

    step: float
    gain: float = 1.0
    multipliers: tuple[float, ...] | None = None

    def steps(self, count: int) -> list[float]:
        """The quantiser's step of each tensor, float32."""
        each = self.multipliers or (1.0,) * count
        return [float(np.float32(self.step * multiplier)) for multiplier in each]


@dataclass(frozen=True)
class Judged:
    """A choice and its loss."""

    how: Uniform
    loss: float


class Steps:
    """The search for one change."""

    def __init__(
        self,
        change: Change,
        sequence: int,
        *,
        loss: Loss | None = None,
        sensitivity: Mapping[str, float] | None = None,
        gains: Sequence[float] = GAINS[:1],
    ) -> None:
        self.change = change
        self._sequence = sequence
        self._loss = loss
        self._gains = gains
        self._multipliers = _multipliers(change, sensitivity)
        self._judged: dict[Uniform, float] = {}

    @property
    def num_evaluations(self) -> int:
        return len(self._judged)

    def payload(self, how: Uniform) -> bytes:
        """What `usq` makes of the change."""
        steps = how.steps(len(self.change.deltas))
        return usq.encode(self.change.deltas, self._sequence, steps, how.gain)

    def overlay(self, how: Uniform) -> dict[str, NDArray[np.float32]]:
        """What a device makes of that."""
        change = self.change
        decoded = {}
        for name, delta, step in zip(
            change.names, change.deltas, how.steps(len(change.deltas)), strict=True
        ):
            codes = quantize(delta, step)
            new = change.base[name]
            if codes.any():
                new = added(new, restore(codes, float(np.float32(step * how.gain))))
            decoded[name] = new
        return decoded

    def loss(self, how: Uniform) -> float:
        """The held-out loss of a choice; measured once."""
        assert self._loss is not None, "no loss to measure"
        if how not in self._judged:
            self._judged[how] = self._loss(self.overlay(how))
        return self._judged[how]

    # ---- from bytes or an error

    def fallback(self) -> Uniform:
        """Where there is nothing to go by."""
        return around_rms(self.change, FALLBACK)

    def within_bytes(self, budget_bytes: int, file_bytes: FileBytes) -> Uniform:
        """The finest step whose file has at most so many bytes, and what the loss says to add.

        Raises: UsageError, with the smallest budget that works, if no code but 0 fits.
        """

        def size(how: Uniform) -> int:
            return file_bytes(self.payload(how))

        coarsest = Uniform(self._coarsest())
        if (least := size(coarsest)) > budget_bytes:
            raise UsageError(
                f"a budget of {budget_bytes:,} bytes is too small for any of what changed: "
                f"give {least:,} or more"
            )
        return self._improved(self._finest(size, budget_bytes, coarsest), size, budget_bytes)

    def within_error(self, most: float) -> Uniform:
        """The coarsest step that leaves at most this relative error.

        Raises: UsageError, with the error that can be reached, if no step does.
        """

        def error(step: float) -> float:
            return self.change.relative_error(self.overlay(Uniform(step)))

        good, bad = self._finest_step(), self._coarsest()
        if (least := error(good)) > most:
            raise UsageError(
                f"--max-error {most:g} cannot be reached: at the finest step it is {least:.3g}: "
                "give that or more"
            )
        while bad / good > _CLOSE:
            middle = _sound((good * bad) ** 0.5)
            good, bad = (middle, bad) if error(middle) <= most else (good, middle)
        return Uniform(good)

    def _finest(self, size: Callable[[Uniform], int], most: int, coarsest: Uniform) -> Uniform:
        """The finest step of at most so many bytes, to a thousandth of them.

        Sizes rise as steps fall, but for a few bytes. Interpolation and bisection by turns, on the
        logarithm of the step; what is returned was measured. `coarsest` must fit.
        """
        good, bad = coarsest.step, self._finest_step()
        few, many = size(coarsest), size(replace(coarsest, step=bad))
        if many <= most:
            return replace(coarsest, step=bad)
        place = 0.5
        while good / bad > _CLOSE and few < (1 - _SPARE) * most:
            middle = _sound(good * (bad / good) ** place)
            found = size(replace(coarsest, step=middle))
            if found <= most:
                good, few = middle, found
            else:
                bad, many = middle, found
            guess = min(max((most - few) / (many - few), 0.05), 0.95)
            place = guess if place == 0.5 else 0.5
        return replace(coarsest, step=good)

    def _improved(self, how: Uniform, size: Callable[[Uniform], int], most: int) -> Uniform:
        """The choice of least loss among gains and multipliers of the same size."""
        if self._loss is None:
            return how
        best = self._best_gain(how)
        if self._multipliers is not None:
            other = Uniform(_sound(how.step * 2 * _MULTIPLIERS), multipliers=self._multipliers)
            if size(other) <= most:
                alike = self._best_gain(self._finest(size, most, other))
                best = min(best, alike, key=lambda one: one.loss)
        return best.how

    # ---- from the loss

    def within_loss(self, limit: float) -> Judged | None:
        """The coarsest choice whose loss is at most `limit`; None if even the finest is above it.

        The module's docstring says how it is searched for.
        """
        highest = min(_HIGHEST, int(_GRID * log2(self._coarsest() / self.change.rms)))
        at = min(_FIRST, highest)
        found = self._passing(at, limit)
        failed = highest + 1
        if found is None:
            while found is None and at > _LOWEST:
                failed, at = at, max(at - _GRID // 2, _LOWEST)
                found = self._passing(at, limit)
        else:
            while at < highest and failed > highest:
                further = min(at + _GRID // 2, highest)
                coarser = self._passing(further, limit)
                if coarser is None:
                    failed = further
                else:
                    at, found = further, coarser
        if found is None:
            return None
        if failed - at > 1 and (between := self._passing(at + 1, limit)) is not None:
            at, found = at + 1, between
        if self._multipliers is not None and at < highest:
            found = self._with_multipliers(at + 1, limit) or found
        return self._best_gain(found.how)

    def _passing(self, at: int, limit: float) -> Judged | None:
        """The step at this place of the grid, if it keeps the limit."""
        return self._keeping(around_rms(self.change, at / _GRID), limit)

    def _keeping(self, how: Uniform, limit: float) -> Judged | None:
        return Judged(how, loss) if (loss := self.loss(how)) <= limit else None

    def _with_multipliers(self, at: int, limit: float) -> Judged | None:
        """With multipliers, as small as the step at this place of the grid is without."""
        plain = around_rms(self.change, at / _GRID)
        most = len(self.payload(plain))
        coarse = Uniform(_sound(plain.step * 2 * _MULTIPLIERS), multipliers=self._multipliers)
        if len(self.payload(coarse)) > most:
            return None
        how = self._finest(lambda one: len(self.payload(one)), most, coarse)
        return self._keeping(how, limit)

    def _best_gain(self, how: Uniform) -> Judged:
        """The gain of least loss among those that do not make it too long."""
        length = self._projection(how)
        tried = [replace(how, gain=gain) for gain in self._gains if gain == 1 or gain * length <= 1]
        return min((Judged(one, self.loss(one)) for one in tried), key=lambda one: one.loss)

    def _projection(self, how: Uniform) -> float:
        """<what is sent, change> / <change, change>, for a gain of 1."""
        product = 0.0
        for delta, step in zip(self.change.deltas, how.steps(len(self.change.deltas)), strict=True):
            values = delta.reshape(-1).astype(np.float64)
            product += step * float(quantize(delta, step).reshape(-1) @ values)
        return product / self.change.energy

    # ---- the ends

    def finest_on_grid(self) -> Uniform:
        """The last that `within_loss` tries."""
        return around_rms(self.change, _LOWEST / _GRID)

    def _coarsest(self) -> float:
        """At this step, one code at least is not zero, and hardly more than one."""
        return _sound(1.99 * self.change.largest)

    def _finest_step(self) -> float:
        return _sound(max(self.change.rms / _FINEST, self.change.largest / _FINEST_CODE))


def around_rms(change: Change, octaves: float) -> Uniform:
    """A step of 2**octaves times the change's root mean square."""
    return Uniform(_sound(change.rms * 2**octaves))


def _sound(step: float) -> float:
    """A float32 that a step may be, with room for a gain."""
    return float(nearest_step(min(step, _LARGEST)))


def _multipliers(
    change: Change, sensitivity: Mapping[str, float] | None
) -> tuple[float, ...] | None:
    """Of each tensor, powers of 2**(1/4); None if they are all 1 or nothing is known."""
    if sensitivity is None or not change.num_changed:
        return None
    known: Sequence[float] = [
        sensitivity.get(name, 0.0) if own > 0 else 0.0
        for name, own in zip(change.names, change.energies, strict=True)
    ]
    logs = [log(one) for one in known if one > 0]
    if not logs:
        return None
    middle = exp(sum(logs) / len(logs))
    most = _GRID * log2(_MULTIPLIERS)
    found = tuple(
        2.0 ** (round(min(max(-EXPONENT * log2(one / middle) * _GRID, -most), most)) / _GRID)
        if one > 0
        else 1.0
        for one in known
    )
    return None if set(found) == {1.0} else found
