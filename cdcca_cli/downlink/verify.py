"""The checks that a file from the downlink has to pass, and the attacks that they stop.

Pure: bytes and the state of a device (`Standing`) go in; an update, its base and the new overlay
come out, or a trust list or a codebook, or a refusal. The time is an argument.

**What is trusted.** The device folder and its writers, the checkpoint, the holders of the private
keys as far as `threshold` of them agree, and the device's clock, for expiry only. Not trusted: the
file and its whole way. Keys get into a folder by `cdcca init --trust` or by a trust list. A device
without keys takes any update that passes the other checks, so its channel has to be trusted.

**The checks, in order.** Everything is done in memory; nothing is written before all have passed.

 1. size        no larger than an update of this overlay, or a codebook, can be (65)  `read`
 2. form        one whole record of kind update, trust or codebook, nothing after it, byte for byte
                as `formats` writes it (65), of a version this cdcca reads (76)
 3. signature   `threshold` different trusted keys have signed the header (77)
 4. header      every field is there and has its type (65)
 5. payload     has the length and the SHA-256 in the header (65)
 6. model       the device's, if both name one (78)                                `admit`
 7. repetition  the update that the device is at: nothing to do (0)
 8. expiry      the device's clock is before it (79)
 9. sequence    above the highest the device has ever had (79), by 2**20 at most (65)
10. base        the digest of the current overlay, or of an older one that the folder keeps (78)
11. codec       one that this cdcca knows (76); sizes exactly as the base demands (65)   `outcome`
12. finite      every step, change and new value, applied to a copy (65)
13. target      the digest of the new overlay (65)

`admit` repeats 3, because the device's keys may have changed since the file was read. Expiry and
sequence come before the base, because "it is old" is the more useful refusal.

**A trust list** goes through 1, 2 and 4, then `admit_list`. The list that the device has already is
accepted (0). Its version must be the device's plus one (79 if it is not newer, 78 if one is
missing). It needs signatures by a threshold of the device's keys *and* by a threshold of its own
(77), as in TUF's root rotation: the old keys allow it, the new ones prove that their holders exist.
A device without keys takes its first list only if its operator says so (`unsigned`).

**A codebook** goes through 1, 2, 4 and 5, then `admit_codebook`: signatures (3), the device's tower
(78), repetition (7; it repairs a damaged file), and a sequence above that of the device's codebook
(9), which no rollback lowers. Codebooks and updates are numbered apart.

**The attacks**

- another's update, a changed one      3: any bit of the header; 5 and 13: any bit of the rest
- mix and match                        3, 5: the header binds its payload; 10, 13: base and change
- one stolen key                       3: the threshold; each key counts once; then a trust list
                                       without that key
- a list that replaces all keys        signatures of the old keys and of the new
- rollback, replay                     9: the highest sequence never falls, even by a rollback; only
                                       if the device's own command refuses a change (`notify`)
                                       does it become what it was before that change
- freeze (the same old update again)   8, if the updates have an expiry; a repeated update is not an
                                       error even when expired, and a note reports it
- fast-forward to the last sequence    9: 2**20 at a time, of 2**53
- endless data, bombs                  1, 2, and each codec before it decompresses
- state written before it is checked   nothing is written before 13, nor is the sequence (as in
                                       tough's CVE-2025-2888)
- a kind of file without a checked     updates and codebooks have 9, trust lists their version
  number                               (go-tuf's CVE-2022-29173 was one role without)
- a codebook that codes badly          3; its tensors are finite, and nothing of the overlay is
                                       decoded with it: the uplink is the most that it can spoil

**The clock** decides nothing but expiry. A slow one accepts what has expired meanwhile.

**Not defended.** A writer of the device folder. A threshold of stolen keys: until a trust list
without them arrives, what they sign is installed, and a raised sequence stays raised. Withholding:
a device without updates notices it only by expiry. Two fleets with the same keys: each takes the
other's updates if model and base are the same. Secrecy: updates and trust lists are not encrypted,
and an update reveals something of the training data; use ssh or TLS. Poisoned training data.
"""

from dataclasses import dataclass
from io import BytesIO

from cdcca_cli.downlink import codecs, signatures
from cdcca_cli.downlink.change import Overlay
from cdcca_cli.errors import BadData, SignatureRefused, StaleUpdate, WrongBase
from cdcca_cli.formats import codebook as codebook_format
from cdcca_cli.formats import records
from cdcca_cli.formats import trust as trust_format
from cdcca_cli.formats import update as update_format
from cdcca_cli.formats.codebook import Codebook, codebook_of
from cdcca_cli.formats.device_state import Slot
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.trust import Signature, Trust, TrustList, read_strict_record, trust_list_of
from cdcca_cli.formats.update import Update, envelope_of, utc

KINDS = update_format.KINDS | trust_format.KINDS | codebook_format.KINDS
MOST_AHEAD = 1 << 20


@dataclass(frozen=True)
class Standing:
    """The state of a device that files are checked against.

    model: digest of everything that never changes; None if the folder does not have it.
    trust: the keys that must sign; None: any update is taken. kept: earlier overlays, newest first.
    current: the newest sound overlay. named: the one that the folder names as current, which
        differs if its file is damaged.
    """

    model: str | None
    trust: Trust | None
    current: Slot
    kept: tuple[Slot, ...]
    highest_sequence: int
    named: Slot


def most_bytes_of(data: bytes, most_bytes: int) -> int:
    """How long a file may be that begins with `data` (its whole header), for check 1.

    Args: most_bytes: of an update.
    """
    try:
        head = records.read_head(BytesIO(data), limits=trust_format.LIMITS)
        is_codebook = records.parse_head(head or b"", "")[1]["kind"] in codebook_format.KINDS
    except BadData:
        return most_bytes
    return max(most_bytes, codebook_format.MOST_BYTES) if is_codebook else most_bytes


def read(
    data: bytes, trust: Trust | None, most_bytes: int, *, where: str, unsigned: bool = False
) -> Update | TrustList | Codebook:
    """What a file holds: checks 1 to 5. Raises: as `admit`, or NewerFormat."""
    if len(data) > most_bytes:
        raise BadData(
            f"{where}: more than {most_bytes:,} bytes: too large for an update of this device"
        )
    try:
        record = read_strict_record(BytesIO(data), KINDS, where)
    except BadData:
        if (found := _other_kind(data)) is None:
            raise
        expected = "an update, a trust list or a codebook"
        raise BadData(f"{where}: expected {expected}, found {found}") from None
    if record.header["kind"] == "trust":
        return trust_list_of(record, where)
    if record.header["kind"] == "codebook":
        return codebook_of(record, where)
    envelope = envelope_of(record, where)
    if trust is not None:
        _signers(trust, envelope.signed_bytes(), envelope.signatures, where, unsigned)
    return envelope.open(where)


def _other_kind(data: bytes) -> str | None:
    """What kind of file it is, if that explains the refusal better than its fault as a record."""
    from cdcca_cli.formats.kind import HEAD_BYTES, describe

    found = describe(data[:HEAD_BYTES])
    if data[8:9] != b"{":  # no record at all
        return found or "no file of cdcca"
    ours = ("an update", "a trust list", "a codebook", "text in UTF-16")
    if found is None or found.startswith(ours):
        return None
    return found


def admit(
    update: Update, device: Standing, now: float, *, unsigned: bool = False
) -> tuple[Slot | None, tuple[str, ...]]:
    """Whether a device may take an update: checks 3 and 6 to 10.

    Returns: the overlay that the update starts from, None if the device has its result already; and
        the trusted keys that signed.
    Raises: SignatureRefused, WrongBase, StaleUpdate, BadData.
    """
    where = f"update {update.sequence}"
    signed_by: tuple[str, ...] = ()
    if device.trust is not None:
        message = update.signed_bytes()
        signed_by = _signers(device.trust, message, update.signatures, where, unsigned)
    if None not in (device.model, update.model) and device.model != update.model:
        raise WrongBase(
            f"{where} is for model {short(str(update.model))}, this device has "
            f"{short(str(device.model))}: make mirror and device with the same checkpoint and "
            "the same options of init"
        )
    if _leads_to(update, device.current):
        return None, signed_by
    if is_late(update, now):
        raise StaleUpdate(
            f"{where} expired on {utc(update.expires or 0)}, this device's clock is at {utc(now)}: "
            "fetch a newer one, or set the clock if it is wrong"
        )
    if not _leads_to(update, device.named):  # otherwise it repairs the damaged overlay
        cure = _roll_back(device) or "fetch a newer one"
        _expect_newer(where, update.sequence, device.highest_sequence, cure)
    return _base(update, device), signed_by


def outcome(update: Update, base: Overlay) -> codecs.Decoded:
    """The overlay that an admitted update leads to: 11 to 13. Raises: NewerFormat, BadData."""
    where = f"update {update.sequence}"
    new = codecs.decode(update, base, where=where)
    if (digest := overlay_digest(new)) != update.target:
        raise BadData(
            f"{where} leads to {short(digest)}, not to its target {short(update.target)}: "
            "it is damaged, fetch it again"
        )
    return new


def admit_list(found: TrustList, trust: Trust | None, *, unsigned: bool = False) -> bool:
    """Whether a trust list replaces the device's trust; False if it is the same already.

    Raises: SignatureRefused, StaleUpdate, WrongBase.
    """
    new = found.trust
    where = f"trust list {new.version}"
    if new == trust:
        return False
    message = found.signed_bytes()
    if trust is None and not unsigned:
        raise SignatureRefused(
            f"{where}: this device trusts no key yet, so the list's signatures prove nothing: take "
            "it with `unsigned` if you trust it"
        )
    if trust is not None:
        if new.version <= trust.version:
            raise StaleUpdate(
                f"{where} is not newer than this device's list {trust.version}: fetch a newer one"
            )
        if new.version > trust.version + 1:
            raise WrongBase(
                f"{where} does not follow this device's list {trust.version}: "
                f"apply list {trust.version + 1} first"
            )
        _signers(trust, message, found.signatures, f"{where}, the device's keys")
    _signers(new, message, found.signatures, f"{where}, its own keys")
    return True


def admit_codebook(
    found: Codebook,
    tower: str,
    trust: Trust | None,
    current: Slot | None,
    *,
    unsigned: bool = False,
) -> tuple[bool, tuple[str, ...]]:
    """Whether a codebook replaces the device's, False if it is the same; and who has signed it.

    Args: tower: digest of the device's. current: the entry of the device's codebook.
    Raises: SignatureRefused, WrongBase, StaleUpdate, BadData.
    """
    where = f"codebook {found.sequence}"
    signed_by: tuple[str, ...] = ()
    if trust is not None:
        signed_by = _signers(trust, found.signed_bytes(), found.signatures, where, unsigned)
    if found.tower != tower:
        raise WrongBase(
            f"{where} is for vision tower {short(found.tower)}, this device has {short(tower)}: "
            "calibrate with this device's checkpoint"
        )
    if current is not None and (found.sequence, found.digest) == (current.sequence, current.digest):
        return False, signed_by
    highest = -1 if current is None else current.sequence
    _expect_newer(where, found.sequence, highest, "fetch or calibrate a newer one")
    return True, signed_by


def is_late(update: Update, now: float) -> bool:
    return update.expires is not None and now >= update.expires


def _signers(
    trust: Trust, message: bytes, signed: tuple[Signature, ...], where: str, unsigned: bool = False
) -> tuple[str, ...]:
    """The trusted keys that have signed. SignatureRefused if too few, unless `unsigned`.

    Args: message: empty if it cannot be signed (update version 1).
    """
    found = signatures.signers(message, signed, trust.keys) if message else ()
    if unsigned or len(found) >= trust.threshold:
        return found
    if not message or not signed:
        raise SignatureRefused(
            f"{where}: not signed; {trust.threshold} of {len(trust.keys)} trusted keys must sign: "
            "sign it with cdcca sign, or take it with `unsigned`"
        )
    unknown = sum(signature.key not in trust.keys for signature in signed)
    false = len(signed) - unknown - len(found)
    raise SignatureRefused(
        f"{where}: signed by {len(found)} of {len(trust.keys)} trusted keys, "
        f"{trust.threshold} must sign ({unknown} signatures are of unknown keys, {false} are "
        "false): fetch it again, or sign it with cdcca sign"
    )


def _leads_to(update: Update, slot: Slot) -> bool:
    return (update.sequence, update.target) == (slot.sequence, slot.digest)


def _expect_newer(where: str, sequence: int, highest: int, cure: str) -> None:
    if sequence > highest + MOST_AHEAD:
        raise BadData(
            f"{where} is more than {MOST_AHEAD:,} ahead of {max(highest, 0)}, the newest that this "
            "device has had, which is more than training can make: check its sequence"
        )
    if sequence <= highest:
        raise StaleUpdate(
            f"{where} is not newer than {highest}, the newest that this device has had: {cure}"
        )


def _base(update: Update, device: Standing) -> Slot:
    """The overlay that the update starts from: the current one, or an older one that is kept."""
    for slot in (device.current, *device.kept):
        if slot.digest == update.base:
            return slot
    cure = _roll_back(device) or "compress it against a mirror of this device"
    first, last = device.current.sequence + 1, update.sequence - 1
    if device.current.sequence == device.highest_sequence and first <= last:
        missing = f"update {last}" if first == last else f"updates {first} to {last}"
        cure = f"fetch {missing} first"
    raise WrongBase(
        f"update {update.sequence} is for base {short(update.base)}, "
        f"this device is at {short(device.current.digest)}: {cure}"
    )


def _roll_back(device: Standing) -> str:
    """The cure if the device was rolled back, else empty."""
    if device.current.sequence == device.highest_sequence:
        return ""
    return (
        f"the device was rolled back to {device.current.sequence}: roll the mirror back too "
        "(cdcca apply MIRROR `rollback`), then distil and compress again"
    )
