"""One change into one update: the codec that was asked for, and as exact as asked for.

`sender` describes in which order the settings decide; `rate` searches for the step of `usq`.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.change import Change, Overlay
from cdcca_cli.downlink.codecs import bitdelta, exact, nf4, ternary, usq
from cdcca_cli.downlink.rate import SAFE_ERROR, Loss, Steps, questions_to_tell
from cdcca_cli.downlink.settings import MAX_LOSS, CompressSettings
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.trust import Signature
from cdcca_cli.formats.update import Update, write_update

_BITS_A_BYTE = 8
_MOSTLY = 0.5


@dataclass(frozen=True)
class Measured:
    """Held-out losses, nats per answer token: of the base, of the adaptation, of what is sent."""

    base: float
    adaptation: float
    coded: float

    @property
    def change(self) -> float:
        """By which share coding makes the loss larger."""
        return self.coded / self.adaptation - 1 if self.adaptation else 0.0

    @property
    def gain_kept(self) -> float:
        """Which share of what was learnt is sent."""
        learnt = self.base - self.adaptation
        return (self.base - self.coded) / learnt if learnt else 1.0


def file_bytes(update: Update, num_signatures: int = 0) -> int:
    """The size of the whole file, with so many signatures to come."""
    signatures = tuple(Signature(f"{one:064x}", 128 * "0") for one in range(num_signatures))
    return write_update(BytesIO(), replace(update, signatures=signatures))


class Choice:
    """One change on its way to one update: which codec, and how exactly.

    Args:
        blank: the update without a payload; its codec is of no importance.
        loss: the held-out loss of an overlay; None if it cannot be measured.
    """

    def __init__(
        self,
        change: Change,
        blank: Update,
        settings: CompressSettings,
        adaptation: Adaptation,
        loss: Loss | None,
    ) -> None:
        self.change = change
        self.settings = settings
        self.notes: list[str] = []
        self.step: float | None = None  # of `usq`, once chosen
        self._blank = replace(blank, codec=settings.codec_id)
        self._adaptation = adaptation
        self._loss = loss
        held_out = adaptation.held_out
        self._num_questions = None if held_out is None else held_out.num_questions
        self._is_loss_needed = False
        self._ends: tuple[float, float] | None = None

    def with_settings(self, settings: CompressSettings) -> "Choice":
        """The same change, coded otherwise."""
        return Choice(self.change, self._blank, settings, self._adaptation, self._loss)

    def update(self) -> Update:
        """The update; its target is still to be found. Raises: UsageError, as `compress`."""
        deltas, sequence = self.change.deltas, self._blank.sequence
        codec = self._blank.codec
        if codec == usq.CODEC:
            return self._usq()
        if codec == ternary.CODEC:
            return self._ternary()
        if codec == nf4.CODEC:
            bits, payload = nf4.encode(deltas, self.change.energies, sequence)
            return replace(self._blank, coding={"bits": bits}, payload=payload)
        if codec == bitdelta.CODEC:
            return replace(self._blank, payload=bitdelta.encode(deltas, sequence))
        payload = exact.encode(self._unquantised(), self.change.base, sequence)
        return replace(self._blank, payload=payload)

    def uniform(self, step: float) -> Update:
        """The update of `usq` with this step."""
        payload = usq.encode(self.change.deltas, self._blank.sequence, step)
        return replace(self._blank, codec=usq.CODEC, coding={}, payload=payload)

    def measured(self, decoded: Overlay, *, always: bool = False) -> Measured | None:
        """The three losses, if a loss was needed for the choice, or `always` where there is one."""
        if self._loss is None or not (self._is_loss_needed or always):
            return None
        if self._ends is None:
            self._ends = self._loss(self.change.base), self._loss(self._unquantised())
        return Measured(*self._ends, coded=self._loss(decoded))

    def warnings(self, decoded: Overlay) -> list[str]:
        """What is dubious about the update, a line each."""
        found = _on_verdict(self._adaptation.report.get("held_out"))
        unsent = self.change.unsent(decoded)
        if self._budget_bytes is not None and unsent > _MOSTLY:
            found.append(
                f"warning: {unsent:.0%} of the squared change is left for later rounds: "
                "the budget is small for it"
            )
        return found

    @property
    def _budget_bytes(self) -> int | None:
        """Of the whole file, in whichever terms it was given."""
        if self.settings.bits is not None:
            return int(self.settings.bits * self.change.num_changed / _BITS_A_BYTE)
        return self.settings.budget_bytes

    @property
    def _deciding_loss(self) -> Loss | None:
        """The loss, if the held-out questions are enough to tell 1 %."""
        count = self._num_questions
        is_enough = count is None or count >= questions_to_tell(MAX_LOSS)
        return self._loss if is_enough else None

    @property
    def _why_unmeasured(self) -> str:
        if self._adaptation.held_out is None:
            return "no held-out frames: distil with a share held out"
        return "no model: leave out `no_measure`"

    def _bytes(self, payload: bytes) -> int:
        return file_bytes(replace(self._blank, payload=payload), self.settings.num_signatures)

    def _unquantised(self) -> Overlay:
        """What would be sent if every bit were."""
        change, learnt = self.change, self._adaptation.overlay
        return {
            name: learnt[name] if own > 0 else change.base[name]
            for name, own in zip(change.names, change.energies, strict=True)
        }

    # ---- usq

    def _usq(self) -> Update:
        steps = Steps(self.change, self._blank.sequence, loss=self._loss)
        self.step = self._step(steps) if self.change.num_changed else 1.0
        return replace(self._blank, payload=steps.payload(self.step))

    def _step(self, steps: Steps) -> float:
        settings, trained = self.settings, self._trained_step()
        budget = self._budget_bytes
        if budget is not None:
            if trained is not None and self._bytes(steps.payload(trained)) <= budget:
                return trained
            self._is_loss_needed = self._deciding_loss is not None
            return steps.within_bytes(budget, self._bytes)
        if settings.max_error is not None:
            return steps.within_error(settings.max_error)
        if settings.max_loss is not None:
            if self._loss is None:
                reason = f"the loss cannot be measured ({self._why_unmeasured}): give `bits` or "
                raise SettingError("max_loss", reason + "`budget_bytes`")
            return self._within_loss(steps, self._loss, settings.max_loss)
        if trained is not None:
            self.notes.append(
                "the step is the one of rate-aware training, which measured its loss; `max_loss` "
                "measures again"
            )
            return trained
        if (loss := self._deciding_loss) is not None:
            return self._within_loss(steps, loss, MAX_LOSS)
        why = f"the loss was not measured ({self._why_unmeasured})"
        if self._loss is not None:
            why = (
                f"{self._num_questions} held-out questions are too few to tell {MAX_LOSS:.0%} of "
                f"the loss ({questions_to_tell(MAX_LOSS)} would do)"
            )
        self.notes.append(f"{why}: the step is the one that leaves an error of {SAFE_ERROR:.0%}")
        return steps.within_error(SAFE_ERROR)

    def _within_loss(self, steps: Steps, loss: Loss, most: float) -> float:
        self._is_loss_needed = True
        unquantised = loss(self._unquantised())
        found = steps.within_loss(unquantised * (1 + most))
        count, needed = self._num_questions, questions_to_tell(most)
        if count is not None and count < needed:
            self.notes.append(f"{count} held-out questions are too few to tell {most:.2%} apart")
        if found is not None:
            return found
        finest = steps.finest_on_grid()
        change = steps.loss(finest) / unquantised - 1
        text = f"the finest step tried changes the held-out loss by {change:+.2%}"
        if self.settings.max_loss is not None:
            raise SettingError("max_loss", f"cannot be reached: {text}: give more", f"{most:.2%}")
        self.notes.append(f"{text}, more than {most:.0%}")
        return finest

    def _trained_step(self) -> float | None:
        """The step that training went through, if it is this change that it saw."""
        aware, settings = self._adaptation.rate_aware, self.settings
        if aware is None or settings.since is not None or settings.select is not None:
            return None
        return aware.step

    # ---- ternary

    def _ternary(self) -> Update:
        deltas, sequence = self.change.deltas, self._blank.sequence
        alpha, density = ternary.ALPHAS[0], ternary.DENSITY
        if (budget := self._budget_bytes) is not None:
            density = self._density(budget)
        loss = self._deciding_loss
        if loss is not None and self.change.num_changed:
            self._is_loss_needed = True

            def of(alpha: float) -> float:
                payload = ternary.encode(deltas, sequence, density, alpha)
                update = replace(self._blank, payload=payload)
                return loss(codecs.decode(update, self.change.base))

            alpha = min(ternary.ALPHAS, key=of)
        return replace(self._blank, payload=ternary.encode(deltas, sequence, density, alpha))

    def _density(self, budget: int) -> float:
        """The largest share of the changes for which the file fits, by bisection."""
        deltas, sequence = self.change.deltas, self._blank.sequence
        low, high = 0.0, 1.0
        if (least := self._bytes(ternary.encode(deltas, sequence, low, 1.0))) > budget:
            raise UsageError(
                f"a budget of {budget:,} bytes is too small for any of what changed: "
                f"give {least:,} or more"
            )
        while high - low > 1e-4:
            middle = (low + high) / 2
            fits = self._bytes(ternary.encode(deltas, sequence, middle, 1.0)) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return low


def _on_verdict(held_out: Any) -> list[str]:
    """What an adaptation's report of its held-out frames, which may hold anything, makes dubious.

    A warning where training made the student worse; a plain line where no gain was shown.
    """
    if not isinstance(held_out, Mapping) or not isinstance(held_out.get("verdict"), str):
        return []
    verdict, gain = held_out["verdict"], held_out.get("gain")
    if verdict == "better":
        return []
    figures = ""
    if isinstance(gain, Mapping):
        found = [gain.get(name) for name in ("mean", "low", "high")]
        if all(map(_is_figure, found)):
            mean, low, high = found
            figures = f" (gain {mean:+.3g} nats a token, 95 % interval {low:+.3g} to {high:+.3g})"
    if verdict == "worse":
        return [
            f"warning: the adaptation makes the student worse on its held-out frames{figures}: "
            "distil again, or apply it only if the device gets better by it"
        ]
    return [f"a gain on the held-out frames is not measurable here{figures}"]


def _is_figure(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
