"""The token stream (the uplink), version 1: one record per frame, of its uncertain tokens.

A stream is one or more parts end to end (`cat a.tokens b.tokens` is a stream). A part is zero or
more shard records and one end record (`records`). Only another part may follow an end record. A
shard carries no labels and no pixels.

Shard record. Header, all keys always present:

    kind "shard", version 1
    frame       string, not empty: the frame's id
    image       string: its path, as the device named it
    domain      string or null
    tower       digest of the vision tower that made the tokens ("sha256:" + 64 hex digits)
    num_tokens  how many visual tokens the tower makes of an image, 1 to 2^31 - 1
    bits        32, 16 or 8: how the tokens are stored
    asks        list of {"choices": list of strings or null, "entropy": number >= 0 (nats) or null,
                "id": string, "prompt": string or null, "task": "vqa" or "caption"}; exactly these
                keys; choices has at least one string

Tensors, with N kept tokens (1 <= N <= num_tokens) of C channels:

    tokens      (N, C)  F32 if bits is 32, F16 if 16, I8 in [-127, 127] if 8
    scales      (N,)    F32, finite, >= 0; only if bits is 8
    positions   (N,)    U16 if num_tokens <= 65536, else I32: each token's place among the
                        num_tokens, strictly ascending, each < num_tokens
    scores      (N,)    F32, finite: why the token was kept (larger is more uncertain)

A token's value is the stored number, or for bits 8 the product tokens[n, c] * scales[n] in float32,
where the writer took scales[n] = max_c |x[n, c]| / 127 in float32 and rounded x / scale to the
nearest whole number, halves to even (an all-zero token has scale 0). The error is at most half
a scale. All values are finite.

End record. No tensors. Header {"count": shard records in this part, "kind": "end", "version": 1}.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import BinaryIO, Literal, get_type_hints

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.files import Writable
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest

VERSION = 1
KINDS = {"shard": VERSION, "end": VERSION}
LIMITS = records.Limits(record_bytes=1 << 28)
_TOKEN_DTYPES = {32: "F32", 16: "F16", 8: "I8"}
_LARGEST = 127

Task = Literal["vqa", "caption"]


@dataclass(frozen=True)
class Question:
    """One prompt about a frame. entropy: mean answer-token entropy in nats, if it was measured."""

    id: str
    prompt: str | None
    task: Task
    choices: list[str] | None = None
    entropy: float | None = None


@dataclass(eq=False)
class Shard:
    """One frame's kept tokens. Shapes: tokens (N, C) float32, positions (N,) int32, scores (N,)."""

    frame: str
    image: str
    domain: str | None
    tokens: np.ndarray
    positions: np.ndarray
    scores: np.ndarray
    num_tokens: int
    tower: str
    questions: list[Question] = field(default_factory=list)
    bits: int = 32
    num_bytes: int = 0  # of its record, as read; 0 if it was not read


_SHARD = get_type_hints(Shard)
_COPIED = ("frame", "image", "domain", "tower", "num_tokens", "bits")
_HEADER = records.HEAD | {name: _SHARD[name] for name in _COPIED} | {"asks": list}
_QUESTION = get_type_hints(Question)


def quantize_absmax(tokens_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit codes (N, C) int8 and scales (N,) float32 = max_c |x_nc| / 127 (halves to even)."""
    scales_N = (np.abs(tokens_NC).max(axis=1) / np.float32(_LARGEST)).astype(np.float32)
    divisors_N = np.where(scales_N > 0, scales_N, np.float32(1))
    codes_NC = np.rint(tokens_NC / divisors_N[:, None])
    codes_NC = np.where(scales_N[:, None] > 0, codes_NC, 0)
    return np.clip(codes_NC, -_LARGEST, _LARGEST).astype(np.int8), scales_N


def dequantize_absmax(codes_NC: np.ndarray, scales_N: np.ndarray) -> np.ndarray:
    """Values (N, C) float32 of 8-bit codes: one product each, in float32."""
    return codes_NC.astype(np.float32) * scales_N[:, None]


def encoded_bytes(shard: Shard) -> int:
    """How many bytes `write_shard` would write."""
    return write_shard(BytesIO(), shard)


def write_shard(out: Writable, shard: Shard) -> int:
    """Write one shard record; returns its bytes. BadData if it is not sound."""
    where = f"frame {shard.frame}"
    tokens_NC = np.asarray(shard.tokens, dtype=np.float32)
    if shard.bits not in _TOKEN_DTYPES:
        raise BadData(f"{where}: tokens can be stored in 32, 16 or 8 bits, not {shard.bits}")
    if not np.isfinite(tokens_NC).all():
        raise BadData(f"{where}: the vision tower gave tokens that are not finite numbers")
    with np.errstate(over="ignore"):
        tensors = {"tokens": tokens_NC}
        if shard.bits == 16:
            tensors = {"tokens": tokens_NC.astype(np.float16)}
        elif shard.bits == 8 and tokens_NC.ndim == 2 and tokens_NC.size:
            codes_NC, scales_N = quantize_absmax(tokens_NC)
            tensors = {"tokens": codes_NC, "scales": scales_N}
    small = 0 < shard.num_tokens <= 1 << 16
    in_range = np.clip(shard.positions, 0, 0xFFFF if small else 0x7FFFFFFF)
    tensors["positions"] = in_range.astype(np.uint16 if small else np.int32)
    if not np.array_equal(tensors["positions"], shard.positions):
        raise BadData(f"{where}: positions that are not whole numbers of 0 or more")
    tensors["scores"] = np.asarray(shard.scores, dtype=np.float32)
    header = {
        "kind": "shard",
        "version": VERSION,
        **{name: getattr(shard, name) for name in _COPIED},
        "num_tokens": int(shard.num_tokens),
        "asks": [asdict(question) for question in shard.questions],
    }
    # Never write what the reader would refuse.
    _decode(records.Record(tensors, header), "the shard")
    return records.write_record(out, tensors, header)


@contextmanager
def writer(out: Writable) -> Iterator[Callable[[Shard], int]]:
    """Yield a function that writes one shard and returns its bytes; then write the end record.

    After an exception there is no end record, so a reader refuses what was written.
    """
    count = 0

    def write(shard: Shard) -> int:
        nonlocal count
        num_bytes = write_shard(out, shard)
        count += 1
        return num_bytes

    yield write
    records.write_record(out, {}, {"kind": "end", "version": VERSION, "count": count})


class NotFinite(BadData):
    """A record whose only fault is that the tower's tokens or scores are not finite."""


def read_shards(
    stream: BinaryIO,
    *,
    where: str = "the token stream",
    limits: records.Limits = LIMITS,
    refused: Callable[[NotFinite], object] | None = None,
) -> Iterator[Shard]:
    """Shards one after the other, each checked. BadData, NewerFormat.

    refused: called with the error for each shard whose tokens or scores are not finite, which is
    then left out; None: such a shard is an error.
    """
    count = total = 0
    ended = False
    while True:
        place = f"{where}: record {total + 1}"
        record = records.read_record(stream, kinds=KINDS, limits=limits, where=place)
        if record is None:
            break
        ended = record.header["kind"] == "end"
        if ended:
            _check_end(record, count, where)
            count = 0
            continue
        count, total = count + 1, total + 1
        try:
            shard = _decode(record, place)
        except NotFinite as fault:
            if refused is None:
                raise
            refused(fault)
        else:
            yield shard
    if not total and not ended:
        raise BadData(f"{where}: empty; expected token shards: did the stage before it fail?")
    if not ended:
        raise BadData(
            f"{where}: ends after {total:,} shards without its end record: it was cut, or the "
            "stage before it failed"
        )


def _check_end(record: records.Record, count: int, where: str) -> None:
    found = records.fields(record.header, records.HEAD | {"count": int}, where)
    records.expect_tensors(record, {}, where)
    if found["count"] != count:
        raise BadData(f"{where}: {count:,} shards, but its end record counts {found['count']:,}")


def _decode(record: records.Record, where: str) -> Shard:
    found = records.fields(record.header, _HEADER, where)
    num_tokens, bits = found["num_tokens"], found["bits"]
    if not found["frame"]:
        raise BadData(f"{where}: the frame's id is empty")
    where = f"{where} (frame {found['frame'][:80]})"
    if not is_digest(found["tower"]):
        raise BadData(f"{where}: 'tower' is not a digest")
    if not 1 <= num_tokens < 1 << 31:
        raise BadData(f"{where}: num_tokens is {num_tokens}")
    if bits not in _TOKEN_DTYPES:
        raise BadData(f"{where}: tokens of {bits} bits; expected 32, 16 or 8")
    position_dtype = "U16" if num_tokens <= 1 << 16 else "I32"
    expected = {"tokens": _TOKEN_DTYPES[bits], "positions": position_dtype, "scores": "F32"}
    if bits == 8:
        expected["scales"] = "F32"
    records.expect_tensors(record, expected, where)
    stored_NC = record.tensors["tokens"]
    if stored_NC.ndim != 2 or 0 in stored_NC.shape:
        raise BadData(f"{where}: tokens of shape {stored_NC.shape}; expected (N, C), neither 0")
    for name in set(expected) - {"tokens"}:
        if record.tensors[name].shape != stored_NC.shape[:1]:
            raise BadData(
                f"{where}: {name} of shape {record.tensors[name].shape} for {len(stored_NC)} tokens"
            )
    positions_N = record.tensors["positions"].astype(np.int64)
    if positions_N[0] < 0 or positions_N[-1] >= num_tokens or (np.diff(positions_N) <= 0).any():
        raise BadData(f"{where}: positions must ascend within 0 to {num_tokens - 1}")
    return Shard(
        **{name: found[name] for name in _COPIED},
        positions=positions_N.astype(np.int32),
        questions=[_decode_question(question, where) for question in found["asks"]],
        num_bytes=record.num_bytes,
        # Checked last, because NotFinite promises that all else is sound.
        tokens=_decode_tokens(record.tensors, where),
        scores=_finite(record.tensors["scores"], "scores", where),
    )


def _decode_tokens(tensors: dict[str, np.ndarray], where: str) -> np.ndarray:
    stored_NC = tensors["tokens"]
    if stored_NC.dtype != np.int8:
        return _finite(stored_NC.astype(np.float32, copy=False), "tokens", where)
    scales_N = tensors["scales"]
    if (scales_N < 0).any():
        raise BadData(f"{where}: negative scales")
    if (stored_NC == -128).any():
        raise BadData(f"{where}: a token code of -128; they are -127 to 127")
    _finite(scales_N, "scales", where)
    with np.errstate(over="ignore"):
        return _finite(dequantize_absmax(stored_NC, scales_N), "tokens", where)


def _finite(array: np.ndarray, name: str, where: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise NotFinite(f"{where}: {name} that are not finite in this many bits")
    return array


def _decode_question(data: object, where: str) -> Question:
    question = Question(**records.fields(data, _QUESTION, f"{where}: a question"))
    if question.choices == []:
        raise BadData(f"{where}: an empty list of choices")
    if question.entropy is not None and question.entropy < 0:
        raise BadData(f"{where}: an entropy of {question.entropy}")
    return question


def shard_bytes(shard: Shard) -> dict[str, int]:
    """How many bytes of a shard's record each part takes; they add up to its length."""
    num_kept, num_channels = shard.tokens.shape
    ledger = {
        "payload": num_kept * num_channels * shard.bits // 8,
        "scales": 4 * num_kept if shard.bits == 8 else 0,
        "positions": (2 if shard.num_tokens <= 1 << 16 else 4) * num_kept,
        "scores": 4 * num_kept,
    }
    total = shard.num_bytes or encoded_bytes(shard)
    return {**ledger, "header": total - sum(ledger.values())}
