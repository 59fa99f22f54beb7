"""What kind of file something is, from its first bytes, and how messages describe it.

    shards, labels, adaptation, update,  records: the "kind" in the first record's header
    overlay, trust, codebook
    weights                               a safetensors file that is not one of cdcca's
    predictions, manifest, log            JSON lines: the first line's keys
    seen                                  the state of `cdcca sample --state`: its "kind"
    annotations                           any other JSON
    image, video                          its magic number
    device, export, checkpoint, frames    folders: by device.json, export.json or config.json in
                                          them, or none of these

A kind is a guess, not a check: the reader of that kind checks.
"""

import io
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

from cdcca_cli.byte_streams import pushed_back
from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.formats import device_log, records
from cdcca_cli.formats.device_state import FILE_NAME
from cdcca_cli.formats.export_record import FILE_NAME as EXPORT_FILE
from cdcca_cli.text import load_json

WEIGHTS_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""
HEAD_BYTES = (1 << 20) + 8
"""How much of a file `describe` looks at: the longest header of a record."""
_RECORDS: dict[str, str] = {
    **dict.fromkeys(("shards", "shard", "frames", "end"), "shards"),
    **dict.fromkeys(("label", "lessons", "lesson"), "labels"),
    **{kind: kind for kind in ("adaptation", "update", "overlay", "trust", "codebook")},
}
_PICTURES: dict[str, bytes] = {
    "image": rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|P[56]\s|RIFF....WEBP",
    "video": rb"RIFF....AVI|....ftyp|\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]",
}
_LINE_BYTES = 1 << 20


def kind_of_folder(path: Path) -> str:
    """The kind of a folder."""
    if os.path.lexists(path / FILE_NAME):
        return "device"
    if os.path.lexists(path / EXPORT_FILE):
        return "export"
    return "checkpoint" if os.path.lexists(path / "config.json") else "frames"


def sniff(stream: BinaryIO, where: str) -> tuple[str, BinaryIO]:
    """The kind of a stream without zstd, and a stream that gives all of it again. BadData."""
    head = stream.read(12)
    if not head:
        raise BadData(f"{where}: empty")
    for kind, magic in _PICTURES.items():
        if re.match(magic, head, re.DOTALL):
            return kind, pushed_back(head, stream)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        line = head if b"\n" in head else head + stream.readline(_LINE_BYTES)
        return _kind_of_json(line), pushed_back(line, stream)
    if len(head) >= 9 and head[8:9] == b"{":
        (length,) = struct.unpack("<Q", head[:8])
        if records.DEFAULT_LIMITS.header_bytes < length <= WEIGHTS_HEADER_BYTES:
            return "weights", pushed_back(head, stream)
        source = pushed_back(head, stream)
        full_head = records.read_head(source, where=where) or b""
        return _kind_of_record(full_head, where), pushed_back(full_head, source)
    named = next((f": {name}" for magic, name in _MAGIC if head.startswith(magic)), "")
    raise BadData(f"{where}: not a kind of file that cdcca reads{named}")


def _kind_of_record(head: bytes, where: str) -> str:
    table = load_json(head[8:], f"{where}: the record's header")
    metadata = table.get("__metadata__") if isinstance(table, dict) else None
    if not isinstance(metadata, dict) or "cdcca" not in metadata:
        return "weights"
    _, header = records.parse_head(head, where)
    if header["kind"] not in _RECORDS:
        raise BadData(f"{where}: a record of an unknown kind, {header['kind'][:40]!r}")
    return _RECORDS[header["kind"]]


def _kind_of_json(line: bytes) -> str:
    try:
        first = load_json(line.removeprefix(b"\xef\xbb\xbf"), "the first line")
    except CdccaError:
        return "annotations"  # one value over several lines, or a very long one
    if not isinstance(first, dict):
        return "annotations"
    if first.get("kind") == "seen":
        return "seen"
    if "v" in first and "model" in first:
        return "predictions"
    if device_log.is_line(first):
        return "log"
    return "manifest" if "image" in first and "images" not in first else "annotations"


_MAGIC = (
    (b"\x1f\x8b", "gzip data: unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first (unzstd)"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
    (b"GGUF", "a GGUF file of llama.cpp, which cdcca export takes and writes"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
)
_WORDS: dict[str, str] = {
    "shards": "token shards, which cdcca sample writes and cdcca distill takes",
    "labels": "a teacher's labels, which cdcca label writes and cdcca distill takes",
    "adaptation": "an adaptation, which cdcca distill writes and cdcca compress takes",
    "update": "an update, which cdcca compress writes and cdcca apply takes",
    "overlay": "the overlay of a device folder",
    "trust": "a trust list, which cdcca trust writes and cdcca apply takes",
    "codebook": "a codebook, which cdcca calibrate writes and cdcca apply takes",
    "weights": "a safetensors file of weights",
    "predictions": "predictions, which cdcca infer writes and cdcca eval takes",
    "log": "a log of devices, which cdcca apply and cdcca sample write",
    "manifest": "a manifest of frames, which cdcca infer and cdcca sample take",
    "seen": "the state file of cdcca sample",
    "image": "an image",
    "video": "a video",
}


def describe(head: bytes) -> str | None:
    """What a file is, in words; None if unknown. Args: head: its first HEAD_BYTES, or all of it."""
    if not head:
        return "an empty file"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if not head.strip(b"\0 \t\r\n"):
        return "blanks or zeros"
    try:
        return _WORDS.get(sniff(io.BytesIO(head), "")[0])
    except CdccaError:
        return "text in UTF-16 or no text at all: save it as UTF-8" if b"\0" in head else None
