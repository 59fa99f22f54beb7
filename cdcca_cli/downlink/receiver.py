"""What a device does with a file from the downlink: Theta_edge = Theta_base + Theta_compressed
(Eq. 8), or other keys to trust, or a refusal.

**What is trusted.** The device folder and whoever may write it, the checkpoint, the holders of the
private keys of `device.trust` as far as `threshold` of them agree, and the device's clock, for
expiry alone. Not trusted: the file and every way by which it comes. Keys get into a folder by
`cdcca init --trust`, or by a trust list. A device without keys takes any update that passes the
other checks: then the channel has to be trusted.

**The order.** Everything is done in memory; the first byte is written when every check is passed.

1. size         no larger than an update of this overlay can be (65)
2. form         one whole record of kind update or trust, nothing after it, byte for byte as
                `formats` writes it (65), of a version this cdcca reads (76)
3. signature    `threshold` different trusted keys have signed the header (77)
4. header       every field there and of its kind (65)
5. payload      as long as the header says, and with its SHA-256 (65)
6. model        the device's, where both name one (78)
7. repetition   the update that the device is at: done, nothing to do (0)
8. expiry       the device's clock is before it (79)
9. sequence     above the highest the device has ever had (79), by 2**20 at most (65)
10. base        the digest of the current overlay, or of an older one that the folder keeps (78)
11. codec       one that this cdcca knows (76); sizes exactly as the base demands (65)
12. finite      every step, change and new value, applied to a copy (65)
13. target      the digest of the new overlay (65)

From 6 on the folder is locked, its state read afresh, and 3 made again with the keys that it has
now. What is installed is a new file; `formats.device` flips to it by one rename, and the highest
sequence, the overlay and who signed it change together. Expiry and sequence come before the base:
an old update is for another base nearly always, and the better answer is that it is old. Whoever
wants to look at the new overlay first (`acceptance`) gets it from `check`, which installs nothing,
and lets `apply` check everything again, and that the device is still where it was.

**A trust list** goes through 1, 2 and 4. Then: the one that the device has already is no fault (0);
its version is the device's plus one, so none is skipped (79 if it is not newer, 78 if one is
missing); it needs signatures by a threshold of the device's keys *and* by a threshold of its own
(77), as in TUF's root rotation: the old ones say that it may be, the new ones that somebody holds
them. A device without keys takes its first list on the word of its operator (`unsigned`), which
changes nothing for a device that has keys.

**Which attack each check answers**

- another's update, a changed one      3: any bit of the header; 5 and 13: any bit of the rest
- mix and match                        3, 5: payload and header are one; 10, 13: change and base
- one key stolen                       3: the threshold; each key counts once, whatever it signs;
                                       then a trust list without it
- a list that hands the device over    signatures of the old keys and of the new
- rollback, replay                     9: the highest sequence never falls, not even by `--rollback`
- freeze (an old update kept coming)   8, if the updates have an expiry; the same update again is no
                                       error even when expired, and then says so on stderr
- fast-forward to the last sequence    9: 2**20 at a time, of 2**53
- endless data, bombs                  1, 2, and each codec before it decompresses
- a state written before it was        nothing is written before 13, the sequence least of all (as
  checked                              in tough's CVE-2025-2888)
- a kind of file whose number nobody   updates have 9, trust lists their version (go-tuf's
  compares                             CVE-2022-29173 was one role without)

**The clock.** One that is behind accepts what has expired meanwhile; one that is ahead refuses with
a message that names it. It decides nothing else, and an update without expiry needs none.

**After a rollback** (`cdcca apply --rollback`) the update that was left cannot come back: it is
refused as old (79). What the cloud makes next from a mirror that still has it is for a base that
the device has left (78). The cure for both is to roll the mirror back too, and to distil and
compress again: `sender` counts from the mirror's highest sequence.

**After damage.** If the current overlay's file is damaged, the device uses the newest sound older
one (`formats.device`), and highest_sequence stays. The update that made the damaged one may come
again and repairs it, since its digest is known; so may any newer one whose base is still sound.

**What is not defended.** Whoever can write the device folder. A threshold of keys in wrong hands:
until a trust list without them has come, what they sign is installed, and a sequence that they
drove up stays up. Withholding: a device that gets nothing does not know it, unless expiry tells.
Two fleets with the same keys: each takes the other's updates, if model and base are the same.
Secrecy: updates and trust lists are not encrypted, and an update tells its reader something of
what was learnt; ssh or TLS hides them. What training learns from lies in the cloud's hands.

**What a token shard shows of a scene.** The scene, coarsely. It is no picture, and no anonymity
either: somebody with the vision tower (checkpoints are public) and pictures of his own trains a
small decoder in a minute. Tried with the shipped tower (36 tokens of 16 x 16 pixels, 8 bits) and
`examples/benchmarks/inversion.py`, PSNR of pictures he had never seen, in dB: drawn scenes 24.2
(their mean picture 18.6; one colour a patch 23.5), photographs of a kind the tower was not made for
19.9 (10.6; 15.9): kinds of things, colours, places and that there is a face could be told by eye,
whose face not. With half of the tokens dropped, 23.3 and 16.4. Larger towers keep more. Shards
also carry every prompt in words. Send them through ssh or TLS, and keep them as pictures are kept.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink import codecs, signing
from cdcca_cli.errors import (
    BadData,
    MissingInput,
    SignatureRefused,
    StaleUpdate,
    WrongBase,
)
from cdcca_cli.formats import trust as trust_format
from cdcca_cli.formats import update as update_format
from cdcca_cli.formats.device import Device, Slot
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.trust import (
    Signature,
    Trust,
    TrustList,
    read_strict_record,
    trust_list_of,
)
from cdcca_cli.formats.update import Update, envelope_of, utc

KINDS = update_format.KINDS | trust_format.KINDS
MOST_AHEAD = 1 << 20
_HEADER_BYTES = 1 << 20

Status = Literal["applied", "already applied", "would apply", "rolled back"]
Clock = Callable[[], float]
Overlay = dict[str, NDArray[np.float32]]


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
        digest: the overlay's that the device is at.
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
    """Read a file from the downlink and do what it says: all of the checks above.

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
    if len(data) > most:
        raise BadData(f"{where}: more than {most:,} bytes: too large for an update of this device")
    record = read_strict_record(BytesIO(data), KINDS, where)
    if record.header["kind"] == "trust":
        return trust_list_of(record, where)
    envelope = envelope_of(record, where)
    _signers(device, envelope.signed_bytes(), envelope.signatures, where, unsigned)
    return envelope.open(where)


def _overlay_bytes(device: Device) -> int:
    """The size of an overlay's file: they all have the same, but for those that are damaged."""
    sizes, reason = [], ""
    with device.lock():  # so that none is deleted meanwhile
        for slot in (device.current, *device.kept):
            try:
                sizes.append((device.path / slot.file).stat().st_size)
            except OSError as error:
                reason = reason or (error.strerror or str(error)).lower()
    if not sizes:
        raise MissingInput(f"{device.path / device.current.file}: {reason}")
    return max(sizes)


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
    with device.lock():
        checked = check(device, update, unsigned=unsigned, clock=clock)
        if checked.new is None:
            if not dry_run:
                device.settle()
            return Applied("already applied", update.sequence, update.target, _late(update, clock))
        if onto is not None and onto != checked.digest:
            raise WrongBase(
                f"update {update.sequence} was looked at for a device at {short(onto)}, this one "
                f"is at {short(checked.digest)} by now: apply the update again"
            )
        note, num_signed = "", len(checked.signed_by)
        if device.trust is not None and num_signed < device.trust.threshold:
            note = f", signed by {num_signed} of the {device.trust.threshold} keys it needs"
        if not dry_run:
            device.install(checked.new, update.sequence, checked.signed_by)
    status: Status = "would apply" if dry_run else "applied"
    return Applied(status, update.sequence, update.target, note)


def check(
    device: Device, update: Update, *, unsigned: bool = False, clock: Clock = time.time
) -> Checked:
    """Check an update against a device folder, which is not changed: 3, and 6 to 13.

    Args, Raises: as `receive`.
    """
    where = f"update {update.sequence}"
    with device.lock():
        signed_by = _signers(device, update.signed_bytes(), update.signatures, where, unsigned)
        _expect_model(device, update)
        named = device.current
        current = device.read_overlay()  # the newest sound one; its slot is current from here on
        if _leads_to(update, device.current):
            return Checked(device.digest, current, None, signed_by)
        _expect_in_time(update, clock)
        if not _leads_to(update, named):  # else it repairs what is damaged
            _expect_newer(device, update)
        base = _base(device, update)
        before = current if base == device.current else device.read_slot(base)
        new = codecs.decode(update, before, where=where)
        if (digest := overlay_digest(new)) != update.target:
            raise BadData(
                f"{where} leads to {short(digest)}, not to its target "
                f"{short(update.target)}: it is damaged, fetch it again"
            )
        return Checked(device.digest, current, new, signed_by)


def rotate(
    device: Device, found: TrustList, *, dry_run: bool = False, unsigned: bool = False
) -> Rotated:
    """Check a trust list against a device folder and install it. Args, Raises: as `receive`."""
    new = found.trust
    where = f"trust list {new.version}"
    with device.lock():
        old = device.trust
        if new == old:
            if not dry_run:
                device.settle()
            return Rotated("already applied", new)
        signed = found.signed_bytes()
        if old is None and not unsigned:
            raise SignatureRefused(
                f"{where}: this device trusts no key yet, so nothing vouches for the list: "
                "--unsigned takes it on your word"
            )
        if old is not None:
            _expect_next(old.version, new.version)
            _expect_signers(signed, found.signatures, old, f"{where}, the device's keys")
        _expect_signers(signed, found.signatures, new, f"{where}, its own keys")
        if not dry_run:
            device.install_trust(new)
    return Rotated("would apply" if dry_run else "applied", new)


def rollback(device: Device) -> Applied:
    """Go back to the device's newest sound earlier overlay. Raises: MissingInput, BadData."""
    with device.lock():
        device.rollback()
        return Applied("rolled back", device.sequence, device.digest)


def decode(update: Update, base: Mapping[str, NDArray[np.float32]]) -> Overlay:
    """The overlay that an update makes of its base: checks 11 and 12. The base is not changed.

    Raises: NewerFormat, BadData.
    """
    return codecs.decode(update, base, where=f"update {update.sequence}")


# ---------------------------------------------------------------- the checks


def _signers(
    device: Device,
    message: bytes,
    signatures: tuple[Signature, ...],
    where: str,
    unsigned: bool,
) -> tuple[str, ...]:
    """The device's trusted keys that have signed; refused if they are too few, unless `unsigned`.

    A message that is empty cannot be signed at all (update version 1).
    """
    if device.trust is None:
        return ()
    if not unsigned:
        return _expect_signers(message, signatures, device.trust, where)
    return signing.signers(message, signatures, device.trust.keys) if message else ()


def _expect_signers(
    message: bytes, signatures: tuple[Signature, ...], trust: Trust, where: str
) -> tuple[str, ...]:
    if not message or not signatures:
        raise SignatureRefused(
            f"{where}: not signed; {trust.threshold} of {len(trust.keys)} trusted keys must sign: "
            "cdcca sign, or --unsigned takes an update without"
        )
    found = signing.signers(message, signatures, trust.keys)
    if len(found) < trust.threshold:
        strangers = sum(signature.key not in trust.keys for signature in signatures)
        false = len(signatures) - strangers - len(found)
        raise SignatureRefused(
            f"{where}: signed by {len(found)} of {len(trust.keys)} trusted keys, "
            f"{trust.threshold} must sign ({strangers} signatures are of unknown keys, {false} are "
            "false): fetch it again, or have it signed with cdcca sign"
        )
    return found


def _expect_model(device: Device, update: Update) -> None:
    if None not in (device.model, update.model) and device.model != update.model:
        raise WrongBase(
            f"update {update.sequence} is for model {short(str(update.model))}, this device has "
            f"{short(str(device.model))}: make mirror and device with the same checkpoint and "
            "options of init"
        )


def _leads_to(update: Update, slot: Slot) -> bool:
    return (update.sequence, update.target) == (slot.sequence, slot.digest)


def _late(update: Update, clock: Clock) -> str:
    if update.expires is None or clock() < update.expires:
        return ""
    return f" (it expired on {utc(update.expires)}: does anything newer get through?)"


def _expect_in_time(update: Update, clock: Clock) -> None:
    if update.expires is None or (now := clock()) < update.expires:
        return
    raise StaleUpdate(
        f"update {update.sequence} expired on {utc(update.expires)}, this device's clock says "
        f"{utc(now)}: fetch a newer one, or set the clock if it is wrong"
    )


def _expect_newer(device: Device, update: Update) -> None:
    highest = device.highest_sequence
    if update.sequence > highest + MOST_AHEAD:
        raise BadData(
            f"update {update.sequence} is more than {MOST_AHEAD:,} ahead of {highest}, the newest "
            "that this device has had: no cloud counts so fast, have its sequence looked at"
        )
    if update.sequence > highest:
        return
    cure = "a newer one is needed"
    if device.sequence < highest:
        cure = _back(device)
    raise StaleUpdate(
        f"update {update.sequence} is not newer than {highest}, "
        f"the newest that this device has had: {cure}"
    )


def _base(device: Device, update: Update) -> Slot:
    """The overlay that the update is against: the current one, or an older one that is kept."""
    for slot in (device.current, *device.kept):
        if slot.digest == update.base:
            return slot
    if device.sequence < device.highest_sequence:
        cure = _back(device)
    elif update.sequence - 1 > device.sequence:
        cure = f"fetch {_missing(device.sequence + 1, update.sequence - 1)} first"
    else:
        cure = "compress it against a mirror of this device"
    raise WrongBase(
        f"update {update.sequence} is for base {short(update.base)}, "
        f"this device is at {short(device.digest)}: {cure}"
    )


def _back(device: Device) -> str:
    return (
        f"the device was rolled back to {device.sequence}: roll the mirror back too "
        "(cdcca apply MIRROR --rollback), then distil and compress again"
    )


def _expect_next(old: int, new: int) -> None:
    if new <= old:
        raise StaleUpdate(
            f"trust list {new} is not newer than {old}, the one of this device: "
            "a newer one is needed"
        )
    if new > old + 1:
        raise WrongBase(
            f"trust list {new} does not follow {old}, the one of this device: "
            f"apply list {old + 1} first"
        )


def _missing(first: int, last: int) -> str:
    if first == last:
        return f"update {first}"
    return f"updates {first} {'and' if last == first + 1 else 'to'} {last}"
