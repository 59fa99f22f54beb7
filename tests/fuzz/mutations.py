"""How valid content is changed, so that it is nearly valid and wrong in its structure.

JSON is held as Python values with two additions, because hostile JSON is more than Python can say:
`Pairs` is an object whose keys may be there twice, `Raw` a value written as it is (`1e999`, a
number of 9,000 digits, `NaN`).
"""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Random = random.Random


class Raw(str):
    """JSON text that is written as it is."""


class Pairs(list[tuple[Any, Any]]):
    """An object, key by key."""


def load(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """JSON without spaces, ASCII only; keys in the order in which they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{dump(key)}:{dump(inner)}" for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def canonical(value: Any) -> str:
    """As `records.dump_json` writes it, where that is possible."""
    if isinstance(value, Pairs):
        pairs = Pairs(sorted(value, key=lambda pair: str(pair[0])))
        return "{" + ",".join(f"{dump(key)}:{canonical(inner)}" for key, inner in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return dump(value)


# ---------------------------------------------------------------- values

_DIGEST = "sha256:" + "5e" * 32
_ATOMS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 16, 31, 32, 33, 36, 127, 128, 255, 256),
    *(65535, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**40 + 1, 2**53 - 1, 2**53, 2**62, 2**63),
    *(2**64, -(2**31), -(2**63), 10**20, 0.5, 1.5, -0.5, 1e-320, 1e308, 253402300800, 1e15),
    *(Raw("1.0"), Raw("-0"), Raw("-0.0"), Raw("1e0"), Raw("1E2"), Raw("1e308"), Raw("1e-999")),
    *(
        Raw("1e999"),
        Raw("-1e999"),
        Raw("NaN"),
        Raw("Infinity"),
        Raw("-Infinity"),
        Raw("1e99999999"),
    ),
    *(Raw("01"), Raw("1."), Raw(".5"), Raw("+1"), Raw("0x10"), Raw("1_000"), Raw("tru"), Raw("")),
    *(
        "",
        " ",
        "a",
        "\0",
        "a\0b",
        "\n",
        "\x1b[31m",
        "é",
        "\U0001f600",
        "\ufeff",
        "\u202e",
        "'",
        '"',
    ),
    *("\ud800", "\udfff", "caf\udce9.jpg", "\ude00\ud83d", "true", "1", "-1", "1.5", "null", "NaN"),
    *(
        "0",
        "٣",
        "vqa",
        "caption",
        "none",
        "int8",
        "F32",
        "U8",
        "BF16",
        "F64",
        "a" * 300,
        "a" * 5000,
    ),
    *(_DIGEST, _DIGEST[:-1], _DIGEST.upper(), _DIGEST + "0", _DIGEST[7:], "md5:" + "0" * 32),
    *("../../etc/passwd", "/etc/passwd", "overlay", "a/../b", "..", ".", "//", "C:\\x", "a" * 5000),
    *("2027-01-31", "10%", "64KiB", "QUJD", "QUJ", "zz" * 32, "ab" * 64, "=" * 8),
)


def atom(rng: Random) -> Any:
    """A value that readers may not expect."""
    pick = rng.random()
    if pick < 0.78:
        return rng.choice(_ATOMS)
    if pick < 0.86:
        digits = rng.choice((19, 20, 63, 64, 65, 309, 310, 4299, 4300, 4301, 9000))
        return Raw(rng.choice(("", "-")) + "9" * digits + rng.choice(("", "", ".5", "e5")))
    if pick < 0.92:
        return rng.choice(([], Pairs(), [[]], [None], [0], [""], Pairs([("", None)]), [Pairs()]))
    if pick < 0.96:
        depth = rng.choice((3, 20, 63, 64, 65, 70, 300, 990, 1100, 5000, 100_000))
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        return Raw(opening * depth + rng.choice(("", "1")) * (opening != "[") + closing * depth)
    count = rng.choice((100, 1000, 5000))
    return Raw("[" + ",".join([rng.choice(("[]", "{}", "0", '""', "1e5", "null"))] * count) + "]")


def number_near(rng: Random, value: float) -> Any:
    if rng.random() < 0.1:
        return Raw(f"{value}.0") if isinstance(value, int) else int(value) if value == value else 0
    return rng.choice(
        (
            value + 1,
            value - 1,
            -value,
            value * 2,
            value // 2,
            value + 256,
            value + 2**32,
            value * value,
        )
    )


def text_near(rng: Random, value: str) -> str:
    place = rng.randint(0, len(value))
    change = rng.randrange(7)
    if change == 0:
        return value[:place]
    if change == 1:
        return value[place:]
    if change == 2:
        return value[:place] + rng.choice(("\0", "\ud800", "\udce9", "é", " ", "/")) + value[place:]
    if change == 3:
        return value.upper() if rng.random() < 0.5 else value.lower()
    if change == 4:
        return value * rng.choice((2, 3, 100))
    if change == 5:
        return value[::-1]
    return f" {value} "


# ---------------------------------------------------------------- trees

Place = tuple[Any, int]  # a container, and where in it


def _places(value: Any, found: list[Place]) -> list[Place]:
    if isinstance(value, Pairs | list):
        for index, inner in enumerate(value):
            found.append((value, index))
            _places(inner[1] if isinstance(value, Pairs) else inner, found)
    return found


def _get(place: Place) -> Any:
    container, index = place
    return container[index][1] if isinstance(container, Pairs) else container[index]


def _put(place: Place, value: Any) -> None:
    container, index = place
    container[index] = (container[index][0], value) if isinstance(container, Pairs) else value


def copied(value: Any) -> Any:
    if isinstance(value, Pairs):
        return Pairs((key, copied(inner)) for key, inner in value)
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def mutate_json(rng: Random, value: Any, times: int | None = None) -> Any:
    """The value with one or a few changes somewhere in it; the value itself is not changed."""
    holder = [copied(value)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        holder = holder or [atom(rng)]
        places = _places(holder, [])
        _mutate(rng, rng.choice(places), places)
    return holder[0] if len(holder) == 1 else list(holder)


def _mutate(rng: Random, place: Place, places: list[Place]) -> None:
    container, index = place
    value = _get(place)
    change = rng.randrange(12)
    if isinstance(value, str) and rng.random() < 0.3:
        change = 8
    if change == 0 and index < len(container):
        del container[index]
    elif change == 1:
        container.insert(index, copied([container[index]])[0])
    elif change == 2:
        key = rng.choice(
            ("extra", "", "kind", "version", "__metadata__", "\ud800", "id", "a" * 500)
        )
        more = (key, atom(rng)) if isinstance(container, Pairs) else atom(rng)
        container.insert(rng.randint(0, len(container)), more)
    elif change == 3 and isinstance(container, Pairs):
        others = [pair[0] for pair in container] + ["x", "\ud83d", "Kind"]
        container[index] = (rng.choice(others), value)
    elif change == 4:
        _put(place, copied(_get(rng.choice(places))))
    elif change == 5:
        _put(place, rng.choice(([value], Pairs([("a", value)]), [value, value], str(value)[:200])))
    elif change == 6 and isinstance(value, list):
        rng.shuffle(value)
    elif change == 7 and isinstance(value, list) and not isinstance(value, Pairs):
        _put(place, [copied(inner) for _ in range(rng.choice((0, 2, 50))) for inner in value])
    elif change in (8, 9) and isinstance(value, str) and not isinstance(value, Raw):
        _put(place, text_near(rng, value))
    elif change in (8, 9) and isinstance(value, int | float) and not isinstance(value, bool | Raw):
        _put(place, number_near(rng, value))
    else:
        _put(place, atom(rng))


# ---------------------------------------------------------------- bytes


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Cut, flipped, doubled, spliced."""
    if not data:
        return rng.randbytes(rng.randint(0, 40))
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice((1, 2, 4, 8, 64, len(data))))
    change = rng.randrange(8)
    if change == 0:
        return data[:begin]
    if change == 1:
        return data[:begin] + bytes([data[begin] ^ 1 << rng.randrange(8)]) + data[begin + 1 :]
    if change == 2:
        return data[:begin] + data[end:]
    if change == 3:
        return data[:end] + data[begin:]
    if change == 4:
        return data[:begin] + rng.randbytes(end - begin) + data[end:]
    if change == 5:
        number = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)))
        return data[:begin] + number[: rng.choice((1, 2, 4, 8))] + data[end:]
    if change == 6:
        return data + rng.choice((b"\0", b"\n", b" ", data, rng.randbytes(8)))
    return bytes(end - begin).join((data[:begin], data[end:]))


# ---------------------------------------------------------------- records

SIZES = {"F32": 4, "F16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8, "U16": 2}


@dataclass
class RecordParts:
    """A record taken apart: its tensors as (name, dtype, shape, bytes), and cdcca's header."""

    header: Any
    tensors: list[tuple[str, str, Any, bytes]] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """A key of the header; None if it is not there."""
        pairs = self.header if isinstance(self.header, Pairs) else Pairs()
        return next((value for key, value in pairs if key == name), None)

    def put(self, name: str, value: Any) -> None:
        """Change a key of the header if it is there."""
        for index, pair in enumerate(self.header if isinstance(self.header, Pairs) else []):
            if pair[0] == name:
                self.header[index] = (name, value)


def split_records(data: bytes) -> list[RecordParts]:
    """The records of a valid file."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        table = dict(load(data[8 : 8 + length]))
        payload = data[8 + length :]
        metadata = dict(table.pop("__metadata__"))
        parts = RecordParts(load(metadata["cdcca"]))
        used = 0
        for name, entry in table.items():
            about = dict(entry)
            begin, end = about["data_offsets"]
            used = max(used, end)
            parts.tensors.append((name, about["dtype"], list(about["shape"]), payload[begin:end]))
        found.append(parts)
        data = payload[used:]
    return found


def join_record(parts: RecordParts, edit: Callable[[Pairs], Pairs] | None = None) -> bytes:
    """The record, its offsets right; `edit` changes the table last."""
    table, payload = Pairs(), b""
    for name, dtype, shape, data in parts.tensors:
        offsets = [len(payload), len(payload) + len(data)]
        entry = [("data_offsets", offsets), ("dtype", dtype), ("shape", shape)]
        table.append((name, Pairs(entry)))
        payload += data
    table.append(("__metadata__", Pairs([("cdcca", canonical(parts.header))])))
    table.sort(key=lambda pair: str(pair[0]))
    text = dump(edit(table) if edit else table).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def mutate_tensor(rng: Random, parts: RecordParts) -> None:
    """Another shape, dtype or content of a tensor, its offsets still right for its bytes."""
    tensors = parts.tensors
    if not tensors or rng.random() < 0.15:
        name = rng.choice(("extra", "", "\ud800", "a" * 300, "tokens.scales", "__metadata"))
        data = rng.randbytes(rng.choice((0, 4, 8)))
        tensors.append((name, rng.choice(list(SIZES)), [len(data)], data))
        return
    index = rng.randrange(len(tensors))
    name, dtype, shape, data = tensors[index]
    change = rng.randrange(9)
    if change == 0:
        del tensors[index]
        return
    if change == 1:
        tensors.append((f"{name}{rng.choice(('2', '.scales', ''))}", dtype, list(shape), data))
        return
    if change == 2:
        huge = rng.choice((1, 2, 1 << 31, 1 << 39, 1 << 40, 1 << 41, 1 << 62, 1 << 63))
        shape, data = [0] + [huge] * rng.randint(0, 8), b""
        rng.shuffle(shape)
    elif change == 3:
        shape = [1] * rng.randint(0, 9) + shape
    elif change == 4 and shape:
        rows, *rest = shape
        more = rng.choice((0, 1, rows + 1, 2 * rows, max(rows - 1, 0)))
        row_bytes = len(data) // rows if rows else 0
        shape, data = [more, *rest], (data * (more // max(rows, 1) + 1))[: more * row_bytes]
    elif change == 5:
        dtype = rng.choice(list(SIZES))
        size = SIZES[dtype]
        data = data[: len(data) // size * size]
        shape = [len(data) // size]
    elif change == 6:
        values = (float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-42, -1.0)
        data = struct.pack("<f", rng.choice(values)) + data[4:] if len(data) >= 4 else data
    elif change == 7:
        data = mutate_bytes(rng, data)
    else:
        data = rng.choice((b"\xff", b"\x80", b"\0", b"\x7f")) * len(data)
    tensors[index] = (name, dtype, shape, data)


def mutate_records(
    rng: Random,
    data: bytes,
    repair: Callable[[RecordParts], None] | None = None,
    other: bytes = b"",
) -> bytes:
    """A file of records with its structure changed.

    Args:
        repair: corrects what depends on the content (hashes, signatures), most of the time.
        other: a file of another kind, to splice in.
    """
    records = split_records(data)
    edit: Callable[[Pairs], Pairs] | None = None
    index = rng.randrange(len(records))
    change = rng.randrange(10)
    if change < 4:
        records[index].header = mutate_json(rng, records[index].header)
    elif change < 6:
        mutate_tensor(rng, records[index])
        if rng.random() < 0.3:
            records[index].header = mutate_json(rng, records[index].header)
    elif change == 6:

        def edit(table: Pairs) -> Pairs:
            return mutate_json(rng, table)

    elif change == 7:
        records.insert(rng.randint(0, len(records)), rng.choice(records))
        if rng.random() < 0.5:
            del records[rng.randrange(len(records))]
    if repair is not None and rng.random() < 0.8:
        for record in records:
            repair(record)
    pieces = [join_record(parts, edit if n == index else None) for n, parts in enumerate(records)]
    if change == 8:
        pieces[index] = mutate_bytes(rng, pieces[index])
        if rng.random() < 0.2:
            pieces.insert(index, other)
    elif change == 9:
        length = rng.choice((0, 1, 2, 7, len(pieces[index]), 1 << 20, 1 << 40, (1 << 64) - 1))
        pieces[index] = struct.pack("<Q", length) + pieces[index][8:]
    return b"".join(pieces)


# ---------------------------------------------------------------- lines and text


def mutate_lines(rng: Random, text: bytes) -> bytes:
    """JSON lines, one of them changed."""
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    change = rng.randrange(8)
    if change < 5:
        lines[index] = dump(mutate_json(rng, load(lines[index]))).encode()
    elif change == 5:
        lines.insert(index, rng.choice(lines))
    elif change == 6:
        lines.insert(index, rng.choice((b"", b"\0", b"[]", b"null", b"\xff", b"\xef\xbb\xbf")))
    else:
        lines[index] = mutate_bytes(rng, lines[index])
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines) + b"\n"


def mutate_json_file(rng: Random, text: bytes) -> bytes:
    """A file of one JSON value."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, text)
    return dump(mutate_json(rng, load(text))).encode()


_WORDS = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b'"',
        b"'",
        b"=",
        b"[",
        b"]",
        b"{",
        b"#",
        b"\n",
        b"\r",
        b",",
    ),
    *(b"1" * 5000, b"nan", b"inf", b"-1", b"1e999", b"true", b"0x10", b"1979-05-27", b"=" * 100),
    *(b"\\ud800", "\U0001f600".encode(), b"a.b.c", b"[[x]]", b"a=" * 300, b"[" * 5000, b"-" * 70),
)


def mutate_text(rng: Random, text: bytes) -> bytes:
    """Text of any kind: words put in, pieces moved, bytes changed."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randint(0, len(text))
        change = rng.randrange(4)
        if change == 0:
            text = text[:place] + rng.choice(_WORDS) + text[place:]
        elif change == 1:
            end = rng.randint(place, len(text))
            text = text[:place] + rng.choice(_WORDS) + text[end:]
        elif change == 2:
            lines = text.splitlines(keepends=True)
            rng.shuffle(lines)
            text = b"".join(lines[: rng.randint(0, len(lines))])
        else:
            text = mutate_bytes(rng, text)
    return text
