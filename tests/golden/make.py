"""Writes tests/golden: `python -m tests.golden.make`.

The files are put together here from the formats' specifications with struct and json alone, not
with the package's writers, so that they hold the package to the specification. `valid/` has one
file for each format and version and stays readable for ever; `invalid/` has one for each fault,
named after it. FAULTS says with which exit code each is refused, and a word of the message.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from tests import slow_ed25519

HERE = Path(__file__).parent
TOWER = "sha256:" + "ab" * 32
MODEL = "sha256:" + "cd" * 32
BASE = "sha256:" + "01" * 32
TARGET = "sha256:" + "02" * 32

Tensor = tuple[str, list[int], bytes]


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def halves(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}e", *values)


def dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def safetensors(table: dict[str, Any] | str, payload: bytes) -> bytes:
    """Header length, header padded to a multiple of 8, payload."""
    text = (table if isinstance(table, str) else dumps(table)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def entries(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """The tensor table in name order, and the payload."""
    table: dict[str, Any] = {}
    payload = b""
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        offsets = [len(payload), len(payload) + len(data)]
        table[name] = {"data_offsets": offsets, "dtype": dtype, "shape": shape}
        payload += data
    return table, payload


def record(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    table, payload = entries(tensors)
    return safetensors({**table, "__metadata__": {"cdcca": dumps(header)}}, payload)


ASK = {"choices": ["cat", "dog"], "entropy": 0.5, "id": "q1", "prompt": "What?", "task": "vqa"}
SHARD = {
    "kind": "shard",
    "version": 1,
    "frame": "f1",
    "image": "frames/f1.png",
    "domain": "night",
    "tower": TOWER,
    "num_tokens": 36,
    "bits": 32,
    "asks": [ASK],
}
TOKENS: Tensor = ("F32", [2, 3], floats(1.5, -2.0, 0.0, 0.25, 8.0, -0.125))
POSITIONS: Tensor = ("U16", [2], struct.pack("<2H", 4, 17))
SCORES: Tensor = ("F32", [2], floats(0.5, 0.75))
SHARD_TENSORS = {"tokens": TOKENS, "positions": POSITIONS, "scores": SCORES}

SHARD_F16 = {
    **SHARD,
    "bits": 16,
    "asks": [{"choices": None, "entropy": None, "id": "c", "prompt": None, "task": "caption"}],
    "domain": None,
}
TENSORS_F16 = {**SHARD_TENSORS, "tokens": ("F16", [2, 3], halves(1.5, -2, 0, 0.25, 8, -0.125))}

# Row 0: largest 254, scale 2, codes 127, -1, 0. Row 1: all zero, scale 0.
SHARD_I8 = {**SHARD, "bits": 8, "num_tokens": 70000}
TENSORS_I8 = {
    "tokens": ("I8", [2, 3], struct.pack("<6b", 127, -1, 0, 0, 0, 0)),
    "scales": ("F32", [2], floats(2.0, 0.0)),
    "positions": ("I32", [2], struct.pack("<2i", 0, 69999)),
    "scores": SCORES,
}


def end(count: int) -> bytes:
    return record({"kind": "end", "version": 1, "count": count}, {})


def shard(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    """The float32 shard with header keys and tensors changed; None takes a tensor out."""
    changed = {n: t for n, t in {**SHARD_TENSORS, **tensors}.items() if t is not None}
    return record({**SHARD, **(change or {})}, changed)


def shard_i8(**tensors: Tensor) -> bytes:
    return record(SHARD_I8, {**TENSORS_I8, **tensors})


# Version 2: a head, records of frames in columns, an end.
HEAD_2 = {"kind": "shards", "version": 2, "tower": TOWER}
FRAMES = {
    "kind": "frames",
    "version": 2,
    "count": 2,
    "codec": "float32",
    "codebook": None,
    "step": None,
    "columns": None,
    "other": None,
}
KLT = {"codec": "klt", "codebook": BASE, "step": 0.5}
# Frame f1 has a question with choices and a caption, f2 has nothing but a time.
INDEX = {
    "strings": ["night", "What?", "cat", "chién"],
    "layouts": [{"num_tokens": 4, "grid": [2, 2], "marks": "<img>", "fixed": [0]}],
    "frames": ["f1", "f2"],
    "images": ["frames/f1.png", "f2.png"],
    "domains": [0, None],
    "times": [None, 1700000000.5],
    "layout": [0, 0],
    "counts": [2, 0],
    "ids": ["q1", "c1"],
    "tasks": "vc",
    "prompts": [1, None],
    "choices": [[2, 3], None],
    "pictures": None,
}
# Since cdcca 0.10 the numbers behind rows and columns say where the tokens lie: here three of four
# in a grid of 1 x 3 over the middle half of a picture, from a quarter of its height above it.
PLACED = [
    {
        "num_tokens": 4,
        "grid": [1, 3, 0, 250, 1, 3, 250, 0, 500, 1500],
        "marks": "<img>",
        "fixed": [0],
    }
]
# f1 kept tokens 0 and 2, f2 token 3: bits 1010 0001.
KEPT: Tensor = ("U8", [1], bytes([0b10100001]))
FRAMES_TENSORS: dict[str, Tensor] = {
    "entropies": ("F16", [2], halves(0.5, float("nan"))),
    "kept": KEPT,
    "scores": ("F32", [3], floats(0.5, 0.75, -1.0)),
    "tokens": ("F32", [3, 2], floats(1.5, -2.0, 0.0, 0.25, 8.0, -0.125)),
}
PICTURES = b"not a picture" + b"RIFF"
MANY = {**INDEX, "strings": ["night", "What?", "cat", "chién", "image/avif", "image/webp"]}
MANY["pictures"] = [[4, 13, 24, 16], [5, 4, 1, 1]]


def packed(content: bytes) -> bytes:
    """A zstd frame of one block that is stored as it is (RFC 8878): at most 128 KiB."""
    block = len(content) << 3 | 1  # the last block, raw
    return (
        b"\x28\xb5\x2f\xfd\xa0"
        + struct.pack("<IHB", len(content), block & 65535, block >> 16)
        + content
    )


def frames(
    change: dict[str, Any] | None = None,
    index: dict[str, Any] | bytes | None = None,
    *,
    sizes: dict[str, Any] | None = None,
    tower: str = TOWER,
    sound: bool = True,
    stored: dict[str, Tensor | None] | None = None,
    **tensors: Tensor | None,
) -> bytes:
    """A record of two float32 frames, with header keys, keys of the index and tensors changed.

    None takes a tensor out. index: bytes are the content itself. sound: with the right sum. stored:
    tensors too, of any name.
    """
    content = index if isinstance(index, bytes) else dumps({**INDEX, **(index or {})}).encode()
    in_zstd = packed(content)
    changed = {**FRAMES_TENSORS, "index": ("U8", [len(in_zstd)], in_zstd), **tensors}
    changed |= stored or {}
    present = {name: tensor for name, tensor in changed.items() if tensor is not None}
    header = {**FRAMES, "sizes": {"index": len(content), **(sizes or {})}, **(change or {})}
    text = dumps({**header, "tower": tower}).encode()
    header["sum"] = overlay_digest({**present, "header": ("U8", [len(text)], text)})
    if not sound:
        header["sum"] = TARGET
    return record({**header, **(change or {})}, present)


def end_2(count: int) -> bytes:
    return record({"kind": "end", "version": 2, "count": count}, {})


def part_2(*records_of_frames: bytes, count: int | None = None) -> bytes:
    """A part of records of two frames each."""
    counted = 2 * len(records_of_frames) if count is None else count
    return record(HEAD_2, {}) + b"".join(records_of_frames) + end_2(counted)


def frames_f16() -> bytes:
    tokens = ("F16", [3, 2], halves(1.5, -2.0, 0.0, 0.25, 8.0, -0.125))
    return frames({"codec": "float16"}, tokens=tokens, scores=None)


def frames_i8(**tensors: Tensor) -> bytes:
    """All tokens kept. Row 0 has scale 2, the others are zero."""
    made: dict[str, Tensor | None] = {
        "kept": None,
        "scores": None,
        "tokens": ("I8", [8, 2], struct.pack("<2b", 127, -1) + bytes(14)),
        "scales": ("F32", [8], floats(2, *[0] * 7)),
    }
    return frames({"codec": "int8"}, {"images": None, "times": None}, **{**made, **tensors})


def codes_of(*columns: list[int]) -> bytes:
    """Column after column a byte 2q, or -2q - 1 below 0; from 255 up it follows as 4 bytes."""
    zigzag = [2 * code if code >= 0 else -2 * code - 1 for column in columns for code in column]
    beyond = [number for number in zigzag if number >= 255]
    return bytes(min(number, 255) for number in zigzag) + struct.pack(f"<{len(beyond)}I", *beyond)


def frames_klt(content: bytes, num_columns: int, **change: Any) -> bytes:
    tensors: dict[str, Tensor | None] = {"tokens": None, **change.pop("tensors", {})}
    coded = b"\0" + packed(content)
    tensors = {"codes": ("U8", [len(coded)], coded), **tensors}
    sizes = change.pop("sizes", None)
    header = {**KLT, "columns": num_columns, **change.pop("header", {})}
    return frames(header, change.pop("index", None), sizes=sizes, **tensors)


def frames_klt_whole() -> bytes:
    """A row of 3 codes a frame: 300, -1, 0 and 2, 0, 0."""
    content = codes_of([300, 2], [-1, 0], [0, 0])
    return frames_klt(content, 3, tensors={"kept": None, "scores": None})


def frames_klt_kept(**change: Any) -> bytes:
    """A row of 2 codes a token: 1, 0; -2, 0; 3, -1."""
    return frames_klt(codes_of([1, -2, 3], [0, 0, -1]), 2, **change)


def frames_pictures(index: dict[str, Any] | None = None, **tensors: Tensor) -> bytes:
    made: dict[str, Tensor | None] = dict.fromkeys(("kept", "scores", "tokens"))
    in_zstd = packed(PICTURES)
    made["pictures"] = ("U8", [len(in_zstd)], in_zstd)
    header = {"codec": "frame", "other": 4000}
    return frames(header, {**MANY, **(index or {})}, **{**made, **tensors})


# No bytes at all, but more elements than any array may have if the 0 is left out.
HUGE_AND_EMPTY: dict[str, Tensor] = {"payload": ("U8", [0, 1 << 40, 1 << 40], b"")}

OVERLAY = {
    "a.weight": ("F32", [2, 2], floats(1.0, 2.0, 3.0, 4.0)),
    "b.bias": ("F32", [3], floats(0.5, -0.5, 0.0)),
}


def overlay_digest(tensors: dict[str, Tensor]) -> str:
    """`formats.digest` says how; here from its text."""
    data = b"cdcca overlay 1\n"
    for name, (dtype, shape, content) in sorted(tensors.items()):
        for part in (
            name.encode(),
            dtype.encode(),
            struct.pack(f"<{len(shape)}Q", *shape),
            content,
        ):
            data += struct.pack("<Q", len(part)) + part
    return "sha256:" + hashlib.sha256(data).hexdigest()


# The labels of versions 0.1 to 0.6.
LESSONS = {
    "kind": "lessons",
    "version": 1,
    "teacher": MODEL,
    "vocabulary": BASE,
    "dtype": "float32",
    "bits": 16,
}
# One input for both questions: 2 queries. Ask 0 has an answer of 2 tokens, ask 1 nothing but an
# end.
LESSON = {
    "kind": "lesson",
    "version": 1,
    "key": "sha256:" + "0a" * 32,
    "answers": ["a cat é", ""],
    "nats": [0.25, 1.5],
    "inputs": [0, 0],
    "queries": [2],
    "visual": [2, 2],
    "answer": [2, 1],
}
LESSON_TENSORS: dict[str, Tensor] = {
    "queries": ("F16", [2, 3], halves(1.5, -2, 0, 0.25, 8, -0.125)),
    "visual": ("F32", [4, 1], floats(70_000, 0.5, -0.5, 3)),  # 16 bits end at 65,504
    "answer": ("F16", [3, 1], halves(1, 2, 3)),
    "logits": ("F16", [3, 2], halves(0, -1, -2, 4, 0.5, 0.75)),
}
# Of one question that an encoder-decoder answered. Row 0 of queries: scale 2; row 1: all zero.
LESSON_I8 = {
    **LESSON,
    "key": "sha256:" + "0b" * 32,
    "answers": ["two"],
    "nats": [0.0],
    "inputs": [0],
    "visual": [1],
    "answer": [0],
}
LESSON_TENSORS_I8: dict[str, Tensor] = {
    "queries": ("I8", [2, 3], struct.pack("<6b", 127, -1, 0, 0, 0, 0)),
    "queries.scales": ("F32", [2], floats(2.0, 0.0)),
    "visual": ("I8", [1, 2], struct.pack("<2b", -127, 64)),
    "visual.scales": ("F32", [1], floats(0.5)),
}
# LESSON again, its rows kept of 9 in all.
LESSON_2 = {"version": 2, "queries_of": [9], "visual_of": [9, 9]}
KEPT_ROWS: dict[str, Tensor] = {
    "queries.kept": ("I32", [2], struct.pack("<2i", 0, 7)),
    "visual.kept": ("I32", [4], struct.pack("<4i", 0, 7, 3, 8)),
}

# What a local teacher answers to two questions of one input; the second one with an end alone.
# Two likeliest tokens where the first answer's end is predicted, three at its first token.
LABEL = {
    "kind": "label",
    "version": 1,
    "frame": "f1",
    "payload": "sha256:" + "0c" * 32,
    "teacher": MODEL,
    "vocabulary": BASE,
    "dtype": "bfloat16",
    "questions": ["sha256:" + "1a" * 32, "sha256:" + "1b" * 32],
    "answers": ["a cat é", ""],
    "nats": [0.25, None],
    "ends": ["choice", None],
    "scores": [[-0.5, -2.25], None],
    "inputs": [0, 0],
    "lengths": {"answer": [2, 1], "queries": [2], "top": [2, 0], "visual": [2, 2]},
    "counts": {},
}
TOP: dict[str, Tensor] = {
    "top": ("F16", [2, 3], halves(-0.25, -2, -4, -0.5, -1.5, -65504)),
    "top.rest": ("F16", [2], halves(-3, -65504)),
    "top.ids": ("I32", [2, 3], struct.pack("<6i", 5, 0, 50271, 7, 9, -1)),
}
LABEL_TENSORS: dict[str, Tensor] = {
    "queries": ("F16", [2, 3], halves(1.5, -2, 0, 0.25, 8, -0.125)),
    "visual": ("F32", [4, 1], floats(70_000, 0.5, -0.5, 3)),  # 16 bits end at 65,504
    "answer": ("F16", [3, 1], halves(1, 2, 3)),
    **TOP,
}
# One question that a served teacher answered, without ids.
LABEL_PIECES = {
    **LABEL,
    "teacher": "https://host/v1#m",
    "vocabulary": None,
    "dtype": None,
    "questions": ["sha256:" + "1a" * 32],
    "answers": ["é!"],
    "nats": [0.5],
    "ends": ["length"],
    "scores": [None],
    "inputs": [None],
    "lengths": {"top": [2]},
}
PIECES: dict[str, Tensor] = {
    "top": ("F16", [2, 2], halves(-0.25, -65504, -0.5, -1)),
    "top.rest": ("F16", [2], halves(-1.5, -3)),
    "top.pieces": ("U16", [2, 2], struct.pack("<4H", 2, 0, 1, 3)),
    "top.bytes": ("U8", [6], "é! ok".encode()),
}
# The same with nothing but texts, and one with features of 8 bits.
LABEL_TEXT = {**LABEL_PIECES, "nats": [None], "ends": ["stop"], "lengths": {}}
LABEL_I8 = {
    **LABEL_PIECES,
    "payload": "sha256:" + "0d" * 32,
    "inputs": [0],
    "lengths": {"queries": [2], "visual": [1]},
}

ADAPTATION = {
    "kind": "adaptation",
    "version": 1,
    "base": BASE,
    "sequence": 4,
    "method": "akd",
    "seed": 7,
    "report": {"loss": 0.25},
}
ADAPTATION_3 = {
    **ADAPTATION,
    "version": 3,
    "rate_aware": {"bits": 1.125, "num_steps": 60, "step": 0.5},
    "held_out": 1,
}
ADAPTATION_2 = {**ADAPTATION_3, "version": 2, "sensitivity": [0.25, 0.0]}
PAYLOAD = bytes(range(40))
UPDATE = {
    "kind": "update",
    "version": 1,
    "base": BASE,
    "target": TARGET,
    "sequence": 5,
    "codec": "nf4-mixed",
    "bits": [4, 0],
    "num_parameters": 7,
    "payload_bytes": 40,
    "payload_sha256": hashlib.sha256(PAYLOAD).hexdigest(),
}
# The private keys of RFC 8032's tests 1 and 2 (section 7.1); everybody knows them.
SEEDS = [
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"),
    bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"),
]
KEYS = [  # as the RFC gives them
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
]
SIGNED = {
    **{n: UPDATE[n] for n in ("base", "target", "sequence", "num_parameters", "payload_bytes")},
    "payload_sha256": UPDATE["payload_sha256"],
    "codec": "nf4-mixed",
    "coding": {"bits": [4, 0]},
    "model": MODEL,
    "expires": 4102444800,
}
TRUST = {"keys": sorted(KEYS), "threshold": 2, "version": 3}
PREDICTION = {
    "v": 1,
    "id": "q1",
    "image": "frames/f1.png",
    "task": "vqa",
    "prompt": "What?",
    "answer": "cat",
    "choice": "cat",
    "choices": ["cat", "dog"],
    "choice_scores": [-0.5, -2.25],
    "entropy": {"mean": 0.5, "sum": 1.0, "max": 0.75, "first": 0.25},
    "token_entropies": [0.25, 0.75],
    "model": MODEL,
    "domain": "night",
}
CAPTION = {
    **PREDICTION,
    "id": "c1",
    "task": "caption",
    "prompt": None,
    "answer": "a cat é",
    "domain": None,
    **dict.fromkeys(("choice", "choices", "choice_scores", "token_entropies")),
}


def device_state() -> dict[str, Any]:
    digest = overlay_digest(OVERLAY)
    slot = {"sequence": 3, "digest": digest, "file": f"overlay/3-{digest[7:23]}.safetensors"}
    return {
        "kind": "device",
        "version": 1,
        "checkpoint": "shipped:student",
        "revision": None,
        "family": "blip-2",
        "qformer_layers": 2,
        "quantize": "none",
        "groups": ["norm", "bias", "query", "lora"],
        "lora": {"rank": 16, "alpha": 32.0, "seed": 0},
        "tower": TOWER,
        "current": slot,
        "previous": None,
        "highest_sequence": 3,
    }


def lessons_file(*lessons: bytes, **change: Any) -> bytes:
    """A file: the head, with keys changed, and entries."""
    return record({**LESSONS, **change}, {}) + b"".join(lessons)


def lesson(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    """An entry with header keys and tensors changed, and its sum; None takes a tensor out."""
    changed = {n: t for n, t in {**LESSON_TENSORS, **tensors}.items() if t is not None}
    return record(summed({**LESSON, **(change or {})}, changed), changed)


def lesson_2(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    """An entry of version 2, changed as `lesson` is."""
    return lesson({**LESSON_2, **(change or {})}, **{**KEPT_ROWS, **tensors})


def lesson_i8(**tensors: Tensor | None) -> bytes:
    changed = {n: t for n, t in {**LESSON_TENSORS_I8, **tensors}.items() if t is not None}
    return record(summed(LESSON_I8, changed), changed)


def label(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    """A local teacher's record with header keys and tensors changed, and its sum; None: without."""
    return _label(LABEL, LABEL_TENSORS, change, tensors)


def label_kept(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    """The same with some of its rows alone."""
    counts = {"counts": {"queries": [9], "visual": [9, 9]}}
    return label({**counts, **(change or {})}, **{**KEPT_ROWS, **tensors})


def label_i8(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    return _label(LABEL_I8, LESSON_TENSORS_I8, change, tensors)


def label_pieces(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    return _label(LABEL_PIECES, PIECES, change, tensors)


def label_text(change: dict[str, Any] | None = None, **tensors: Tensor | None) -> bytes:
    return _label(LABEL_TEXT, {}, change, tensors)


def _label(
    header: dict[str, Any],
    there: dict[str, Tensor],
    change: dict[str, Any] | None,
    tensors: dict[str, Tensor | None],
) -> bytes:
    changed = {n: t for n, t in {**there, **tensors}.items() if t is not None}
    return record(summed({**header, **(change or {})}, changed), changed)


def lengths(**change: list[Any] | None) -> dict[str, Any]:
    """The header's `lengths` with some changed; None: without."""
    made = {**LABEL["lengths"], **change}  # type: ignore[dict-item]
    return {"lengths": {name: value for name, value in made.items() if value is not None}}


def summed(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """An entry's header with its sum, unless it has one."""
    said = dumps(header).encode()
    return {"sum": overlay_digest({**tensors, "header": ("U8", [len(said)], said)}), **header}


def adaptation(**change: Any) -> bytes:
    return record({**ADAPTATION, **change}, OVERLAY)


def answers(text: str) -> bytes:
    data = text.encode()
    return record({"kind": "answers", "version": 1}, {"text": ("U8", [len(data)], data)})


def adaptation_2(
    answered: str = '[["chat é"]]', frames: bytes | None = None, **change: Any
) -> bytes:
    """Version 2, with one held-out frame and its answer."""
    return _held_out({**ADAPTATION_2, **change}, answered, frames)


def adaptation_3(
    answered: str = '[["chat é"]]', frames: bytes | None = None, **change: Any
) -> bytes:
    """Version 3, with the same."""
    return _held_out({**ADAPTATION_3, **change}, answered, frames)


def _held_out(header: dict[str, Any], answered: str, frames: bytes | None) -> bytes:
    head = record(header, OVERLAY)
    return head + answers(answered) + (shard() + end(1) if frames is None else frames)


def update(payload: bytes = PAYLOAD, **change: Any) -> bytes:
    return record({**UPDATE, **change}, {"payload": ("U8", [len(payload)], payload)})


def signatures(domain: str, signed: Any, seeds: list[bytes] = SEEDS) -> list[dict[str, str]]:
    """Over the kind, the version and the canonical text."""
    message = f"cdcca {domain}\n{dumps(signed)}".encode()
    made = [
        {
            "key": slow_ed25519.public_key(seed).hex(),
            "signature": slow_ed25519.signature(seed, message).hex(),
        }
        for seed in seeds
    ]
    return sorted(made, key=lambda entry: entry["key"])


def update_2(
    payload: bytes = PAYLOAD, header: dict[str, Any] | None = None, **change: Any
) -> bytes:
    """Version 2, signed by both keys; `change` is of what is signed, `header` of what is around."""
    signed = {**SIGNED, **change}
    head = {"kind": "update", "version": 2, "signed": signed}
    head["signatures"] = signatures("update 2", signed) if header is None else []
    return record({**head, **(header or {})}, {"payload": ("U8", [len(payload)], payload)})


def trust(header: dict[str, Any] | None = None, **change: Any) -> bytes:
    signed = {**TRUST, **change}
    head = {"kind": "trust", "version": 1, "signed": signed}
    head["signatures"] = signatures("trust 1", signed) if header is None else []
    return record({**head, **(header or {})}, {})


def codebook(
    tensors: dict[str, Tensor] | None = None, header: dict[str, Any] | None = None, **change: Any
) -> bytes:
    """Signed by both keys; `change` is of what is signed, `header` of what is around."""
    content = {**CODEBOOK_TENSORS, **(tensors or {})}
    signed = {**CODEBOOK, "tensors": overlay_digest(content), **change}
    head = {"kind": "codebook", "version": 1, "signed": signed}
    head["signatures"] = signatures("codebook 1", signed) if header is None else []
    return record({**head, **(header or {})}, content)


def points(*steps: float, **change: Any) -> dict[str, Any]:
    """A curve with these steps for tokens."""
    point = {"bits": 0.5, "bytes": 12.0, "loss": 0.25, "agreement": 0.75, **change}
    return {"tokens": [{"step": step, **point} for step in steps], "frames": []}


def prediction(**change: Any) -> bytes:
    return (dumps({**PREDICTION, **change}) + "\n").encode()


def device(**change: Any) -> bytes:
    return (dumps({**device_state(), **change}) + "\n").encode()


def overlay_file(sequence: int = 3) -> bytes:
    return record({"kind": "overlay", "version": 1, "sequence": sequence}, OVERLAY)


def slot_2(sequence: int, **change: Any) -> dict[str, Any]:
    digest = overlay_digest(OVERLAY)
    file = f"overlay/{sequence}-{digest[7:23]}.safetensors"
    return {"sequence": sequence, "digest": digest, "file": file, "signed_by": [], **change}


def device_2(**change: Any) -> bytes:
    state = {name: value for name, value in device_state().items() if name != "previous"}
    state |= {
        "version": 2,
        "model": MODEL,
        "trust": TRUST,
        "keep": 2,
        "current": slot_2(3, signed_by=sorted(KEYS)),
        "kept": [slot_2(2), slot_2(0)],
        "highest_sequence": 5,
    }
    return (dumps({**state, **change}) + "\n").encode()


def device_3(**change: Any) -> bytes:
    state = {"version": 3, "codebook": codebook_slot()}
    return device_2(**{**state, **change})


def device_4(**change: Any) -> bytes:
    groups = ["norm", "query", "lora.language"]
    state = {"version": 4, "groups": groups, "codebook": None, "template": None}
    return device_2(**{**state, **change})


def codebook_slot(**change: Any) -> dict[str, Any]:
    """As device.json names the golden codebook."""
    signed = {**CODEBOOK, "tensors": overlay_digest(CODEBOOK_TENSORS)}
    found = hashlib.sha256(b"cdcca codebook 1\n" + dumps(signed).encode()).hexdigest()
    file = f"codebooks/3-{found[:16]}.safetensors"
    slot = {"sequence": 3, "digest": f"sha256:{found}", "file": file}
    return {**slot, "signed_by": sorted(KEYS), **change}


CODEBOOK_TENSORS: dict[str, Tensor] = {
    "scale": ("F32", [3], floats(0.5, 1, 64)),
    "mean": ("F16", [2, 3], halves(1, 0, -1, 2, 0.5, 0)),
    "forward": ("F16", [3, 2], halves(1, 0, 0, 2, 0, 0)),
    "inverse": ("F16", [2, 3], halves(1, 0, 0, 0, 0.5, 0)),
    "positions": ("F16", [2, 2], halves(0.6, -0.8, 0.8, 0.6)),
    "sizes": ("F16", [2, 2], halves(0.25, 1, 4, 1)),
}
CODEBOOK: dict[str, Any] = {
    "tower": TOWER,
    "teacher": MODEL,
    "num_tokens": 2,
    "channels": 3,
    "components": 2,
    "num_frames": 80,
    "sequence": 3,
    "curve": {
        **points(0.5, 1.5),
        "frames": [
            {"media": "image/avif", "quality": 50, "bytes": 12.5, "loss": -0.5, "agreement": 1.0}
        ],
    },
}


def valid() -> dict[str, bytes]:
    """One file for each format and version."""
    stream_i8 = record(SHARD_I8, TENSORS_I8) + end(1)
    zstd = zstandard.ZstdCompressor(write_checksum=True)
    return {
        "shard_v1_f32.shards": shard() + end(1),
        "shard_v1_f16.shards": record(SHARD_F16, TENSORS_F16) + end(1),
        "shard_v1_i8.shards": stream_i8,
        "two_parts_v1.shards": shard() + end(1) + stream_i8,
        "no_shards_v1.shards": end(0),
        "two_zstd_frames_v1.shards": zstd.compress(shard() + end(1)) + zstd.compress(stream_i8),
        "shards_v2_f32.shards": part_2(frames()),
        "shards_v2_places.shards": part_2(frames(index={"layouts": PLACED})),
        "shards_v2_f16.shards": part_2(frames_f16()),
        "shards_v2_i8.shards": part_2(frames_i8()),
        "shards_v2_klt.shards": part_2(frames_klt_whole(), frames_klt_kept()),
        "shards_v2_frame.shards": part_2(frames_pictures()),
        "shards_v2_mixed.shards": part_2(frames(), frames_pictures()) + part_2(frames_i8()),
        "shards_v1_and_v2.shards": shard() + end(1) + part_2(frames()) + stream_i8,
        "no_shards_v2.shards": end_2(0),
        "head_alone_v2.shards": part_2(),
        "lessons_v1.lessons": lessons_file(lesson()),
        "lessons_v1_i8.lessons": lessons_file(lesson_i8(), bits=8),
        "lessons_v1_none.lessons": lessons_file(bits=32),
        "lessons_v1_unfinished.lessons": lessons_file(lesson(), lesson_i8()[:-9]),
        "lesson_v2.lessons": lessons_file(lesson_2()),
        "two_heads_v1.lessons": lessons_file(lesson()) + lessons_file(lesson_i8(), bits=8),
        "label_v1.labels": label(),
        "label_v1_text.labels": label_text(),
        "label_v1_pieces.labels": label_pieces(),
        "label_v1_i8.labels": label_i8(),
        "label_v1_kept.labels": label_kept(),
        "label_v1_unfinished.labels": label() + label_text()[:-9],
        "lessons_and_label.labels": lessons_file(lesson()) + label() + label_i8(),
        "predictions_v1.predictions": prediction() + (dumps(CAPTION) + "\n").encode(),
        "adaptation_v1.adaptation": adaptation(),
        "adaptation_v2.adaptation": adaptation_2(),
        "adaptation_v3.adaptation": adaptation_3(),
        "update_v1.update": update(),
        "update_v2.update": update_2(),
        "trust_v1.trust": trust(),
        "codebook_v1.codebook": codebook(),
        "overlay_v1.overlay": overlay_file(),
        "device_v1/device.json": device(),
        f"device_v1/{device_state()['current']['file']}": overlay_file(),
        "device_v2/device.json": device_2(),
        **{f"device_v2/{slot_2(number)['file']}": overlay_file(number) for number in (3, 2, 0)},
        "device_v3/device.json": device_3(),
        **{f"device_v3/{slot_2(number)['file']}": overlay_file(number) for number in (3, 2, 0)},
        f"device_v3/{codebook_slot()['file']}": codebook(),
        "device_v4/device.json": device_4(),
        **{f"device_v4/{slot_2(number)['file']}": overlay_file(number) for number in (3, 2, 0)},
    }


def with_table(edit: Callable[[dict[str, Any]], Any], payload: bytes | None = None) -> bytes:
    """A shard whose tensor table is edited, then the end record."""
    table, right = entries(SHARD_TENSORS)
    edit(table)
    table["__metadata__"] = {"cdcca": dumps(SHARD)}
    return safetensors(table, right if payload is None else payload) + end(1)


def entry(name: str, **change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda table: table[name].update(change)


def raw_shard(table_text: str) -> bytes:
    return safetensors(table_text, b"") + end(1)


def metadata(value: Any) -> bytes:
    table, payload = entries(SHARD_TENSORS)
    return safetensors({**table, "__metadata__": value}, payload) + end(1)


def bomb() -> bytes:
    """3 KB of zstd: a record that promises 512 MiB, and the first 96 MiB of it, all zero."""
    size = 1 << 29
    table = {
        "__metadata__": {"cdcca": dumps(SHARD)},
        "tokens": {"data_offsets": [0, size], "dtype": "F32", "shape": [2, size // 8]},
    }
    head = safetensors(table, b"")
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    zeros = bytes(1 << 20)
    pieces = [compressor.compress(head)] + [compressor.compress(zeros) for _ in range(96)]
    return b"".join(pieces) + compressor.flush()


def without_questions() -> bytes:
    lists = ("questions", "answers", "nats", "ends", "scores", "inputs")
    return label_text({name: [] for name in lists})


def half_a_name() -> bytes:
    """An entry with a tensor whose name cannot be written in UTF-8."""
    tensors = {**LESSON_TENSORS, "\ud83d": SCORES}
    return record({**LESSON, "sum": TARGET}, tensors)


def deep_update() -> bytes:
    table, payload = entries({"payload": ("U8", [40], PAYLOAD)})
    text = '{"kind":"update","version":2,"signed":' + DEEP
    return safetensors({**table, "__metadata__": {"cdcca": text}}, payload)


DEEP = "[" * 100_000
TRUST_HEADER = {"kind": "trust", "version": 1, "signed": TRUST, "signatures": []}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(shard() + end(1))
NAN, INF = float("nan"), float("inf")
FAULTS: dict[str, tuple[int, str, bytes]] = {
    # -- the stream
    "empty.shards": (65, "empty", b""),
    "text.shards": (
        65,
        "not a kind of file",
        b"hello, this is no stream at all\n",
    ),
    "cut_in_header_length.shards": (65, "cut short", shard() + end(1)[:5]),
    "cut_in_header.shards": (65, "cut short", shard() + end(1)[:20]),
    "cut_in_tensors.shards": (65, "cut short", shard()[:-3]),
    "cut_at_boundary.shards": (65, "without its end record", shard() + shard()),
    "cut_in_second_part.shards": (65, "without its end record", shard() + end(1) + shard()),
    "count_too_large.shards": (65, "counts 2", shard() + end(2)),
    "count_too_small.shards": (65, "counts 1", shard() + shard() + end(1)),
    "count_of_first_part.shards": (65, "counts 2", shard() + end(1) + shard() + end(2)),
    "count_negative.shards": (65, "counts -1", end(-1)),
    "count_text.shards": (
        65,
        "whole number",
        record({"kind": "end", "version": 1, "count": "1"}, {}),
    ),
    "junk_after_end.shards": (65, "not a cdcca record", shard() + end(1) + b"junk junk junk junk"),
    "newline_after_end.shards": (65, "cut short", shard() + end(1) + b"\n"),
    "end_with_tensors.shards": (
        65,
        "expected the tensors none",
        record({"kind": "end", "version": 1, "count": 0}, {"scores": SCORES}),
    ),
    "newer_version.shards": (76, "upgrade", shard({"version": 2, "colour": "blue"})),
    "newer_version_with_new_dtype.shards": (
        76,
        "upgrade",
        shard({"version": 2}, tokens=("F8_E4M3", [2, 3], bytes(6))),
    ),
    "newer_end.shards": (76, "upgrade", record({"kind": "end", "version": 3}, {})),
    "version_zero.shards": (65, "begin at 1", shard({"version": 0}) + end(1)),
    "update_in_stream.shards": (65, "found an update", shard() + update() + end(1)),
    "unknown_kind.shards": (65, "unknown kind", record({"kind": "soup", "version": 1}, {})),
    # -- zstd
    "zstd_cut.shards": (65, "cut short", ZSTD[:-30]),
    "zstd_cut_in_checksum.shards": (65, "cut short", ZSTD[:-1]),
    "zstd_bit_flipped.shards": (65, "damaged zstd", ZSTD[:-6] + bytes([ZSTD[-6] ^ 1]) + ZSTD[-5:]),
    "zstd_then_junk.shards": (65, "damaged zstd", ZSTD + b"junk"),
    "zstd_bomb.shards": (65, "at most 268,435,456", bomb()),
    "zstd_window_too_large.shards": (
        65,
        "damaged zstd",
        bytes.fromhex("28b52ffd00c8010000") + b"x",
    ),
    # -- the record
    "header_too_large.shards": (
        65,
        "header would be",
        struct.pack("<Q", 1 << 40) + b"{}" + bytes(60),
    ),
    "tensor_of_zero_times_2_80.shards": (65, "elements", record(SHARD, HUGE_AND_EMPTY)),
    "tensor_of_zero_times_2_80.lessons": (
        65,
        "elements",
        lessons_file(record(LESSON, HUGE_AND_EMPTY)),
    ),
    "tensor_of_zero_times_2_80.trust": (65, "elements", record(TRUST_HEADER, HUGE_AND_EMPTY)),
    "frame_half_a_character.shards": (65, "surrogate", shard({"frame": "caf\udce9.jpg"})),
    "image_half_a_character.shards": (65, "surrogate", shard({"image": "caf\udce9.jpg"})),
    "domain_half_a_character.shards": (65, "surrogate", shard({"domain": "\ud800"})),
    "ask_id_half_a_character.shards": (65, "surrogate", shard({"asks": [{**ASK, "id": "\udce9"}]})),
    "header_65_deep.shards": (65, "nested", shard({"asks": nested(65)})),
    "header_empty.shards": (65, "header would be 0", shard() + struct.pack("<Q", 0) + bytes(8)),
    "header_not_json.shards": (65, "not JSON", shard() + raw_shard('{"a": }')),
    "header_not_utf8.shards": (
        65,
        "not UTF-8",
        shard() + struct.pack("<Q", 8) + b'{"\xff\xfe":1 ',
    ),
    "header_a_list.shards": (65, "not one of cdcca's", shard() + raw_shard("[1, 2]")),
    "header_deep.shards": (65, "nested too deeply", shard() + raw_shard('{"a":' + DEEP)),
    "header_huge_number.shards": (
        65,
        "5,000 digits",
        shard() + raw_shard('{"a":' + "9" * 5000 + "}"),
    ),
    "header_duplicate_keys.shards": (65, "twice", shard() + raw_shard('{"a": 1, "a": 2}')),
    "cdcca_duplicate_keys.shards": (
        65,
        "twice",
        metadata({"cdcca": dumps(SHARD)[:-1] + ',"frame":"other"}'}),
    ),
    "cdcca_nan.shards": (65, "finite", metadata({"cdcca": dumps({**SHARD, "num_tokens": NAN})})),
    "cdcca_infinite.shards": (
        65,
        "finite",
        metadata({"cdcca": dumps(SHARD).replace("0.5", "1e999")}),
    ),
    "cdcca_not_a_string.shards": (65, "metadata", shard() + metadata({"cdcca": 1})),
    "cdcca_a_list.shards": (65, "not an object", metadata({"cdcca": "[]"})),
    "second_metadata_key.shards": (65, "metadata", metadata({"cdcca": dumps(SHARD), "x": "y"})),
    "kind_missing.shards": (65, "'kind'", metadata({"cdcca": '{"version":1}'})),
    "version_true.shards": (
        65,
        "whole number",
        metadata({"cdcca": '{"kind":"shard","version":true}'}),
    ),
    "size_lies_larger.shards": (
        65,
        "takes 4,000 bytes",
        with_table(entry("tokens", shape=[10, 100])),
    ),
    "size_lies_past_end.shards": (
        65,
        "cut short",
        with_table(entry("tokens", shape=[250_000, 100], data_offsets=[12, 100_000_012])),
    ),
    "size_over_limit.shards": (
        65,
        "are read",
        with_table(entry("tokens", shape=[2, 1 << 36], data_offsets=[12, 12 + (1 << 39)])),
    ),
    "shape_overflows.shards": (65, "elements", with_table(entry("tokens", shape=[1 << 40] * 8))),
    "shape_past_limit.shards": (
        65,
        "whole numbers",
        with_table(entry("tokens", shape=[1 << 62, 4])),
    ),
    "shape_negative.shards": (65, "whole numbers", with_table(entry("tokens", shape=[-2, -3]))),
    "shape_fraction.shards": (65, "whole numbers", with_table(entry("tokens", shape=[2.0, 3]))),
    "shape_nine_dimensions.shards": (65, "dimensions", with_table(entry("tokens", shape=[1] * 9))),
    "offsets_overlap.shards": (65, "overlaps", with_table(entry("tokens", data_offsets=[4, 28]))),
    "offsets_leave_hole.shards": (
        65,
        "hole",
        with_table(entry("tokens", data_offsets=[20, 44]), bytes(44)),
    ),
    "offsets_backwards.shards": (65, "takes", with_table(entry("tokens", data_offsets=[36, 12]))),
    "offsets_three.shards": (65, "offsets", with_table(entry("tokens", data_offsets=[12, 36, 48]))),
    "dtype_unknown.shards": (65, "unknown dtype", with_table(entry("tokens", dtype="F8"))),
    "dtype_a_list.shards": (65, "unknown dtype", with_table(entry("tokens", dtype=["F32"]))),
    "entry_with_extra_key.shards": (65, "expected dtype", with_table(entry("tokens", x=1))),
    "entry_a_number.shards": (65, "expected dtype", with_table(lambda t: t.update(tokens=1))),
    # -- the shard
    "tokens_nan.shards": (65, "not finite", shard(tokens=("F32", [2, 1], floats(1, NAN))) + end(1)),
    "tokens_infinite.shards": (
        65,
        "not finite",
        record(SHARD_F16, {**TENSORS_F16, "tokens": ("F16", [2, 1], halves(1, INF))}),
    ),
    "scores_nan.shards": (65, "not finite", shard(scores=("F32", [2], floats(NAN, 1)))),
    "scales_nan.shards": (65, "not finite", shard_i8(scales=("F32", [2], floats(NAN, 0)))),
    "scales_infinite.shards": (65, "not finite", shard_i8(scales=("F32", [2], floats(INF, 0)))),
    "scales_negative.shards": (65, "negative scales", shard_i8(scales=("F32", [2], floats(-2, 0)))),
    "scales_overflow.shards": (65, "not finite", shard_i8(scales=("F32", [2], floats(3e38, 0)))),
    "scales_too_few.shards": (65, "for 2 tokens", shard_i8(scales=("F32", [1], floats(2)))),
    "scales_without_need.shards": (65, "expected the tensors", shard(scales=SCORES)),
    "code_minus_128.shards": (
        65,
        "-128",
        shard_i8(tokens=("I8", [2, 3], struct.pack("<6b", -128, 0, 0, 0, 0, 0))),
    ),
    "positions_unsorted.shards": (
        65,
        "ascend",
        shard(positions=("U16", [2], struct.pack("<2H", 17, 4))),
    ),
    "positions_twice.shards": (
        65,
        "ascend",
        shard(positions=("U16", [2], struct.pack("<2H", 4, 4))),
    ),
    "positions_too_large.shards": (
        65,
        "ascend",
        shard(positions=("U16", [2], struct.pack("<2H", 4, 36))),
    ),
    "positions_negative.shards": (
        65,
        "ascend",
        shard_i8(positions=("I32", [2], struct.pack("<2i", -1, 4))),
    ),
    "positions_wide.shards": (
        65,
        "expected the tensors",
        shard(positions=("I32", [2], struct.pack("<2i", 4, 17))),
    ),
    "positions_too_few.shards": (65, "for 2 tokens", shard(positions=("U16", [1], bytes(2)))),
    "tokens_none.shards": (
        65,
        "neither 0",
        shard(tokens=("F32", [0, 3], b""), positions=("U16", [0], b""), scores=("F32", [0], b"")),
    ),
    "tokens_three_dimensions.shards": (
        65,
        "expected (N, C)",
        shard(tokens=("F32", [1, 2, 3], TOKENS[2])),
    ),
    "tokens_missing.shards": (65, "expected the tensors", shard(tokens=None)),
    "tokens_other_dtype.shards": (65, "expected the tensors", shard({"bits": 16})),
    "extra_tensor.shards": (65, "expected the tensors", shard(labels=SCORES)),
    "bits_4.shards": (65, "4 bits", shard({"bits": 4})),
    "frame_empty.shards": (65, "empty", shard({"frame": ""})),
    "frame_a_number.shards": (65, "'frame'", shard({"frame": 3})),
    "tower_no_digest.shards": (65, "not a digest", shard({"tower": "sha256:AB"})),
    "num_tokens_zero.shards": (65, "num_tokens", shard({"num_tokens": 0})),
    "num_tokens_huge.shards": (65, "num_tokens", shard({"num_tokens": 1 << 31})),
    "labels_in_header.shards": (65, "unknown key 'labels'", shard({"labels": ["cat"]})),
    "ask_unknown_task.shards": (65, "task", shard({"asks": [{**ASK, "task": "chat"}]})),
    "ask_with_labels.shards": (65, "unknown key", shard({"asks": [{**ASK, "answers": ["cat"]}]})),
    "ask_without_prompt.shards": (
        65,
        "'prompt' is missing",
        shard({"asks": [{n: v for n, v in ASK.items() if n != "prompt"}]}),
    ),
    "ask_a_string.shards": (65, "a question: expected an object", shard({"asks": ["What?"]})),
    "ask_no_choices.shards": (65, "empty list", shard({"asks": [{**ASK, "choices": []}]})),
    "ask_choice_a_number.shards": (65, "a string", shard({"asks": [{**ASK, "choices": ["a", 2]}]})),
    "ask_negative_entropy.shards": (65, "entropy", shard({"asks": [{**ASK, "entropy": -0.5}]})),
    # -- lessons
    "cut_in_head.lessons": (65, "cut short", lessons_file()[:-20]),
    "newer_head.lessons": (76, "upgrade", lessons_file(version=2)),
    "newer_lesson.lessons": (
        76,
        "upgrade",
        lessons_file(lesson({"version": 3}, queries=("F8_E4M3", [2, 3], bytes(6)))),
    ),
    "kept_in_version_1.lessons": (65, "with the tensors", lessons_file(lesson(**KEPT_ROWS))),
    "kept_missing.lessons": (
        65,
        "with the tensors",
        lessons_file(lesson_2(**{"visual.kept": None})),
    ),
    "kept_uncounted.lessons": (
        65,
        "is missing",
        lessons_file(lesson({"version": 2}, **KEPT_ROWS)),
    ),
    "kept_too_few.lessons": (
        65,
        "names another number of rows",
        lessons_file(lesson_2(**{"queries.kept": ("I32", [1], struct.pack("<i", 0))})),
    ),
    "kept_of_another_type.lessons": (
        65,
        "names another number of rows",
        lessons_file(lesson_2(**{"queries.kept": ("F32", [2], floats(0, 7))})),
    ),
    "kept_twice.lessons": (
        65,
        "do not ascend",
        lessons_file(lesson_2(**{"visual.kept": ("I32", [4], struct.pack("<4i", 0, 7, 3, 3))})),
    ),
    "kept_below_0.lessons": (
        65,
        "not among its 9",
        lessons_file(lesson_2(**{"visual.kept": ("I32", [4], struct.pack("<4i", -1, 7, 3, 8))})),
    ),
    "kept_of_fewer.lessons": (65, "not among its 8", lessons_file(lesson_2({"visual_of": [9, 8]}))),
    "kept_of_less_than_0.lessons": (65, "below 0", lessons_file(lesson_2({"queries_of": [-9]}))),
    "kept_counted_twice.lessons": (
        65,
        "names another number of rows",
        lessons_file(lesson_2({"queries_of": [9, 9]})),
    ),
    "no_head.lessons": (65, "without their head", lesson()),
    "shard_inside.lessons": (65, "found token shards", lessons_file(shard())),
    "junk_behind.lessons": (
        65,
        "not a cdcca record",
        lessons_file(lesson()) + b"junk junk junk junk",
    ),
    "zeros_behind.lessons": (65, "not a cdcca record", lessons_file(lesson()) + bytes(400)),
    "head_with_tensors.lessons": (65, "has tensors", record(LESSONS, OVERLAY)),
    "head_with_unknown_key.lessons": (65, "unknown key", lessons_file(model=MODEL)),
    "bits_4.lessons": (65, "head of its labels", lessons_file(bits=4)),
    "bits_true.lessons": (65, "'bits'", lessons_file(bits=True)),
    "dtype_unknown.lessons": (65, "head of its labels", lessons_file(dtype="float8")),
    "teacher_no_digest.lessons": (65, "head of its labels", lessons_file(teacher="blip")),
    "vocabulary_a_list.lessons": (65, "'vocabulary' must be a string", lessons_file(vocabulary=[])),
    "lesson_without_key.lessons": (65, "'key'", lessons_file(lesson({"key": "sha256:0"}))),
    "lesson_with_labels.lessons": (65, "unknown key", lessons_file(lesson({"labels": []}))),
    "sum_of_other_tensors.lessons": (
        65,
        "its sum does not match",
        lessons_file(lesson({"sum": TARGET})),
    ),
    "sum_a_number.lessons": (65, "'sum' must be a string", lessons_file(lesson({"sum": 0}))),
    "nan.lessons": (
        65,
        "not finite",
        lessons_file(lesson(visual=("F32", [4, 1], floats(1, 2, 3, NAN)))),
    ),
    "infinite_half.lessons": (
        65,
        "not finite",
        lessons_file(lesson(answer=("F16", [3, 1], halves(1, 2, INF)))),
    ),
    "queries_missing.lessons": (65, "with the tensors", lessons_file(lesson(queries=None))),
    "unknown_tensor.lessons": (65, "with the tensors", lessons_file(lesson(labels=SCORES))),
    "tensor_with_half_a_name.lessons": (65, "surrogate", lessons_file(half_a_name())),
    "codes_without_scales.lessons": (
        65,
        "with the tensors",
        lessons_file(lesson_i8(**{"visual.scales": None})),
    ),
    "scales_without_codes.lessons": (
        65,
        "with the tensors",
        lessons_file(lesson(**{"answer.scales": ("F32", [3], floats(1, 1, 1))})),
    ),
    "scales_of_halves.lessons": (
        65,
        "number of scales",
        lessons_file(lesson_i8(**{"visual.scales": ("F16", [1], halves(1))})),
    ),
    "scales_for_other_rows.lessons": (
        65,
        "number of scales",
        lessons_file(lesson_i8(**{"visual.scales": ("F32", [2], floats(1, 1))})),
    ),
    "scales_negative.lessons": (
        65,
        "below 0",
        lessons_file(lesson_i8(**{"visual.scales": ("F32", [1], floats(-0.5))})),
    ),
    "scales_nan.lessons": (
        65,
        "not finite",
        lessons_file(lesson_i8(**{"visual.scales": ("F32", [1], floats(NAN))})),
    ),
    "scales_overflow.lessons": (
        65,
        "not finite",
        lessons_file(lesson_i8(**{"visual.scales": ("F32", [1], floats(3e38))})),
    ),
    "code_minus_128.lessons": (
        65,
        "-128",
        lessons_file(lesson_i8(visual=("I8", [1, 2], struct.pack("<2b", -128, 0)))),
    ),
    "whole_numbers.lessons": (
        65,
        "int32",
        lessons_file(lesson(answer=("I32", [3, 1], bytes(12)))),
    ),
    "one_dimension.lessons": (
        65,
        "1 dimensions",
        lessons_file(lesson(answer=("F16", [3], bytes(6)))),
    ),
    "rows_too_few.lessons": (
        65,
        "2 rows of answer",
        lessons_file(lesson(answer=("F16", [2, 1], halves(1, 2)))),
    ),
    "rows_too_many.lessons": (65, "expected 3", lessons_file(lesson({"visual": [2, 1]}))),
    "rows_huge.lessons": (65, "rows of visual", lessons_file(lesson({"visual": [2, 10**30]}))),
    "rows_negative.lessons": (65, "below 0", lessons_file(lesson({"visual": [6, -2]}))),
    "rows_a_fraction.lessons": (65, "whole number", lessons_file(lesson({"visual": [2.0, 2]}))),
    "answers_too_few.lessons": (65, "1 answers", lessons_file(lesson({"answers": ["a cat"]}))),
    "answers_a_number.lessons": (65, "a string", lessons_file(lesson({"answers": ["a", 2]}))),
    "answers_half_a_character.lessons": (
        65,
        "surrogate",
        lessons_file(lesson({"answers": ["\ud83d", ""]})),
    ),
    "nats_negative.lessons": (65, "below 0", lessons_file(lesson({"nats": [0.25, -1]}))),
    "nats_huge.lessons": (65, "401 digits", lessons_file(lesson({"nats": [0.25, 10**400]}))),
    "nats_text.lessons": (65, "a number", lessons_file(lesson({"nats": [0.25, "1"]}))),
    "input_not_there.lessons": (65, "does not exist", lessons_file(lesson({"inputs": [0, 1]}))),
    # -- labels
    "newer_version.labels": (76, "upgrade", label({"version": 2}, top=("F8_E4M3", [2], b"xx"))),
    "shard_behind.labels": (65, "found token shards", label() + shard()),
    "junk_behind.labels": (65, "not a cdcca record", label() + b"junk junk junk junk"),
    "unknown_key.labels": (65, "unknown key 'model'", label({"model": MODEL})),
    "frame_a_number.labels": (65, "'frame' must be a string", label({"frame": 7})),
    "frame_half_a_character.labels": (65, "surrogate", label({"frame": "\ud83d"})),
    "payload_no_digest.labels": (65, "not a digest", label({"payload": "sha256:0"})),
    "question_no_digest.labels": (65, "not a digest", label({"questions": ["What?", BASE]})),
    "vocabulary_no_digest.labels": (65, "not a digest", label({"vocabulary": "opt"})),
    "teacher_without_name.labels": (65, "teacher of its labels", label({"teacher": ""})),
    "dtype_unknown.labels": (65, "teacher of its labels", label({"dtype": "float8"})),
    "no_questions.labels": (65, "no question, or one twice", without_questions()),
    "question_twice.labels": (65, "no question, or one twice", label({"questions": [BASE, BASE]})),
    "answers_too_few.labels": (65, "1 in 'answers'", label({"answers": ["a cat"]})),
    "answers_a_number.labels": (65, "must be a string", label({"answers": ["a", 2]})),
    "answers_half_a_character.labels": (65, "surrogate", label({"answers": ["\ud83d", ""]})),
    "nats_too_many.labels": (65, "3 in 'nats'", label({"nats": [0.25, 1, None]})),
    "nats_negative.labels": (65, "cross-entropy", label({"nats": [0.25, -1]})),
    "nats_text.labels": (65, "cross-entropy", label({"nats": [0.25, "1"]})),
    "nats_true.labels": (65, "cross-entropy", label({"nats": [0.25, True]})),
    "nats_huge.labels": (65, "cross-entropy", label({"nats": [0.25, 10**60]})),
    "ends_too_few.labels": (65, "1 in 'ends'", label({"ends": ["stop"]})),
    "end_unknown.labels": (65, "unknown end", label({"ends": ["stop", "refused"]})),
    "end_a_list.labels": (65, "unknown end", label({"ends": ["stop", []]})),
    "scores_too_few.labels": (65, "0 in 'scores'", label({"scores": []})),
    "scores_a_number.labels": (65, "scores of choices", label({"scores": [-0.5, None]})),
    "scores_null.labels": (65, "scores of choices", label({"scores": [[-0.5, None], None]})),
    "inputs_too_few.labels": (65, "1 in 'inputs'", label({"inputs": [0]})),
    "input_not_there.labels": (65, "does not exist", label({"inputs": [0, 1]})),
    "input_of_nothing.labels": (65, "does not exist", label_pieces({"inputs": [0]})),
    "input_negative.labels": (65, "whole number from 0", label({"inputs": [0, -1]})),
    "input_true.labels": (65, "whole number from 0", label({"inputs": [0, True]})),
    "lengths_a_list.labels": (65, "'lengths' must be an object", label({"lengths": [2, 2]})),
    "lengths_a_number.labels": (65, "no list", label(lengths(visual=4))),  # type: ignore[arg-type]
    "lengths_too_few.labels": (65, "1 lengths of visual", label(lengths(visual=[4]))),
    "lengths_too_few_of_top.labels": (65, "1 lengths of top", label(lengths(top=[2]))),
    "lengths_unknown.labels": (65, "with the tensors", label(lengths(logits=[1, 1]))),
    "length_negative.labels": (65, "whole number from 0", label(lengths(visual=[6, -2]))),
    "length_a_fraction.labels": (65, "whole number from 0", label(lengths(visual=[2.0, 2]))),
    "length_huge.labels": (65, "whole number from 0", label(lengths(visual=[2, 1 << 32]))),
    "sum_a_number.labels": (65, "'sum' must be a string", label({"sum": 0})),
    "sum_of_other_tensors.labels": (65, "its sum does not match", label({"sum": TARGET})),
    "tensor_of_zero_times_2_80.labels": (65, "elements", record(LABEL, HUGE_AND_EMPTY)),
    "tensor_unknown.labels": (65, "with the tensors", label(labels=SCORES)),
    "tensor_without_lengths.labels": (65, "with the tensors", label(lengths(visual=None))),
    "tensor_missing.labels": (65, "with the tensors", label(visual=None)),
    "rows_too_few.labels": (
        65,
        "2 rows of answer; expected 3",
        label(answer=("F16", [2, 1], halves(1, 2))),
    ),
    "rows_of_another_input.labels": (65, "expected 3", label(lengths(queries=[2, 1]))),
    "one_dimension.labels": (65, "1 dimensions", label(answer=("F16", [3], bytes(6)))),
    "whole_numbers.labels": (65, "int32", label(answer=("I32", [3, 1], bytes(12)))),
    "nan.labels": (65, "not finite", label(visual=("F32", [4, 1], floats(1, 2, 3, NAN)))),
    "infinite_half.labels": (65, "not finite", label(answer=("F16", [3, 1], halves(1, 2, INF)))),
    "codes_without_scales.labels": (65, "with the tensors", label_i8(**{"visual.scales": None})),
    "scales_without_codes.labels": (
        65,
        "with the tensors",
        label(**{"answer.scales": ("F32", [3], floats(1, 1, 1))}),
    ),
    "scales_for_other_rows.labels": (
        65,
        "number of scales",
        label_i8(**{"visual.scales": ("F32", [2], floats(1, 1))}),
    ),
    "scales_negative.labels": (
        65,
        "below 0",
        label_i8(**{"visual.scales": ("F32", [1], floats(-0.5))}),
    ),
    "scales_overflow.labels": (
        65,
        "not finite",
        label_i8(**{"visual.scales": ("F32", [1], floats(3e38))}),
    ),
    "code_minus_128.labels": (
        65,
        "-128",
        label_i8(visual=("I8", [1, 2], struct.pack("<2b", -128, 0))),
    ),
    "kept_missing.labels": (65, "with the tensors", label_kept(**{"visual.kept": None})),
    "kept_uncounted.labels": (65, "with the tensors", label_kept({"counts": {"queries": [9]}})),
    "kept_of_answers.labels": (
        65,
        "with the tensors",
        label({"counts": {"answer": [9, 9]}}, **{"answer.kept": ("I32", [3], bytes(12))}),
    ),
    "kept_of_nothing.labels": (
        65,
        "with the tensors",
        label_text({"counts": {"visual": [9]}}, **{"visual.kept": ("I32", [0], b"")}),
    ),
    "kept_counted_twice.labels": (
        65,
        "another number of rows",
        label_kept({"counts": {"queries": [9, 9], "visual": [9, 9]}}),
    ),
    "kept_too_few.labels": (
        65,
        "another number of rows",
        label_kept(**{"queries.kept": ("I32", [1], struct.pack("<i", 0))}),
    ),
    "kept_of_another_type.labels": (
        65,
        "another number of rows",
        label_kept(**{"queries.kept": ("F32", [2], floats(0, 7))}),
    ),
    "kept_twice.labels": (
        65,
        "do not ascend",
        label_kept(**{"visual.kept": ("I32", [4], struct.pack("<4i", 0, 7, 3, 3))}),
    ),
    "kept_below_0.labels": (
        65,
        "do not ascend",
        label_kept(**{"visual.kept": ("I32", [4], struct.pack("<4i", -1, 7, 3, 8))}),
    ),
    # Each difference is above 0 in 32 bits.
    "kept_around_2_31.labels": (
        65,
        "do not ascend",
        label(
            {**lengths(queries=[5]), "counts": {"queries": [9]}},
            queries=("F16", [5, 1], bytes(10)),
            **{"queries.kept": ("I32", [5], struct.pack("<5i", 5, 2**31 - 1, -(2**31), -1, 3))},
        ),
    ),
    "kept_beyond.labels": (
        65,
        "not among its 8",
        label_kept({"counts": {"queries": [9], "visual": [9, 8]}}),
    ),
    "top_without_rest.labels": (65, "with the tensors", label(**{"top.rest": None})),
    "top_without_tokens.labels": (65, "with the tensors", label(**{"top.ids": None})),
    "top_without_lengths.labels": (65, "with the tensors", label(lengths(top=None))),
    "top_of_32_bits.labels": (65, "rows of top", label(top=("F32", [2, 3], bytes(24)))),
    "top_one_dimension.labels": (65, "rows of top", label(top=("F16", [6], bytes(12)))),
    "top_too_long.labels": (65, "2 rows of top; expected 3", label(lengths(top=[2, 1]))),
    "top_nan.labels": (
        65,
        "no log-probabilities",
        label(top=("F16", [2, 3], halves(-1, -2, -3, -1, NAN, -3))),
    ),
    "top_infinite.labels": (
        65,
        "no log-probabilities",
        label(top=("F16", [2, 3], halves(-1, -2, -INF, -1, -2, -3))),
    ),
    "top_above_0.labels": (
        65,
        "no log-probabilities",
        label(top=("F16", [2, 3], halves(0.02, -2, -3, -1, -2, -3))),
    ),
    "rest_of_32_bits.labels": (65, "rows of top", label(**{"top.rest": ("F32", [2], bytes(8))})),
    "rest_too_short.labels": (65, "rows of top", label(**{"top.rest": ("F16", [1], bytes(2))})),
    "rest_above_0.labels": (
        65,
        "no log-probabilities",
        label(**{"top.rest": ("F16", [2], halves(-1, 3))}),
    ),
    "ids_of_no_vocabulary.labels": (65, "it does not name", label({"vocabulary": None})),
    "ids_of_64_bits.labels": (
        65,
        "other ids",
        label(**{"top.ids": ("I64", [2, 3], bytes(48))}),
    ),
    "ids_too_few.labels": (65, "other ids", label(**{"top.ids": ("I32", [2, 2], bytes(16))})),
    "ids_negative.labels": (
        65,
        "other ids",
        label(**{"top.ids": ("I32", [2, 3], struct.pack("<6i", 5, 0, 1, 7, -2, -1))}),
    ),
    "ids_and_pieces.labels": (
        65,
        "with the tensors",
        label_pieces(
            {"vocabulary": BASE}, **{"top.ids": ("I32", [2, 2], struct.pack("<4i", 1, 2, 3, 4))}
        ),
    ),
    "pieces_without_bytes.labels": (65, "with the tensors", label_pieces(**{"top.bytes": None})),
    "pieces_of_8_bits.labels": (
        65,
        "other pieces",
        label_pieces(**{"top.pieces": ("U8", [2, 2], bytes([2, 0, 1, 3]))}),
    ),
    "pieces_too_few.labels": (
        65,
        "other pieces",
        label_pieces(**{"top.pieces": ("U16", [2, 1], struct.pack("<2H", 2, 4))}),
    ),
    "pieces_too_long.labels": (
        65,
        "other pieces",
        label_pieces(**{"top.pieces": ("U16", [2, 2], struct.pack("<4H", 2, 0, 1, 4))}),
    ),
    "pieces_of_other_bytes.labels": (
        65,
        "other pieces",
        label_pieces(**{"top.bytes": ("I8", [6], bytes(6))}),
    ),
    # -- adaptation
    "cut.adaptation": (65, "cut short", adaptation()[:-1]),
    "trailing_bytes.adaptation": (65, "continues after", adaptation() + b"x"),
    "twice.adaptation": (65, "continues after", adaptation() + adaptation()),
    "newer_version.adaptation": (76, "upgrade", adaptation(version=9)),
    "base_no_digest.adaptation": (65, "'base'", adaptation(base="HEAD")),
    "sequence_negative.adaptation": (65, "sequence", adaptation(sequence=-1)),
    "report_missing.adaptation": (65, "'report'", adaptation(report=None)),
    "nan.adaptation": (65, "not finite", record(ADAPTATION, {"a": ("F32", [1], floats(NAN))})),
    "half_precision.adaptation": (
        65,
        "float32",
        record(ADAPTATION, {"a": ("F16", [1], halves(1))}),
    ),
    "held_out_missing.adaptation": (65, "cut short", record(ADAPTATION_2, OVERLAY)),
    "held_out_cut.adaptation": (65, "end record", adaptation_2(frames=shard())),
    "held_out_counts_two.adaptation": (65, "counts 2", adaptation_2(held_out=2)),
    "held_out_none_but_there.adaptation": (65, "continues after", adaptation_2(held_out=None)),
    "held_out_zero.adaptation": (65, "held_out is 0", adaptation_2(held_out=0)),
    "answers_too_few.adaptation": (65, "an answer for each", adaptation_2("[[]]")),
    "answers_a_number.adaptation": (65, "not text", adaptation_2("[[1]]")),
    "answers_deep.adaptation": (65, "nested too deeply", adaptation_2(DEEP)),
    "step_zero.adaptation": (
        65,
        "step",
        adaptation_2(rate_aware={"bits": 1, "num_steps": 1, "step": 0}),
    ),
    "step_subnormal.adaptation": (
        65,
        "step",
        adaptation_2(rate_aware={"bits": 1, "num_steps": 1, "step": 1e-40}),
    ),
    "sensitivity_short.adaptation": (65, "2 tensors", adaptation_2(sensitivity=[1])),
    "sensitivity_negative.adaptation": (65, "sensitivity", adaptation_2(sensitivity=[1, -1])),
    "sensitivity_in_version_3.adaptation": (
        65,
        "unknown key 'sensitivity'",
        adaptation_3(sensitivity=None),
    ),
    "tensor_of_zero_times_2_80.adaptation": (65, "elements", record(ADAPTATION, HUGE_AND_EMPTY)),
    # -- update
    "tensor_of_zero_times_2_80.update": (65, "elements", record(UPDATE, HUGE_AND_EMPTY)),
    "cut.update": (65, "cut short", update()[:-1]),
    "trailing_bytes.update": (65, "continues after", update() + b"\n"),
    "newer_version.update": (76, "upgrade", update(version=3)),
    "payload_flipped.update": (65, "hash", update(payload=bytes(40))),
    "payload_shorter.update": (65, "39 bytes", update(payload=PAYLOAD[:39])),
    "payload_missing.update": (65, "expected the tensors", record(UPDATE, {})),
    "names_a_tensor.update": (
        65,
        "expected the tensors",
        record(UPDATE, {"payload": ("U8", [40], PAYLOAD), "a.weight": OVERLAY["a.weight"]}),
    ),
    "sequence_zero.update": (65, "sequence", update(sequence=0)),
    "bits_out_of_range.update": (65, "'bits'", update(bits=[4, 64])),
    "target_no_digest.update": (65, "'target'", update(target=None)),
    "unknown_key.update": (65, "unknown key", update(signature="none")),
    "cut_v2.update": (65, "cut short", update_2()[:-1]),
    "payload_flipped_v2.update": (65, "hash", update_2(payload=bytes(40))),
    "unknown_signed_key.update": (65, "unknown key", update_2(created=1)),
    "signed_missing.update": (65, "'signed'", update_2(header={"signed": None})),
    "signed_a_list.update": (65, "'signed'", update_2(header={"signed": [1]})),
    "signatures_missing.update": (65, "'signatures'", update_2(header={"signatures": None})),
    "signature_no_hex.update": (
        65,
        "hexadecimal",
        update_2(header={"signatures": [{"key": KEYS[0], "signature": "AB" * 64}]}),
    ),
    "signatures_of_one_key_twice.update": (
        65,
        "each once",
        update_2(header={"signatures": 2 * signatures("update 2", SIGNED, SEEDS[:1])}),
    ),
    "signatures_unsorted.update": (
        65,
        "ascending",
        update_2(header={"signatures": signatures("update 2", SIGNED)[::-1]}),
    ),
    "sequence_of_54_bits.update": (65, "sequence", update_2(sequence=1 << 53)),
    "sequence_a_fraction.update": (65, "'sequence'", update_2(sequence=1.5)),
    "expires_negative.update": (65, "expires", update_2(expires=-1)),
    "expires_true.update": (65, "'expires'", update_2(expires=True)),
    "model_no_digest.update": (65, "'model'", update_2(model="blip")),
    "coding_a_list.update": (65, "'coding'", update_2(coding=[4, 0])),
    "coding_a_fraction.update": (65, "'coding'", update_2(coding={"step": 0.5})),
    "coding_deep.update": (65, "'coding'", update_2(coding={"a": [[[[[[1]]]]]]})),
    "coding_deeper.update": (65, "nested too deeply", deep_update()),
    "bits_in_version_2.update": (65, "unknown key 'bits'", update_2(header={"bits": [4, 0]})),
    "not_canonical.update": (
        65,
        "not written as",
        update_2().replace(b"4102444800", b"41024448e2"),
    ),
    # -- trust
    "cut.trust": (65, "cut short", trust()[:-1]),
    "trailing_bytes.trust": (65, "continues after", trust() + b"x"),
    "newer_version.trust": (76, "upgrade", trust(header={"version": 2})),
    "no_keys.trust": (65, "0 trusted keys", trust(keys=[])),
    "one_key_twice.trust": (65, "each once", trust(keys=[KEYS[0], KEYS[0]])),
    "unsorted.trust": (65, "ascending", trust(keys=sorted(KEYS, reverse=True))),
    "key_too_short.trust": (65, "not public keys", trust(keys=["ab"])),
    "threshold_zero.trust": (65, "threshold of 0", trust(threshold=0)),
    "threshold_three.trust": (65, "threshold of 3", trust(threshold=3)),
    "version_zero.trust": (65, "version 0", trust(version=0)),
    "with_a_tensor.trust": (
        65,
        "expected the tensors none",
        record({"kind": "trust", "version": 1, "signed": TRUST, "signatures": []}, OVERLAY),
    ),
    # -- codebook
    "cut.codebook": (65, "cut short", codebook()[:-3]),
    "trailing_bytes.codebook": (65, "continues after", codebook() + b"x"),
    "newer_version.codebook": (76, "upgrade", codebook(header={"version": 2})),
    "unknown_key.codebook": (65, "unknown key", codebook(colour="blue")),
    "tower_no_digest.codebook": (65, "'tower'", codebook(tower="x")),
    "no_channels.codebook": (65, "channels is 0", codebook(channels=0)),
    "components_above_channels.codebook": (65, "components is 4", codebook(components=4)),
    "sequence_negative.codebook": (65, "sequence is -1", codebook(sequence=-1)),
    "no_frames.codebook": (65, "num_frames is 0", codebook(num_frames=0)),
    "other_shape.codebook": (65, "mean has the shape", codebook(num_tokens=3)),
    "other_dtype.codebook": (
        65,
        "expected the tensors",
        codebook({"sizes": ("F32", [2, 2], floats(1, 1, 1, 1))}),
    ),
    "other_tensors.codebook": (65, "do not match", codebook()[:-1] + b"\0"),
    "infinite.codebook": (65, "not finite", codebook({"scale": ("F32", [3], floats(1, INF, 1))})),
    "scale_zero.codebook": (
        65,
        "scale has values",
        codebook({"scale": ("F32", [3], floats(1, 0, 1))}),
    ),
    "size_negative.codebook": (
        65,
        "below zero",
        codebook({"sizes": ("F16", [2, 2], halves(1, 1, -1, 1))}),
    ),
    "positions_too_long.codebook": (
        65,
        "other lengths",
        codebook({"positions": ("F16", [2, 2], halves(1, 0, 1, 1))}),
    ),
    "inverse_of_another.codebook": (
        65,
        "does not undo",
        codebook({"inverse": ("F16", [2, 3], halves(1, 0, 0, 0, 0.75, 0))}),
    ),
    "steps_unsorted.codebook": (65, "ascending order", codebook(curve=points(1.5, 0.5))),
    "step_no_float32.codebook": (65, "float32", codebook(curve=points(0.1))),
    "agreement_above_1.codebook": (65, "agreement 2", codebook(curve=points(1, agreement=2.0))),
    "whole_number_for_a_float.codebook": (65, "not written", codebook(curve=points(1.5, loss=0))),
    "too_many_points.codebook": (
        65,
        "65 points",
        codebook(curve=points(*map(float, range(1, 66)))),
    ),
    # -- overlay
    "cut.overlay": (65, "cut short", overlay_file()[:-2]),
    "infinite.overlay": (
        65,
        "not finite",
        record({"kind": "overlay", "version": 1, "sequence": 0}, {"a": ("F32", [1], floats(INF))}),
    ),
    "newer_version.overlay": (76, "upgrade", record({"kind": "overlay", "version": 2}, {})),
    # -- predictions
    "cut_in_line.predictions": (65, "line 2", prediction() + prediction()[:50]),
    "not_utf8.predictions": (65, "not UTF-8", prediction() + b"\xff\xfe\n"),
    "duplicate_keys.predictions": (65, "twice", prediction() + b'{"v":1,"v":1}\n'),
    "nan.predictions": (65, "finite", prediction() + prediction(choice_scores=[NAN, 1])),
    "newer_version.predictions": (76, "upgrade", prediction(v=2)),
    "not_an_object.predictions": (65, "not a prediction", prediction() + b"[1]\n"),
    "entropy_missing.predictions": (65, "entropy", prediction(entropy={"mean": 1})),
    "entropy_negative.predictions": (65, "negative", prediction(token_entropies=[-1])),
    "choice_not_among_choices.predictions": (65, "not among", prediction(choice="horse")),
    "scores_too_few.predictions": (65, "1 choice_scores", prediction(choice_scores=[1])),
    "task_unknown.predictions": (65, "task", prediction(task="chat")),
    "model_no_digest.predictions": (65, "'model'", prediction(model="gpt")),
    # -- device.json
    "cut.device": (65, "not JSON", device()[:100]),
    "newer_version.device": (76, "upgrade", device(version=5, colour="blue")),
    "previous_in_version_2.device": (65, "unknown key 'previous'", device_2(previous=None)),
    "kept_newer.device": (65, "not older", device_2(kept=[slot_2(4)])),
    "kept_twice.device": (65, "not older", device_2(kept=[slot_2(2), slot_2(2)])),
    "keep_zero.device": (65, "'keep'", device_2(keep=0)),
    "trust_without_threshold.device": (65, "'threshold'", device_2(trust={"keys": KEYS})),
    "threshold_above_keys.device": (
        65,
        "threshold of 3",
        device_2(trust={**TRUST, "threshold": 3}),
    ),
    "signed_by_twice.device": (
        65,
        "'signed_by'",
        device_2(current=slot_2(3, signed_by=[KEYS[0], KEYS[0]])),
    ),
    "model_no_digest.device": (65, "'model'", device_2(model="x")),
    "kept_missing.device": (66, "no such file", device_2(kept=[slot_2(1)])),
    "codebook_in_version_2.device": (65, "unknown key 'codebook'", device_2(codebook=None)),
    "codebook_a_digest.device": (65, "'codebook' must be", device_3(codebook=BASE)),
    "codebook_without_signers.device": (
        65,
        "'signed_by'",
        device_3(codebook={n: v for n, v in codebook_slot().items() if n != "signed_by"}),
    ),
    "codebook_among_overlays.device": (
        65,
        "not a sound codebooks entry",
        device_3(codebook=codebook_slot(file=slot_2(3)["file"])),
    ),
    "codebook_leaves_folder.device": (
        65,
        "not a sound codebooks entry",
        device_3(codebook=codebook_slot(file="codebooks/../../secret.safetensors")),
    ),
    "codebook_no_digest.device": (
        65,
        "not a sound codebooks entry",
        device_3(codebook=codebook_slot(digest="x")),
    ),
    "codebook_negative.device": (
        65,
        "not a sound codebooks entry",
        device_3(codebook=codebook_slot(sequence=-1)),
    ),
    "codebook_missing.device": (66, "no such file", device_3(kept=[])),
    "path_leaves_folder.device": (
        65,
        "not a sound overlay",
        device(current={**device_state()["current"], "file": "overlay/../../secret.safetensors"}),
    ),
    "other_overlay.device": (
        65,
        "damaged",
        device(current={**device_state()["current"], "digest": TARGET}),
    ),
    "other_sequence.device": (
        65,
        "damaged",
        device(current={**device_state()["current"], "sequence": 2}),
    ),
    "overlay_missing.device": (
        66,
        "no such file",
        device(current={**device_state()["current"], "file": f"overlay/3-{'0' * 16}.safetensors"}),
    ),
    "group_unknown.device": (65, "'groups'", device(groups=["norm", "tower"])),
    "group_of_version_4.device": (65, "in version 3", device_3(groups=["lora.connector"])),
    "group_twice.device": (65, "'groups'", device(groups=["norm", "norm"])),
    "lora_with_its_part.device": (65, "'groups'", device_4(groups=["lora", "lora.connector"])),
    "lora_in_parts.device": (65, "'groups'", device_4(groups=["lora.language", "lora.connector"])),
    "rank_zero.device": (65, "'lora'", device(lora={"rank": 0, "alpha": 1, "seed": 0})),
    "unknown_key.device": (65, "unknown key", device(trusted=True)),
    "highest_below_current.device": (65, "highest_sequence", device(highest_sequence=2)),
    "duplicate_keys.device": (65, "twice", device()[:-2] + b',"tower":"x"}'),
}

ALL_KEPT: Tensor = ("U8", [1], b"\xff")


def changed_index(**change: Any) -> bytes:
    return part_2(frames(index=change))


def without(name: str) -> bytes:
    return dumps({key: value for key, value in INDEX.items() if key != name}).encode()


def layout(**change: Any) -> bytes:
    return changed_index(layouts=[{**INDEX["layouts"][0], **change}])


# -- version 2 of the token stream
FAULTS |= {
    "frames_without_head.shards": (65, "out of place", frames() + end_2(2)),
    "head_twice.shards": (65, "out of place", record(HEAD_2, {}) + part_2(frames())),
    "head_without_end.shards": (65, "without its end record", record(HEAD_2, {})),
    "frames_without_end.shards": (65, "without its end record", record(HEAD_2, {}) + frames()),
    "frames_behind_end.shards": (65, "out of place", part_2(frames()) + frames()),
    "end_counts_records.shards": (65, "counts 1", part_2(frames(), count=1)),
    "shard_in_version_2.shards": (65, "version 1 in", record(HEAD_2, {}) + shard() + end_2(1)),
    "end_of_version_1.shards": (65, "version 1 in", record(HEAD_2, {}) + frames() + end(2)),
    "frames_in_version_1.shards": (65, "version 2 in", shard() + frames() + end(3)),
    "head_of_version_1.shards": (65, "version 1", record({**HEAD_2, "version": 1}, {}) + end(0)),
    "head_newer.shards": (76, "upgrade", record({**HEAD_2, "version": 3}, {})),
    "head_with_tensors.shards": (65, "tensors none", record(HEAD_2, {"kept": KEPT}) + end_2(0)),
    "head_with_unknown_key.shards": (65, "unknown key", record({**HEAD_2, "x": 1}, {}) + end_2(0)),
    "head_tower_no_digest.shards": (65, "digest", record({**HEAD_2, "tower": "x"}, {}) + end_2(0)),
    "frames_newer.shards": (76, "upgrade", record(HEAD_2, {}) + frames({"version": 3, "x": 1})),
    "frames_cut.shards": (65, "cut short", record(HEAD_2, {}) + frames()[:-1]),
    "sum_wrong.shards": (65, "sum is wrong", part_2(frames(sound=False))),
    "sum_of_other_tower.shards": (65, "sum is wrong", part_2(frames(tower=MODEL))),
    "sum_missing.shards": (65, "'sum'", part_2(frames({"sum": None}))),
    "frames_unknown_key.shards": (65, "unknown key 'labels'", part_2(frames({"labels": []}))),
    "frames_zero.shards": (65, "0 frames", part_2(frames({"count": 0}))),
    "frames_257.shards": (65, "257 frames", part_2(frames({"count": 257}))),
    "frames_three.shards": (65, "2 frames for 3", part_2(frames({"count": 3}), count=3)),
    "codec_unknown.shards": (65, "codec 'zip'", part_2(frames({"codec": "zip"}))),
    "codec_other.shards": (65, "expected the tensors", part_2(frames({"codec": "float16"}))),
    "codebook_without_klt.shards": (65, "belong to klt", part_2(frames({"codebook": BASE}))),
    "klt_without_step.shards": (
        65,
        "belong to klt",
        part_2(frames_klt_kept(header={"step": None})),
    ),
    "klt_codebook_no_digest.shards": (
        65,
        "'codebook' is not a digest",
        part_2(frames_klt_kept(header={"codebook": "x"})),
    ),
    "klt_step_no_float32.shards": (65, "step", part_2(frames_klt_kept(header={"step": 0.1}))),
    "klt_columns_zero.shards": (65, "0 columns", part_2(frames_klt_kept(header={"columns": 0}))),
    "klt_columns_huge.shards": (
        65,
        "columns",
        part_2(frames_klt_kept(header={"columns": 1 << 40})),
    ),
    "klt_codes_huge.shards": (
        65,
        "codes; at most",
        part_2(frames_klt_kept(header={"columns": 1 << 22})),
    ),
    "klt_with_size_of_codes.shards": (
        65,
        "unknown key",
        part_2(frames_klt_kept(sizes={"codes": 6})),
    ),
    "klt_codes_too_few.shards": (65, "codes", part_2(frames_klt_kept(header={"columns": 3}))),
    "klt_of_two_sorts.shards": (
        65,
        "kept all",
        part_2(frames_klt(codes_of([0] * 5), 1, tensors={"kept": ("U8", [1], b"\xf1")})),
    ),
    "other_negative.shards": (65, "'other' is -1", part_2(frames({"other": -1}))),
    "sizes_a_list.shards": (65, "'sizes'", part_2(frames({"sizes": [1]}))),
    "sizes_unknown.shards": (65, "unknown key", part_2(frames(sizes={"kept": 1}))),
    "index_size_huge.shards": (65, "at most", part_2(frames(sizes={"index": 1 << 30}))),
    "index_size_negative.shards": (65, "at most", part_2(frames(sizes={"index": -1}))),
    "index_size_other.shards": (65, "expected 5", part_2(frames(sizes={"index": 5}))),
    "index_no_zstd.shards": (65, "zstd", part_2(frames(stored={"index": KEPT}))),
    "index_not_json.shards": (65, "not JSON", part_2(frames(index=b"{'a'}"))),
    "index_a_list.shards": (65, "expected an object", part_2(frames(index=b"[]"))),
    "index_deep.shards": (65, "nested too deeply", part_2(frames(index=DEEP.encode()))),
    "index_half_a_character.shards": (
        65,
        "surrogate",
        changed_index(frames=["caf\udce9", "f2"]),
    ),
    "index_key_missing.shards": (65, "'times' is missing", part_2(frames(index=without("times")))),
    "index_key_unknown.shards": (65, "unknown key 'labels'", changed_index(labels=["cat"])),
    "index_frame_empty.shards": (65, "empty", changed_index(frames=["f1", ""])),
    "index_frame_a_number.shards": (65, "frames", changed_index(frames=["f1", 2])),
    "index_images_one.shards": (65, "1 images for 2", changed_index(images=["a"])),
    "index_domains_one.shards": (65, "1 domains for 2", changed_index(domains=[0])),
    "index_domain_text.shards": (65, "domains", changed_index(domains=["night", None])),
    "index_domain_beyond.shards": (65, "no string", changed_index(domains=[4, None])),
    "index_time_text.shards": (65, "times", changed_index(times=["1", None])),
    "index_time_infinite.shards": (
        65,
        "finite",
        part_2(frames(index=dumps(INDEX).replace("1700000000.5", "1e999").encode())),
    ),
    "index_layout_beyond.shards": (65, "no layout", changed_index(layout=[0, 1])),
    "index_layout_true.shards": (65, "layout", changed_index(layout=[False, 0])),
    "index_layouts_three.shards": (65, "3 layouts", changed_index(layouts=INDEX["layouts"] * 3)),
    "index_counts_too_few.shards": (65, "add up", changed_index(counts=[1, 0])),
    "index_counts_negative.shards": (65, "add up", changed_index(counts=[3, -1])),
    "index_tasks_one.shards": (65, "1 tasks for 2", changed_index(tasks="v")),
    "index_task_unknown.shards": (65, "tasks", changed_index(tasks="vx")),
    "index_prompt_a_fraction.shards": (65, "prompts", changed_index(prompts=[1.0, None])),
    "index_prompt_negative.shards": (65, "no string", changed_index(prompts=[-1, None])),
    "index_choices_empty.shards": (65, "empty list", changed_index(choices=[[], None])),
    "index_choices_text.shards": (65, "choices", changed_index(choices=["ab", None])),
    "index_choice_null.shards": (65, "no string", changed_index(choices=[[2, None], None])),
    "index_pictures_of_tokens.shards": (65, "pictures", changed_index(pictures=[[0, 1, 1, 1]] * 2)),
    "layout_no_tokens.shards": (65, "layout of 0", layout(num_tokens=0)),
    "layout_huge.shards": (65, "layout of", layout(num_tokens=1 << 30)),
    "layout_grid_negative.shards": (65, "grid", layout(grid=[-1])),
    "layout_grid_huge.shards": (65, "2^31", layout(grid=[1 << 40])),
    "layout_fixed_unsorted.shards": (65, "ascend", layout(fixed=[1, 0])),
    "layout_fixed_beyond.shards": (65, "ascend", layout(fixed=[4])),
    "layout_unknown_key.shards": (65, "unknown key", layout(colour=1)),
    "layout_marks_missing.shards": (65, "'marks'", layout(marks=None)),
    "entropies_one.shards": (65, "entropies", part_2(frames(entropies=("F16", [1], halves(1))))),
    "entropy_negative.shards": (
        65,
        "entropy below 0",
        part_2(frames(entropies=("F16", [2], halves(-1, 1)))),
    ),
    "entropy_infinite.shards": (
        65,
        "not finite",
        part_2(frames(entropies=("F16", [2], halves(INF, 1)))),
    ),
    "kept_too_long.shards": (65, "kept", part_2(frames(kept=("U8", [2], b"\xa1\0")))),
    "kept_too_short.shards": (65, "kept", part_2(frames(kept=("U8", [0], b"")))),
    "kept_none_of_a_frame.shards": (
        65,
        "kept no token",
        part_2(frames(kept=("U8", [1], bytes([0b11100000])))),
    ),
    "kept_all.shards": (65, "kept all", part_2(frames(kept=ALL_KEPT))),
    "kept_beyond.shards": (
        65,
        "beyond the last",
        part_2(
            frames(
                index={"layouts": [{**INDEX["layouts"][0], "num_tokens": 3}]},
                kept=("U8", [1], bytes([0b10100101])),
            )
        ),
    ),
    "kept_for_more_tokens.shards": (
        65,
        "for 4 tokens",
        part_2(frames(kept=("U8", [1], bytes([0b10100011])))),
    ),
    "kept_of_pictures.shards": (65, "expected the tensors", part_2(frames_pictures(kept=KEPT))),
    "frames_tokens_missing.shards": (65, "expected the tensors", part_2(frames(tokens=None))),
    "frames_index_missing.shards": (
        65,
        "expected the tensors",
        part_2(frames(stored={"index": None})),
    ),
    "frames_extra_tensor.shards": (65, "expected the tensors", part_2(frames(labels=KEPT))),
    "frames_tensor_header.shards": (65, "'header'", part_2(frames(header=KEPT))),
    "frames_tokens_flat.shards": (
        65,
        "tokens of shape",
        part_2(frames(tokens=("F32", [3], floats(1, 2, 3)))),
    ),
    "frames_no_channels.shards": (
        65,
        "tokens of shape",
        part_2(frames(tokens=("F32", [3, 0], b""))),
    ),
    "frames_scores_two.shards": (
        65,
        "2 scores for 3",
        part_2(frames(scores=("F32", [2], floats(1, 2)))),
    ),
    "frames_tokens_nan.shards": (
        65,
        "(frame f2): values that are not finite",
        part_2(frames(tokens=("F32", [3, 1], floats(1, 2, NAN)))),
    ),
    "frames_scores_infinite.shards": (
        65,
        "(frame f1): values that are not finite",
        part_2(frames(scores=("F32", [3], floats(INF, 2, 3)))),
    ),
    "frames_scales_negative.shards": (
        65,
        "scales below 0",
        part_2(frames_i8(scales=("F32", [8], floats(-1, *[0] * 7)))),
    ),
    "frames_scales_infinite.shards": (
        65,
        "not finite",
        part_2(frames_i8(scales=("F32", [8], floats(INF, *[0] * 7)))),
    ),
    "frames_code_minus_128.shards": (
        65,
        "-128",
        part_2(frames_i8(tokens=("I8", [8, 2], b"\x80" * 16))),
    ),
    "pictures_none.shards": (65, "pictures", part_2(frames_pictures({"pictures": None}))),
    "pictures_too_long.shards": (
        65,
        "expected 18",
        part_2(frames_pictures({"pictures": [[4, 13, 24, 16], [5, 5, 1, 1]]})),
    ),
    "picture_empty.shards": (
        65,
        "picture",
        part_2(frames_pictures({"pictures": [[4, 17, 24, 16], [5, 0, 1, 1]]})),
    ),
    "picture_no_width.shards": (
        65,
        "picture",
        part_2(frames_pictures({"pictures": [[4, 13, 0, 16], [5, 4, 1, 1]]})),
    ),
    "picture_a_text.shards": (
        65,
        "picture",
        part_2(frames_pictures({"pictures": [[0, 13, 24, 16], [5, 4, 1, 1]]})),
    ),
    "picture_length_huge.shards": (
        65,
        "2^31",
        part_2(frames_pictures({"pictures": [[4, 10**30, 24, 16], [5, 4, 1, 1]]})),
    ),
}


def main() -> None:
    faults = {name: data for name, (_, _, data) in FAULTS.items()}
    for folder, files in (("valid", valid()), ("invalid", faults)):
        for name, data in files.items():
            path = HERE / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    main()
