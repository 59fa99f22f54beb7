"""Which kind of file something is, from its first bytes; never from its name.

    shards, lessons, adaptation, update,  records: the "kind" in the first record's header
    overlay, trust
    weights                               a safetensors file that is not one of cdcca's
    predictions, manifest                 JSON lines: the first line's keys
    seen                                  the state of `cdcca sample --state`: its "kind"
    annotations                           any other JSON
    image, video                          its magic number
    device, checkpoint, frames            folders: by device.json or config.json in them, or neither

Kinds are guesses about intent, not a check: the reader of the kind does that.
"""

import re
from pathlib import Path
from typing import BinaryIO, Literal

from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.formats import device, records
from cdcca_cli.streams import pushed_back
from cdcca_cli.text import load_json

Kind = Literal[
    "shards",
    "lessons",
    "adaptation",
    "update",
    "overlay",
    "trust",
    "weights",
    "predictions",
    "manifest",
    "seen",
    "annotations",
    "image",
    "video",
    "device",
    "checkpoint",
    "frames",
]

WEIGHTS_LIMITS = records.Limits(header_bytes=100 << 20, record_bytes=1 << 50)
_RECORDS: dict[str, Kind] = {
    "shard": "shards",
    "end": "shards",
    "lessons": "lessons",
    "lesson": "lessons",
    "adaptation": "adaptation",
    "update": "update",
    "overlay": "overlay",
    "trust": "trust",
}
_PICTURES: tuple[tuple[Kind, re.Pattern[bytes]], ...] = (
    (
        "image",
        re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|P[56]\s|RIFF....WEBP", re.S),
    ),
    ("video", re.compile(rb"RIFF....AVI|....ftyp|\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]", re.S)),
)
_LINE_BYTES = 1 << 20


def kind_of_folder(path: Path) -> Kind:
    """What a folder is: its device.json or config.json decides."""
    if (path / device.FILE_NAME).exists():
        return "device"
    return "checkpoint" if (path / "config.json").exists() else "frames"


def sniff(stream: BinaryIO, where: str) -> tuple[Kind, BinaryIO]:
    """The kind of a stream (zstd taken off before), and a stream that gives all of it again.

    Raises: BadData for an empty stream, and for one that is none of the kinds.
    """
    head = stream.read(12)
    if not head:
        raise BadData(f"{where}: empty")
    for kind, magic in _PICTURES:
        if magic.match(head):
            return kind, pushed_back(head, stream)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        line = head if b"\n" in head else head + stream.readline(_LINE_BYTES)
        return _kind_of_json(line), pushed_back(line, stream)
    if len(head) >= 9 and head[8:9] == b"{":
        source = pushed_back(head, stream)
        full_head = records.read_head(source, limits=WEIGHTS_LIMITS, where=where) or b""
        return _kind_of_record(full_head, where), pushed_back(full_head, source)
    raise BadData(f"{where}: not a file that cdcca knows")


def _kind_of_record(head: bytes, where: str) -> Kind:
    if len(head) > records.DEFAULT_LIMITS.header_bytes + 8:
        return "weights"
    table = load_json(head[8:], f"{where}: the record's header")
    metadata = table.get("__metadata__") if isinstance(table, dict) else None
    if not isinstance(metadata, dict) or "cdcca" not in metadata:
        return "weights"
    _, header = records.parse_head(head, where)
    if header["kind"] not in _RECORDS:
        raise BadData(f"{where}: a record of an unknown kind, {header['kind'][:40]!r}")
    return _RECORDS[header["kind"]]


def _kind_of_json(line: bytes) -> Kind:
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
    return "manifest" if "image" in first and "images" not in first else "annotations"
