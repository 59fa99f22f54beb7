"""Files that are meant to do harm: by what they declare, by how much they unfold to, by numbers.

Each is refused for what it is, not only because it leads to another target in the end: every one
here that holds an update has been signed by a key that the device trusts, with length and hash
right, so that nothing stands before the parser. `payloads` has those that a codec must refuse,
`headers` those that the formats must.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import zstandard

from cdcca_cli.downlink.codecs import exact
from cdcca_cli.downlink.codecs.payload import with_sequence
from cdcca_cli.formats import records
from tests.downlink import changes, forged
from tests.downlink.forged import made, raw, sealed

Bombs = Iterator[tuple[str, bytes]]
HEADER_BYTES = (1 << 18) - 64
_MAGIC = b"\x28\xb5\x2f\xfd"
_F32 = struct.Struct("<f")


def block(content: bytes, *, last: bool = True) -> bytes:
    """A block of zstd's that is not compressed."""
    return struct.pack("<I", len(content) << 3 | last)[:3] + content


def repeated(byte: bytes, count: int, *, last: bool = True) -> bytes:
    """A block of zstd's: one byte, so many times (2^17 at most)."""
    return struct.pack("<I", count << 3 | 1 << 1 | last)[:3] + byte


def declaring(declared: int, blocks: bytes) -> bytes:
    """A zstd frame of one segment that declares so many bytes and holds these blocks."""
    return _MAGIC + b"\xe0" + struct.pack("<Q", declared) + blocks


def unfolding(byte: bytes, count: int) -> bytes:
    """A zstd frame that declares and holds one byte so many times."""
    whole, rest = divmod(count, 1 << 17)
    return declaring(count, whole * repeated(byte, 1 << 17, last=False) + repeated(byte, rest))


def frames(content: bytes) -> Bombs:
    """Frames that do not hold this content, or not in the one way that is allowed."""
    sound = forged.frame(content)
    size = len(content)
    longer = block(content + b"\0")
    zeros = b"".join(repeated(b"\0", 1 << 17, last=False) for _ in range(1 << 12))
    for name, declared in (("2^40", 1 << 40), ("2^62", 1 << 62), ("2^64", (1 << 64) - 1)):
        yield f"declares {name} bytes", declaring(declared, block(content))
    yield "declares nothing", declaring(0, block(content))
    yield "declares one too few", declaring(size - 1, block(content))
    yield "declares one too many", declaring(size + 1, block(content))
    yield "holds one too many", declaring(size, longer)
    yield "holds one too few", declaring(size, block(content[:-1]))
    yield "holds half a gigabyte", declaring(size, zeros + repeated(b"\0", 1))
    yield "declares and holds half a gigabyte", declaring(1 << 29, zeros + repeated(b"\0", 0))
    yield "holds nothing", declaring(size, block(b""))
    yield (
        "has no declared size",
        zstandard.ZstdCompressor(write_content_size=False).compress(content),
    )
    yield "has a window of 2^41", _MAGIC + b"\x00\xff" + block(content)
    yield (
        "needs a dictionary",
        _MAGIC + b"\xe1" + b"\x05" + struct.pack("<Q", size) + block(content),
    )
    yield "sets a reserved bit", _MAGIC + b"\xe8" + struct.pack("<Q", size) + block(content)
    yield "has a reserved block", declaring(size, struct.pack("<I", size << 3 | 7)[:3] + content)
    yield (
        "has a wrong checksum",
        _MAGIC + b"\xe4" + struct.pack("<Q", size) + block(content) + b"\1\2\3\4",
    )
    yield "is cut", sound[:-1]
    yield "is cut after its magic number", sound[:5]
    yield "is of another kind", b"\x1f\x8b" + sound[2:]
    yield "goes on", sound + b"\0"
    yield "is two frames", sound + sound
    yield "begins with a frame to be skipped", b"\x50\x2a\x4d\x18\4\0\0\0abcd" + sound
    yield "is a frame to be skipped", b"\x50\x2a\x4d\x18" + struct.pack("<I", 1 << 31) + b"ab"
    yield "is not there", b""


def _signed_payload(codec: str, payload: bytes, coding: dict[str, Any] | None = None) -> bytes:
    coding = made(codec).coding if coding is None else coding
    return sealed(forged.update(codec, payload, coding))


def payloads(codec: str) -> Bombs:
    """Updates of this codec whose payload cannot be, each with a name."""
    yield from _cut_payloads(codec)
    parts = {"usq": _usq, "ternary": _usq, "sign": _sign, "nf4-mixed": _mixed, "exact": _exact}
    for name, found in parts[codec](codec):
        yield f"{codec}: {name}", found


def _cut_payloads(codec: str) -> Bombs:
    payload = made(codec).payload
    yield f"{codec}: empty", _signed_payload(codec, b"")
    yield f"{codec}: the sequence alone", _signed_payload(codec, payload[:8])
    yield f"{codec}: another sequence", _signed_payload(codec, b"\2" + payload[1:])
    yield f"{codec}: goes on", _signed_payload(codec, payload + b"\0")
    yield f"{codec}: zeros", _signed_payload(codec, with_sequence(1, bytes(1 << 16)))
    yield f"{codec}: ones", _signed_payload(codec, with_sequence(1, b"\xff" * (1 << 16)))


UNSOUND = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "0": 0.0,
    "-0": -0.0,
    "below zero": -1e-3,
    "subnormal": 2.0**-127,
    "the smallest subnormal": 2.0**-149,
}


def _usq(codec: str) -> Bombs:
    parts = forged.parts_of(made(codec).payload)
    steps, header = parts["steps"], parts["header"]

    def other(**changed: bytes) -> bytes:
        return _signed_payload(codec, forged.joined({**parts, **changed}))

    def step(data: bytes) -> bytes:
        return steps[:1] + data + steps[5:]

    for name, value in UNSOUND.items():
        yield f"a step that is {name}", other(steps=step(_F32.pack(value)))
    if codec == "usq":
        yield "a step of 1e38", other(steps=step(_F32.pack(1e38)))
        yield "a change that is no float32", other(steps=step(_F32.pack(1e36)))
        assert header[2] == 2, "codes beyond the last plane take two bytes here"
        three = header[:2] + b"\3" + header[3:]
        yield (
            "a code beyond 2^24",
            other(header=three, rests=3 * b"\xff" * (len(parts["rests"]) // 2)),
        )
        yield "rests of another width", other(header=three)
        yield "fewer places", other(places=bytes(len(parts["places"])))
    yield "a step too few", other(steps=bytes([steps[0] - 1]) + steps[5:])
    yield "a step too many", other(steps=bytes([steps[0] + 1]) + steps[1:] + steps[1:5])
    yield "255 steps", other(steps=b"\xff" + steps[1:])
    yield "a class too many", other(header=bytes([header[0] + 1]) + header[1:] + b"\0\0")
    yield "255 classes", other(header=b"\xff" + header[1:])
    yield (
        "255 classes of nothing",
        other(header=b"\xff" + 255 * b"\0\0", steps=b"\xff" + 255 * _F32.pack(1.0)),
    )
    yield "no classes", other(header=b"\0", steps=b"\0")
    yield "no header", other(header=b"")
    yield "a header that goes on", other(header=header + b"\0")
    yield "a header that is cut", other(header=header[:-1])
    yield "16 planes", other(header=header[:1] + b"\x10" + header[2:])
    yield "255 planes", other(header=header[:1] + b"\xff" + header[2:3] + 255 * b"\0\xff\xff\0\0")
    yield "no planes", other(header=header[:1] + b"\0" + header[2:])
    yield "rests of 4 bytes", other(header=header[:2] + b"\4" + header[3:])
    yield "rests of 255 bytes", other(header=header[:2] + b"\xff" + header[3:])
    yield "rests of one byte more", other(header=header[:2] + bytes([header[2] + 1]) + header[3:])
    yield "a plane of form 2", other(header=header[:3] + b"\2" + header[4:])
    yield (
        "a plane of the other form",
        other(header=header[:3] + bytes([1 - header[3]]) + header[4:]),
    )
    yield "a plane of 2^32 bytes", other(header=header[:4] + b"\xff\xff\xff\xff" + header[8:])
    num_values = sum(value.size for value in forged.base().values())
    wide = bytes([1, 15, 0]) + 15 * struct.pack("<BI", 0, num_values)
    content = {**parts, "classes": bytes([1]) * 7, "header": wide}
    content["steps"] = b"\1" + _F32.pack(1.0)
    content["places"], content["sizes"] = bytes(num_values), bytes(14 * num_values)
    yield "15 planes of a byte for each value", _signed_payload(codec, forged.joined(content))
    yield "a tensor of class 255", other(classes=b"\xff" + parts["classes"][1:])
    yield "a tensor of another class", other(classes=b"\0" + parts["classes"][1:])
    yield "too few signs", other(signs=parts["signs"][:-1])
    yield "too many signs", other(signs=parts["signs"] + b"\0")
    yield "places beyond the end", other(places=b"\xff" * (len(parts["places"]) - 1) + b"\0")
    body = forged.joined(parts)
    lengths = body.index(parts["steps"]) + len(parts["steps"])
    for name, number in (("2^32", (1 << 32) - 1), ("0", 0), ("2^31", 1 << 31)):
        for place in range(6):
            changed = bytearray(body)
            struct.pack_into("<I", changed, lengths + 4 * place, number)
            if bytes(changed) != body:
                yield f"part {place} of {name} bytes", _signed_payload(codec, bytes(changed))
    for part in ("classes", "places", "sizes", "rests"):
        if not parts[part]:
            continue
        for name, data in frames(parts[part]):

            def as_it_is(content: bytes, part: str = part, data: bytes = data) -> bytes:
                return data if content == parts[part] else forged.frame(content)

            yield (
                f"the frame of {part} {name}",
                _signed_payload(codec, forged.joined(parts, as_it_is)),
            )


def _sign(codec: str) -> Bombs:
    payload = made(codec).payload
    for name, value in UNSOUND.items():
        if value != 0:
            changed = payload[:8] + _F32.pack(value) + payload[12:]
            yield f"a size that is {name}", _signed_payload(codec, changed)
    changed = payload[:8] + bytes(4) + payload[12:]
    yield "a tensor less than its signs", _signed_payload(codec, changed)
    yield "a sign too few", _signed_payload(codec, payload[:-1])
    nothing = payload[: 8 + 4 * 7].index(bytes(4), 8)
    changed = payload[:nothing] + _F32.pack(1.0) + payload[nothing + 4 :]
    yield "a tensor more than its signs", _signed_payload(codec, changed)
    yield "cut inside the sizes", _signed_payload(codec, payload[:20])


def _mixed(codec: str) -> Bombs:
    found = made(codec)
    content = forged.content_of(found.payload)
    for name, data in frames(content):
        yield f"the frame {name}", _signed_payload(codec, data)
    yield "a frame without checksum", _signed_payload(codec, forged.frame(content))

    def with_checksum(data: bytes) -> bytes:
        return _signed_payload(codec, forged.frame(data, write_checksum=True))

    yield "scales beyond float32", with_checksum(content[:8] + b"\x7f" + content[9:])
    yield "changes beyond float32", with_checksum(content[:8] + b"\x67" + content[9:])
    yield "another sequence inside", with_checksum(b"\2" + content[1:])
    bits = found.coding["bits"]
    for name, other in (
        ("too few", bits[:-1]),
        ("too many", [*bits, 0]),
        ("none", []),
        ("3", [3, *bits[1:]]),
        ("below 0", [-8, *bits[1:]]),
        ("2^52", [1 << 52, *bits[1:]]),
        ("all others", bits[::-1]),
        ("all 8", 7 * [8]),
        ("lists", [[8], *bits[1:]]),
        ("words", ["8", *bits[1:]]),
        ("a word", "8"),
    ):
        yield f"bits that are {name}", sealed(replace(found, coding={"bits": other}))
    yield "no bits", sealed(replace(found, coding={}))
    yield "more than bits", sealed(replace(found, coding={"bits": bits, "a": 1}))


def _exact(codec: str) -> Bombs:
    content = forged.content_of(made(codec).payload[8:])
    for name, data in frames(content):
        yield f"the frame {name}", _signed_payload(codec, with_sequence(1, data))
    for name, value in (("infinite", np.inf), ("NaN", np.nan), ("-NaN", -np.nan)):
        target = {**forged.base(), "lm.norm.weight": np.array([value], np.float32)}
        yield (
            f"a value that is {name}",
            _signed_payload(codec, exact.encode(target, forged.base(), 1)),
        )


def coded_otherwise() -> Bombs:
    """A codec that has nothing to say in 'coding' and says something."""
    for codec in forged.CODECS:
        if codec != "nf4-mixed":
            yield f"{codec} with bits", sealed(replace(made(codec), coding={"bits": [8]}))


# ---------------------------------------------------------------- the formats'

_ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
_SOUND: dict[str, Any] = {"kind": "update", "version": 2, "signed": {}, "signatures": []}


def _table(**entries: Any) -> str:
    return records.dump_json({"__metadata__": {"cdcca": records.dump_json(_SOUND)}, **entries})


def headers() -> Bombs:
    """Records that are none, or none of an update's."""
    deep = "[" * 900 + "]" * 900
    fills = {
        "lists in lists": (deep, 1801),
        "empty lists": ("[]", 3),
        "empty objects": ("{}", 3),
        "small objects": ('{"":0}', 7),
        "lists of four": ("[[[[]]]]", 9),
        "long numbers": ("9" * 4000, 4001),
        "fractions": ("1e308", 6),
        "escapes": ('"\\u0041\\u0041"', 15),
    }
    for name, (piece, size) in fills.items():
        many = ",".join([piece] * ((HEADER_BYTES - 200) // size))
        yield f"a table of {name}", raw("", f'{{"a":[{many}]}}')
        text = '{"kind":"update","version":2,"signatures":[],"signed":{"coding":{"a":[%s]}}}'
        many = ",".join([piece] * ((HEADER_BYTES - 4000) // (size + 4 * piece.count('"'))))
        yield f"a header of {name}", raw(text % many)
    for name, number in (("a number of 10^5 digits", "9" * 100_000), ("2^80", str(1 << 80))):
        yield f"a shape of {name}", raw("", _table(payload=_ENTRY).replace("[4]", f"[{number}]"))
        yield (
            f"offsets of {name}",
            raw("", _table(payload=_ENTRY).replace("[0,4]", f"[0,{number}]")),
        )
    yield "no end of lists", raw("", "[" * 200_000)
    yield "no end of objects", raw("", '{"a":' * 50_000)
    yield "no end of lists in the header", raw("[" * 100_000)
    tensors = ",".join(
        f'"t{n}":{{"data_offsets":[0,0],"dtype":"U8","shape":[0]}}' for n in range(4500)
    )
    yield "4,500 tensors", raw("", _table()[:-1] + f",{tensors}}}")
    yield (
        "the beginning of 10^7 tensors",
        struct.pack("<Q", 570_000_000) + b'{"t":{},' * 9999,
    )
    yield "a header of 2^64 bytes", b"\xff" * 8 + b'{"a":1}'
    yield "a header of 2^63 bytes", struct.pack("<Q", 1 << 63) + b"{}"
    yield "a header of no bytes", bytes(8) + b"{}"
    for name, shape in (
        ("2^62", [1 << 62]),
        ("2^40 to the power of 8", 8 * [1 << 40]),
        ("2^62 and 0", [1 << 62, 0]),
        ("2^32 and 2^32", [1 << 32, 1 << 32]),
        ("nine dimensions", 9 * [1]),
        ("-4", [-4]),
        ("-2 and -2", [-2, -2]),
        ("a fraction", [4.0]),
        ("true", [True]),
        ("words", ["4"]),
        ("no list", 4),
        ("two dimensions", [2, 2]),
        ("no dimensions", []),
    ):
        entry = {**_ENTRY, "shape": shape}
        yield f"a shape of {name}", raw("", _table(payload=entry), b"abcd")
    for name, offsets in (
        ("backwards", [4, 0]),
        ("from 2^62 on", [1 << 62, (1 << 62) + 4]),
        ("below 0", [-4, 0]),
        ("three", [0, 2, 4]),
        ("a fraction", [0.0, 4]),
        ("with a hole before", [4, 8]),
        ("beyond the end", [0, 8]),
    ):
        entry = {**_ENTRY, "data_offsets": offsets}
        yield f"offsets that are {name}", raw("", _table(payload=entry), b"abcdabcd")
    second = {**_ENTRY, "data_offsets": [2, 6]}
    yield "tensors that overlap", raw("", _table(payload=_ENTRY, q=second), b"abcdef")
    yield "a tensor twice", raw("", _table(payload=_ENTRY, q=_ENTRY), b"abcd")
    third = {**_ENTRY, "data_offsets": [5, 9]}
    yield "a hole", raw("", _table(payload=_ENTRY, q=third), b"abcdefghi")
    for name in ("../../etc/passwd", "a\0b", "", "\ud800", "__metadata__2", "/", "x" * 10_000):
        yield f"a tensor called {name[:20]!r}", raw("", _table(**{name: _ENTRY}), b"abcd")
    for name, changed in (
        ("an unknown dtype", {**_ENTRY, "dtype": "C64"}),
        ("a dtype that is a list", {**_ENTRY, "dtype": ["U8"]}),
        ("no dtype", {"shape": [4], "data_offsets": [0, 4]}),
        ("one key more", {**_ENTRY, "a": 1}),
        ("floats", {**_ENTRY, "dtype": "F32", "shape": [1]}),
        ("a list", []),
        ("null", None),
    ):
        yield f"a payload that is {name}", raw("", _table(payload=changed), b"abcd")
    yield "a payload that goes on", raw("", _table(payload=_ENTRY), b"abcde")
    yield "a payload that is cut", raw("", _table(payload=_ENTRY), b"abc")
    yield "no payload", raw(_SOUND)
    bad = _table(payload=_ENTRY)
    yield "no UTF-8", raw("", bad.encode().replace(b'"payload"', b'"\xff\xfe\xfd"'), b"abcd")
    yield "half of a character", raw("", bad.encode().replace(b'"payload"', b'"\xc3"'), b"abcd")
    yield "a zero byte", raw("", bad.encode().replace(b'"payload"', b'"a\0b"'), b"abcd")
    for name, one in (
        ("a tensor", '"payload":'),
        ("metadata", '"__metadata__":'),
        ("the header", '"cdcca":'),
        ("a shape", '"shape":'),
    ):
        place = bad.index(one)
        yield f"{name} named twice", raw("", f"{bad[:place]}{one}0,{bad[place:]}", b"abcd")
    for name, text in (
        ("nothing", ""),
        ("null", "null"),
        ("a number", "1"),
        ("a word", '"update"'),
        ("no object", "[]"),
        ("no kind", '{"version":2}'),
        ("no version", '{"kind":"update"}'),
        ("version 0", '{"kind":"update","version":0}'),
        ("version -1", '{"kind":"update","version":-1}'),
        ("version 2.0", '{"kind":"update","version":2.0}'),
        ("version true", '{"kind":"update","version":true}'),
        ("another kind", '{"kind":"device","version":1}'),
        ("an overlay", '{"kind":"overlay","sequence":1,"version":1}'),
        ("a kind of zeros", '{"kind":"\\u0000","version":1}'),
        ("two kinds", '{"kind":"update","kind":"trust","version":1}'),
        ("NaN", '{"kind":"update","version":NaN}'),
        ("1e999", '{"kind":"update","version":1e999}'),
    ):
        yield f"a header that is {name}", raw(text)
    yield "metadata that is a list", raw("", '{"__metadata__":[]}')
    yield "metadata of two", raw("", '{"__metadata__":{"a":"","cdcca":"{}"}}')
    yield "metadata that is a number", raw("", '{"__metadata__":{"cdcca":1}}')
    yield "spaces", b" " * 4096
    yield "zeros", bytes(4096)
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(64)
    yield "text", b"{" + b'"a": 1, ' * 4096


JUNK: tuple[Any, ...] = (
    *(True, False, -1, 0, 0.5, 1 << 53, 1 << 63, -(1 << 63), 10**400, ""),
    *("x" * 5000, "\0", "../..", "\ud800", "sha256:" + 63 * "0", "sha256:" + 64 * "A"),
    *([], [0], [[]], {}, {"a": 1}, [None]),
)


def fields() -> Bombs:
    """A sound update with one signed field changed to each of many things, and signed then."""
    sound = sealed(made("usq"))
    head = records.read_head(BytesIO(sound)) or b""
    table, header = records.parse_head(head, "")
    rest = sound[len(head) :]

    def file(signed: dict[str, Any]) -> bytes:
        message = b"cdcca update 2\n" + records.dump_json(signed).encode()
        made_of = {**header, "signed": signed}
        made_of["signatures"] = [vars(changes.key(0).sign(message))]
        text = {"__metadata__": {"cdcca": records.dump_json(made_of)}, **table}
        return raw("", records.dump_json(text), rest)

    signed = header["signed"]
    for name in signed:
        for value in JUNK:
            if (name, value) != ("coding", {}):
                yield f"{name} that is {str(value)[:30]!r}", file({**signed, name: value})
        if name in ("base", "target", "model"):
            yield f"another {name}", file({**signed, name: forged.OTHER})
        if name not in ("model", "expires"):
            yield f"{name} that is null", file({**signed, name: None})
        yield f"no {name}", file({k: v for k, v in signed.items() if k != name})
    yield "one field more", file({**signed, "a": 1})
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    yield "a deep coding", file({**signed, "coding": {"a": deep}})
    yield "a coding of fractions", file({**signed, "coding": {"a": 0.5}})
    yield "a coding of null", file({**signed, "coding": {"a": None}})
    yield "a coding of 10^5 numbers", file({**signed, "coding": {"a": 100_000 * [1]}})
    yield "an unknown codec", file({**signed, "codec": "usq2"})
    yield "a codec of another case", file({**signed, "codec": "USQ"})


def trust_lists() -> Bombs:
    """The same for the list of trusted keys, which key 0 signs."""
    sound = changes.trust(0, version=2).as_json()

    def file(signed: dict[str, Any], more: Sequence[dict[str, str]] = ()) -> bytes:
        message = b"cdcca trust 1\n" + records.dump_json(signed).encode()
        own = vars(changes.key(0).sign(message))
        signatures = sorted([own, *more], key=lambda one: str(one["key"]))
        return raw({"kind": "trust", "version": 1, "signed": signed, "signatures": signatures})

    def key(number: int) -> str:
        return f"{number:064x}"

    def signature(number: int) -> dict[str, str]:
        return {"key": key(number), "signature": 128 * "0"}

    for name in sound:
        for value in JUNK:
            yield f"{name} that is {str(value)[:30]!r}", file({**sound, name: value})
        yield f"no {name}", file({k: v for k, v in sound.items() if k != name})
    yield "one field more", file({**sound, "a": 1})
    for count in (65, 1000, 3000):
        many = sorted([*sound["keys"], *map(key, range(count - 1))])
        yield f"{count} keys", file({**sound, "keys": many})
        yield f"{count + 192} signatures", file(sound, [signature(n) for n in range(count + 191)])
    yield "keys downwards", file({**sound, "keys": [*sound["keys"], key(0)]})
    yield "a key twice", file({**sound, "keys": 2 * sound["keys"]})
    yield "a signature twice", file(sound, [signature(1), signature(1)])


def compressed() -> Bombs:
    """Bombs in zstd around the whole file, as `apply` takes it off."""

    def of(pieces: Iterator[bytes]) -> bytes:
        writer = zstandard.ZstdCompressor(level=1).compressobj()
        return b"".join([*(writer.compress(piece) for piece in pieces), writer.flush()])

    yield "a gigabyte of zeros", of(bytes(1 << 20) for _ in range(1 << 10))
    entry = b'"t":{"data_offsets":[0,0],"dtype":"U8","shape":[0]},'
    start = struct.pack("<Q", 10_000_000 * len(entry)) + b'{"__metadata__":{"cdcca":"{}"},'
    yield "10^7 tensors", of(start if n == 0 else entry * 10_000 for n in range(1001))
    sound = sealed(made("usq"))
    yield (
        "an update and a gigabyte",
        of(sound if n == 0 else bytes(1 << 20) for n in range(1 << 10)),
    )
    yield "a frame that declares 2^62 bytes", declaring(1 << 62, block(sound))
    yield "a window of 2^41", _MAGIC + b"\x00\xff" + block(sound)
    yield "frames of nothing", declaring(0, block(b"")) * 10_000
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", (1 << 32) - 1)
    yield "4 GiB to be skipped", skipped + b"abcd"
