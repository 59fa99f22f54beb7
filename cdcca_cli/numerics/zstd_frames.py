"""zstd frames of numbers that are nearly independent, and reading them without surprises.

The writer avoids matches: zstd's fast strategy with long matches and a tiny search table leaves
Huffman coding of the literals. Each part gets its own blocks, because a Huffman table covers one
block. A frame declares its content size, which a reader knows beforehand.

A refusal does not say of what: the caller puts the name of the file before it.
"""

from collections.abc import Sequence

import zstandard

from cdcca_cli.errors import BadData

_SHORTEST_MATCH = 7
_SMALLEST_WINDOW, _LARGEST_WINDOW = 10, 17  # logarithms; a block is no larger than the window
_TABLE_LOG = 6


def damaged(reason: str) -> BadData:
    """The refusal of bytes that break the rules of their coding."""
    return BadData(f"{reason}: fetch it again")


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
