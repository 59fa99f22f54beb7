"""What the payloads of all codecs have in common: the sequence in front, and zstd frames.

A payload begins with the update's sequence, 8 bytes, unsigned and little-endian, which must be the
header's: everything else in a header without signatures is held by a digest or a size, the sequence
by this. The rest is the codec's; where it has bytes with a distribution, they are in a zstd frame
that declares its size.

Codes of a change are as good as independent, so looking for matches only spoils the literals:
zstd's level 3 takes a quarter more than the entropy. The writer asks for the fast strategy with
matches of 7 bytes at least and hardly any memory for finding them, which leaves Huffman's code for
the literals; each part is given blocks of its own, because a Huffman table is for one block. A
reader need not know of either: a frame is a frame. No checksum is written: the update's header
holds the SHA-256 of the whole payload, which is checked before any of it is read.
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


def with_sequence(sequence: int, rest: bytes) -> bytes:
    """A payload: the sequence and what the codec has to say."""
    return _SEQUENCE.pack(sequence) + rest


def after_sequence(payload: bytes, sequence: int) -> bytes:
    """What follows the sequence, which must be this one. BadData."""
    if len(payload) < SEQUENCE_BYTES:
        raise BadData("update: its payload is cut short: fetch it again")
    (found,) = _SEQUENCE.unpack_from(payload)
    if found != sequence:
        raise BadData(
            f"update: its header says sequence {sequence}, its payload {found}: fetch it again"
        )
    return payload[SEQUENCE_BYTES:]


def write_frame(parts: Sequence[bytes]) -> bytes:
    """The parts end to end in one frame that declares their size; nothing at all for no bytes."""
    size = sum(map(len, parts))
    if not size:
        return b""
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
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    written = []
    for part in parts:
        if part:
            written += [frame.compress(part), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*written, frame.flush()])


def read_frame(
    frame: bytes, expected_bytes: int, what: str, *, has_checksum: bool = False
) -> bytes:
    """The content of a frame, which must be exactly so long.

    Nothing is decompressed before the frame itself declares the expected size: zstandard allocates
    whatever a frame declares, whatever limit it is given.

    Args: what: what the frame holds, for messages. has_checksum: it must have zstd's own.
    Raises: BadData.
    """
    if not expected_bytes:
        if frame:
            raise BadData(f"update: {len(frame):,} bytes of {what} where there is none")
        return b""
    try:
        parameters = zstandard.get_frame_parameters(frame)
        declared = parameters.content_size
        if declared != expected_bytes:
            raise BadData(
                f"update: its {what} say they hold {declared:,} bytes, they must hold "
                f"{expected_bytes:,}: fetch it again"
            )
        if has_checksum and not parameters.has_checksum:
            raise BadData(f"update: its {what} have no checksum: fetch it again")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadData(f"update: damaged {what} ({error}): fetch it again") from None
    if len(content) != expected_bytes:
        raise BadData(f"update: its {what} hold {len(content):,} bytes, not {expected_bytes:,}")
    return content
