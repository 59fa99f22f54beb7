"""Version 2 of the adaptation: what judged the overlay travels with it, and hostile files."""

import contextlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcca_cli.errors import BadData, CdccaError, NewerFormat
from cdcca_cli.formats import adaptation as format_
from cdcca_cli.formats import records
from cdcca_cli.formats.adaptation import (
    Adaptation,
    HeldOut,
    RateAware,
    as_stored,
    read_adaptation,
    write_adaptation,
)
from cdcca_cli.formats.shard import Codec, Coding, Question, Shard
from cdcca_cli.formats.shard_stream import read_shards, writer
from tests.golden import make

DIGEST = "sha256:" + "0" * 64
OVERLAY = {"b.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(4, np.float32)}


def shard(frame: str, *, codec: Codec = "int8", seed: int = 0, questions: int = 2) -> Shard:
    """A frame whose tokens are what a reader of this codec has."""
    tokens = np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)
    made = Shard(
        frame=frame,
        image="x.png",
        domain=None,
        tokens=tokens,
        positions=np.array([0, 4, 7], np.int32),
        scores=np.zeros(3, np.float32),
        num_tokens=9,
        tower=DIGEST,
        questions=[Question(f"{frame}-{number}", "what?", "vqa") for number in range(questions)],
        coding=Coding(codec),
    )
    out = io.BytesIO()
    with writer(out) as write:
        write(made)
    out.seek(0)
    return next(iter(read_shards(out)))


def adaptation(**change: Any) -> Adaptation:
    held_out = HeldOut(
        [shard("f"), shard("g", codec="float16", questions=1)], [["red", "two é"], ["cat"]]
    )
    made = Adaptation(
        overlay=OVERLAY,
        base=DIGEST,
        sequence=4,
        method="akd",
        seed=7,
        report={"loss": 0.5},
        held_out=held_out,
        rate_aware=RateAware(step=0.5, bits=1.125, num_steps=60),
    )
    return replace(made, **change)


def written(made: Adaptation) -> bytes:
    out = io.BytesIO()
    write_adaptation(out, made)
    return out.getvalue()


def read(data: bytes) -> Adaptation:
    return read_adaptation(io.BytesIO(data))


def test_all_of_it_comes_back() -> None:
    made = adaptation()
    found = read(written(made))
    assert found.overlay.keys() == made.overlay.keys()
    assert all(np.array_equal(found.overlay[name], OVERLAY[name]) for name in OVERLAY)
    for name in ("base", "sequence", "method", "seed", "report", "rate_aware"):
        assert getattr(found, name) == getattr(made, name), name
    assert found.held_out is not None and made.held_out is not None
    assert found.held_out.answers == made.held_out.answers
    for ours, theirs in zip(made.held_out.shards, found.held_out.shards, strict=True):
        assert (ours.frame, ours.questions, ours.tower) == (
            theirs.frame,
            theirs.questions,
            theirs.tower,
        )
        assert np.array_equal(ours.tokens, theirs.tokens)
    assert written(found) == written(made)


@pytest.mark.parametrize(
    "change",
    [
        {"held_out": None},
        {"rate_aware": None},
    ],
)
def test_each_part_may_be_absent(change: dict[str, None]) -> None:
    found = read(written(adaptation(**change)))
    assert found.version == found.file_version == 3
    assert all(getattr(found, name) is None for name in change)


def test_with_nothing_new_to_say_it_is_version_1() -> None:
    plain = adaptation(held_out=None, rate_aware=None)
    data = written(plain)
    _, header = records.parse_head(data[: 8 + struct.unpack("<Q", data[:8])[0]], "it")
    assert header["version"] == plain.version == read(data).version == 1
    assert header.keys() == {"kind", "version", "base", "sequence", "method", "seed", "report"}


def test_tokens_are_the_same_numbers_whatever_their_codec() -> None:
    """int8 is kept where coding it again gives the same; where not (one ulp), it is float32."""
    shards = [shard(str(seed), seed=seed) for seed in range(200)]
    stored = [as_stored(each).coding.codec for each in shards]
    assert stored.count("int8") > 100
    odd = replace(shards[0], tokens=shards[0].tokens * np.float32(1.0000001))
    assert as_stored(odd).coding.codec == "float32"
    held_out = HeldOut([*shards, odd], [["a", "b"]] * 201)
    found = read(written(adaptation(held_out=held_out))).held_out
    assert found is not None
    for ours, theirs in zip(held_out.shards, found.shards, strict=True):
        assert np.array_equal(ours.tokens, theirs.tokens)


# ---- files that are not sound


def edited(edit: Callable[[dict[str, Any]], Any], made: Adaptation | None = None) -> bytes:
    """A sound file whose header is edited."""
    data = written(made or adaptation())
    size = 8 + struct.unpack("<Q", data[:8])[0]
    table, header = records.parse_head(data[:size], "it")
    edit(header)
    text = json.dumps({**table, "__metadata__": {"cdcca": json.dumps(header)}}).encode()
    return struct.pack("<Q", len(text)) + text + data[size:]


def answered(answers: object, tensors: dict[str, np.ndarray] | None = None) -> bytes:
    """A sound file whose record of answers is another one."""
    made = adaptation()
    assert made.held_out is not None
    out = io.BytesIO()
    out.write(edited(lambda header: header.update(held_out=2), replace(made, held_out=None)))
    if tensors is None:
        tensors = {"text": np.frombuffer(json.dumps(answers).encode(), np.uint8)}
    records.write_record(out, tensors, {"kind": "answers", "version": 1})
    with writer(out) as write:
        for each in made.held_out.shards:
            write(as_stored(each))
    return out.getvalue()


def test_the_answers_can_be_put_together_by_hand() -> None:
    """`answered` is sound where its answers are, so what it is refused for below is the answers."""
    found = read(answered([["red", "two é"], ["cat"]]))
    assert found.held_out is not None and found.held_out.answers == [["red", "two é"], ["cat"]]


@pytest.mark.parametrize(
    "answers",
    [
        [["red", "two"]],
        [["red", "two"], ["cat"], ["dog"]],
        [["red"], ["cat"]],
        [["red", "two"], []],
        [["red", ""], ["cat"]],
        [["red", None], ["cat"]],
        [["red", 2], ["cat"]],
        {"f": ["red", "two"], "g": ["cat"]},
        ["red", "cat"],
        None,
    ],
)
def test_answers_that_do_not_fit_the_frames_are_refused(answers: object) -> None:
    with pytest.raises(BadData):
        read(answered(answers))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"text": np.zeros((1, 2), np.uint8)},
        {"text": np.zeros(3, np.float32)},
        {"text": np.frombuffer(b"[[", np.uint8)},
        {"text": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"text": np.frombuffer(b"\xff\xfe", np.uint8)},
        {"text": np.frombuffer(b"[]", np.uint8), "more": np.zeros(1, np.uint8)},
    ],
)
def test_a_record_that_holds_no_answers_is_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadData):
        read(answered(None, tensors))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"held_out": 0}, "held_out is 0"),
        ({"held_out": -1}, "held_out"),
        ({"held_out": True}, "whole number"),
        ({"held_out": 1}, "more held-out frames"),
        ({"held_out": 3}, "header counts 3"),
        ({"held_out": None}, "continues after"),
        ({"version": 2, "sensitivity": [1]}, "1 sensitivities for 2 tensors"),
        ({"version": 2, "sensitivity": [1, -1]}, "sensitivity"),
        ({"version": 2, "sensitivity": [1, "x"]}, "sensitivity"),
        ({"version": 2, "sensitivity": [1, True]}, "sensitivity"),
        ({"version": 2, "sensitivity": {"a.bias": 1}}, "sensitivity"),
        ({"version": 2}, "'sensitivity' is missing"),
        ({"sensitivity": None}, "unknown key 'sensitivity'"),
        ({"rate_aware": {"step": 10**400, "bits": 1, "num_steps": 1}}, "401 digits"),
        ({"rate_aware": {"step": 0.5, "bits": 10**400, "num_steps": 1}}, "401 digits"),
        ({"rate_aware": {"step": 0, "bits": 1, "num_steps": 1}}, "step"),
        ({"rate_aware": {"step": 0.1, "bits": 1, "num_steps": 1}}, "step"),
        ({"rate_aware": {"step": 1e-40, "bits": 1, "num_steps": 1}}, "step"),
        ({"rate_aware": {"step": 0.5, "bits": -1, "num_steps": 1}}, "bits"),
        ({"rate_aware": {"step": 0.5, "bits": 1, "num_steps": 0}}, "num_steps is 0"),
        ({"held_out": 10**40}, "expected 1 to"),
        ({"rate_aware": {"step": 0.5, "bits": 1, "num_steps": -(10**40)}}, "expected 1 to"),
        ({"rate_aware": {"step": 0.5, "bits": 1}}, "missing"),
        ({"rate_aware": {"step": 0.5, "bits": 1, "num_steps": 1, "x": 1}}, "unknown key"),
        ({"colour": "blue"}, "unknown key"),
        ({"version": 1}, "unknown key"),
    ],
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadData, match=said) as refusal:
        read(edited(lambda header: header.update(change)))
    assert len(str(refusal.value)) < 300


def test_a_newer_version_is_called_newer() -> None:
    with pytest.raises(NewerFormat, match="upgrade"):
        read(edited(lambda header: header.update(version=4, colour="blue")))


def test_every_cut_and_anything_behind_it_is_refused() -> None:
    data = written(adaptation())
    for end in range(len(data)):
        with pytest.raises(BadData):
            read(data[:end])
    with pytest.raises(BadData):
        read(data + b"x")
    with pytest.raises(BadData):
        read(data + data)


@given(st.integers(0, 10_000_000), st.integers(0, 7))
@settings(deadline=None, max_examples=300)
def test_a_flipped_bit_is_refused_or_read_and_never_a_crash(place: int, bit: int) -> None:
    """An adaptation has no digest of its own (it never leaves the cloud): values may change."""
    data = bytearray(written(adaptation()))
    data[place % len(data)] ^= 1 << bit
    with contextlib.suppress(CdccaError):
        read(bytes(data))


def test_frames_of_two_towers_are_refused() -> None:
    other = replace(shard("g", questions=1), tower="sha256:" + "1" * 64)
    mixed = HeldOut([shard("f"), other], [["red", "two"], ["cat"]])
    with pytest.raises(BadData, match="one vision tower"):
        written(adaptation(held_out=mixed))


def test_more_tokens_than_are_read_are_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(adaptation())
    monkeypatch.setattr(format_, "HELD_OUT_BYTES", 3 * 8 * 4)  # one frame
    with pytest.raises(BadData, match="held-out tokens"):
        read(data)
    with pytest.raises(BadData, match="held-out tokens"):
        written(adaptation())


@pytest.mark.parametrize(
    "change",
    [
        {"rate_aware": RateAware(0.1, 1, 1)},
        {"held_out": HeldOut([], [])},
        {"held_out": HeldOut([shard("f")], [["one too few"]])},
    ],
)
def test_what_would_not_be_read_is_not_written(change: dict[str, Any]) -> None:
    out = io.BytesIO()
    with pytest.raises(BadData):
        write_adaptation(out, adaptation(**change))
    assert out.getvalue() == b""


@pytest.mark.parametrize("version", [2, 3])
def test_the_golden_file(version: int) -> None:
    """Put together from the specification by `tests.golden.make`, one frame, one answer.

    Version 2's sensitivity is dropped, so what is written again is of version 3."""
    folder = Path(make.__file__).parent / "valid"
    found = read((folder / f"adaptation_v{version}.adaptation").read_bytes())
    assert found.file_version == version
    assert found.rate_aware == RateAware(step=0.5, bits=1.125, num_steps=60)
    assert found.held_out is not None
    assert found.held_out.answers == [["chat é"]]
    (frame,) = found.held_out.shards
    assert (frame.frame, frame.tokens[0].tolist()) == ("f1", [1.5, -2.0, 0.0])
    again = read(written(found))
    assert (again.version, again.held_out.answers) == (3, found.held_out.answers)
    assert again.held_out.shards[0].tokens.tolist() == frame.tokens.tolist()
    assert again.held_out.shards[0].questions == frame.questions
