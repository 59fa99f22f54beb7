"""The header of a safetensors file of any tool: each tensor's dtype, shape and place.

It is read entry by entry and checked; the tensors themselves are not read.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from cdcca_cli.datasets.entries import entries
from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.kind import WEIGHTS_HEADER_BYTES

_ENTRY_CHARS = 1 << 22
_ENTRY = {"dtype": str, "shape": list[int], "data_offsets": list[int]}
_MOST_ELEMENTS = 1 << 56
"""Without the dimensions of zero: torch has no tensor of 2^63 bytes, not even an empty one."""
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{1,15}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its bytes lie at [begin, end) behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def header_bytes(stream: BinaryIO, where: str) -> int:
    """The length of the JSON that follows, from the first 8 bytes. BadData."""
    head = stream.read(8)
    length: int = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= WEIGHTS_HEADER_BYTES:
        raise BadData(f"{where}: not a safetensors file: a header of {length:,} bytes")
    return length


def tensors(stream: BinaryIO, length: int, where: str) -> Iterator[Stored]:
    """The tensors that a header of so many bytes lists. Raises: BadData if it is not sound."""
    where = f"{where}: the header"
    names: set[str] = set()
    header = cast(BinaryIO, _Part(stream, length))
    for name, _, entry in entries(header, where, most_chars=_ENTRY_CHARS):
        if name is None or not isinstance(entry, dict) or name in names:
            raise BadData(f"{where}: not a sound safetensors header (entry {len(names):,})")
        names.add(name)
        if name != "__metadata__":
            yield _stored(name, entry, f"{where}: tensor {name[:80]!r}")


def _stored(name: str, entry: dict[str, Any], where: str) -> Stored:
    found = records.fields(entry, _ENTRY, where, exact=False)
    dtype, shape, offsets = found.values()
    if not _DTYPE.fullmatch(dtype):
        raise BadData(f"{where}: dtype {dtype[:40]!r}")
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] < 1 << 63:
        raise BadData(f"{where}: its offsets are not two numbers in ascending order")
    if len(shape) > 64 or any(size < 0 for size in shape):
        raise BadData(f"{where}: a shape that no tensor has")
    if math.prod(size for size in shape if size) >= _MOST_ELEMENTS:
        raise BadData(f"{where}: a shape of more than 2^56 elements")
    return Stored(name, dtype, tuple(shape), *offsets)


class _Part:
    """The next bytes of a stream, as a stream of their own."""

    def __init__(self, source: BinaryIO, num_bytes: int) -> None:
        self._source, self._left = source, num_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
