"""The update (the downlink), version 2: coded changes of an overlay, in one record.

A record (`records`) with one tensor, "payload", U8 of shape (payload_bytes,). Header, all keys
always present:

    kind "update", version 2
    signed      object, what the signatures are over:
        base            digest of the overlay that the changes are against
        target          digest of the overlay that they lead to
        model           digest of what both sides have frozen (`models.initial`), or null
        sequence        whole number >= 1; a device takes only a higher one than it has had
        expires         whole number >= 0, or null: seconds since 1970 at which it expires
        codec           string, not empty: how the payload is coded (`downlink.codecs`)
        coding          object, the codec's own: whole numbers, strings, and lists of these
        num_parameters  whole number >= 0: of all tensors of the base together
        payload_bytes   length of the payload
        payload_sha256  SHA-256 of the payload, 64 lower-case hexadecimal digits
    signatures  list of {"key", "signature"} (`trust`), over "cdcca update 2\\n" and `signed` as
                `records.dump_json` writes it

Whole numbers are below 2**53, the record's header is 256 KiB at most. Nothing may follow the
record, and a reader refuses what it would not write again byte for byte. The names and shapes of
the tensors are those of the base.

Version 1 is read as well. It has no `signed` and no `signatures`; its header holds base, target,
sequence, codec, num_parameters, payload_bytes and payload_sha256 as above, and

    bits        list of whole numbers, 0 to 32: bits of each tensor, in ascending order of the
                base overlay's names; here it is coding["bits"]

`downlink.verify` checks signatures, between `envelope_of` and `Envelope.open`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, get_type_hints

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.files import Writable
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.trust import (
    LIMITS,
    Signature,
    read_signatures,
    read_strict_record,
    signature_objects,
)

VERSION = 2
KINDS = {"update": VERSION}
_DOMAIN = b"cdcca update 2\n"
_MOST = (1 << 53) - 1
_CODING_DEPTH = 4
_COPIED = ("base", "target", "sequence", "codec", "num_parameters", "model", "expires", "coding")
_NEW_IN_2 = ("model", "expires", "coding")


@dataclass(frozen=True)
class Update:
    """A coded change from one overlay to another. Only one of format version 2 can be signed."""

    base: str
    target: str
    sequence: int
    codec: str
    coding: dict[str, Any]
    num_parameters: int
    payload: bytes
    model: str | None = None
    expires: int | None = None
    signatures: tuple[Signature, ...] = ()
    version: int = VERSION

    def signed(self) -> dict[str, Any]:
        """What the signatures are over."""
        return {
            **{name: getattr(self, name) for name in _COPIED},
            "payload_bytes": len(self.payload),
            "payload_sha256": hashlib.sha256(self.payload).hexdigest(),
        }

    def signed_bytes(self) -> bytes:
        """The message that is signed."""
        return _message(self.signed())

    def with_signatures(self, signatures: tuple[Signature, ...]) -> "Update":
        """The same with these, in the format version that can hold them."""
        return replace(self, signatures=signatures, version=VERSION)

    def header(self) -> dict[str, Any]:
        """The record's header."""
        if self.version == 1:
            signed = self.signed()
            v1 = {name: signed[name] for name in _COMMON} | {"bits": self.coding.get("bits")}
            return {"kind": "update", "version": 1, **v1}
        signatures = signature_objects(self.signatures)
        signed = {"signed": self.signed(), "signatures": signatures}
        return {"kind": "update", "version": VERSION, **signed}


_SIGNED = {"payload_bytes": int, "payload_sha256": str}
_SIGNED |= {name: get_type_hints(Update)[name] for name in _COPIED}
_COMMON = {name: hint for name, hint in _SIGNED.items() if name not in _NEW_IN_2}
_VERSION_1 = records.HEAD | _COMMON | {"bits": list[int]}


@dataclass(frozen=True)
class Envelope:
    """An update whose content and signatures have not been checked yet."""

    header: dict[str, Any]
    payload: bytes
    signatures: tuple[Signature, ...]

    def signed_bytes(self) -> bytes:
        """The message that is signed; empty for version 1, which cannot be signed."""
        return b"" if self.header["version"] == 1 else _message(self.header["signed"])

    def open(self, where: str = "the update") -> Update:
        """Check the header's content, then the payload's length and hash. BadData."""
        signed = _check(self.header, where)
        if len(self.payload) != signed["payload_bytes"]:
            raise BadData(
                f"{where}: a payload of {len(self.payload):,} bytes; its header says "
                f"{signed['payload_bytes']:,}: fetch it again"
            )
        if hashlib.sha256(self.payload).hexdigest() != signed["payload_sha256"]:
            raise BadData(
                f"{where}: the payload does not match the hash in its header: fetch it again"
            )
        return Update(
            **{name: signed[name] for name in _COPIED},
            payload=self.payload,
            signatures=self.signatures,
            version=self.header["version"],
        )


def write_update(out: Writable, update: Update) -> int:
    """Write it; returns its bytes. BadData if it is not sound."""
    header = update.header()
    _check(header, "the update")
    tensors = {"payload": np.frombuffer(update.payload, dtype=np.uint8)}
    if (size := len(records.encode_header(tensors, header))) > LIMITS.header_bytes:
        raise BadData(
            f"the update: a header of {size:,} bytes; at most {LIMITS.header_bytes:,} are read"
        )
    return records.write_record(out, tensors, header)


def read_update(stream: BinaryIO, *, where: str = "the update") -> Update:
    """Read and check it; its signatures are not verified. BadData, NewerFormat."""
    return envelope_of(read_strict_record(stream, KINDS, where), where).open(where)


def envelope_of(record: records.Record, where: str) -> Envelope:
    """The update in a record of `read_strict_record`, its content not checked. BadData."""
    header = record.header
    records.expect_tensors(record, {"payload": "U8"}, where)
    payload = record.tensors["payload"]
    if payload.ndim != 1:
        raise BadData(f"{where}: a payload of {payload.ndim} dimensions")
    signatures: tuple[Signature, ...] = ()
    if header["version"] > 1:
        records.exact_keys(header, {"kind", "version", "signed", "signatures"}, where)
        records.field(header, "signed", dict, where)
        signatures = read_signatures(header, where)
    return Envelope(header, payload.tobytes(), signatures)


def utc(seconds: float) -> str:
    """Seconds since 1970 for people: "2027-01-31 00:00 UTC"."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):  # after the year 9999
        return f"second {seconds:.0f}"


def _message(signed: Mapping[str, Any]) -> bytes:
    return _DOMAIN + records.dump_json(signed).encode()


def _check(header: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is signed, as version 2 has it, checked. BadData."""
    if header["version"] == 1:
        signed = records.fields(header, _VERSION_1, where)
        bits = signed.pop("bits")
        if any(not 0 <= number <= 32 for number in bits):
            raise BadData(f"{where}: 'bits' must be 0 to 32")
        signed |= {"model": None, "expires": None, "coding": {"bits": bits}}
    else:
        signed = records.fields(header["signed"], _SIGNED, where)
        _check_coding(list(signed["coding"].values()), where, _CODING_DEPTH)
    for name in ("base", "target", "model"):
        if not is_digest(signed[name]) and (name != "model" or signed[name] is not None):
            raise BadData(f"{where}: {name!r} is not a digest")
    if not signed["codec"]:
        raise BadData(f"{where}: 'codec' is empty")
    least = {"sequence": 1, "num_parameters": 0, "payload_bytes": 0, "expires": 0}
    for name, smallest in least.items():
        number = signed[name]
        if number is not None and not smallest <= number <= _MOST:
            raise BadData(f"{where}: {name} is {str(number)[:20]}")
    return signed


def _check_coding(values: list[Any], where: str, depth: int) -> None:
    for value in values:
        if type(value) is list and depth:
            _check_coding(value, where, depth - 1)
        elif type(value) is int:
            if abs(value) > _MOST:
                raise BadData(f"{where}: a number in 'coding' has more than 53 bits")
        elif type(value) is not str:
            raise BadData(f"{where}: 'coding' may hold whole numbers, strings and lists only")
