"""The record: one safetensors file, the container of every other format here.

    8 bytes            H, the length of the header: unsigned, little-endian
    H bytes            the header: a JSON object in UTF-8, padded at its end with spaces so that
                       H is a multiple of 8 (a reader accepts any H)
    the rest           the tensors' bytes, little-endian, C order, end to end

The header maps each tensor's name to {"data_offsets": [begin, end], "dtype": D, "shape": [...]},
offsets counted from the first byte after the header, and "__metadata__" to an object with exactly
one key, "cdcca" (safetensors libraries write several keys in random order), whose value is a
string: a second JSON object, keys sorted, no spaces, ASCII. It has at least "kind" (a string) and
"version" (a positive whole number); the rest is defined by the format of that kind.

D is one of F32 F16 I8 U8 I32 I64 U16. A writer stores tensors in ascending order of their names; a
reader accepts any order, but together they must cover the bytes exactly, without hole or overlap,
and each range must be as long as its shape and dtype say. Records can follow each other in a stream
with nothing between them.

A reader refuses: a header over 1 MiB or a record over 1 GiB (both are options), JSON that `text`
refuses, more than 8 dimensions, a shape whose nonzero dimensions multiply to more than 2^40, and
anything cut short. It checks `kind` and `version` before the tensors, so a newer format is called
newer, not damaged.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, BinaryIO, Literal, TypeVar, get_args, get_origin

import numpy as np

from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.files import Writable
from cdcca_cli.formats.digest import DTYPES, dtype_name, little_endian_bytes
from cdcca_cli.text import is_text, load_json

_CHUNK_BYTES = 1 << 20
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 1 << 40


@dataclass(frozen=True)
class Limits:
    """The most that a reader takes in before it refuses."""

    header_bytes: int = 1 << 20
    record_bytes: int = 1 << 30


DEFAULT_LIMITS = Limits()
HEAD: dict[str, Any] = {"kind": str, "version": int}
"""The fields of every header, as hints for `fields`."""


Slot = tuple[np.dtype, tuple[int, ...], int, int]
"""Dtype, shape, begin and end of a tensor."""


class CutShort(BadData):
    """A stream that ends inside a record: sound as far as it goes."""


@dataclass(frozen=True)
class Record:
    """Arrays (little-endian, aligned, writable), header, size in bytes; head: 8 + H bytes."""

    tensors: dict[str, np.ndarray]
    header: dict[str, Any]
    num_bytes: int = 0
    head: bytes = b""


def dump_json(value: object) -> str:
    """JSON with sorted keys and no spaces, ASCII only; ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode_header(tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> bytes:
    """The first 8 + H bytes of a record."""
    table: dict[str, Any] = {"__metadata__": {"cdcca": dump_json(header)}}
    end = 0
    for name in sorted(tensors):
        array = tensors[name]
        begin, end = end, end + array.nbytes
        table[name] = {
            "data_offsets": [begin, end],
            "dtype": dtype_name(array),
            "shape": list(array.shape),
        }
    text = dump_json(table).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > DEFAULT_LIMITS.header_bytes:
        raise BadData(
            f"a {header['kind']} with {len(tensors):,} tensors needs a header of {len(text):,} "
            f"bytes; at most {DEFAULT_LIMITS.header_bytes:,} can be read again"
        )
    return struct.pack("<Q", len(text)) + text


def write_record(
    out: Writable, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> int:
    """Write one record; returns its length in bytes. `header` must have "kind" and "version"."""
    head = encode_header(tensors, header)
    out.write(head)
    for name in sorted(tensors):
        out.write(little_endian_bytes(tensors[name]))
    return len(head) + sum(array.nbytes for array in tensors.values())


def read_record(
    stream: BinaryIO,
    *,
    kinds: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    where: str = "input",
) -> Record | None:
    """The next record, or None at the end of the stream. BadData, NewerFormat.

    kinds: the kinds that are expected, each with the newest version that is read; None: any.
    """
    head = read_head(stream, limits=limits, where=where)
    if head is None:
        return None
    table, header = parse_head(head, where)
    if kinds is not None:
        expect_kind(header, kinds, where)
    slots, num_payload_bytes = check_table(table, where)
    num_bytes = len(head) + num_payload_bytes
    if num_bytes > limits.record_bytes:
        raise BadData(
            f"{where}: a record of {num_bytes:,} bytes; at most {limits.record_bytes:,} are read"
        )
    return Record(read_tensors(stream, slots, num_payload_bytes, where), header, num_bytes, head)


def read_tensors(
    stream: BinaryIO, slots: Mapping[str, Slot], num_bytes: int, where: str
) -> dict[str, np.ndarray]:
    """The tensors behind a head, as `check_table` found them. Raises: CutShort."""
    payload = read_exactly(stream, num_bytes, f"{where}: cut short inside a record's tensors")
    tensors = {}
    for name, (dtype, shape, begin, end) in slots.items():
        array = np.frombuffer(payload, dtype, count=math.prod(shape), offset=begin if end else 0)
        tensors[name] = np.require(array.reshape(shape), requirements=["A", "W"])
    return tensors


def read_head(
    stream: BinaryIO, *, limits: Limits = DEFAULT_LIMITS, where: str = "input"
) -> bytes | None:
    """The first 8 + H bytes of the next record, unchecked but for their length; None at the end."""
    prefix = stream.read(8)
    if not prefix:
        return None
    if len(prefix) < 8:
        raise CutShort(f"{where}: not a cdcca record, or cut short after {len(prefix)} bytes of it")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= limits.header_bytes:
        raise BadData(
            f"{where}: not a cdcca record: its header would be {length:,} bytes "
            f"(2 to {limits.header_bytes:,} expected)"
        )
    text = read_exactly(stream, length, f"{where}: cut short inside a record's header")
    return prefix + bytes(text)


def read_only_record(
    stream: BinaryIO,
    kinds: Mapping[str, int],
    *,
    limits: Limits = DEFAULT_LIMITS,
    where: str = "input",
) -> Record:
    """The one record of a file that holds a single one; BadData if it is empty or goes on."""
    record = read_record(stream, kinds=kinds, limits=limits, where=where)
    if record is None:
        raise BadData(f"{where}: empty; expected {_either(kinds)}: did the stage before it fail?")
    if stream.read(1):
        raise BadData(f"{where}: continues after the end of the {record.header['kind']}")
    return record


def parse_head(head: bytes, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both JSON objects of a record's first 8 + H bytes: the tensor table, and cdcca's own."""
    table = load_json(head[8:], f"{where}: the record's header")
    metadata = table.pop("__metadata__", None) if isinstance(table, dict) else None
    if not isinstance(metadata, dict):
        raise BadData(f"{where}: a safetensors file, but not one of cdcca's (no metadata)")
    if set(metadata) != {"cdcca"} or not isinstance(metadata["cdcca"], str):
        raise BadData(f"{where}: a safetensors file, but not one of cdcca's (no 'cdcca' metadata)")
    header = load_json(metadata["cdcca"], f"{where}: the record's cdcca header")
    if not isinstance(header, dict):
        raise BadData(f"{where}: the record's cdcca header is not an object")
    field(header, "kind", str, where)
    field(header, "version", int, where)
    return table, header


def expect_kind(header: Mapping[str, Any], kinds: Mapping[str, int], where: str) -> None:
    """Refuse another kind (BadData) or a newer version (NewerFormat)."""
    kind = header["kind"]
    if kind not in kinds:
        raise BadData(f"{where}: expected {_either(kinds)}, found {_named(kind)}")
    check_version(header["version"], kinds[kind], f"{kind} format", where)


def check_version(version: int, newest: int, name: str, where: str) -> None:
    """Refuse a version below 1 (BadData) or above the newest that is read (NewerFormat)."""
    if version > newest:
        raise NewerFormat(
            f"{where}: {name} version {version}; this cdcca reads up to {newest}: upgrade it"
        )
    if version < 1:
        raise BadData(f"{where}: version {version}; they begin at 1")


def _named(kind: str) -> str:
    words = dict.fromkeys(("shards", "frames", "shard"), "token shards")
    words |= {"end": "the end of a token stream", "trust": "a trust list"}
    words |= dict.fromkeys(("label", "lessons", "lesson"), "a teacher's labels")
    return words.get(kind, ("an " if kind[:1] in "aeiou" else "a ") + kind[:40])


def _either(kinds: Mapping[str, int]) -> str:
    names = [_named(kind) for kind in kinds if kind != "end" or len(kinds) == 1]
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} or {last}" if others else last


def read_exactly(
    stream: BinaryIO, length: int, complaint: str, *, piece_bytes: int = _CHUNK_BYTES
) -> bytearray:
    """Read in pieces, so that a false size in a header costs no memory. Raises: CutShort."""
    data = bytearray()
    while len(data) < length:
        piece = stream.read(min(length - len(data), piece_bytes))
        if not piece:
            raise CutShort(
                f"{complaint}: {length:,} bytes expected, {len(data):,} found: fetch it again"
            )
        data += piece
    return data


def check_table(table: Mapping[str, Any], where: str) -> tuple[dict[str, Slot], int]:
    """Where each tensor is, and how many bytes all take. BadData."""
    slots = {}
    for name, entry in table.items():
        place = f"{where}: tensor {name[:80]!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise BadData(f"{place}: expected dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise BadData(f"{place}: unknown dtype {str(entry['dtype'])[:20]!r}")
        dtype = DTYPES[entry["dtype"]]
        shape, offsets = entry["shape"], entry["data_offsets"]
        for numbers in (shape, offsets):
            if not isinstance(numbers, list) or not all(
                type(number) is int and 0 <= number <= _MAX_DIMENSION for number in numbers
            ):
                raise BadData(f"{place}: shape and offsets must be lists of whole numbers")
        if len(shape) > _MAX_DIMENSIONS or len(offsets) != 2:
            raise BadData(f"{place}: {len(shape)} dimensions, {len(offsets)} offsets")
        begin, end = offsets
        if math.prod(size for size in shape if size) > _MAX_DIMENSION:
            raise BadData(f"{place}: the shape {shape} has more than {_MAX_DIMENSION:,} elements")
        needed = math.prod(shape) * dtype.itemsize
        if end - begin != needed:
            raise BadData(
                f"{place}: {entry['dtype']} of shape {shape} takes {needed:,} bytes, "
                f"its offsets {begin:,} to {end:,} give {end - begin:,}"
            )
        slots[name] = (dtype, tuple(shape), begin, end)
    reached = 0
    for name, (_, _, begin, end) in sorted(slots.items(), key=lambda slot: slot[1][2:]):
        if begin != reached:
            fault = "overlaps another" if begin < reached else "leaves a hole before it"
            raise BadData(f"{where}: tensor {name[:80]!r} {fault} (at byte {begin:,})")
        reached = end
    return slots, reached


T = TypeVar("T")


def field(header: Mapping[str, Any], name: str, kind: type[T], where: str) -> T:
    """A field of the type it must have, as `fields` checks it. BadData."""
    value: T = _typed(header.get(name), kind, name, where)
    return value


def fields(
    data: object, hints: Mapping[str, Any], where: str, *, exact: bool = True
) -> dict[str, Any]:
    """The fields of an object, each of the type in `hints`. Raises: BadData.

    A whole number is a float too, a boolean is neither; floats are finite, and texts fit in UTF-8.
    hints: str, int, float, bool, list, dict, a list or tuple of one of these, a Literal of strings,
    or one of these or None. exact: refuse keys that have no hint and require those that have one.
    """
    if not isinstance(data, dict):
        raise BadData(f"{where}: expected an object, found {_found(data)}")
    if exact:
        exact_keys(data, set(hints), where)
    return {name: _typed(data.get(name), hint, name, where) for name, hint in hints.items()}


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint) or hint, get_args(hint)


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    kind, inner = _parts(hint)
    if NoneType in inner:
        return None if value is None else _typed(value, inner[0], name, where)
    if kind is Literal:
        if _typed(value, str, name, where) not in inner:
            raise BadData(f"{where}: {name} {value[:40]!r}; expected {' or '.join(inner)}")
        return value
    if kind in (list, tuple) and inner:
        items = _typed(value, list, name, where)
        return kind(_typed(item, inner[0], name, where) for item in items)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise BadData(f"{where}: {name!r} is too large a number") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadData(f"{where}: {name!r} must be {_TYPES[kind]}, found {_found(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadData(f"{where}: {name!r} is not a finite number")
    if isinstance(value, str) and not is_text(value):
        raise BadData(f"{where}: {name!r} has a lone surrogate, which is not text")
    return value


def _found(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def exact_keys(header: Mapping[str, Any], names: set[str], where: str) -> None:
    """Refuse keys that the format does not have: a newer format must have a newer version."""
    if unknown := set(header) - names:
        raise BadData(f"{where}: unknown key {min(unknown)[:40]!r}")
    if missing := names - set(header):
        raise BadData(f"{where}: {min(missing)!r} is missing")


def expect_tensors(record: Record, expected: Mapping[str, str], where: str) -> None:
    """Refuse other tensors than these, by name and dtype."""
    found = {name: dtype_name(array) for name, array in record.tensors.items()}
    if found != dict(expected):
        raise BadData(f"{where}: expected the tensors {_listed(expected)}, found {_listed(found)}")


def _listed(tensors: Mapping[str, str]) -> str:
    words = [f"{name[:40]} {dtype}" for name, dtype in sorted(tensors.items())]
    return ", ".join(words[:8]) or "none"


_TYPES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
