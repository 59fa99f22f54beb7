"""The step of `usq`: from a size, from an error, or from the loss on held-out frames.

All tensors have the same step. Bytes are measured by coding, the loss by a forward pass.

**From the loss.** The search tries steps on a grid of quarter octaves around the change's root mean
square, and begins at about 1.7 bits per parameter: half an octave coarser while the loss stays
within its limit, half an octave finer until it does, then the quarter between. The loss is not
exactly monotone in the step, so the result is the coarsest step below which no tried step has
failed. That takes about five evaluations.
"""

from collections.abc import Callable
from math import log2

import numpy as np

from cdcca_cli.downlink.change import Change, Overlay, overlay_with
from cdcca_cli.downlink.codecs import usq
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.numerics.uniform import nearest_step, quantize, restore

Loss = Callable[[Overlay], float]
"""Held-out task loss of an overlay, nats per answer token."""
FileBytes = Callable[[bytes], int]
"""The size of the whole update with this payload."""

SAFE_ERROR = 0.25
"""The relative error of the change, about 2.3 bits per parameter, if no loss can decide.

With fewer than 25 held-out questions, a search by the loss would follow its noise.
"""
SPREAD = 0.05
"""Standard deviation of a question's loss change, over the mean loss (measured: 3.7 to 5.0 %)."""

_LARGEST = 2e38  # half of what a float32 holds
_FINEST = 4096  # steps in a root mean square, at most: 14 bits per parameter
_FINEST_CODE = 1 << 20
_GRID = 4  # steps of the search in an octave
_FIRST, _LOWEST, _HIGHEST = 2, -12, 16  # on that grid, from the root mean square
_CLOSE = 1.002  # a search stops at this ratio of steps
_SPARE = 0.001  # or with this share of the bytes to spare


def questions_to_tell(share: float) -> int:
    """The number of held-out questions that detect a relative change of the loss: 25 for 1 %.

    With fewer, the standard error of the mean difference, SPREAD / sqrt(n), exceeds the share.
    """
    return int(np.ceil((SPREAD / share) ** 2)) if share > 0 else 1 << 62


class Steps:
    """The search for the step of one change. Steps are exactly float32."""

    def __init__(self, change: Change, sequence: int, *, loss: Loss | None = None) -> None:
        self.change = change
        self._sequence = sequence
        self._loss = loss
        self._losses: dict[float, float] = {}

    def payload(self, step: float) -> bytes:
        """The payload of `usq` at this step."""
        return usq.encode(self.change.deltas, self._sequence, step)

    def overlay(self, step: float) -> Overlay:
        """The overlay that a device decodes from that payload."""
        codes = (quantize(delta, step) for delta in self.change.deltas)
        return overlay_with(
            self.change.base, (restore(one, step) if one.any() else None for one in codes)
        )

    def loss(self, step: float) -> float:
        """The held-out loss of a step; measured once."""
        assert self._loss is not None, "no loss to measure"
        if step not in self._losses:
            self._losses[step] = self._loss(self.overlay(step))
        return self._losses[step]

    def within_bytes(self, budget_bytes: int, file_bytes: FileBytes) -> float:
        """The finest step whose file fits the budget and leaves about a thousandth of it unused.

        Alternates interpolation and bisection on the logarithm of the step.

        Raises: UsageError, with the smallest budget that works, if even one code does not fit.
        """

        def size(step: float) -> int:
            return file_bytes(self.payload(step))

        good, bad = self._coarsest(), self._finest_step()
        if (few := size(good)) > budget_bytes:
            raise UsageError(
                f"a budget of {budget_bytes:,} bytes is too small to send any change: "
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
        """The coarsest step with at most this relative error. Raises: SettingError if none."""

        def error(step: float) -> float:
            return self.change.relative_error(self.overlay(step))

        good, bad = self._finest_step(), self._coarsest()
        if (least := error(good)) > most:
            reason = f"cannot be reached: the finest step leaves {least:.3g}: give that or more"
            raise SettingError("max_error", reason, f"{most:g}")
        while bad / good > _CLOSE:
            middle = _sound((good * bad) ** 0.5)
            good, bad = (middle, bad) if error(middle) <= most else (good, middle)
        return good

    def within_loss(self, limit: float) -> float | None:
        """The coarsest step whose loss is at most `limit` (see above); None if there is none."""

        def passes(at: int) -> bool:
            return self.loss(around_rms(self.change, at / _GRID)) <= limit

        highest = min(_HIGHEST, int(_GRID * log2(self._coarsest() / self.change.rms)))
        at = min(_FIRST, highest)
        failed = highest + 1
        if passes(at):
            while at < highest and failed > highest:
                coarser = min(at + _GRID // 2, highest)
                if passes(coarser):
                    at = coarser
                else:
                    failed = coarser
        while not passes(at):
            if at <= _LOWEST:
                return None
            failed, at = at, max(at - _GRID // 2, _LOWEST)
        if failed - at > 1 and passes(at + 1):
            at += 1
        return around_rms(self.change, at / _GRID)

    def finest_on_grid(self) -> float:
        """The finest step that `within_loss` tries."""
        return around_rms(self.change, _LOWEST / _GRID)

    def _coarsest(self) -> float:
        """The coarsest step at which some code is not zero."""
        return _sound(1.99 * self.change.largest)

    def _finest_step(self) -> float:
        return _sound(max(self.change.rms / _FINEST, self.change.largest / _FINEST_CODE))


def around_rms(change: Change, octaves: float) -> float:
    return _sound(change.rms * 2**octaves)


def _sound(step: float) -> float:
    return float(nearest_step(min(step, _LARGEST)))
