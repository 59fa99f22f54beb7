"""What a device does with a file from the downlink: Theta_edge = Theta_base + Theta_compressed
(Eq. 8), or other keys to trust, or a refusal.

`verify` checks; its docstring lists the checks and the attacks. Here the folder is locked, its
state read again, the file checked against it, and what passed is installed: a new file, to which
`formats.device` flips by one rename, so the highest sequence, the overlay and who signed it change
together. `check` installs nothing: to try the new overlay first (`acceptance`), call it, then
`apply` with `onto`, which checks everything again, and that the device is still where it was.

**After a rollback** (`rollback`) the update that was left cannot come back: it is refused as old
(79). What the cloud makes next from a mirror that still has it is for a base that the device has
left (78). The cure for both is to roll the mirror back too, and to distil and compress again:
`sender` counts from the mirror's highest sequence.

**After damage.** If the current overlay's file is damaged, the device uses the newest sound older
one (`formats.device`), and highest_sequence stays. The update that made the damaged one may come
again and repairs it, since its digest is known; so may any newer one whose base is still sound.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from cdcca_cli import files
from cdcca_cli.downlink import verify
from cdcca_cli.downlink.change import Overlay
from cdcca_cli.errors import MissingInput, WrongBase
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import Slot
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.trust import Trust, TrustList
from cdcca_cli.formats.update import Update, utc

_HEADER_BYTES = 1 << 20

Status = Literal["applied", "already applied", "would apply", "rolled back"]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Applied:
    """What became of an update, or of a rollback."""

    status: Status
    sequence: int
    digest: str
    note: str = ""

    def summary(self) -> str:
        """One line for people."""
        return f"{self.status}: sequence {self.sequence}, {short(self.digest)}{self.note}"

    def as_json(self) -> dict[str, object]:
        return {"status": self.status, "sequence": self.sequence, "digest": self.digest}


@dataclass(frozen=True, eq=False)
class Checked:
    """An update that has passed every check of a device.

    Args:
        digest: of the overlay that the device is at.
        current: that overlay.
        new: the one that the update leads to; None if the device is at it already.
        signed_by: the trusted keys that signed.
    """

    digest: str
    current: Overlay
    new: Overlay | None
    signed_by: tuple[str, ...]


@dataclass(frozen=True)
class Rotated:
    """What became of a trust list."""

    status: Status
    trust: Trust

    def summary(self) -> str:
        """One line for people."""
        trust = self.trust
        return (
            f"{self.status}: trust list {trust.version}, "
            f"{trust.threshold} of {len(trust.keys)} keys must sign"
        )

    def as_json(self) -> dict[str, object]:
        return {"status": self.status, "trust": self.trust.as_json()}


def receive(
    device: Device,
    stream: BinaryIO,
    *,
    where: str,
    dry_run: bool = False,
    unsigned: bool = False,
    clock: Clock = time.time,
) -> Applied | Rotated:
    """Read a file from the downlink and install what it holds, if it passes every check.

    Args:
        dry_run: check everything, write nothing.
        unsigned: take an update without the signatures that the device's keys ask for; it is
            recorded (`Slot.signed_by`). And the first trust list of a device without keys.
        clock: seconds since 1970.
    Raises: SignatureRefused, StaleUpdate, WrongBase, NewerFormat, BadData, MissingInput,
        CannotWrite; the folder is as it was then.
    """
    found = read(device, stream, where=where, unsigned=unsigned)
    if isinstance(found, TrustList):
        return rotate(device, found, dry_run=dry_run, unsigned=unsigned)
    return apply(device, found, dry_run=dry_run, unsigned=unsigned, clock=clock)


def read(
    device: Device, stream: BinaryIO, *, where: str, unsigned: bool = False
) -> Update | TrustList:
    """Read a file for this device as a whole: checks 1 to 5."""
    most = _HEADER_BYTES + _overlay_bytes(device)
    data = stream.read(most + 1)
    return verify.read(data, device.trust, most, where=where, unsigned=unsigned)


def _overlay_bytes(device: Device) -> int:
    """The size of an overlay's file: they all have the same, but for those that are damaged."""
    sizes, fault = [], ""
    with device.lock():  # so that none is deleted meanwhile
        for slot in (device.current, *device.kept):
            path = device.path / slot.file
            try:
                sizes.append(path.stat().st_size)
            except OSError as error:
                fault = fault or files.reason(path, error)
    if not sizes:
        raise MissingInput(fault)
    return max(sizes)


def check(
    device: Device, update: Update, *, unsigned: bool = False, clock: Clock = time.time
) -> Checked:
    """Check an update against a device folder, which is not changed: 3, and 6 to 13.

    Args, Raises: as `receive`.
    """
    now = _now(update, clock)
    with device.lock():
        named = device.current
        current = device.read_overlay()  # the newest sound one; its slot is current from here on
        admitted = verify.admit(update, _standing(device, named), now, unsigned=unsigned)
        if admitted.base is None:
            return Checked(device.digest, current, None, admitted.signed_by)
        is_current = admitted.base == device.current
        base = current if is_current else device.read_slot(admitted.base)
        new = verify.outcome(update, base)
        return Checked(device.digest, current, new, admitted.signed_by)


def _now(update: Update, clock: Clock) -> float:
    """One reading of the clock; none for an update without expiry, which needs none."""
    return 0.0 if update.expires is None else clock()


def _standing(device: Device, named: Slot) -> verify.Standing:
    return verify.Standing(
        model=device.model,
        trust=device.trust,
        current=device.current,
        kept=device.kept,
        highest_sequence=device.highest_sequence,
        named=named,
    )


def apply(
    device: Device,
    update: Update,
    *,
    dry_run: bool = False,
    unsigned: bool = False,
    clock: Clock = time.time,
    onto: str | None = None,
) -> Applied:
    """Check an update against a device folder and install what it leads to: 3, and 6 to 13.

    Of two processes at once the second waits for the first.

    Args: onto: the digest that the device must be at (`Checked.digest`); None: any that it is at.
    Others, Raises: as `receive`; WrongBase if the device is not at `onto`.
    """
    now = _now(update, clock)
    with device.lock():
        checked = check(device, update, unsigned=unsigned, clock=lambda: now)
        if checked.new is None:
            if not dry_run:
                device.settle()
            note = ""
            if verify.is_late(update, now):
                note = f" (it expired on {utc(update.expires or 0)}: does a newer one get through?)"
            return Applied("already applied", update.sequence, update.target, note)
        if onto is not None and onto != checked.digest:
            raise WrongBase(
                f"update {update.sequence} was checked for a device at {short(onto)}, this one "
                f"is at {short(checked.digest)} by now: apply the update again"
            )
        note, num_signed = "", len(checked.signed_by)
        if device.trust is not None and num_signed < device.trust.threshold:
            note = f", signed by {num_signed} of the {device.trust.threshold} keys it needs"
        if not dry_run:
            device.install(checked.new, update.sequence, checked.signed_by)
    status: Status = "would apply" if dry_run else "applied"
    return Applied(status, update.sequence, update.target, note)


def rotate(
    device: Device, found: TrustList, *, dry_run: bool = False, unsigned: bool = False
) -> Rotated:
    """Check a trust list against a device folder and install it. Args, Raises: as `receive`."""
    with device.lock():
        if not verify.admit_list(found, device.trust, unsigned=unsigned):
            if not dry_run:
                device.settle()
            return Rotated("already applied", found.trust)
        if not dry_run:
            device.install_trust(found.trust)
    return Rotated("would apply" if dry_run else "applied", found.trust)


def rollback(device: Device) -> Applied:
    """Go back to the device's newest sound earlier overlay. Raises: MissingInput, BadData."""
    with device.lock():
        device.rollback()
        return Applied("rolled back", device.sequence, device.digest)
