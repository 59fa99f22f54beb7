"""A change and what is asked for, to the payload: which step, bits, density it gets.

`sender` says in which order the wishes count. Digests, and what became of the change, are its too.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from cdcca_cli.downlink import codecs, exact, nf4_mixed, sign, ternary, usq
from cdcca_cli.downlink.change import Change, Overlay
from cdcca_cli.downlink.mixture import Mixture
from cdcca_cli.downlink.settings import MAX_LOSS, CompressSettings
from cdcca_cli.downlink.steps import GAINS, Loss, Steps, Uniform
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.trust import Signature
from cdcca_cli.formats.update import Update, write_update

_BITS_A_BYTE = 8
_MOSTLY = 0.5
_FEW_ASKS = 30


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
    """One change on its way to one update: the codec asked for, and as exact as asked for.

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
        self.how: Uniform | None = None  # of `usq`, once chosen
        self._blank = replace(blank, codec=settings.codec)
        self._adaptation = adaptation
        self._loss = loss
        self._was_loss_needed = False
        self._ends: tuple[float, float] | None = None

    def with_settings(self, settings: CompressSettings) -> "Choice":
        """The same change, coded otherwise."""
        return Choice(self.change, self._blank, settings, self._adaptation, self._loss)

    def update(self) -> Update:
        """The update; its target is still to be found. Raises: UsageError, as `sender`."""
        make = {
            usq.CODEC: self._usq,
            nf4_mixed.CODEC: self._nf4_mixed,
            ternary.CODEC: self._ternary,
            sign.CODEC: self._sign,
            exact.CODEC: self._exact,
        }
        return make[self.settings.codec]()

    def uniform(self, how: Uniform) -> Update:
        """The update of `usq` with this step."""
        payload = Steps(self.change, self._blank.sequence).payload(how)
        return replace(self._blank, codec=usq.CODEC, coding={}, payload=payload)

    def measured(self, decoded: Overlay, *, always: bool = False) -> Measured | None:
        """The three losses, if a loss was needed for the choice, or `always` where there is one."""
        if self._loss is None or not (self._was_loss_needed or always):
            return None
        if self._ends is None:
            self._ends = self._loss(self.change.base), self._loss(self._unquantised())
        return Measured(*self._ends, coded=self._loss(decoded))

    def warnings(self, decoded: Overlay) -> list[str]:
        """What is dubious about the update, a line each."""
        found = []
        found += _not_better(self._adaptation.report.get("held_out"))
        unsent = self.change.unsent(decoded)
        if self._budget_bytes is not None and unsent > _MOSTLY:
            found.append(
                f"warning: {unsent:.0%} of the squared change is left for later rounds: "
                "the budget is small for it"
            )
        held_out = self._adaptation.held_out
        if self._was_loss_needed and held_out is not None and held_out.num_asks < _FEW_ASKS:
            found.append(
                f"warning: the loss was measured on {held_out.num_asks} held-out asks, too few to "
                "tell 1%: distil with a larger --holdout, or give --bits"
            )
        return found

    @property
    def _budget_bytes(self) -> int | None:
        """Of the whole file, however it was said."""
        if self.settings.bits is not None:
            return int(self.settings.bits * self.change.num_changed / _BITS_A_BYTE)
        return self.settings.budget_bytes

    @property
    def _why_unmeasured(self) -> str:
        if self._adaptation.held_out is None:
            return "no held-out frames: distil with --holdout"
        return "no model: leave out --no-measure"

    def _bytes(self, payload: bytes) -> int:
        return file_bytes(replace(self._blank, payload=payload), self.settings.num_signatures)

    def _unquantised(self) -> Overlay:
        """What would be sent if every bit were."""
        change, learnt = self.change, self._adaptation.overlay
        return {
            name: learnt[name] if own > 0 else change.base[name]
            for name, own in zip(change.names, change.energies, strict=True)
        }

    # ---- each codec

    def _usq(self) -> Update:
        steps = Steps(
            self.change,
            self._blank.sequence,
            loss=self._loss,
            gains=GAINS if self.settings.gain else GAINS[:1],
        )
        self.how = self._step(steps) if self.change.num_changed else Uniform(1.0)
        self._was_loss_needed = steps.num_evaluations > 0
        return replace(self._blank, payload=steps.payload(self.how))

    def _step(self, steps: Steps) -> Uniform:
        settings, aware = self.settings, self._aware()
        budget = self._budget_bytes
        if budget is not None:
            if aware is not None and self._bytes(steps.payload(aware)) <= budget:
                return aware
            return steps.within_bytes(budget, self._bytes)
        if settings.max_error is not None:
            return steps.within_error(settings.max_error)
        if settings.max_loss is None and aware is not None:
            self.notes.append(
                "the step is the one that training went through (--rate-aware), which measured its "
                "loss; --max-loss measures again"
            )
            return aware
        if self._loss is not None:
            return self._within_loss(steps, self._loss)
        if settings.max_loss is not None:
            raise UsageError(
                f"--max-loss: the loss cannot be measured ({self._why_unmeasured}): "
                "give --bits or --budget"
            )
        self.notes.append(
            f"the loss was not measured ({self._why_unmeasured}): the step is the change's root "
            "mean square, at most about 2 bits a parameter"
        )
        return steps.fallback()

    def _within_loss(self, steps: Steps, loss: Loss) -> Uniform:
        asked = self.settings.max_loss
        most = MAX_LOSS if asked is None else asked
        unquantised = loss(self._unquantised())
        found = steps.within_loss(unquantised * (1 + most))
        if found is not None:
            return found.how
        finest = steps.finest_on_grid()
        change = steps.loss(finest) / unquantised - 1
        text = f"the finest step tried changes the held-out loss by {change:+.2%}"
        if asked is not None:
            raise UsageError(f"--max-loss {most:.2%} cannot be reached: {text}: give more")
        self.notes.append(f"{text}, more than {most:.0%}")
        return finest

    def _aware(self) -> Uniform | None:
        """The step that training went through, if it is this change that it saw."""
        aware, settings = self._adaptation.rate_aware, self.settings
        if aware is None or settings.since is not None or settings.select is not None:
            return None
        return Uniform(aware.step)

    def _nf4_mixed(self) -> Update:
        mixture = Mixture(self.change, self._blank.sequence)

        def update(bits: list[int]) -> Update:
            return replace(self._blank, coding={"bits": bits}, payload=mixture.payload(bits))

        budget = self._budget_bytes
        if budget is not None:
            bits = mixture.within_bytes(
                budget,
                lambda bits: file_bytes(update(list(bits)), self.settings.num_signatures),
            )
        elif self.settings.max_error is not None:
            bits = mixture.within_error(self.settings.max_error)
        else:
            bits = mixture.plain()
        return update(bits)

    def _ternary(self) -> Update:
        deltas, sequence = self.change.deltas, self._blank.sequence
        alpha = ternary.ALPHAS[0]
        density = ternary.DENSITY
        if (budget := self._budget_bytes) is not None:
            density = self._density(budget)
        if self._loss is not None and self.change.num_changed:
            self._was_loss_needed = True
            alpha = min(ternary.ALPHAS, key=lambda one: self._ternary_loss(density, one))
        return replace(self._blank, payload=ternary.encode(deltas, sequence, density, alpha))

    def _ternary_loss(self, density: float, alpha: float) -> float:
        assert self._loss is not None, "no loss to measure"
        payload = ternary.encode(self.change.deltas, self._blank.sequence, density, alpha)
        return self._loss(codecs.decode(replace(self._blank, payload=payload), self.change.base))

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

    def _sign(self) -> Update:
        return replace(self._blank, payload=sign.encode(self.change.deltas, self._blank.sequence))

    def _exact(self) -> Update:
        payload = exact.encode(self._unquantised(), self.change.base, self._blank.sequence)
        return replace(self._blank, payload=payload)


def _not_better(held_out: Any) -> list[str]:
    """What is dubious by an adaptation's report of its held-out frames, which may hold anything."""
    if not isinstance(held_out, Mapping) or not isinstance(held_out.get("verdict"), str):
        return []
    verdict, gain = held_out["verdict"], held_out.get("gain")
    if verdict == "better":
        return []
    words = "it was not shown that the device gains anything"
    if verdict == "worse":
        words = "the device loses by it: distil again, or let the device judge (apply --if-better)"
    figures = (
        [gain.get(name) for name in ("mean", "low", "high")] if isinstance(gain, Mapping) else []
    )
    if figures and all(map(_is_figure, figures)):
        mean, low, high = figures
        words = f"gain {mean:+.3g} nats a token (95 % interval {low:+.3g} to {high:+.3g}); {words}"
    return [
        f"warning: on its held-out frames the adaptation is {verdict[:20]!r}, not better: {words}"
    ]


def _is_figure(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
