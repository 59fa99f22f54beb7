"""Which step `usq` gets: from a size, from an error, or from the loss on held-out frames.

All tensors have the same step. What a step gives is measured, not modelled: the bytes by coding,
the loss by a forward pass over the held-out frames.

**From the loss.** Steps are tried on a grid of quarter octaves around the change's root mean
square, beginning where about 1.7 bits a parameter are: half an octave coarser while the loss stays
within its limit, half an octave finer until it does, then the quarter between. The loss is not
exactly monotone in the step, and a step that passes by luck beyond a finer one that failed is not
taken. So the result is the coarsest step below which nothing that was tried has failed, and its own
loss has been measured. That takes about five evaluations.

Does not code (`codecs.usq`) and does not know where the loss comes from.
"""

from collections.abc import Callable
from math import log2

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Change, Overlay, added
from cdcca_cli.downlink.codecs import usq
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.numerics.uniform import nearest_step, quantize, restore

Loss = Callable[[Overlay], float]
"""Held-out task loss of an overlay, nats per answer token."""
FileBytes = Callable[[bytes], int]
"""The size of the whole update with this payload."""

SAFE_ERROR = 0.25
"""The relative error of the change where no loss decides: about 2.3 bits a parameter.

At 0.26 (2.2 bits) nine updates of the shipped pair changed the loss on 544 questions that were
never sent by +0.08 % in the mean and +0.5 % at worst (README, `usq --bits 2.2`). On another model,
trained from nothing, 0.29 gave +0.9 and -0.02 % in two rounds, 0.14 gave +0.7 and +0.2 %.
"""
SPREAD = 0.05
"""By which share of the mean the loss of one question moves at about that error.

The standard deviation of the paired difference, divided by the mean loss: 3.7, 4.8 and 5.0 % in the
three rounds of `cdcca demo` (41, 32 and 37 questions) at an error of 0.29; 2.5 to 2.9 % at 0.20.
"""

_LARGEST = 2e38  # half of what a float32 holds
_FINEST = 4096  # steps in a root mean square, at most: 14 bits a parameter
_FINEST_CODE = 1 << 20
_GRID = 4  # steps of the search in an octave
_FIRST, _LOWEST, _HIGHEST = 2, -12, 16  # on that grid, from the root mean square
_CLOSE = 1.002  # a search stops at this ratio of steps
_SPARE = 0.001  # or with this share of the bytes to spare


def questions_to_tell(share: float) -> int:
    """How many held-out questions tell a change of the loss by this share: 25 for 1 %.

    With fewer, the standard error of the mean difference, SPREAD / sqrt(n), is above the share.
    """
    return int(np.ceil((SPREAD / share) ** 2)) if share > 0 else 1 << 62


class Steps:
    """The search for the step of one change. Steps are exactly float32."""

    def __init__(self, change: Change, sequence: int, *, loss: Loss | None = None) -> None:
        self.change = change
        self._sequence = sequence
        self._loss = loss
        self._judged: dict[float, float] = {}

    @property
    def num_evaluations(self) -> int:
        return len(self._judged)

    def payload(self, step: float) -> bytes:
        """What `usq` makes of the change."""
        return usq.encode(self.change.deltas, self._sequence, step)

    def overlay(self, step: float) -> dict[str, NDArray[np.float32]]:
        """What a device makes of that payload."""
        change = self.change
        decoded = {}
        for name, delta in zip(change.names, change.deltas, strict=True):
            codes = quantize(delta, step)
            new = change.base[name]
            if codes.any():
                with np.errstate(over="ignore"):
                    new = added(new, restore(codes, step))
            decoded[name] = new
        return decoded

    def loss(self, step: float) -> float:
        """The held-out loss of a step; measured once."""
        assert self._loss is not None, "no loss to measure"
        if step not in self._judged:
            self._judged[step] = self._loss(self.overlay(step))
        return self._judged[step]

    # ---- from a size or an error

    def within_bytes(self, budget_bytes: int, file_bytes: FileBytes) -> float:
        """The finest step whose file has at most so many bytes, to a thousandth of them.

        Sizes rise as steps fall, but for a few bytes. Interpolation and bisection by turns, on the
        logarithm of the step; what is returned was measured.

        Raises: UsageError, with the smallest budget that works, if no code but 0 fits.
        """

        def size(step: float) -> int:
            return file_bytes(self.payload(step))

        good, bad = self._coarsest(), self._finest_step()
        if (few := size(good)) > budget_bytes:
            raise UsageError(
                f"a budget of {budget_bytes:,} bytes is too small for any of what changed: "
                f"give {few:,} or more"
            )
        if (many := size(bad)) <= budget_bytes:
            return bad
        place = 0.5
        while good / bad > _CLOSE and few < (1 - _SPARE) * budget_bytes:
            middle = _sound(good * (bad / good) ** place)
            found = size(middle)
            if found <= budget_bytes:
                good, few = middle, found
            else:
                bad, many = middle, found
            guess = min(max((budget_bytes - few) / (many - few), 0.05), 0.95)
            place = guess if place == 0.5 else 0.5
        return good

    def within_error(self, most: float) -> float:
        """The coarsest step that leaves at most this relative error.

        Raises: SettingError, with the error that can be reached, if no step does.
        """

        def error(step: float) -> float:
            return self.change.relative_error(self.overlay(step))

        good, bad = self._finest_step(), self._coarsest()
        if (least := error(good)) > most:
            reason = f"cannot be reached: at the finest step it is {least:.3g}: give that or more"
            raise SettingError("max_error", reason, f"{most:g}")
        while bad / good > _CLOSE:
            middle = _sound((good * bad) ** 0.5)
            good, bad = (middle, bad) if error(middle) <= most else (good, middle)
        return good

    # ---- from the loss

    def within_loss(self, limit: float) -> float | None:
        """The coarsest step whose loss is at most `limit`; None if even the finest is above it.

        The module's docstring says how it is searched for.
        """
        highest = min(_HIGHEST, int(_GRID * log2(self._coarsest() / self.change.rms)))
        at = min(_FIRST, highest)
        failed = highest + 1
        if not self._passes(at, limit):
            while True:
                if at <= _LOWEST:
                    return None
                failed, at = at, max(at - _GRID // 2, _LOWEST)
                if self._passes(at, limit):
                    break
        else:
            while at < highest and failed > highest:
                further = min(at + _GRID // 2, highest)
                if self._passes(further, limit):
                    at = further
                else:
                    failed = further
        if failed - at > 1 and self._passes(at + 1, limit):
            at += 1
        return self._on_grid(at)

    def _passes(self, at: int, limit: float) -> bool:
        """Whether the step at this place of the grid keeps the limit."""
        return self.loss(self._on_grid(at)) <= limit

    def _on_grid(self, at: int) -> float:
        return around_rms(self.change, at / _GRID)

    # ---- the ends

    def finest_on_grid(self) -> float:
        """The last that `within_loss` tries."""
        return self._on_grid(_LOWEST)

    def _coarsest(self) -> float:
        """At this step, one code at least is not zero, and hardly more than one."""
        return _sound(1.99 * self.change.largest)

    def _finest_step(self) -> float:
        return _sound(max(self.change.rms / _FINEST, self.change.largest / _FINEST_CODE))


def around_rms(change: Change, octaves: float) -> float:
    """A step of 2**octaves times the change's root mean square."""
    return _sound(change.rms * 2**octaves)


def _sound(step: float) -> float:
    """A float32 that a step may be."""
    return float(nearest_step(min(step, _LARGEST)))
