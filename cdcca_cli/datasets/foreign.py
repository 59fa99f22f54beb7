"""What a file is that was not expected where it was given, in words, for the message that refuses.

Its beginning decides, never its name. Nothing here reads the file for its own sake, and what cannot
be named is None: the reader that was asked then says what it found instead.
"""

import io

from cdcca_cli.errors import CdccaError

HEAD_BYTES = 1 << 20
_MAGIC = (
    (b"\x1f\x8b", "gzip data: unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first (unzstd)"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
)
_KINDS = {
    "shards": "token shards, which cdcca sample writes and distill and --uplink take",
    "adaptation": "an adaptation, which cdcca distill writes and compress takes",
    "update": "an update, which cdcca compress writes and apply and --downlink take",
    "overlay": "the overlay of a device folder",
    "trust": "a trust list, which cdcca trust writes and apply takes",
    "weights": "a safetensors file of weights",
    "predictions": "predictions, which cdcca infer writes and eval and --predictions take",
    "manifest": "a manifest of frames, which infer, sample and --references take",
    "seen": "the state of cdcca sample --state",
    "image": "an image",
    "video": "a video",
}


def describe(head: bytes) -> str | None:
    """What a file with these first bytes is, if it has a name. Of JSON, cdcca's own kinds have one.

    head: the whole file, or HEAD_BYTES of it.
    """
    if not head:
        return "an empty file"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if not head.strip(b"\0 \t\r\n"):
        return "blanks or zeros"
    from cdcca_cli.formats import kind

    found: str | None
    try:
        found, _ = kind.sniff(io.BytesIO(head), "")
    except CdccaError:
        found = "weights" if head[8:9] == b"{" and len(head) >= HEAD_BYTES else None
    if found is None and b"\0" in head:
        return "text in UTF-16 or no text at all: save it as UTF-8"
    return _KINDS.get(found or "")
