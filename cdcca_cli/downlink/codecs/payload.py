"""The common parts of all codecs' payloads: the sequence at the beginning, and refusals.

A payload begins with the update's sequence, 8 bytes, unsigned and little-endian, which must equal
the header's. The rest belongs to the codec. The header's SHA-256 replaces a checksum in the zstd
frames (`numerics.zstd_frames`).
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import zstd_frames

_SEQUENCE = struct.Struct("<Q")
SEQUENCE_BYTES = _SEQUENCE.size


def damaged(reason: str) -> BadData:
    """The refusal of an update whose payload breaks its codec's rules."""
    return BadData(f"update: {zstd_frames.damaged(reason)}")


@contextmanager
def of_update() -> Iterator[None]:
    """Inside, a refusal of coded numbers becomes one of the update."""
    try:
        yield
    except BadData as error:
        raise BadData(f"update: {error}") from None


def with_sequence(sequence: int, rest: bytes) -> bytes:
    """A payload: the sequence, then the codec's bytes."""
    return _SEQUENCE.pack(sequence) + rest


def after_sequence(payload: bytes, sequence: int) -> bytes:
    """The bytes after the sequence, which must be this one. Raises: BadData."""
    if len(payload) < SEQUENCE_BYTES:
        raise damaged("its payload is cut short")
    (found,) = _SEQUENCE.unpack_from(payload)
    if found != sequence:
        raise damaged(f"its header says sequence {sequence}, its payload {found}")
    return payload[SEQUENCE_BYTES:]
