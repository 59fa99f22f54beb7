"""The adaptation, version 3: the overlay after training, and the frames that evaluated it.

**Version 1.** A record (`records`) whose tensors are the whole overlay, float32, finite, by
parameter name. Header, all keys always present:

    kind "adaptation", version 1
    base      digest of the overlay that training started from (the mirror's current one)
    sequence  that overlay's sequence, >= 0
    method    string, not empty: kd, akd, ...
    seed      whole number >= 0
    report    object: training's own report; nothing in it is needed to use the file

**Version 3** has two more keys in the header, always present:

    rate_aware   null, or {"bits": number >= 0, "num_steps": 1 to 2^31 - 1, "step": number}:
                 the last num_steps steps of training went through a quantiser, and the overlay
                 evaluated was base + restore(quantize(overlay - base, step), step) of `uniform`;
                 bits is the order-0 entropy of those codes; step is exactly a float32
    held_out     null, or how many frames were held out, 1 to 2^31 - 1

In version 1, or if held_out is null, nothing may follow the record. Else exactly two things follow:

    a record of kind "answers", version 1, no other header keys, with one tensor `text`, U8, one
    dimension: UTF-8 JSON, a list with one list for each frame, which has one string, not empty,
    for each of the frame's questions: the teacher's answer;
    a token stream (`shard`) of exactly that many frames: the held-out ones, each with the questions
    that the teacher answered, at least one.

A frame's tokens are stored in their own codec if that gives the same numbers again, else as
float32.
Frames, order and answers are those of training, so the loss on them is the same number
(`distillation.evaluation`). At most 512 MiB of token values (4 bytes each) are held out.

**Version 2** is version 3 with one more key in the header, which is checked and not used:
`sensitivity`, null, or a list of as many numbers >= 0 as there are tensors.

A writer writes version 1 if held_out and rate_aware are both null. The names of the parameters are
checked by readers that have the base.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, get_type_hints

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.files import Writable
from cdcca_cli.formats import overlay as overlay_format
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.overlay import Overlay, check_overlay
from cdcca_cli.formats.shard import Codec, Coding, Shard
from cdcca_cli.formats.shard_stream import read_shards, writer
from cdcca_cli.numerics import absmax, uniform
from cdcca_cli.text import is_text, load_json

VERSION = 3
KINDS = {"adaptation": VERSION}
HELD_OUT_BYTES = 1 << 29
_HELD_OUT_LIMITS = records.Limits(record_bytes=1 << 27)


@dataclass(eq=False)
class HeldOut:
    """Frames that were not trained on, and the teacher's answer to each of their questions."""

    shards: list[Shard]
    answers: list[list[str]]

    @property
    def num_questions(self) -> int:
        return sum(len(answers) for answers in self.answers)

    @property
    def num_bytes(self) -> int:
        """Size of the token values in memory; at most HELD_OUT_BYTES can be stored."""
        return sum(shard.tokens.nbytes for shard in self.shards)


@dataclass(frozen=True)
class RateAware:
    """The quantiser in the last `num_steps` steps of training; bits: the entropy of its codes."""

    step: float
    bits: float
    num_steps: int


_RATE_AWARE = get_type_hints(RateAware)
_ADAPTED = {"base": str, "sequence": int, "method": str, "seed": int, "report": dict}
_V1: dict[str, Any] = records.HEAD | _ADAPTED
_V3 = _V1 | {"rate_aware": dict | None, "held_out": int | None}
_HEADERS = {1: _V1, 2: _V3 | {"sensitivity": list[float] | None}, 3: _V3}


@dataclass(eq=False)
class Adaptation:
    """An overlay after training. file_version: of the file it was read from, or None."""

    overlay: Overlay
    base: str
    sequence: int
    method: str
    seed: int
    report: dict[str, Any] = field(default_factory=dict)
    held_out: HeldOut | None = None
    rate_aware: RateAware | None = None
    file_version: int | None = None

    @property
    def version(self) -> int:
        """The oldest format version that holds all of it."""
        return 1 if self.held_out is self.rate_aware is None else VERSION


def write_adaptation(out: Writable, adaptation: Adaptation) -> None:
    """Write an adaptation. BadData if it is not sound (training diverged)."""
    where = "the adaptation"
    check_overlay(adaptation.overlay, where)
    header: dict[str, Any] = {
        "kind": "adaptation",
        "version": adaptation.version,
        **{name: getattr(adaptation, name) for name in _ADAPTED},
    }
    held_out = adaptation.held_out
    if adaptation.version > 1:
        header |= {
            "rate_aware": None if adaptation.rate_aware is None else vars(adaptation.rate_aware),
            "held_out": None if held_out is None else len(held_out.shards),
        }
    # Never write what the reader would refuse.
    _check(header, len(adaptation.overlay), where)
    if held_out is not None:
        _check_held_out(held_out, where)
    records.write_record(out, adaptation.overlay, header)
    if held_out is not None:
        _write_held_out(out, held_out)


def _write_held_out(out: Writable, held_out: HeldOut) -> None:
    text = json.dumps(held_out.answers, separators=(",", ":"), ensure_ascii=False).encode()
    tensors = {"text": np.frombuffer(text, np.uint8)}
    records.write_record(out, tensors, {"kind": "answers", "version": 1})
    with writer(out) as write:
        for shard in held_out.shards:
            write(as_stored(shard))


def as_stored(shard: Shard) -> Shard:
    """The shard as tokens: in its own codec if that gives the same numbers again, else float32."""
    codec: Codec = "float32"
    if shard.coding.codec == "float16":
        with np.errstate(over="ignore"):
            again_NC = shard.tokens.astype(np.float16).astype(np.float32)
    elif shard.coding.codec == "int8":
        again_NC = absmax.dequantize(*absmax.quantize(shard.tokens))
    else:
        again_NC = None
    if again_NC is not None and np.array_equal(again_NC, shard.tokens):
        codec = shard.coding.codec
    return replace(shard, coding=Coding(codec), codes=None, picture=None)


def read_adaptation(stream: BinaryIO, *, where: str = "the adaptation") -> Adaptation:
    """Read and check an adaptation. BadData, NewerFormat."""
    record = records.read_record(stream, kinds=KINDS, limits=overlay_format.LIMITS, where=where)
    if record is None:
        raise BadData(f"{where}: empty; expected an adaptation: did the stage before it fail?")
    header = record.header
    rate_aware = _check(header, len(record.tensors), where)
    check_overlay(record.tensors, where)
    held_out = None
    if (num_frames := header.get("held_out")) is not None:
        held_out = _read_held_out(stream, num_frames, where)
    elif stream.read(1):
        raise BadData(f"{where}: continues after the end of the adaptation")
    return Adaptation(
        overlay=record.tensors,
        **{name: header[name] for name in _ADAPTED},
        held_out=held_out,
        rate_aware=rate_aware,
        file_version=header["version"],
    )


def _read_held_out(stream: BinaryIO, num_frames: int, where: str) -> HeldOut:
    record = records.read_record(stream, kinds={"answers": 1}, limits=_HELD_OUT_LIMITS, where=where)
    if record is None:
        raise BadData(f"{where}: cut short before its {num_frames:,} held-out frames")
    records.exact_keys(record.header, {"kind", "version"}, where)
    records.expect_tensors(record, {"text": "U8"}, where)
    text = record.tensors["text"]
    if text.ndim != 1:
        raise BadData(f"{where}: answers of {text.ndim} dimensions; expected 1")
    answers = load_json(text.tobytes(), f"{where}: the answers")
    shards: list[Shard] = []
    held_bytes = 0
    frames = f"{where}: held-out frames"
    for shard in read_shards(stream, where=frames, limits=_HELD_OUT_LIMITS):
        shards.append(shard)
        if len(shards) > num_frames:
            raise BadData(f"{where}: more held-out frames than its {num_frames:,}")
        held_bytes += shard.tokens.nbytes
        _check_size(held_bytes, where)
    if len(shards) != num_frames:
        raise BadData(f"{where}: {len(shards):,} held-out frames, its header counts {num_frames:,}")
    held_out = HeldOut(shards, answers)
    _check_held_out(held_out, where)
    return held_out


def _check(header: Mapping[str, Any], num_tensors: int, where: str) -> RateAware | None:
    """Refuse a header that is not sound; returns its quantiser. BadData."""
    found = records.fields(header, _HEADERS[header["version"]], where)
    if not is_digest(found["base"]):
        raise BadData(f"{where}: 'base' is not a digest")
    if not found["method"]:
        raise BadData(f"{where}: 'method' is empty")
    for name in ("sequence", "seed"):
        if found[name] < 0:
            raise BadData(f"{where}: {name} is {found[name]}")
    if found.get("held_out") is not None:
        _check_count(found["held_out"], "held_out", where)
    if (values := found.get("sensitivity")) is not None and len(values) != num_tensors:
        raise BadData(f"{where}: {len(values):,} sensitivities for {num_tensors:,} tensors")
    if any(value < 0 for value in values or ()):
        raise BadData(f"{where}: a sensitivity below 0")
    if found.get("rate_aware") is None:
        return None
    place = f"{where}: rate_aware"
    quantiser = RateAware(**records.fields(found["rate_aware"], _RATE_AWARE, place))
    if quantiser.bits < 0:
        raise BadData(f"{place}: bits is below 0")
    uniform.check_step(quantiser.step, place)
    _check_count(quantiser.num_steps, "rate_aware: num_steps", where)
    return quantiser


def _check_count(count: int, name: str, where: str) -> None:
    if not 1 <= count < 1 << 31:
        raise BadData(f"{where}: {name} is {str(count)[:20]}; expected 1 to 2^31 - 1")


def _check_size(held_bytes: int, where: str) -> None:
    if held_bytes > HELD_OUT_BYTES:
        raise BadData(f"{where}: more than {HELD_OUT_BYTES >> 20} MiB of held-out tokens")


def _check_held_out(held_out: HeldOut, where: str) -> None:
    _check_size(held_out.num_bytes, where)
    answers = held_out.answers
    if not isinstance(answers, list) or len(answers) != len(held_out.shards):
        raise BadData(f"{where}: expected a list of answers for each held-out frame")
    for shard, row in zip(held_out.shards, answers, strict=True):
        if not isinstance(row, list) or len(row) != len(shard.questions) or not row:
            raise BadData(
                f"{where}: held-out frame {shard.frame[:80]}: expected an answer for each of its "
                f"{len(shard.questions):,} questions, one at least"
            )
        if not all(isinstance(a, str) and a and is_text(a) for a in row):
            raise BadData(f"{where}: held-out frame {shard.frame[:80]}: an answer that is not text")
    towers = {(shard.tower, shard.tokens.shape[1]) for shard in held_out.shards}
    if len(towers) > 1:
        raise BadData(f"{where}: held-out frames of more than one vision tower")
