"""The trust list, version 1: the keys that sign a device's updates; and signatures in files.

A trust list says which public keys a device trusts, and how many of them an update needs. A record
(`records`) without tensors; header, all keys always present:

    kind "trust", version 1
    signed      object: {"keys": [...], "threshold": T, "version": N}
        keys       list of keys, each 64 lower-case hexadecimal digits (a raw Ed25519 public key),
                   ascending, each once, 1 to 64 of them
        threshold  whole number, 1 to the number of keys
        version    whole number >= 1; a device takes the one that follows its own, no other
    signatures  list of {"key", "signature"}, over "cdcca trust 1\\n" and `signed` as
                `records.dump_json` writes it

A signature is {"key": a key as above, "signature": 128 lower-case hexadecimal digits}, Ed25519 as
in RFC 8032; at most 256, in ascending order of their keys, each key once. A reader refuses a list
or an update that it would not write again byte for byte, or with a header of more than 256 KiB.
Signatures are verified in `downlink.verify`, not here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, get_type_hints

from cdcca_cli.errors import BadData
from cdcca_cli.files import Writable
from cdcca_cli.formats import records

VERSION = 1
KINDS = {"trust": VERSION}
LIMITS = records.Limits(header_bytes=1 << 18)
MOST_KEYS = 64
_MOST_SIGNATURES = 256
_MOST_VERSION = (1 << 53) - 1
_DOMAIN = b"cdcca trust 1\n"
_KEY = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_DIGITS = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True)
class Signature:
    """One key's signature, both in hexadecimal digits."""

    key: str
    signature: str


@dataclass(frozen=True)
class Trust:
    """The keys that a device trusts (ascending, each once), and how many of them must agree."""

    version: int
    threshold: int
    keys: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As device.json and a trust list hold it."""
        return {"version": self.version, "threshold": self.threshold, "keys": list(self.keys)}


_SIGNATURE = get_type_hints(Signature)
_TRUST = get_type_hints(Trust)


@dataclass(frozen=True)
class TrustList:
    """A trust to be installed, and the signatures over it."""

    trust: Trust
    signatures: tuple[Signature, ...] = ()

    def signed_bytes(self) -> bytes:
        """The message that is signed."""
        return _DOMAIN + records.dump_json(self.trust.as_json()).encode()

    def with_signatures(self, signatures: tuple[Signature, ...]) -> "TrustList":
        return replace(self, signatures=signatures)


def write_trust_list(out: Writable, trust_list: TrustList) -> int:
    """Write it; returns its bytes. BadData if it is not sound."""
    header = {
        "kind": "trust",
        "version": VERSION,
        "signed": trust_list.trust.as_json(),
        "signatures": signature_objects(trust_list.signatures),
    }
    parse_trust(header["signed"], "the trust list")
    read_signatures(header, "the trust list")
    return records.write_record(out, {}, header)


def read_trust_list(stream: BinaryIO, *, where: str = "the trust list") -> TrustList:
    """Read and check it; its signatures are not verified. BadData, NewerFormat."""
    return trust_list_of(read_strict_record(stream, KINDS, where), where)


def trust_list_of(record: records.Record, where: str) -> TrustList:
    """The trust list that a record of `read_strict_record` holds. BadData."""
    records.expect_tensors(record, {}, where)
    records.exact_keys(record.header, {"kind", "version", "signed", "signatures"}, where)
    signatures = read_signatures(record.header, where)
    return TrustList(parse_trust(record.header["signed"], where), signatures)


def parse_trust(data: Any, where: str) -> Trust:
    """The trust that an object of JSON holds. BadData."""
    trust = Trust(**records.fields(data, _TRUST, f"{where}: the trusted keys"))
    keys, threshold, version = trust.keys, trust.threshold, trust.version
    if not all(map(_KEY.fullmatch, keys)) or list(keys) != sorted(set(keys)):
        raise BadData(f"{where}: 'keys' are not public keys in ascending order, each once")
    if not 1 <= len(keys) <= MOST_KEYS:
        raise BadData(f"{where}: {len(keys):,} trusted keys; expected 1 to {MOST_KEYS}")
    if not 1 <= threshold <= len(keys):
        raise BadData(f"{where}: a threshold of {str(threshold)[:20]} of {len(keys)} keys")
    if not 1 <= version <= _MOST_VERSION:
        raise BadData(f"{where}: version {str(version)[:20]} of the trusted keys")
    return trust


def is_key(value: object) -> bool:
    """Whether this is a public key."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def signature_objects(signatures: Sequence[Signature]) -> list[dict[str, str]]:
    """Signatures as a header holds them."""
    return [asdict(signature) for signature in signatures]


def read_signatures(header: Mapping[str, Any], where: str) -> tuple[Signature, ...]:
    """The signatures in a header, well formed and in order. BadData."""
    objects = records.field(header, "signatures", list, where)
    if len(objects) > _MOST_SIGNATURES:
        raise BadData(f"{where}: {len(objects):,} signatures; at most {_MOST_SIGNATURES}")
    place = f"{where}: a signature"
    found = tuple(Signature(**records.fields(one, _SIGNATURE, place)) for one in objects)
    for one in found:
        if not _KEY.fullmatch(one.key) or not _SIGNATURE_DIGITS.fullmatch(one.signature):
            raise BadData(f"{where}: a signature is not in hexadecimal digits, 64 and 128 of them")
    keys = [signature.key for signature in found]
    if keys != sorted(set(keys)):
        raise BadData(f"{where}: its signatures are not in ascending order of keys, each once")
    return found


def read_strict_record(
    stream: BinaryIO,
    kinds: Mapping[str, int],
    where: str,
    limits: records.Limits = LIMITS,
) -> records.Record:
    """The one record of a file, if a writer would give the same bytes. BadData, NewerFormat."""
    record = records.read_only_record(stream, kinds, limits=limits, where=where)
    if records.encode_header(record.tensors, record.header) != record.head:
        raise BadData(f"{where}: not written as cdcca writes it: it is damaged, fetch it again")
    return record
