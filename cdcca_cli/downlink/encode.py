"""One change into one update; `sender` describes in which order the settings decide."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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

_MOSTLY = 0.5


@dataclass(frozen=True)
class Measured:
    """Held-out losses, nats per answer token: base, adaptation, decoded update."""

    base: float
    adaptation: float
    coded: float

    @property
    def change(self) -> float:
        """The relative growth of the loss by coding."""
        return self.coded / self.adaptation - 1 if self.adaptation else 0.0

    @property
    def gain_kept(self) -> float:
        """The share of the adaptation's gain that the update keeps."""
        learnt = self.base - self.adaptation
        return (self.base - self.coded) / learnt if learnt else 1.0


def file_bytes(update: Update, num_signatures: int = 0) -> int:
    """The size of the whole file once it has this many signatures."""
    signatures = tuple(Signature(f"{one:064x}", 128 * "0") for one in range(num_signatures))
    return write_update(BytesIO(), replace(update, signatures=signatures))


@dataclass
class Choice:
    """The choice of codec and exactness for one change.

    blank: the update without a payload; its codec is ignored. step: of `usq`, once chosen.
    loss: the held-out loss of an overlay; None if it cannot be measured. notes: for the user.
    """

    change: Change
    blank: Update
    settings: CompressSettings
    adaptation: Adaptation
    loss: Loss | None
    step: float | None = field(default=None, init=False)
    notes: list[str] = field(default_factory=list, init=False)
    _is_loss_needed: bool = field(default=False, init=False)

    def update(self) -> Update:
        """The update, still without its target. Raises: UsageError, as `compress`."""
        deltas, sequence = self.change.deltas, self.blank.sequence
        match self.settings.codec_id:
            case usq.CODEC:
                return self._update(self._usq())
            case ternary.CODEC:
                return self._update(self._ternary())
            case nf4.CODEC:
                bits, payload = nf4.encode(deltas, self.change.energies, sequence)
                return replace(self._update(payload), coding={"bits": bits})
            case bitdelta.CODEC:
                return self._update(bitdelta.encode(deltas, sequence))
        return self._update(exact.encode(self._unquantised, self.change.base, sequence))

    def uniform(self, step: float) -> Update:
        """The update of `usq` with this step."""
        payload = usq.encode(self.change.deltas, self.blank.sequence, step)
        return replace(self.blank, codec=usq.CODEC, payload=payload)

    @cached_property
    def losses(self) -> tuple[float, float] | None:
        """The held-out losses of the base and of the adaptation, if they can be measured."""
        if self.loss is None:
            return None
        return self.loss(self.change.base), self.loss(self._unquantised)

    def measured(self, decoded: Overlay, *, always: bool = False) -> Measured | None:
        """The three losses, if the choice needed a loss, or `always` if there is one."""
        is_wanted = self._is_loss_needed or always
        if self.loss is None or not is_wanted or self.losses is None:
            return None
        return Measured(*self.losses, coded=self.loss(decoded))

    def warnings(self, decoded: Overlay) -> list[str]:
        """Doubts about the update, a line each."""
        found = _on_verdict(self.adaptation.report.get("held_out"))
        unsent = self.change.unsent(decoded)
        if self._budget_bytes is not None and unsent > _MOSTLY:
            found.append(
                f"warning: {unsent:.0%} of the squared change is left for later rounds: "
                "the budget is too small for this change"
            )
        return found

    def _update(self, payload: bytes) -> Update:
        return replace(self.blank, codec=self.settings.codec_id, payload=payload)

    @property
    def _budget_bytes(self) -> int | None:
        """The largest size of the whole file, from `bits` or `budget_bytes`."""
        if self.settings.bits is not None:
            return int(self.settings.bits * self.change.num_changed / 8)
        return self.settings.budget_bytes

    @property
    def _num_questions(self) -> int | None:
        held_out = self.adaptation.held_out
        return None if held_out is None else held_out.num_questions

    @property
    def _deciding_loss(self) -> Loss | None:
        """The loss, if there are enough held-out questions to detect a change of 1 %."""
        count = self._num_questions
        is_enough = count is None or count >= questions_to_tell(MAX_LOSS)
        return self.loss if is_enough else None

    @property
    def _why_unmeasured(self) -> str:
        if self.adaptation.held_out is None:
            return "no held-out frames: distil with a share held out"
        return "no model: leave out `no_measure`"

    def _bytes(self, payload: bytes) -> int:
        return file_bytes(self._update(payload), self.settings.num_signatures)

    @cached_property
    def _unquantised(self) -> Overlay:
        """The overlay after an update without any rounding."""
        change, learnt = self.change, self.adaptation.overlay
        return {
            name: learnt[name] if own > 0 else change.base[name]
            for name, own in zip(change.names, change.energies, strict=True)
        }

    # ---- usq

    def _usq(self) -> bytes:
        steps = Steps(self.change, self.blank.sequence, loss=self.loss)
        self.step = self._step(steps) if self.change.num_changed else 1.0
        return steps.payload(self.step)

    def _step(self, steps: Steps) -> float:
        settings, trained = self.settings, self._trained_step
        budget = self._budget_bytes
        if budget is not None:
            if trained is not None and self._bytes(steps.payload(trained)) <= budget:
                return trained
            self._is_loss_needed = self._deciding_loss is not None
            return steps.within_bytes(budget, self._bytes)
        if settings.max_error is not None:
            return steps.within_error(settings.max_error)
        if settings.max_loss is not None:
            if self.loss is None:
                reason = f"the loss cannot be measured ({self._why_unmeasured}): give `bits` or "
                raise SettingError("max_loss", reason + "`budget_bytes`")
            return self._within_loss(steps, self.loss, settings.max_loss)
        if trained is not None:
            self.notes.append(
                "the step is the one of rate-aware training, which measured its loss; `max_loss` "
                "measures it again"
            )
            return trained
        if (loss := self._deciding_loss) is not None:
            return self._within_loss(steps, loss, MAX_LOSS)
        why = f"the loss was not measured ({self._why_unmeasured})"
        if self.loss is not None:
            why = (
                f"{self._num_questions} held-out questions are too few to detect a change of the "
                f"loss by {MAX_LOSS:.0%}, which takes {questions_to_tell(MAX_LOSS)}"
            )
        self.notes.append(f"{why}: the step is chosen for a relative error of {SAFE_ERROR:.0%}")
        return steps.within_error(SAFE_ERROR)

    def _within_loss(self, steps: Steps, loss: Loss, most: float) -> float:
        self._is_loss_needed = True
        unquantised = loss(self._unquantised)
        found = steps.within_loss(unquantised * (1 + most))
        count = self._num_questions
        if count is not None and count < questions_to_tell(most):
            self.notes.append(
                f"{count} held-out questions are too few to detect a change of the loss by "
                f"{most:.2%}"
            )
        if found is not None:
            return found
        finest = steps.finest_on_grid()
        change = steps.loss(finest) / unquantised - 1
        text = f"the finest step tried changes the held-out loss by {change:+.2%}"
        if self.settings.max_loss is not None:
            reason = f"cannot be reached: {text}: give a larger one"
            raise SettingError("max_loss", reason, f"{most:.2%}")
        self.notes.append(f"{text}, more than {most:.0%}")
        return finest

    @property
    def _trained_step(self) -> float | None:
        """The step of rate-aware training, if training saw this same change."""
        aware, settings = self.adaptation.rate_aware, self.settings
        if aware is None or settings.since is not None or settings.select is not None:
            return None
        return aware.step

    # ---- ternary

    def _ternary(self) -> bytes:
        deltas, sequence = self.change.deltas, self.blank.sequence
        alpha, density = ternary.ALPHAS[0], ternary.DENSITY
        if (budget := self._budget_bytes) is not None:
            density = self._density(budget)
        loss = self._deciding_loss
        if loss is not None and self.change.num_changed:
            self._is_loss_needed = True

            def loss_of(alpha: float) -> float:
                update = self._update(ternary.encode(deltas, sequence, density, alpha))
                return loss(codecs.decode(update, self.change.base))

            alpha = min(ternary.ALPHAS, key=loss_of)
        return ternary.encode(deltas, sequence, density, alpha)

    def _density(self, budget: int) -> float:
        """The largest share of the changes for which the file fits, by bisection."""
        deltas, sequence = self.change.deltas, self.blank.sequence
        low, high = 0.0, 1.0
        if (least := self._bytes(ternary.encode(deltas, sequence, low, 1.0))) > budget:
            raise UsageError(
                f"a budget of {budget:,} bytes is too small to send any change: "
                f"give {least:,} or more"
            )
        while high - low > 1e-4:
            middle = (low + high) / 2
            fits = self._bytes(ternary.encode(deltas, sequence, middle, 1.0)) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return low


def _on_verdict(held_out: Any) -> list[str]:
    """A note if a report, which may hold anything, shows no gain on its held-out frames."""
    verdict = held_out.get("verdict") if isinstance(held_out, Mapping) else None
    if not isinstance(verdict, str) or verdict == "better":
        return []
    gain, figures = held_out.get("gain"), ""
    if isinstance(gain, Mapping):
        found = [gain.get(name) for name in ("mean", "low", "high")]
        if all(map(_is_finite_number, found)):
            mean, low, high = found
            figures = f" (gain {mean:+.3g} nats per token, 95 % interval {low:+.3g} to {high:+.3g})"
    if verdict == "worse":
        return [
            f"warning: the adaptation makes the student worse on its held-out frames{figures}: "
            "distil again, or let the device test the update on labelled frames of its own"
        ]
    return [f"the held-out frames show no measurable gain{figures}"]


def _is_finite_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
