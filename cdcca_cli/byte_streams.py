"""Streams of bytes over others: measured, with bytes given back, with zstd taken off or put on.

zstd is recognised by its magic number and read in bounded memory.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, cast

from cdcca_cli.errors import BadData

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a first byte 0x50..0x5f: metadata before the data
_ZSTD_WINDOW_BYTES = 1 << 27  # what `zstd -d` itself accepts without --long
_ZSTD_PIECE_BYTES = 512  # a piece expands to 16 MiB at most, whatever it holds


class _Pieces(io.RawIOBase):
    """The bytes of an iterator as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._rest:
            more = next(self._pieces, None)
            if more is None:
                return 0
            self._rest = memoryview(more)
        view = memoryview(buffer).cast("B")
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)


class Measured:
    """A stream that counts and hashes what is read from it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._sha = source, hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        return self._seen(self._source.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._seen(self._source.readline(size))

    def _seen(self, data: bytes) -> bytes:
        self.num_bytes += len(data)
        self._sha.update(data)
        return data

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha.hexdigest()}"


def pushed_back(head: bytes, rest: BinaryIO) -> BinaryIO:
    """A stream that gives `head` again before the rest."""
    pieces = iter(partial(rest.read, io.DEFAULT_BUFFER_SIZE), b"")
    return io.BufferedReader(_Pieces(chain((head,), pieces)))


def _decompressed(source: BinaryIO, where: str) -> Iterator[bytes]:
    """The content of zstd frames end to end. Raises: BadData if it is damaged or cut short."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = None
    compressed = b""
    while compressed or (compressed := source.read(_ZSTD_PIECE_BYTES)):
        frame = frame or decompressor.decompressobj()
        try:
            content = frame.decompress(compressed)
        except zstandard.ZstdError as error:
            raise BadData(f"{where}: damaged zstd data, fetch it again ({error})") from None
        yield content
        compressed = frame.unused_data
        if frame.eof:
            frame = None
    if frame is not None:
        raise BadData(f"{where}: the zstd data is cut short: fetch it again")


def is_zstd(head: bytes) -> bool:
    """Whether content with these first 4 bytes is zstd."""
    skippable = head[1:] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F
    return head == ZSTD_MAGIC or skippable


def without_zstd(stream: BinaryIO, where: str) -> BinaryIO:
    """The stream itself, or its content if it is zstd."""
    head = stream.read(4)
    source = pushed_back(head, stream)
    if is_zstd(head):
        return io.BufferedReader(_Pieces(_decompressed(source, where)), 1 << 16)
    return source


@contextmanager
def with_zstd(out: BinaryIO, is_packed: bool) -> Iterator[BinaryIO]:
    """The stream itself, or one that writes zstd with a checksum to it."""
    if not is_packed:
        yield out
        return
    import zstandard

    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    writer = compressor.stream_writer(out, closefd=False)
    yield cast(BinaryIO, writer)
    writer.close()  # not after an error: what is there then is thrown away
