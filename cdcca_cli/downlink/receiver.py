"""An update into a device folder: Theta_edge = Theta_base + Theta_compressed (Eq. 8).

The checks of `apply`, in this order, all in memory before the first byte is written:

1. size         no larger than an update of this overlay can be (65)
2. header       a sound record of kind update (65), of a version this cdcca reads (76)
3. payload      as long as the header says, and with its SHA-256 (65)
4. form         byte for byte as `formats.update` writes it (65): there is one file for one update
5. repetition   the update that the device is at: done, nothing to do (0)
6. sequence     above the highest the device has ever had (79)
7. base         the digest of the device's current overlay (78)
8. codec        one that this cdcca knows (76); as many bits and parameters as the base has (65)
9. sizes        the payload's content exactly as long as base and bits demand, and its sequence
                the header's (65)
10. finite      every scale, change and new value (65)
11. target      the digest of the new overlay (65)

A sequence is looked at before the base, because an old update is for another base nearly always and
the better answer is that it is old. Between 5 and the end the folder is locked. What is installed
is a new file; `formats.device` flips to it by one rename.

A rollback makes the previous overlay the current one and never lowers highest_sequence. The update
that was left cannot come back: it is refused as old (79). What the cloud makes next from a mirror
that still has it is for a base that the device has left (78). The cure for both is to roll the
mirror back too, and to distil and compress again: `sender` counts from the mirror's highest
sequence, so the new update is newer than the one that was left.

A later check of a signature belongs between 2 and 3, over the header's bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Literal

import numpy as np

from cdcca_cli.downlink import coding
from cdcca_cli.downlink.delta import added
from cdcca_cli.errors import BadData, MissingInput, NewerFormat, StaleUpdate, WrongBase
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.update import Update, read_update, write_update

_HEADER_BYTES = 1 << 20

Status = Literal["applied", "already applied", "would apply", "rolled back"]


@dataclass(frozen=True)
class Applied:
    """What became of an update, or of a rollback."""

    status: Status
    sequence: int
    digest: str

    def summary(self) -> str:
        """One line for people."""
        return f"{self.status}: sequence {self.sequence}, {short(self.digest)}"

    def as_json(self) -> dict[str, object]:
        return {"status": self.status, "sequence": self.sequence, "digest": self.digest}


def apply(device: Device, update: Update, *, dry_run: bool = False) -> Applied:
    """Check an update against a device folder and install what it leads to.

    Of two processes at once the second waits for the first. With `dry_run` nothing is written.

    Raises: StaleUpdate, WrongBase, NewerFormat, BadData, CannotWrite; the folder is as it was then.
    """
    with device.lock():
        if (update.sequence, update.target) == (device.sequence, device.digest):
            return Applied("already applied", update.sequence, update.target)
        _expect_newer(device, update)
        _expect_base(device, update)
        overlay = decode(update, device.read_overlay())
        if (digest := overlay_digest(overlay)) != update.target:
            raise BadData(
                f"update {update.sequence} leads to {short(digest)}, not to its target "
                f"{short(update.target)}: it is damaged, fetch it again"
            )
        if not dry_run:
            device.install(overlay, update.sequence)
    return Applied("would apply" if dry_run else "applied", update.sequence, update.target)


def rollback(device: Device) -> Applied:
    """Go back to the device's previous overlay. Raises: MissingInput if there is none."""
    with device.lock():
        device.rollback()
        return Applied("rolled back", device.sequence, device.digest)


def read(device: Device, stream: BinaryIO, *, where: str) -> Update:
    """Read an update for this device as a whole: checks 1 to 4 of the list above."""
    most = _HEADER_BYTES + _overlay_bytes(device)  # an update has less than half of the overlay's
    data = stream.read(most + 1)
    if len(data) > most:
        raise BadData(f"{where}: more than {most:,} bytes: too large for an update of this device")
    update = read_update(BytesIO(data), where=where)
    same = BytesIO()
    write_update(same, update)
    if same.getvalue() != data:
        raise BadData(f"{where}: not written as cdcca writes it: it is damaged, fetch it again")
    return update


def _overlay_bytes(device: Device) -> int:
    with device.lock():
        file = device.path / device.current.file
        try:
            return file.stat().st_size
        except OSError as error:
            raise MissingInput(f"{file}: {(error.strerror or str(error)).lower()}") from None


def decode(update: Update, base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The overlay that an update makes of its base: checks 8 to 10. The base is not changed.

    Raises: NewerFormat, BadData.
    """
    where = f"update {update.sequence}"
    if update.codec != coding.CODEC:
        raise NewerFormat(
            f"{where}: codec {update.codec[:40]!r}; this cdcca reads {coding.CODEC!r}: upgrade it"
        )
    names = sorted(base)
    sizes = [base[name].size for name in names]
    if len(update.bits) != len(names) or update.num_parameters != sum(sizes):
        raise BadData(
            f"{where}: for {len(update.bits):,} tensors of {update.num_parameters:,} parameters; "
            f"its base has {len(names):,} of {sum(sizes):,}: fetch it again"
        )
    for name, size, bits in zip(names, sizes, update.bits, strict=True):
        if bits not in coding.BITS or (bits and not size):
            raise BadData(f"{where}: {bits} bits for {name}, of {size:,} values: fetch it again")
    tensors = iter(coding.read_payload(update.payload, update.sequence, update.bits, sizes))
    overlay = dict(base)
    for name, size, bits in zip(names, sizes, update.bits, strict=True):
        if bits:
            delta = coding.restore(next(tensors), size).reshape(base[name].shape)
            overlay[name] = added(base[name], delta)
            if not np.isfinite(overlay[name]).all():
                raise BadData(f"{where}: {name} would not be finite: fetch it again")
    return overlay


def _expect_newer(device: Device, update: Update) -> None:
    highest = device.highest_sequence
    if update.sequence > highest:
        return
    cure = "a newer one is needed"
    if device.sequence < highest:
        cure = (
            f"the device was rolled back to {device.sequence}: roll the mirror back too "
            "(cdcca apply MIRROR --rollback), then distil and compress again"
        )
    raise StaleUpdate(
        f"update {update.sequence} is not newer than {highest}, "
        f"the newest that this device has had: {cure}"
    )


def _expect_base(device: Device, update: Update) -> None:
    if update.base == device.digest:
        return
    if device.sequence < device.highest_sequence:
        cure = (
            f"the device was rolled back from {device.highest_sequence}: roll the mirror back too "
            "(cdcca apply MIRROR --rollback), then distil and compress again"
        )
    elif update.sequence - 1 > device.sequence:
        cure = f"fetch {_missing(device.sequence + 1, update.sequence - 1)} first"
    else:
        cure = "compress it against a mirror of this device"
    raise WrongBase(
        f"update {update.sequence} is for base {short(update.base)}, "
        f"this device is at {short(device.digest)}: {cure}"
    )


def _missing(first: int, last: int) -> str:
    if first == last:
        return f"update {first}"
    return f"updates {first} {'and' if last == first + 1 else 'to'} {last}"
