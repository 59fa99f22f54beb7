"""Columns of small whole numbers as bytes (a stand-in until the measured one is merged)."""

import numpy as np
import zstandard

from cdcca_cli.errors import BadData


def pack(codes_RK: np.ndarray) -> bytes:
    codes = np.ascontiguousarray(codes_RK.T).astype(np.int64).ravel()
    zigzag = ((codes << 1) ^ (codes >> 63)).astype(np.uint32)
    plane = np.minimum(zigzag, 255).astype(np.uint8)
    side = zigzag[zigzag >= 255]
    return zstandard.ZstdCompressor(level=12).compress(plane.tobytes() + side.tobytes())


def content_bytes(packed: bytes) -> int:
    return zstandard.frame_content_size(packed)


def unpacked(packed: bytes, num_bytes: int, where: str) -> bytes:
    """The content of a zstd frame of exactly this size. BadData."""
    try:
        if zstandard.frame_content_size(packed) != num_bytes:
            raise BadData(f"{where}: not as long as declared ({num_bytes:,} bytes)")
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=num_bytes)
    except zstandard.ZstdError as error:
        raise BadData(f"{where}: damaged zstd data ({error})") from None
    if len(content) != num_bytes:
        raise BadData(f"{where}: not as long as declared ({num_bytes:,} bytes)")
    return content


def unpack(packed: bytes, shape: tuple[int, int], num_bytes: int, where: str) -> np.ndarray:
    rows, width = shape
    count = rows * width
    if num_bytes < count or (num_bytes - count) % 4:
        raise BadData(f"{where}: {num_bytes:,} bytes for {rows:,} rows of {width:,}")
    content = unpacked(packed, num_bytes, where)
    zigzag = np.frombuffer(content, np.uint8, count).astype(np.uint32)
    side = np.frombuffer(content, "<u4", offset=count)
    escaped = np.flatnonzero(zigzag == 255)
    if len(escaped) != len(side) or (side < 255).any():
        raise BadData(f"{where}: escapes that do not fit")
    zigzag[escaped] = side
    codes = (zigzag >> 1).astype(np.int64) ^ -(zigzag & 1).astype(np.int64)
    return np.ascontiguousarray(codes.astype(np.int32).reshape(width, rows).T)
