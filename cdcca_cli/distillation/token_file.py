"""The visual tokens of a stream in a temporary file: memory does not grow with its frames."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cdcca_cli import files
from cdcca_cli.errors import CannotWrite
from cdcca_cli.formats.shard import Shard

IN_MEMORY_BYTES = 1 << 26
"""Size up to which the file is kept in memory."""


class TokenFile:
    """Arrays in a file without a name, which is there as long as a shard refers to it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, prefix="cdcca-")  # noqa: SIM115
        self._end = 0

    def put(self, shard: Shard) -> Shard:
        """The shard with its tokens and codes in the file. Raises: CannotWrite."""
        kept = ShardInFile(**{one.name: getattr(shard, one.name) for one in fields(Shard)})
        kept.tokens = self._write(shard.tokens)
        kept.codes = None if shard.codes is None else self._write(shard.codes)
        return kept

    def _write(self, array: np.ndarray) -> "_Place":
        place = _Place(self, self._end, array.shape, array.dtype)
        with _writing():
            self._file.seek(self._end)
            self._file.write(array.tobytes())
        self._end += array.nbytes
        return place

    def read(self, place: "_Place") -> np.ndarray:
        """The array that was put there, a new one each time. Raises: CannotWrite."""
        array = np.empty(place.shape, place.dtype)
        with _writing():  # seeking writes out what was buffered, for which there may be no room
            self._file.seek(place.begin)
            self._file.readinto(array.reshape(-1).view(np.uint8).data)
        return array


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWrite(files.reason("a temporary file for the tokens", error)) from None


@dataclass(frozen=True)
class _Place:
    """Where an array is: its first byte in the file, its shape and dtype."""

    file: TokenFile
    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Array:
    """A field of a shard: an array, or its place in a file, from which it is read at each use."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, shard: Any, owner: type) -> Any:
        held = vars(shard)[self._name]
        return held.file.read(held) if isinstance(held, _Place) else held

    def __set__(self, shard: Any, value: Any) -> None:
        vars(shard)[self._name] = value


class ShardInFile(Shard):
    """A shard whose tokens and codes are read from a file at each use; a `copy` is one too."""

    tokens = _Array()
    codes = _Array()

    @property
    def is_open(self) -> bool:
        """Without reading them."""
        return math.prod(vars(self)["tokens"].shape) > 0
