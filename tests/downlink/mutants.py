"""Files that were sound once: `mutant(number)` gives the same one every time.

A number is a seed: it chooses a format, a sound file of it and what happens to that: to its bytes,
to the words of its header, to the content of its frames. What has been signed is signed again, with
length and hash put right, for most of them, so that what stands behind is reached.
"""

import copy
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cdcca_cli import byte_streams
from cdcca_cli.errors import CdccaError
from cdcca_cli.formats import records
from cdcca_cli.formats.adaptation import Adaptation, HeldOut, RateAware, write_adaptation
from cdcca_cli.formats.overlay import write_overlay_file
from cdcca_cli.formats.shard import Codec, Coding, Question, Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.formats.update import Update
from tests.downlink import changes, forged
from tests.downlink.forged import CODECS, made, parts_of, sealed

GOLDEN = Path(__file__).parents[1] / "golden" / "valid"
_NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 127, 128, 254, 255, 256, 257, 65535, 65536),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 53) - 1, 1 << 53, 1 << 62, (1 << 64) - 1),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "a", "\0", "\ud800", "é", "..", [], {}, [0], {"a": 0}, 0.5, -1, 1e300),
    *(-0.0, 5e-324, 10**30, "sha256:" + 64 * "0", 64 * "0", 128 * "f", *_NUMBERS),
)


@dataclass(frozen=True)
class Mutant:
    """A file, and how it may be read: "update" or "trust" (from the downlink), "adaptation",
    "shards", "overlay"."""

    kind: str
    data: bytes


def mutant(number: int) -> Mutant:
    """The file of this number."""
    chance = random.Random(number)
    kind = chance.choices(("update", "trust", "adaptation", "shards", "overlay"), _WEIGHTS)[0]
    if kind == "update":
        return Mutant(kind, _update(chance))
    corpus = sound()[kind]
    data = chance.choice(corpus)
    how = chance.random()
    if how < 0.55:
        data = _other_words(chance, data)
    elif how < 0.65:
        data = _other_tensors(chance, data)
    elif how < 0.8:
        data = _other_arrays(chance, data)
    elif how < 0.83:
        data = _other_records(chance, data)
    else:
        data = other_bytes(chance, data, corpus)
    if kind == "trust" and chance.random() < 0.9:
        data = forged.resigned(data)
    return Mutant(kind, data)


_WEIGHTS = (70, 8, 10, 10, 2)


# ---------------------------------------------------------------- updates


def _update(chance: random.Random) -> bytes:
    codec = chance.choice(CODECS)
    how = chance.random()
    if how < 0.05:  # version 1, which nobody can sign
        first = sound()["first version"]
        if chance.random() < 0.5:
            return other_bytes(chance, first[0], first)
        return _other_words(chance, first[0])
    if how < 0.1:
        return other_bytes(chance, sealed(made(codec)), sound()["update"])
    if how < 0.25:
        return forged.resigned(_other_header_bytes(chance, sealed(made(codec))))
    if how < 0.35:
        return forged.resigned(_other_words(chance, sealed(made(codec))))
    found = made(codec)
    if how < 0.4:  # what another codec would say
        payload, coding = made(chance.choice(CODECS)).payload, made(chance.choice(CODECS)).coding
        found = replace(found, payload=payload, coding=coding)
    elif how < 0.6:
        others = [made(other).payload for other in CODECS]
        found = replace(found, payload=other_bytes(chance, found.payload, others))
    else:
        found = _other_parts(chance, found)
    if "bits" in found.coding and chance.random() < 0.2:
        bits = list(found.coding["bits"])
        bits[chance.randrange(len(bits))] = chance.choice((0, 2, 4, 8, 1, 16, -1, 1 << 40))
        found = replace(found, coding={"bits": bits})
    try:
        return sealed(found)
    except CdccaError:  # the writer is strict as well
        return other_bytes(chance, sealed(made(codec)), sound()["update"])


def _other_parts(chance: random.Random, found: Update) -> Update:
    """Change what is inside frames, and put frames and lengths right again."""
    payload = found.payload
    if found.codec in ("usq", "ternary"):
        parts = parts_of(payload)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            name = chance.choice(("steps", "header", "header", "classes", "places", "signs") * 2
                                 + ("sizes", "rests", "sequence"))  # fmt: skip
            parts[name] = _of_much_the_same_size(chance, parts[name])
        return replace(found, payload=forged.joined(parts))
    if found.codec == "exact":
        content = _of_much_the_same_size(chance, forged.content_of(payload[8:]))
        return replace(found, payload=payload[:8] + forged.frame(content))
    if found.codec == "nf4-mixed":
        content = _of_much_the_same_size(chance, forged.content_of(payload))
        return replace(found, payload=forged.frame(content, write_checksum=True))
    return replace(found, payload=_of_much_the_same_size(chance, payload))


def _of_much_the_same_size(chance: random.Random, data: bytes) -> bytes:
    """Sizes are checked first: a wrong one hides everything behind."""
    changed = other_bytes(chance, data, [data])
    if chance.random() < 0.9:
        return (changed + data[len(changed) :])[: len(data)]
    return changed


# ---------------------------------------------------------------- bytes


def other_bytes(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    """The data after one to four accidents."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place = chance.randrange(len(changed) + 1)
        chance.choice(_ACCIDENTS)(chance, changed, place, corpus)
    return bytes(changed)


def _flip(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    if place < len(data):
        data[place] ^= 1 << chance.randrange(8)


def _set(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    if place < len(data):
        data[place] = chance.choice((0, 1, 0x20, 0x22, 0x2C, 0x39, 0x7F, 0x80, 0xFF))


def _number(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    size = chance.choice((2, 4, 8))
    value = chance.choice(_NUMBERS) % (1 << 8 * size)
    data[place : place + size] = value.to_bytes(size, "little")


def _float(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    value = chance.choice((0.0, -0.0, 1e38, -1e38, 1e-45, 1e-38, float("inf"), float("nan"), 1.0))
    place -= place % 4
    data[place : place + 4] = struct.pack("<f", value)


def _cut(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    del data[place : place + chance.choice((1, 2, 8, 64, len(data)))]


def _again(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    data[place:place] = data[place : place + chance.choice((1, 2, 8, 64, 512))]


def _insert(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    data[place:place] = chance.randbytes(chance.choice((1, 2, 4, 16)))


def _fill(chance: random.Random, data: bytearray, place: int, _: Any) -> None:
    count = min(chance.choice((2, 8, 64, 1024)), len(data) - place)
    data[place : place + count] = bytes([chance.choice((0, 0xFF, 0x55))]) * count


def _splice(chance: random.Random, data: bytearray, place: int, corpus: list[bytes]) -> None:
    other = chance.choice(corpus)
    data[place:] = other[chance.randrange(len(other) + 1) if chance.random() < 0.5 else place :]


_ACCIDENTS = (_flip, _flip, _flip, _set, _set, _number, _number, _float, _cut, _again, _insert)
_ACCIDENTS = (*_ACCIDENTS, _fill, _fill, _splice)


def _other_header_bytes(chance: random.Random, data: bytes) -> bytes:
    """Accidents in the JSON, its length put right."""
    size = int.from_bytes(data[:8], "little")
    text = other_bytes(chance, data[8 : 8 + size], [data[8 : 8 + size]])
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


# ---------------------------------------------------------------- words


def _records(data: bytes) -> list[tuple[int, int, int]]:
    """Of each record: where it begins, where its tensors begin, and where it ends."""
    found = []
    stream = BytesIO(data)
    while record := records.read_record(stream):
        end = stream.tell()
        begin = end - record.num_bytes
        found.append((begin, begin + 8 + int.from_bytes(data[begin : begin + 8], "little"), end))
    return found


def _other_tensors(chance: random.Random, data: bytes) -> bytes:
    """Accidents in the tensors of one record, whose size stays."""
    _, begin, end = chance.choice(_records(data))
    return data[:begin] + _of_much_the_same_size(chance, data[begin:end]) + data[end:]


def _other_records(chance: random.Random, data: bytes) -> bytes:
    """A record less, a record more, or another order."""
    pieces = [data[begin:end] for begin, _, end in _records(data)]
    what, place = chance.randrange(4), chance.randrange(len(pieces))
    if what == 0:
        del pieces[place]
    elif what == 1:
        pieces.insert(chance.randrange(len(pieces) + 1), pieces[place])
    elif what == 2:
        del pieces[place:]
    else:
        chance.shuffle(pieces)
    return b"".join(pieces)


def _other_arrays(chance: random.Random, data: bytes) -> bytes:
    """One tensor of one record of another shape, of another type or with other values."""
    before, _, end = chance.choice(_records(data))
    record = records.read_record(BytesIO(data[before:end]))
    assert record is not None
    tensors: dict[str, np.ndarray] = dict(record.tensors)
    if not tensors:
        return data
    name = chance.choice(sorted(tensors))
    array = tensors[name]
    what = chance.randrange(6)
    if name == "text" and what < 4:  # itself JSON
        text = json.dumps(_other_value(chance, json.loads(array.tobytes())))
        array = np.frombuffer(text.encode(), np.uint8)
    elif what == 0:
        array = array.reshape(chance.choice(((-1,), (-1, 1), (1, *array.shape))))
    elif what == 1:
        array = np.concatenate([array, array]) if array.ndim else array.reshape(1)
    elif what == 2:
        array = array[: chance.randrange(2)] if array.ndim else array
    elif what == 3:
        kinds = (np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint16)
        with np.errstate(all="ignore"):
            array = array.astype(chance.choice(kinds))
    elif what == 4:
        array = array.copy()
        values = (0, 1, 127, 128, 255, 0xC0, 0x7F, 0x80)
        array.reshape(-1).view(np.uint8)[:: chance.choice((1, 2, 4))] = chance.choice(values)
    else:
        tensors[chance.choice(("a", "tokens", "text", "scales"))] = tensors.pop(name)
    if name in tensors:
        tensors[name] = array
    out = BytesIO()
    records.write_record(out, tensors, record.header)
    return data[:before] + out.getvalue() + data[end:]


def _other_words(chance: random.Random, data: bytes) -> bytes:
    """Change the two JSON objects of one record, as JSON."""
    before, middle, _ = chance.choice(_records(data))
    table: Any = json.loads(data[before + 8 : middle])
    header: Any = json.loads(table["__metadata__"]["cdcca"])
    for _ in range(chance.choice((1, 1, 2))):
        if chance.random() < 0.75:
            header = _other_value(chance, header)
        else:
            table = _other_value(chance, table)
    if isinstance(table, dict) and isinstance(table.get("__metadata__"), dict):
        table["__metadata__"]["cdcca"] = json.dumps(header, sort_keys=True, separators=(",", ":"))
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return data[:before] + struct.pack("<Q", len(text)) + text + data[middle:]


def _other_value(chance: random.Random, value: Any) -> Any:
    """The value with one thing in it changed, on any level."""
    value = copy.deepcopy(value)
    inside = value
    while True:
        if not isinstance(inside, dict | list) or not inside:
            return chance.choice(_VALUES)
        keys: list[Any] = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = chance.choice(keys)
        if isinstance(inside[key], dict | list) and inside[key] and chance.random() < 0.85:
            inside = inside[key]
            continue
        what = chance.random()
        if what < 0.1:
            del inside[key]
        elif what < 0.2 and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
        elif what < 0.2:
            inside[chance.choice(("a", "", "kind", "coding", "__metadata__", "\0"))] = inside[key]
        elif type(inside[key]) is int and what < 0.7:
            inside[key] += chance.choice((-2, -1, 1, 2, 8, -inside[key], 1 << 32))
        elif isinstance(inside[key], str) and what < 0.5:
            text = other_bytes(chance, inside[key].encode("utf-8", "surrogatepass"), [b"abc"])
            inside[key] = text.decode("latin-1")
        else:
            inside[key] = chance.choice(_VALUES)
        return value


# ---------------------------------------------------------------- what they were made of


@cache
def sound() -> dict[str, list[bytes]]:
    """Sound files of each kind."""
    golden = {path.name: path.read_bytes() for path in sorted(GOLDEN.iterdir()) if path.is_file()}

    def of(ending: str) -> list[bytes]:
        return [data for name, data in golden.items() if name.endswith(ending)]

    two = changes.trust_file(changes.trust(0, 1, 2, threshold=2, version=2), 0, 1)
    one = changes.trust_file(changes.trust(0, version=2), 0)
    return {
        "update": [sealed(made(codec)) for codec in CODECS],
        "first version": [forged.unsigned(replace(made("nf4-mixed"), model=None, version=1))],
        "trust": [one, two, *of(".trust")],
        "adaptation": [_adaptation(), *of(".adaptation")],
        "shards": [
            _written(_shards),
            *(data for data in of(".shards") if not data.startswith(byte_streams.ZSTD_MAGIC)),
        ],
        "overlay": [_written(_overlay), *of(".overlay")],
    }


def _written(write: Callable[[BytesIO], object]) -> bytes:
    out = BytesIO()
    write(out)
    return out.getvalue()


def _shard(number: int, codec: Codec) -> Shard:
    source = np.random.default_rng(number)
    tokens = source.standard_normal((4, 6)).astype(np.float16).astype(np.float32)
    questions = [
        Question("q", "What?", "vqa", ["cat", "dog"], 0.5),
        Question("c", None, "caption", None, None),
    ]
    return Shard(
        frame=f"f{number}",
        image=f"f{number}.png",
        domain="night",
        tokens=tokens,
        positions=np.array([0, 3, 4, 35], np.int32),
        scores=source.random(4).astype(np.float32),
        num_tokens=36,
        tower=forged.MODEL,
        questions=questions,
        coding=Coding(codec),
    )


def _overlay(out: BytesIO) -> None:
    write_overlay_file(out, forged.base(), 3)


def _shards(out: BytesIO) -> None:
    with writer(out) as write:
        codecs: tuple[Codec, ...] = ("float32", "float16", "int8")
        for number, codec in enumerate(codecs):
            write(_shard(number, codec))


def _adaptation() -> bytes:
    overlay = {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float32)}
    held_out = HeldOut(
        [_shard(n, "float16") for n in range(2)], [["cat", "a cat"], ["dog", "a dog"]]
    )
    found = Adaptation(
        overlay,
        forged.OTHER,
        4,
        "akd",
        7,
        {"loss": 0.25},
        held_out,
        RateAware(0.5, 1.125, 60),
    )
    return _written(lambda out: write_adaptation(out, found))
