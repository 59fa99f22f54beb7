"""A device's side of the downlink: install an update (Eq. 8), trust list or codebook, or refuse it.

Theta_edge = Theta_base + Theta_compressed

`verify` lists the checks and the attacks. This module locks the folder, has the file checked
against its state, and installs what passed as a new file. `formats.device` makes that file current
by one rename, so the highest sequence, the overlay and its signers change together. `notify` tells
the runtime, and takes the change back if that fails. To test the new overlay first (`acceptance`),
call `check`, then `apply` with `onto`, which repeats every check.

**After a rollback** the abandoned update is refused as old (79). The next update from a mirror that
still has it is refused for its base (78): roll the mirror back too, then distil and compress again.

**After damage** of the current overlay's file, the device uses the newest sound earlier one
(`formats.device`), and highest_sequence stays. The update that led to the damaged overlay repairs
it; so does any newer update whose base is sound.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Literal

from cdcca_cli import files
from cdcca_cli.downlink import notify, verify
from cdcca_cli.downlink.change import Overlay
from cdcca_cli.downlink.settings import NotifySettings
from cdcca_cli.errors import CdccaError, MissingInput, WrongBase
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.trust import Trust, TrustList
from cdcca_cli.formats.update import Update, utc

_HEADER_BYTES = 1 << 20

Status = Literal["applied", "already applied", "would apply", "rolled back", "refused"]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Applied:
    """The result of an update, or of a rollback."""

    status: Status
    sequence: int
    digest: str
    note: str = ""

    def summary(self) -> str:
        return f"{self.status}: sequence {self.sequence}, {short(self.digest)}{self.note}"

    def as_json(self) -> dict[str, object]:
        return {"status": self.status, "sequence": self.sequence, "digest": self.digest}


@dataclass(frozen=True, eq=False)
class Checked:
    """An update that has passed every check of a device.

    digest, current: of the device's current overlay, and that overlay. signed_by: trusted keys.
    new: the overlay that the update leads to; None if the device has it already.
    """

    digest: str
    current: Overlay
    new: Overlay | None
    signed_by: tuple[str, ...]


@dataclass(frozen=True)
class Rotated:
    """The result of a trust list."""

    status: Status
    trust: Trust

    def summary(self) -> str:
        trust = self.trust
        return (
            f"{self.status}: trust list {trust.version}, "
            f"{trust.threshold} of {len(trust.keys)} keys must sign"
        )

    def as_json(self) -> dict[str, object]:
        return {"status": self.status, "trust": self.trust.as_json()}


@dataclass(frozen=True)
class Carried:
    """The result of a codebook."""

    status: Status
    codebook: Codebook
    note: str = ""

    def summary(self) -> str:
        codebook = self.codebook
        return f"{self.status}: codebook {codebook.sequence}, {short(codebook.digest)}{self.note}"

    def as_json(self) -> dict[str, object]:
        codebook = {"sequence": self.codebook.sequence, "digest": self.codebook.digest}
        return {"status": self.status, "codebook": codebook}


def receive(
    device: Device,
    stream: BinaryIO,
    *,
    where: str,
    dry_run: bool = False,
    unsigned: bool = False,
    clock: Clock = time.time,
    telling: NotifySettings = notify.NO_COMMAND,
) -> Applied | Rotated | Carried:
    """Read an update, a trust list or a codebook and install it if it passes every check.

    Args: unsigned: take an update or a codebook without the required signatures, which is recorded
        (`Slot.signed_by`), or the first trust list of a device without keys. telling: the command
        that is told of a new overlay (`notify`).
    Raises: SignatureRefused, StaleUpdate, WrongBase, NewerFormat, BadData, MissingInput,
        NotifyFailed, CannotWrite; then the folder is unchanged.
    """
    found = read(device, stream, where=where, unsigned=unsigned)
    if isinstance(found, TrustList):
        return rotate(device, found, dry_run=dry_run, unsigned=unsigned)
    if isinstance(found, Codebook):
        return carry(device, found, dry_run=dry_run, unsigned=unsigned)
    return apply(device, found, dry_run=dry_run, unsigned=unsigned, clock=clock, telling=telling)


def read(
    device: Device, stream: BinaryIO, *, where: str, unsigned: bool = False
) -> Update | TrustList | Codebook:
    """Read a whole file for this device: checks 1 to 5."""
    sizes, fault = [], ""
    with device.lock():  # no file is deleted meanwhile
        for slot in (device.current, *device.kept):
            path = device.path / slot.file
            try:
                sizes.append(path.stat().st_size)
            except OSError as error:
                fault = fault or files.reason(path, error)
    if not sizes:
        raise MissingInput(fault)
    most = _HEADER_BYTES + max(sizes)  # all sound overlays have one size
    data = stream.read(most + 1)
    if len(data) > most:
        most = verify.most_bytes_of(data, most)
        data += stream.read(most + 1 - len(data))
    return verify.read(data, device.trust, most, where=where, unsigned=unsigned)


def check(
    device: Device, update: Update, *, unsigned: bool = False, clock: Clock = time.time
) -> Checked:
    """Check an update against a device folder, which stays unchanged: 3, and 6 to 13."""
    now = _now(update, clock)
    with device.lock(), _reported(Applied("refused", update.sequence, update.target)):
        named = device.current
        current = device.read_overlay()  # the newest sound one; from here `device.current` is it
        standing = verify.Standing(
            model=device.model,
            trust=device.trust,
            current=device.current,
            kept=device.kept,
            highest_sequence=device.highest_sequence,
            named=named,
        )
        slot, signed_by = verify.admit(update, standing, now, unsigned=unsigned)
        new = None
        if slot is not None:
            base = current if slot == device.current else device.read_slot(slot)
            new = verify.outcome(update, base)
        return Checked(device.digest, current, new, signed_by)


@contextmanager
def _reported(refused: Applied | Rotated | Carried) -> Iterator[None]:
    """Add to a refusal what was refused, unless it has a report of its own."""
    try:
        yield
    except CdccaError as error:
        error.report = error.report or refused.as_json()
        raise


def _now(update: Update, clock: Clock) -> float:
    """The time; an update without expiry needs no clock."""
    return 0.0 if update.expires is None else clock()


def apply(
    device: Device,
    update: Update,
    *,
    dry_run: bool = False,
    unsigned: bool = False,
    clock: Clock = time.time,
    onto: str | None = None,
    telling: NotifySettings = notify.NO_COMMAND,
) -> Applied:
    """Check an update against a device folder and install its result: 3, and 6 to 13.

    Args: onto: the digest that the device's overlay must have (`Checked.digest`); None: any.
        telling: as `receive`.
    Raises: as `receive`; WrongBase if the device's overlay is not `onto`.
    """
    now = _now(update, clock)
    with device.lock(), _reported(Applied("refused", update.sequence, update.target)):
        checked = check(device, update, unsigned=unsigned, clock=lambda: now)
        if checked.new is None:
            if not dry_run:
                device.settle()
                notify.settle(device, telling)
            note = ""
            if verify.is_late(update, now):
                note = f" (it expired on {utc(update.expires or 0)}: is a newer one available?)"
            return Applied("already applied", update.sequence, update.target, note)
        if onto is not None and onto != checked.digest:
            raise WrongBase(
                f"update {update.sequence} was checked for a device at {short(onto)}, which is now "
                f"at {short(checked.digest)}: apply the update again"
            )
        note = _lacking(device, checked.signed_by)
        if not dry_run:
            install = partial(device.install, checked.new, update.sequence, checked.signed_by)
            notify.change(device, install, telling)
    status: Status = "would apply" if dry_run else "applied"
    return Applied(status, update.sequence, update.target, note)


def _lacking(device: Device, signed_by: tuple[str, ...]) -> str:
    """A note if a file was taken without the signatures that it needs."""
    if device.trust is None or len(signed_by) >= device.trust.threshold:
        return ""
    return f", signed by {len(signed_by)} of the {device.trust.threshold} keys it needs"


def rotate(
    device: Device, found: TrustList, *, dry_run: bool = False, unsigned: bool = False
) -> Rotated:
    """Check a trust list against a device folder and install it. Args, Raises: as `receive`."""
    with device.lock(), _reported(Rotated("refused", found.trust)):
        if not verify.admit_list(found, device.trust, unsigned=unsigned):
            if not dry_run:
                device.settle()
            return Rotated("already applied", found.trust)
        if not dry_run:
            device.install_trust(found.trust)
    return Rotated("would apply" if dry_run else "applied", found.trust)


def carry(
    device: Device, found: Codebook, *, dry_run: bool = False, unsigned: bool = False
) -> Carried:
    """Check a codebook against a device folder and install it. Args, Raises: as `receive`."""
    with device.lock(), _reported(Carried("refused", found)):
        tower, current = device.settings.tower, device.codebook_slot
        is_new, signed_by = verify.admit_codebook(
            found, tower, device.trust, current, unsigned=unsigned
        )
        if not is_new and device.codebook() is not None:  # and its file is sound
            if not dry_run:
                device.settle()
            return Carried("already applied", found)
        if not dry_run:
            device.install_codebook(found, signed_by)
        return Carried("would apply" if dry_run else "applied", found, _lacking(device, signed_by))


def rollback(device: Device, telling: NotifySettings = notify.NO_COMMAND) -> Applied:
    """Go back to the device's newest sound earlier overlay.

    Args: telling: as `receive`. Raises: MissingInput, BadData, NotifyFailed, CannotWrite.
    """
    with device.lock():
        notify.change(device, device.rollback, telling)
        return Applied("rolled back", device.sequence, device.digest)
