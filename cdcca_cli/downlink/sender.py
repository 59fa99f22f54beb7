"""An adaptation into an update: Theta_compressed = Quantize(Theta_updated - Theta_base, Q) (Eq. 7).

The base is the mirror's current overlay, which is the device's, bit for bit; not the weights that
training started from or the last adaptation. So what the coding of one round rounded off is part of
the next round's change: error feedback. The update's sequence follows the highest that the mirror
has ever had: the base's plus one, unless the mirror was rolled back.

**For devices that missed some** the base can be an earlier overlay that the mirror still keeps
(`since`): with an adaptation the update leads past what was missed; without one (`catch_up`) it
leads to exactly where the fleet is, and the mirror stays as it is. Sequence 0 is the start, so a
new device takes the same way.

**How exactly** is decided, for `usq`, by the first of these that there is: a budget or bits, within
which the step that training went through (`rate_aware`) is taken if it fits; an error; a largest
loss that was asked for; the trained step, whose loss was measured in training and is not again; the
loss on the held-out frames, at most 1 % more, if they have enough questions to tell 1 %
(`rate.questions_to_tell`); a relative error that is safe (`rate.SAFE_ERROR`), with a note. `rate`
searches for the step. The other codecs are there to compare with.

What is sent is what the receiver decodes: the target digest is taken from the coded bytes, read
back. `formats.update` writes the result, `keys` signs it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink import curve as curves
from cdcca_cli.downlink.change import Change, Overlay, selected
from cdcca_cli.downlink.codecs import exact
from cdcca_cli.downlink.curve import Curve
from cdcca_cli.downlink.encode import Choice, Measured, file_bytes
from cdcca_cli.downlink.rate import Loss
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import MissingInput, SettingError, UsageError, WrongBase
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.update import Update

__all__ = [
    *("Choice", "CompressSettings", "Compressed", "Loss", "Measured", "Start"),
    *("catch_up", "choose", "compress", "curve", "finished"),
]

Start = Callable[[], Overlay]
"""The overlay of sequence 0, made again."""


@dataclass(frozen=True)
class Compressed:
    """An update without signatures, and what became of the change.

    Args:
        num_bytes: of the whole file, with the signatures that were announced.
        num_changed: parameters in tensors that changed and were selected.
        num_sent: parameters in tensors that change on the device.
        relative_error: ||decoded - change|| / ||change|| over the selected groups; 0 if none.
        measured: None if no loss was needed.
        notes: what the user should know, a line each.
    """

    update: Update
    num_bytes: int
    num_changed: int
    num_sent: int
    relative_error: float
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole file, for a parameter that changed; 0 if none did."""
        return 8 * self.num_bytes / self.num_changed if self.num_changed else 0.0

    def summary(self) -> str:
        """One line for people."""
        held_out = ""
        if self.measured is not None:
            held_out = (
                f", held-out loss {self.measured.adaptation:.4f} -> {self.measured.coded:.4f} nats "
                f"({self.measured.change:+.2%}; before {self.measured.base:.4f})"
            )
        how = self.update.codec if self.num_sent else "none sent"
        return (
            f"update {self.update.sequence}: {self.num_bytes:,} bytes for {self.num_changed:,} of "
            f"{self.update.num_parameters:,} parameters ({self.bits_per_parameter:.2f} bits each; "
            f"{how}), relative error {self.relative_error:.4f}{held_out}, "
            f"{short(self.update.base)} to {short(self.update.target)}"
        )


def compress(
    adaptation: Adaptation,
    base: Device,
    settings: CompressSettings | None = None,
    *,
    loss: Loss | None = None,
    start: Start | None = None,
) -> Compressed:
    """Make the update that takes a device from the mirror's overlay to (nearly) the adaptation.

    The mirror itself is not changed: apply the update to it as well.

    Args:
        loss: the held-out loss of an overlay; called only if the settings need it.
        start: the overlay of sequence 0, for `since=0` where the folder has it no more.
    Raises: WrongBase if the adaptation was made from another overlay than the mirror's current one,
    BadData if it does not fit it or is not finite, MissingInput for a `since` that is not kept,
    UsageError for what is asked for and cannot be met, or groups that the base does not have.
    """
    choice = choose(adaptation, base, settings, loss=loss, start=start)
    return finished(choice, choice.update())


def choose(
    adaptation: Adaptation,
    base: Device,
    settings: CompressSettings | None = None,
    *,
    loss: Loss | None = None,
    start: Start | None = None,
) -> Choice:
    """The change that is to be coded, checked. Arguments and errors are those of `compress`."""
    settings = settings or CompressSettings()
    _expect_same_base(adaptation, base)
    digest, overlay = _base(base, settings.since, start)
    change = Change.between(adaptation.overlay, overlay, selected(overlay, settings.select))
    blank = Update(
        base=digest,
        target=digest,
        sequence=base.highest_sequence + 1,
        codec=settings.codec_id,
        coding={},
        num_parameters=change.num_parameters,
        payload=b"",
        model=base.model,
        expires=settings.expires,
    )
    return Choice(change, blank, settings, adaptation, loss)


def finished(choice: Choice, update: Update) -> Compressed:
    """An update with its target, and what became of the change."""
    base = choice.change.base
    decoded = codecs.decode(update, base)
    return Compressed(
        update=replace(update, target=overlay_digest(decoded)),
        num_bytes=file_bytes(update, choice.settings.num_signatures),
        num_changed=choice.change.num_changed,
        num_sent=sum(value.size for name, value in decoded.items() if value is not base[name]),
        relative_error=choice.change.relative_error(decoded),
        measured=choice.measured(decoded),
        notes=(*choice.warnings(decoded), *choice.notes),
    )


def curve(choice: Choice, made: Compressed) -> Curve:
    """Rate against loss of the same change, every other way of coding it."""
    return curves.measure(choice, made.update)


def catch_up(base: Device, settings: CompressSettings, *, start: Start | None = None) -> Compressed:
    """The exact update from an earlier overlay (`settings.since`) to the mirror's current one.

    It has the current one's sequence, so the fleet stays one. The mirror does not need it.

    Raises: UsageError without `since`, or if nothing lies between; MissingInput.
    """
    if settings.since is None:
        raise UsageError("without an adaptation, `since` must name the sequence to start from")
    if settings.select is not None or settings.codec != exact.CODEC:
        raise UsageError("a catch-up is sent whole: give `codec` exact, and no `select`")
    digest, overlay = _base(base, settings.since, start)
    if base.sequence < 1 or digest == base.digest:
        reason = f"the mirror is at sequence {base.sequence}: there is nothing to catch up with"
        raise SettingError("since", reason, settings.since)
    target = base.read_overlay()
    update = Update(
        base=digest,
        target=base.digest,
        sequence=base.sequence,
        codec=exact.CODEC,
        coding={},
        num_parameters=sum(value.size for value in target.values()),
        payload=exact.encode(target, overlay, base.sequence),
        model=base.model,
        expires=settings.expires,
    )
    size = file_bytes(update, settings.num_signatures)
    return Compressed(update, size, update.num_parameters, update.num_parameters, 0.0)


def _base(base: Device, since: int | None, start: Start | None) -> tuple[str, Overlay]:
    """Digest and values of the overlay that the update is against."""
    if since is None or since == base.sequence:
        return base.digest, base.read_overlay()
    try:
        slot, overlay = base.read_kept(since)
    except MissingInput:
        if since or start is None:
            raise
        first = start()
        return overlay_digest(first), first
    return slot.digest, overlay


def _expect_same_base(adaptation: Adaptation, base: Device) -> None:
    if (adaptation.base, adaptation.sequence) != (base.digest, base.sequence):
        raise WrongBase(
            f"the adaptation was made from {short(adaptation.base)} (sequence "
            f"{adaptation.sequence}), the mirror is at {short(base.digest)} (sequence "
            f"{base.sequence}): distil against this mirror, or name the one it was made from"
        )
