"""An adaptation into an update: Theta_compressed = Quantize(Theta_updated - Theta_base, Q) (Eq. 7).

The base is the mirror's current overlay, which equals the device's bit for bit. So the rounding
error of one round is part of the next round's change (error feedback).

**For devices that missed updates** the base can be an earlier overlay that the mirror still keeps
(`since`; 0 is the initial overlay). With an adaptation, the update leads past the missed ones.
Without one (`catch_up`) it leads exactly to the mirror's current overlay.

**How exactly** `usq` codes is decided by the first of these that applies:

1. `budget_bytes` or `bits`: the trained step (`rate_aware`) if it fits, else the finest that does;
2. `max_error`;
3. `max_loss`;
4. the trained step, whose loss was measured in training;
5. the loss on the held-out frames, at most 1 % more, if there are enough questions to detect that;
6. the relative error `rate.SAFE_ERROR`, with a note.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.change import Change, Overlay, selected
from cdcca_cli.downlink.codecs import exact
from cdcca_cli.downlink.encode import Choice, Measured, file_bytes
from cdcca_cli.downlink.rate import Loss
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import MissingInput, SettingError, UsageError, WrongBase
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.update import Update

Start = Callable[[], Overlay]
"""The overlay of sequence 0, made again."""


@dataclass(frozen=True)
class Compressed:
    """An unsigned update, with its sizes and errors.

    num_bytes: of the whole file, with the announced number of signatures. num_changed: parameters
        in selected tensors that changed. num_sent: parameters in tensors that change on the device.
    relative_error: ||decoded - change|| / ||change|| over the selected groups; 0 if none.
    measured: None if no loss was needed. choice: None for a catch-up.
    """

    update: Update
    num_bytes: int
    num_changed: int
    num_sent: int
    relative_error: float
    measured: Measured | None = None
    notes: tuple[str, ...] = ()
    choice: Choice | None = None

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the whole file per changed parameter; 0 if none changed."""
        return 8 * self.num_bytes / self.num_changed if self.num_changed else 0.0

    def summary(self) -> str:
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

    Args: loss: the held-out loss of an overlay; called only if the settings need it. start: makes
        the overlay of sequence 0, for `since=0` if the folder no longer has it.
    Raises: WrongBase if the adaptation was made from another overlay than the mirror's current one,
        BadData if it does not fit, MissingInput if the folder does not keep `since`, UsageError.
    """
    settings = settings or CompressSettings()
    if (adaptation.base, adaptation.sequence) != (base.digest, base.sequence):
        raise WrongBase(
            f"the adaptation was made from {short(adaptation.base)} (sequence "
            f"{adaptation.sequence}), the mirror is at {short(base.digest)} (sequence "
            f"{base.sequence}): distil against this mirror, or name the one it was made from"
        )
    digest, overlay = _base(base, settings.since, start)
    chosen = selected(overlay, settings.select, base.settings.family)
    change = Change.between(adaptation.overlay, overlay, chosen)
    sequence = base.highest_sequence + 1
    blank = _blank(base, digest, sequence, change.num_parameters, settings)
    choice = Choice(change, blank, settings, adaptation, loss)
    update = choice.update()
    decoded = codecs.decode(update, overlay)
    return Compressed(
        update=replace(update, target=overlay_digest(decoded)),
        num_bytes=file_bytes(update, settings.num_signatures),
        num_changed=change.num_changed,
        num_sent=sum(value.size for name, value in decoded.items() if value is not overlay[name]),
        relative_error=change.relative_error(decoded),
        measured=choice.measured(decoded),
        notes=(*choice.warnings(decoded), *choice.notes),
        choice=choice,
    )


def catch_up(base: Device, settings: CompressSettings, *, start: Start | None = None) -> Compressed:
    """The exact update from an earlier overlay (`settings.since`) to the mirror's current one.

    Raises: UsageError without `since`, or if `since` is the current sequence; MissingInput.
    """
    if settings.since is None:
        raise UsageError("without an adaptation, `since` must name the sequence to start from")
    if settings.select is not None or settings.codec != exact.CODEC:
        raise UsageError("a catch-up sends every group: give `codec` exact, and no `select`")
    digest, overlay = _base(base, settings.since, start)
    if base.sequence < 1 or digest == base.digest:
        reason = f"the mirror is at sequence {base.sequence}: there is nothing to catch up with"
        raise SettingError("since", reason, settings.since)
    target = base.read_overlay()
    num_parameters = sum(value.size for value in target.values())
    update = replace(
        _blank(base, digest, base.sequence, num_parameters, settings),
        target=base.digest,
        payload=exact.encode(target, overlay, base.sequence),
    )
    size = file_bytes(update, settings.num_signatures)
    return Compressed(update, size, num_parameters, num_parameters, 0.0)


def _blank(
    base: Device, digest: str, sequence: int, num_parameters: int, settings: CompressSettings
) -> Update:
    """An update without a payload, whose target is its base."""
    return Update(
        base=digest,
        target=digest,
        sequence=sequence,
        codec=settings.codec_id,
        coding={},
        num_parameters=num_parameters,
        payload=b"",
        model=base.model,
        expires=settings.expires,
    )


def _base(base: Device, since: int | None, start: Start | None) -> tuple[str, Overlay]:
    """Digest and values of the overlay that the update starts from."""
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
