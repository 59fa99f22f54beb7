"""GGUF, the file format of ggml and llama.cpp, versions 2 and 3, little-endian: read and written.

    "GGUF"  version u32  number of tensors u64  number of keys u64
    key     name  type u32  value          value: a number, a string, or an array:
    tensor  name  number of dimensions u32   type of its elements u32, their number u64, elements
            dimensions u64 each, type u32    string and name: length u64, then bytes
            offset u64
    zeros up to a multiple of general.alignment (32), then the tensors' data; offsets count from
    there, each a multiple of it

The first dimension is the one that is contiguous: the last axis of an array here. Data is mapped,
not read, and a copy's keys are the bytes of the original's, so that a vocabulary of 100,000 words
costs nothing. What a tensor's type stands for is in `numerics.ggml`.

A file is refused if anything in it lies outside, two tensors overlap, or it is larger than any
model's: more than MOST_KEYS, MOST_TENSORS or MOST_STRINGS.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cdcca_cli import files
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.numerics import ggml

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_KEYS, MOST_TENSORS, MOST_STRINGS = 1 << 16, 1 << 18, 1 << 22
_LONGEST_NAME, _LONGEST_TEXT = 1 << 16, 1 << 16
_MOST_ALIGNMENT, _MOST_DIMENSIONS = 1 << 20, 4
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS |= {12: "d"}
_SIZES = {kind: struct.calcsize(f"<{letter}") for kind, letter in _NUMBERS.items()}

Value = int | float | bool | str


@dataclass(frozen=True)
class Array:
    """An array among the keys, not read: the type of its elements (None: arrays), their number."""

    kind: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """shape: as of an array in C order. start: in the file, in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Gguf:
    """A file of tensors. keys: numbers, texts of at most 64 KiB, and of arrays type and length.

    key_bytes: all keys as they stand in the file.
    """

    path: Path
    data: NDArray[np.uint8]
    keys: Mapping[str, Value | Array]
    num_keys: int
    key_bytes: bytes
    tensors: Mapping[str, Tensor]
    alignment: int

    def text(self, name: str) -> str | None:
        """The value of a key that is text; None if it is missing. Raises: BadData."""
        return self._value(name, str)

    def number(self, name: str) -> float | None:
        """The value of a key that is a number; None if missing or one a block. Raises: BadData."""
        if isinstance(self.keys.get(name), Array):
            return None
        return self._value(name, (int, float))

    def _value(self, name: str, kind: Any) -> Any:
        found = self.keys.get(name)
        if found is not None and not isinstance(found, kind):
            raise BadData(f"{self.path}: the key {name} has a value of another type")
        return found

    def raw(self, tensor: Tensor) -> NDArray[np.uint8]:
        """A tensor's bytes, mapped."""
        return self.data[tensor.start : tensor.start + tensor.num_bytes]

    def values(self, tensor: Tensor, num_rows: int | None = None) -> NDArray[np.float32] | None:
        """A tensor's numbers, or those of its first rows; None if its type is not known."""
        columns = tensor.shape[-1]
        rows = math.prod(tensor.shape[:-1])
        length, size = ggml.SIZES[tensor.kind]
        data = self.raw(tensor).reshape(rows, columns // length * size)
        found = ggml.dequantize(data[:num_rows], tensor.kind)
        if found is None or (num_rows is not None and num_rows < rows):
            return found
        return found.reshape(tensor.shape)


def read_gguf(path: Path) -> Gguf:
    """Map a file and check all of it but the tensors' numbers. Raises: MissingInput, BadData."""
    try:
        size = path.stat().st_size
        data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    return parse_gguf(data, path)


def parse_gguf(data: NDArray[np.uint8], path: Path) -> Gguf:
    """The content of a file. Raises: BadData."""
    return _Parser(data, path).parse()


class _Parser:
    def __init__(self, data: NDArray[np.uint8], path: Path) -> None:
        self._array, self._path, self._at = data, path, 0
        self._data = memoryview(data)  # type: ignore[arg-type]
        self._num_strings = 0

    def parse(self) -> Gguf:
        if bytes(self._data[:4]) != MAGIC:
            self._fail("is no GGUF file")
        self._at = 4
        version = self._number("I")
        if version >> 16 and not version & 0xFFFF:
            self._fail("is big-endian, for another kind of machine")
        if version not in VERSIONS:
            self._fail(f"is of version {version}; cdcca reads 2 and 3")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > MOST_TENSORS or num_keys > MOST_KEYS:
            self._fail(f"has {num_tensors:,} tensors and {num_keys:,} keys: damaged")
        first = self._at
        keys: dict[str, Value | Array] = {}
        for _ in range(num_keys):
            name = self._name()
            if name in keys:
                self._fail(f"has the key {name[:80]!r} twice")
            keys[name] = self._value(self._number("I"))
        key_bytes = bytes(self._data[first : self._at])
        alignment = keys.get("general.alignment", ALIGNMENT)
        if (
            type(alignment) is not int
            or not 0 < alignment <= _MOST_ALIGNMENT
            or alignment & alignment - 1
        ):
            self._fail("general.alignment is no power of two")
        infos = [self._info() for _ in range(num_tensors)]
        begin = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in infos:
            length, size = ggml.SIZES[kind]
            num_bytes = math.prod(shape) // length * size
            start = begin + offset
            if name in tensors:
                self._fail(f"has the tensor {name[:80]!r} twice")
            if offset % alignment or start + num_bytes > len(self._data):
                self._fail(f"the tensor {name[:80]!r} is not within the file: cut short or damaged")
            tensors[name] = Tensor(name, shape, kind, start, num_bytes)
        self._refuse_overlap(tensors)
        return Gguf(self._path, self._array, keys, num_keys, key_bytes, tensors, alignment)

    def _refuse_overlap(self, tensors: Mapping[str, Tensor]) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda one: (one.start, one.num_bytes)):
            if tensor.start < end:
                self._fail(f"the tensor {tensor.name[:80]!r} overlaps another")
            end = tensor.start + tensor.num_bytes

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name()
        num_dimensions = self._number("I")
        if not 0 < num_dimensions <= _MOST_DIMENSIONS:
            self._fail(f"the tensor {name[:80]!r} has {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        if kind not in ggml.SIZES:
            self._fail(f"the tensor {name[:80]!r} is of type {kind}, which cdcca does not know")
        if 0 in shape or math.prod(shape) >= 1 << 62 or shape[-1] % ggml.SIZES[kind][0]:
            self._fail(f"the tensor {name[:80]!r} has a shape that cannot be: {list(shape)}")
        return name, shape, kind, offset

    def _value(self, kind: int, depth: int = 0) -> Value | Array:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            text = self._bytes(self._number("Q"))
            return "" if len(text) > _LONGEST_TEXT else bytes(text).decode("utf-8", "replace")
        if kind != _ARRAY or depth > 1:
            self._fail(f"has a key of type {kind}, nested {depth} deep")
        inner, length = self._number("I"), self._number("Q")
        if inner in _SIZES:
            self._bytes(_SIZES[inner] * length)
        else:
            self._num_strings += length
            if self._num_strings > MOST_STRINGS:
                self._fail("has more texts than any vocabulary: damaged")
            if inner == _STRING:
                self._skip_strings(length)
            else:
                for _ in range(length):
                    self._value(inner, depth + 1)
        return Array(inner, length)

    def _skip_strings(self, count: int) -> None:
        at, unpack, data = self._at, struct.Struct("<Q").unpack_from, self._data
        last = len(data) - 8
        for _ in range(count):
            if at > last:
                self._fail("is cut short, or damaged")
            at += 8 + unpack(data, at)[0]
        self._at = at
        self._bytes(0)

    def _name(self) -> str:
        length = self._number("Q")
        if length > _LONGEST_NAME:
            self._fail("has a name of too many letters: damaged")
        try:
            return bytes(self._bytes(length)).decode()
        except UnicodeDecodeError:
            self._fail("has a name that is not UTF-8")

    def _number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self._bytes(struct.calcsize(f"<{letter}")))[0]

    def _bytes(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            self._fail("is cut short, or damaged")
        found = self._data[self._at : end]
        self._at = end
        return found

    def _fail(self, fault: str) -> NoReturn:
        raise BadData(f"{self._path}: {fault}")


def write_gguf(
    out: files.Writable, keys: Mapping[str, Value], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a file of float32 and float16 tensors. Whole numbers become u32, others float32."""
    made = b"".join(_text(name) + _encoded(value) for name, value in keys.items())
    entries = [(name, array.shape, _kind(array), array) for name, array in tensors.items()]
    _write(out, len(keys), made, entries, ALIGNMENT)


def write_copy(out: files.Writable, source: Gguf, put: Mapping[str, NDArray[Any]]) -> None:
    """Write a copy in which some tensors are replaced, and others added behind all.

    Keys and the bytes of all other tensors stay as they are. put: float32 and float16.
    """
    entries: list[tuple[str, Sequence[int], int, NDArray[Any]]] = []
    for name, tensor in source.tensors.items():
        if name not in put:
            entries.append((name, tensor.shape, tensor.kind, source.raw(tensor)))
        else:
            entries.append((name, put[name].shape, _kind(put[name]), put[name]))
    entries += [
        (name, array.shape, _kind(array), array)
        for name, array in put.items()
        if name not in source.tensors
    ]
    _write(out, source.num_keys, source.key_bytes, entries, source.alignment)


def _write(
    out: files.Writable,
    num_keys: int,
    keys: bytes,
    entries: Sequence[tuple[str, Sequence[int], int, NDArray[Any]]],
    alignment: int,
) -> None:
    infos, offset = [], 0
    for name, shape, kind, array in entries:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(_text(name) + dimensions + struct.pack("<IQ", kind, offset))
        offset += array.nbytes + -array.nbytes % alignment
    head = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(entries), num_keys) + keys
    head += b"".join(infos)
    out.write(head + bytes(-len(head) % alignment))
    for *_, array in entries:
        out.write(memoryview(np.ascontiguousarray(array)).cast("B"))  # type: ignore[arg-type]
        out.write(bytes(-array.nbytes % alignment))


def _kind(array: NDArray[Any]) -> int:
    return {"<f4": ggml.F32, "<f2": ggml.F16}[array.dtype.newbyteorder("<").str]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encoded(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 6
    return struct.pack(f"<I{_NUMBERS[kind]}", kind, value)
