"""The update (the downlink), version 1: coded changes of an overlay, in one record.

A record (`records`) with one tensor, "payload", U8 of shape (payload_bytes,). Header, all keys
always present:

    kind "update", version 1
    base            digest of the overlay that the changes are against
    target          digest of the overlay that they lead to
    sequence        whole number >= 1: the base's sequence + 1; a device refuses one it is past
    codec           string, not empty: how the payload is to be read ("nf4-mixed", see
                    `downlink.coding`); a reader that does not know it needs a newer cdcca
    bits            list of whole numbers, 0 to 32: bits of each tensor, in ascending order of the
                    base overlay's names; 0: the tensor does not change
    num_parameters  whole number >= 0: of all tensors of the base together
    payload_bytes   length of the payload
    payload_sha256  SHA-256 of the payload, 64 lower-case hexadecimal digits

Nothing may follow the record. An update names no tensors: the digest of the base says which names
and shapes they are, so a device that is not at the base has no use for it. The payload's hash is
checked before anything is decoded; the target digest is checked after, before anything is
installed. This module does not know the codecs, and there is no signature in version 1.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.streams import Writable

VERSION = 1
KINDS = {"update": VERSION}
_KEYS = {
    *("kind", "version", "base", "target", "sequence", "codec", "bits"),
    *("num_parameters", "payload_bytes", "payload_sha256"),
}


@dataclass(frozen=True)
class Update:
    """A coded change from one overlay to the next."""

    base: str
    target: str
    sequence: int
    codec: str
    bits: list[int]
    num_parameters: int
    payload: bytes


def write_update(out: Writable, update: Update) -> int:
    """Write it; returns its bytes. BadData if it is not sound."""
    header = {
        "kind": "update",
        "version": VERSION,
        "base": update.base,
        "target": update.target,
        "sequence": update.sequence,
        "codec": update.codec,
        "bits": update.bits,
        "num_parameters": update.num_parameters,
        "payload_bytes": len(update.payload),
        "payload_sha256": hashlib.sha256(update.payload).hexdigest(),
    }
    _check(header, "the update")
    payload = np.frombuffer(update.payload, dtype=np.uint8)
    return records.write_record(out, {"payload": payload}, header)


def read_update(stream: BinaryIO, *, where: str = "the update") -> Update:
    """Read and check it. BadData, NewerFormat."""
    record = records.read_only_record(stream, KINDS, where=where)
    header = record.header
    _check(header, where)
    records.expect_tensors(record, {"payload": "U8"}, where)
    payload = record.tensors["payload"].tobytes()
    if record.tensors["payload"].shape != (header["payload_bytes"],):
        raise BadData(
            f"{where}: a payload of {len(payload):,} bytes; its header says "
            f"{header['payload_bytes']:,}: fetch it again"
        )
    if hashlib.sha256(payload).hexdigest() != header["payload_sha256"]:
        raise BadData(f"{where}: the payload does not have the hash in its header: fetch it again")
    return Update(
        base=header["base"],
        target=header["target"],
        sequence=header["sequence"],
        codec=header["codec"],
        bits=header["bits"],
        num_parameters=header["num_parameters"],
        payload=payload,
    )


def _check(header: Mapping[str, Any], where: str) -> None:
    records.exact_keys(header, _KEYS, where)
    for name in ("base", "target"):
        if not is_digest(header[name]):
            raise BadData(f"{where}: {name!r} is not a digest")
    if not records.field(header, "codec", str, where):
        raise BadData(f"{where}: 'codec' is empty")
    records.field(header, "payload_sha256", str, where)
    for name, least in (("sequence", 1), ("num_parameters", 0), ("payload_bytes", 0)):
        if records.field(header, name, int, where) < least:
            raise BadData(f"{where}: {name} is {header[name]}")
    bits = records.list_of(header, "bits", int, where) or []
    if any(not 0 <= number <= 32 for number in bits):
        raise BadData(f"{where}: 'bits' must be 0 to 32")
