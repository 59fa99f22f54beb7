"""The common parts of all codecs' payloads: the sequence at the beginning, and zstd frames.

A payload begins with the update's sequence, 8 bytes, unsigned and little-endian, which must equal
the header's. The rest belongs to the codec. A zstd frame in it declares its content size.

The codes of a change are nearly independent, so the writer avoids matches: zstd's fast strategy
with long matches and a tiny search table leaves Huffman coding of the literals. Each part gets its
own blocks, because a Huffman table covers one block. The header's SHA-256 replaces a checksum.
"""

import struct
from collections.abc import Sequence

import zstandard

from cdcca_cli.errors import BadData

_SHORTEST_MATCH = 7
_SMALLEST_WINDOW, _LARGEST_WINDOW = 10, 17  # logarithms; a block is no larger than the window
_TABLE_LOG = 6
_SEQUENCE = struct.Struct("<Q")
SEQUENCE_BYTES = _SEQUENCE.size


def damaged(reason: str) -> BadData:
    """The refusal of an update whose payload breaks its codec's rules."""
    return BadData(f"update: {reason}: fetch it again")


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


def write_frame(
    parts: Sequence[bytes], compressor: zstandard.ZstdCompressor | None = None
) -> bytes:
    """The parts end to end in one frame that declares their size; empty for no bytes."""
    size = sum(map(len, parts))
    if not size:
        return b""
    frame = (compressor or _compressor(size)).compressobj(size=size)
    written = []
    for part in parts:
        if part:
            written += [frame.compress(part), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*written, frame.flush()])


def _compressor(size: int) -> zstandard.ZstdCompressor:
    window = min(max((size - 1).bit_length(), _SMALLEST_WINDOW), _LARGEST_WINDOW)
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window,
        hash_log=_TABLE_LOG,
        chain_log=_TABLE_LOG,
        search_log=1,
        min_match=_SHORTEST_MATCH,
        target_length=0,
        strategy=zstandard.STRATEGY_FAST,
        write_content_size=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def read_frame(
    frame: bytes, expected_bytes: int, what: str, *, has_checksum: bool = False
) -> bytes:
    """The content of a frame, which must have exactly the expected size. Raises: BadData.

    The declared size is checked first, because zstandard allocates it whatever limit it is given.
    """
    if not expected_bytes:
        if frame:
            raise damaged(f"{len(frame):,} bytes of {what}, expected 0")
        return b""
    try:
        parameters = zstandard.get_frame_parameters(frame)
        declared = parameters.content_size
        if declared != expected_bytes:
            raise damaged(f"its {what} declare {declared:,} bytes, expected {expected_bytes:,}")
        if has_checksum and not parameters.has_checksum:
            raise damaged(f"its {what} have no checksum")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damaged(f"damaged {what} ({error})") from None
    if len(content) != expected_bytes:
        raise damaged(f"its {what} have {len(content):,} bytes, expected {expected_bytes:,}")
    return content
