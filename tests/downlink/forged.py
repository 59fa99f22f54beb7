"""Updates and trust lists that a trusted key has signed, whatever is in them: to get behind it.

`MADE` has one sound update of each codec against `base()`, with everything in it that the codec
can say. `sealed` and `resigned` put length, hash and signature right again after a change.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from cdcca_cli.downlink import codecs, signatures
from cdcca_cli.downlink.codecs import bitdelta, exact, nf4, ternary
from cdcca_cli.errors import CdccaError
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.update import Update
from cdcca_cli.numerics.planes import PARTS, part_lengths
from tests.downlink import changes, earlier, worlds

MODEL = "sha256:" + 64 * "7"
OTHER = "sha256:" + 64 * "8"
CODECS = tuple(codecs.CODECS)
_DOMAINS = {
    "update": b"cdcca update 2\n",
    "trust": b"cdcca trust 1\n",
    "codebook": b"cdcca codebook 1\n",
}
_SIGNATURE = '"signature":"'


@cache
def base() -> worlds.Overlay:
    return worlds.overlay()


def device(path: Path, *, trusts: bool = True) -> Device:
    """A folder at `base()`, which trusts key 0."""
    settings = replace(worlds.SETTINGS, model=MODEL)
    return Device.create(path, settings, base(), trust=changes.trust(0) if trusts else None)


def update(codec: str, payload: bytes, coding: dict[str, Any] | None = None) -> Update:
    """An update of `base()` with this payload, whatever it leads to."""
    return Update(
        base=overlay_digest(base()),
        target=OTHER,
        sequence=1,
        codec=codec,
        coding=coding or {},
        num_parameters=sum(value.size for value in base().values()),
        payload=payload,
        model=MODEL,
    )


@cache
def made(codec: str) -> Update:
    """A sound update of this codec, unsigned."""
    before = base()
    names = sorted(before)
    after = worlds.learnt(before, 5)
    deltas = [after[name] - before[name] for name in names]
    bits: dict[str, Any] = {}
    if codec == "usq":
        # Two steps; codes far beyond the last plane in the first two tensors; one unchanged.
        steps = [5e-6, 5e-6] + 5 * [8e-3]
        deltas[4] = np.zeros_like(deltas[4])
        payload = earlier.usq_payload(deltas, 1, [float(np.float32(step)) for step in steps])
    elif codec == "nf4-mixed":
        bits = {"bits": [8, 4, 2, 4, 0, 8, 4]}
        pairs = zip(deltas, bits["bits"], strict=True)
        coded = [earlier.quantize(delta, number) for delta, number in pairs if number]
        payload = nf4.write_payload(1, coded)
    elif codec == "ternary":
        payload = ternary.encode(deltas, 1, 0.2, 1.5)
    elif codec == "sign":
        deltas[4] = np.zeros_like(deltas[4])
        payload = bitdelta.encode(deltas, 1)
    else:
        payload = exact.encode(after, before, 1)
    unaimed = update(codec, payload, bits)
    return replace(unaimed, target=overlay_digest(codecs.decode(unaimed, before)))


def sealed(found: Update) -> bytes:
    """The file, signed by key 0."""
    return worlds.file_of(signatures.sign(found, [changes.key(0)]))


def unsigned(found: Update) -> bytes:
    return worlds.file_of(replace(found, signatures=()))


def raw(header: str | dict[str, Any], table: str | bytes | None = None, rest: bytes = b"") -> bytes:
    """A record as these words have it, sound or not.

    Args: header: cdcca's own. table: the whole first header; None: one without tensors.
    """
    if table is None:
        text = header if isinstance(header, str) else records.dump_json(header)
        table = records.dump_json({"__metadata__": {"cdcca": text}})
    data = table.encode() if isinstance(table, str) else table
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data + rest


def resigned(data: bytes) -> bytes:
    """The same file with its first signature made again by key 0, if there is anything to sign."""
    try:
        _, header = records.parse_head(records.read_head(BytesIO(data)) or b"", "")
        message = _DOMAINS[header["kind"]] + records.dump_json(header["signed"]).encode()
    except (CdccaError, KeyError, TypeError):
        return data
    mark = _SIGNATURE.replace('"', '\\"').encode()
    begin = data.find(mark) + len(mark)
    signature = changes.key(0).sign(message).signature.encode()
    if begin < len(mark) or data[begin : begin + 1] == b"\\":
        return data
    return data[:begin] + signature + data[begin + len(signature) :]


def span_of_signature(data: bytes) -> range:
    """Where the bytes of the first signature stand."""
    mark = _SIGNATURE.replace('"', '\\"').encode()
    begin = data.index(mark) + len(mark)
    return range(begin, begin + 128)


def code_of(path: Path, data: bytes, **how: Any) -> int:
    """The exit code of `cdcca apply` with this file, 0 included. Its message is one line."""
    from cdcca_cli.downlink import receiver

    try:
        receiver.receive(Device.open(path), BytesIO(data), where="file", **how)
    except CdccaError as error:
        words = str(error)
        assert words and "\n" not in words and len(words) < 1000, words
        assert type(error) is not CdccaError
        return error.exit_code
    return 0


# ---------------------------------------------------------------- what is in a payload


def frame(content: bytes, **options: Any) -> bytes:
    """A zstd frame of the usual kind."""
    return zstandard.ZstdCompressor(level=1, **options).compress(content) if content else b""


def content_of(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data) if data else b""


def parts_of(payload: bytes) -> dict[str, bytes]:
    """A payload of `usq` taken apart, its frames opened."""
    count = payload[8]
    begin = 9 + 4 * count
    parts = {"sequence": payload[:8], "steps": payload[8:begin]}
    body = payload[begin:]
    lengths = part_lengths(body)
    place = lengths["lengths"]
    for name in PARTS:
        piece = body[place : place + lengths[name]]
        place += lengths[name]
        parts[name] = content_of(piece) if name in _FRAMES else piece
    return parts


_FRAMES = ("classes", "places", "sizes", "rests")


def joined(parts: dict[str, bytes], write: Callable[[bytes], bytes] = frame) -> bytes:
    """The payload of `usq` with these parts, lengths put right."""
    body = [write(parts[name]) if name in _FRAMES else parts[name] for name in PARTS]
    lengths = struct.pack("<6I", *map(len, body))
    return parts["sequence"] + parts["steps"] + lengths + b"".join(body)
