"""Token streams of version 2: what is written is read, damage is refused, memory is bounded."""

import gc
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats import records, shard_record
from cdcca_cli.formats.pictures import MEDIA, Picture
from cdcca_cli.formats.shard import (
    Codec,
    Coding,
    Layout,
    Question,
    Shard,
    Unusable,
)
from cdcca_cli.formats.shard_stream import encoded_bytes, read_shards, writer
from tests.fuzz.readers import Kind
from tests.fuzz.structure import run
from tests.golden import make

TOWER = "sha256:" + "5" * 64
CODEBOOK = "sha256:" + "6" * 64
KLT = Coding("klt", CODEBOOK, 0.5)
TEXT = st.text(max_size=6)
EMPTY = np.zeros((0, 0), np.float32)
CODECS: tuple[Codec, ...] = ("float32", "float16", "int8", "klt", "frame")


def make_shard(codec: Codec = "float32", kept: int = 3, of: int = 6, **change: object) -> Shard:
    """A frame of 4 channels with tokens 0, 1, ... kept; codes are of 2 components."""
    draw = np.random.default_rng(kept)
    values: dict[str, Any] = {
        "frame": "f",
        "image": "f.png",
        "domain": None,
        "tokens": draw.normal(size=(kept, 4)).astype(np.float32),
        "positions": np.arange(kept, dtype=np.int32),
        "scores": draw.random(kept).astype(np.float32),
        "num_tokens": of,
        "tower": TOWER,
        "questions": [Question("q", "What?", "vqa", ["a", "b"], 0.5)],
        "coding": Coding(codec),
    }
    if codec == "klt":
        shape = (1, of * 2) if kept == of else (kept, 2)
        codes = draw.integers(-300, 300, shape, np.int32)
        values |= {"coding": KLT, "tokens": EMPTY, "codes": codes}
    if codec == "frame":
        picture = Picture(b"a picture", "image/webp", (9, 7))
        values |= {"tokens": EMPTY, "scores": None, "picture": picture}
        values["positions"] = np.arange(of, dtype=np.int32)
    return Shard(**(values | change))


def stream(*shards: Shard) -> bytes:
    out = BytesIO()
    with writer(out) as write:
        for one in shards:
            write(one)
    assert write.num_bytes == len(out.getvalue())
    return out.getvalue()


def read(data: bytes) -> list[Shard]:
    return list(read_shards(BytesIO(data)))


def kinds(data: bytes) -> list[str]:
    source, found = BytesIO(data), []
    while record := records.read_record(source):
        found.append(record.header["kind"])
    return found


def same(found: Shard, expected: Shard) -> bool:
    """Whether a reader has the frame as it was written, 8 and 16 bits to their precision."""
    names = ("frame", "image", "domain", "num_tokens", "tower", "questions", "coding", "layout")
    names += ("time", "picture")
    if any(getattr(found, name) != getattr(expected, name) for name in names):
        return False
    pairs = [(found.positions, expected.positions)]
    for name in ("scores", "codes"):
        one, other = getattr(found, name), getattr(expected, name)
        if (one is None) != (other is None):
            return False
        pairs += [] if one is None else [(one, other)]
    if found.coding.codec == "float32":
        pairs.append((found.tokens, expected.tokens))
    elif found.coding.codec in ("float16", "int8"):
        error_NC = np.abs(found.tokens.astype(float) - expected.tokens)
        largest_N = np.abs(expected.tokens).max(axis=1, keepdims=True).astype(float)
        bound = 2.0**-11 if found.coding.codec == "float16" else 1 / 254 + 2.0**-20
        if not (error_NC <= bound * largest_N + 2.0**-25).all():
            return False
    else:
        pairs.append((found.tokens, EMPTY))
    return all(
        one.shape == other.shape and one.tobytes() == other.astype(one.dtype).tobytes()
        for one, other in pairs
    )


# ---------------------------------------------------------------- what is written is read again

QUESTIONS = st.builds(
    Question,
    id=TEXT,
    prompt=st.none() | TEXT,
    task=st.sampled_from(["vqa", "caption"]),
    choices=st.none() | st.lists(TEXT, min_size=1, max_size=3),
    entropy=st.none() | st.floats(0, 100, width=16),
)


def finite(width: int) -> st.SearchStrategy[float]:
    most = {16: 65504.0, 32: float(np.finfo(np.float32).max) / 2}[width]
    return st.floats(-most, most, width=width)  # type: ignore[arg-type]


PAIRS = st.tuples(*[st.integers(0, 3000)] * 2)
GRIDS = st.tuples(*[st.integers(0, 3000)] * 6)


@st.composite
def layouts(draw: st.DrawFn, num_tokens: int) -> Layout:
    fixed = draw(st.sets(st.integers(0, num_tokens - 1), max_size=3))
    grid = draw(st.lists(st.integers(0, 9), max_size=3))
    boxes: list[int] = []
    if len(grid) in (0, 2) and draw(st.booleans()):
        corner, grids = draw(st.tuples(PAIRS, st.lists(GRIDS, min_size=1, max_size=3)))
        boxes = [*corner, *chain.from_iterable(grids)]
    return Layout(tuple(grid), draw(TEXT), tuple(sorted(fixed)), tuple(boxes))


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    codec = draw(st.sampled_from(CODECS))
    num_tokens = draw(st.sampled_from([1, 5, 36]))
    places = st.sets(st.integers(0, num_tokens - 1), min_size=1, max_size=6)
    kept = sorted(draw(places)) if draw(st.booleans()) else list(range(num_tokens))
    shape = (len(kept), draw(st.integers(1, 3)))
    made = Shard(
        frame=draw(st.text(min_size=1, max_size=6)),
        image=draw(TEXT),
        domain=draw(st.none() | TEXT),
        tokens=EMPTY,
        positions=np.array(kept, np.int32),
        num_tokens=num_tokens,
        tower=draw(st.sampled_from([TOWER, CODEBOOK])),
        questions=draw(st.lists(QUESTIONS, max_size=2)),
        coding=Coding(codec),
        layout=draw(layouts(num_tokens)),
        time=draw(st.none() | st.floats(0, 4e9)),
    )
    if codec == "frame":
        media, data = draw(st.sampled_from(MEDIA)), draw(st.binary(min_size=1, max_size=9))
        picture = Picture(data, media, (draw(st.integers(1, 9)), 2))
        return replace(made, picture=picture, positions=np.arange(num_tokens, dtype=np.int32))
    if draw(st.booleans()):
        scores = arrays.arrays(np.float32, shape[:1], elements=finite(32))
        made = replace(made, scores=draw(scores))
    if codec == "klt":
        rows = 1 if len(kept) == num_tokens else len(kept)
        small = st.integers(-3, 3) | st.integers(-(1 << 24), 1 << 24)
        codes = draw(arrays.arrays(np.int32, (rows, shape[1]), elements=small))
        step = draw(st.sampled_from([0.5, float(np.float32(0.1))]))
        return replace(made, codes=codes, coding=Coding("klt", CODEBOOK, step))
    elements = finite(16 if codec == "float16" else 32)
    return replace(made, tokens=draw(arrays.arrays(np.float32, shape, elements=elements)))


@settings(max_examples=150, deadline=None)
@given(st.lists(shards(), max_size=6), st.lists(shards(), max_size=2))
def test_what_is_written_is_read_again(first: list[Shard], second: list[Shard]) -> None:
    """Of any codecs, towers and layouts in one stream; two streams end to end are a stream."""
    data = stream(*first)
    for both in (data + stream(*second), stream() + data + stream() + stream(*second)):
        ledger: Counter[str] = Counter()
        found = list(read_shards(BytesIO(both), ledger=ledger))
        assert len(found) == len(first + second)
        assert all(map(same, found, first + second))
        assert ledger.total() == len(both)
    assert encoded_bytes(first) == len(data)


@pytest.mark.parametrize("kept", [3, 6])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec: Codec, kept: int) -> None:
    written = [make_shard(codec, kept, frame=name) for name in ("a", "é", "a")]
    data = stream(*written)
    assert kinds(data) == ["shards", "frames", "end"]
    assert all(map(same, read(data), written))


def test_parts_and_records_by_hand() -> None:
    """A tower begins a part; a codec, scores or none, or other codes begin a record."""
    one = make_shard()
    none = replace(one, scores=None)
    other = replace(one, tower=CODEBOOK)
    data = stream(one, one, none, make_shard("klt"), make_shard("klt", 6), other, other, one)
    head, frames, end = "shards", "frames", "end"
    assert kinds(data) == [
        *(head, frames, frames, frames, frames, end),
        *(head, frames, end, head, frames, end),
    ]
    assert kinds(stream(*[one] * 257)) == [head, frames, frames, end]
    assert kinds(stream()) == [end]


def test_long_texts_are_divided_among_records() -> None:
    """So the index of a record stays within what a reader takes in."""
    written = [
        make_shard(frame=str(n), questions=[Question("q", "é" * 20_000 + str(n), "vqa")])
        for n in range(60)
    ]
    data = stream(*written)
    assert kinds(data).count("frames") > 1
    assert all(map(same, read(data), written))


def test_large_frames_are_divided_among_records() -> None:
    """At most 2^23 codes in a record, which is what a reader takes in."""
    written = [make_shard(tokens=np.ones((3, 1 << 20), np.float32))] * 3
    assert kinds(stream(*written)).count("frames") == 2
    written = [make_shard("klt", codes=np.zeros((3, 1_500_000), np.int32))] * 2
    assert kinds(stream(*written)).count("frames") == 2


@pytest.mark.parametrize("nats", [1 / 3, 11.7, 60_000.0])
def test_entropies_have_16_bits(nats: float) -> None:
    """Within 2^-11 of the number: half a unit in the last of 11 bits."""
    (found,) = read(stream(make_shard(questions=[Question("q", None, "vqa", None, nats)])))
    assert found.questions[0].entropy == float(np.float16(nats)) == pytest.approx(nats, rel=2**-11)


def test_both_versions_in_one_stream() -> None:
    old = make.shard() + make.end(1)
    assert [one.frame for one in read(old + stream(make_shard()) + old)] == ["f1", "f", "f1"]


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self.data, self.most = data, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        piece = self.data[: min(self.most, len(view))]
        self.data = self.data[len(piece) :]
        view[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_reading_in_pieces_is_reading_at_once(most: int) -> None:
    data = stream(*map(make_shard, CODECS))
    found = list(read_shards(io.BufferedReader(Trickle(data, most), 16)))
    assert len(found) == 5 and all(map(same, found, map(make_shard, CODECS)))


# ---------------------------------------------------------------- the smaller of two payloads


@pytest.mark.parametrize(("picture_bytes", "codec"), [(5, "frame"), (500, "int8")])
def test_the_smaller_payload_is_sent(picture_bytes: int, codec: Codec) -> None:
    """Each group of frames goes in the form that takes fewer bytes; the other's are recorded."""
    data = np.random.default_rng(0).bytes(picture_bytes)
    picture = Picture(data, "image/avif", (4, 4))
    out = BytesIO()
    with writer(out) as write:
        for name in "ab":
            write(make_shard("int8", frame=name), picture)
    forms = {
        "int8": stream(*[make_shard("int8", frame=name) for name in "ab"]),
        "frame": stream(*[make_shard("frame", frame=n, picture=picture) for n in "ab"]),
    }
    (found,) = {shard.coding.codec for shard in read(out.getvalue())}
    assert found == codec
    sizes = {}
    for name, data in forms.items():
        source = BytesIO(data)
        frames = [records.read_record(source) for _ in range(2)][1]
        assert frames is not None and frames.header["other"] is None
        sizes[name] = sum(array.nbytes for array in frames.tensors.values())
    source = BytesIO(out.getvalue())
    records.read_record(source)
    chosen = records.read_record(source)
    assert chosen is not None and chosen.header["other"] == max(sizes.values())
    assert sizes[codec] == min(sizes.values())


# ---------------------------------------------------------------- what a frame costs


@pytest.mark.parametrize(("count", "most"), [(64, 60), (1000, 30)])
def test_what_ids_and_questions_cost(count: int, most: int) -> None:
    """Questions like those of the shipped stream, 1.2 a frame: all bytes but the payload's."""
    lines = (make.HERE.parents[1] / "cdcca_cli/assets/frames/stream/frames.jsonl").read_text()
    asked = [json.loads(line) for line in lines.splitlines()]
    draw = np.random.default_rng(0)
    written = []
    for number in range(count):
        one = asked[number % len(asked)]
        questions = [
            Question(
                f"t{number:05}-q{place}",
                one.get("prompt"),
                one.get("task", "vqa"),
                one.get("choices"),
                float(draw.gamma(2.0, 0.5)),
            )
            for place in range(2 if number % 5 == 0 else 1)
        ]
        written.append(
            make_shard(
                "float16",
                6,
                frame=f"t{number:05}.jpg",
                image=f"t{number:05}.jpg",
                domain="target",
                questions=questions,
                scores=None,
            )
        )
    data = stream(*written)
    payload = count * 6 * 4 * 2
    assert (len(data) - payload) / count <= most


# ---------------------------------------------------------------- what could not be read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": np.full((3, 4), np.nan, np.float32)}, "not finite"),
        ({"scores": np.array([1, np.inf, 0], np.float32)}, "not finite"),
        ({"tokens": np.full((3, 4), 7e4, np.float32), "coding": Coding("float16")}, "not finite"),
        ({"tokens": np.full((3, 4), 3.4028235e38), "coding": Coding("int8")}, "not finite"),
        ({"positions": np.array([0, 2, 6])}, "ascend"),
        ({"positions": np.array([0, 2, 2])}, "ascend"),
        ({"positions": np.array([0, 2, 2]), "num_tokens": 3}, "ascend"),
        ({"positions": np.array([4, 2, 5], np.uint16)}, "ascend"),
        ({"positions": np.array([-1, 2, 4])}, "ascend"),
        ({"positions": np.array([0.0, 1.5, 4])}, "positions"),
        ({"positions": np.array([0, 2])}, "scores of shape"),
        ({"positions": np.zeros(0, int), "tokens": np.zeros((0, 4))}, "positions of shape"),
        ({"tokens": np.zeros((3, 0), np.float32)}, "tokens of shape"),
        ({"tokens": np.zeros(4, np.float32)}, "tokens of shape"),
        ({"scores": np.zeros(2, np.float32)}, "scores of shape"),
        ({"coding": Coding("zip")}, "codec 'zip'"),  # type: ignore[arg-type]
        ({"coding": KLT}, "codes of shape"),
        ({"coding": KLT, "codes": np.zeros((1, 8), np.int32)}, "codes of shape"),
        ({"coding": Coding("klt"), "codes": np.zeros((3, 2), np.int32)}, "belong to klt"),
        ({"coding": Coding("int8", CODEBOOK)}, "belong to klt"),
        ({"coding": Coding("frame")}, "no picture"),
        (
            {"coding": Coding("frame"), "picture": Picture(b"", "image/png", (1, 1))},
            "no picture",
        ),
        (
            {"coding": Coding("frame"), "picture": Picture(b"x", "image/png", (0, 1))},
            "a picture of size",
        ),
        (
            {"coding": Coding("frame"), "picture": Picture(b"x", "image/gif", (1, 1))},
            "no picture of the types",
        ),
        ({"frame": ""}, "empty"),
        ({"image": "caf\udce9.jpg"}, "surrogate"),
        ({"tower": "none"}, "not a digest"),
        ({"num_tokens": 0}, "0 tokens"),
        ({"num_tokens": (1 << 20) + 1}, "1,048,577 tokens"),
        ({"time": float("nan")}, "its time"),
        ({"questions": [Question("q", None, "chat")]}, "task"),  # type: ignore[arg-type]
        ({"questions": [Question("q", None, "vqa", [])]}, "choices"),
        ({"questions": [Question("q", None, "vqa", None, -0.5)]}, "entropy of -0.5"),
        ({"questions": [Question("q", None, "vqa", None, 70_000)]}, "entropy of 70000"),
        ({"layout": Layout(fixed=(1, 1))}, "fixed places"),
        ({"questions": [Question("q", "x" * (3 << 20), "vqa")]}, "index"),
    ],
)
def test_what_could_not_be_read_is_not_written(change: dict[str, Any], words: str) -> None:
    out = BytesIO()
    with pytest.raises(BadData, match=words), writer(out) as write:
        write(make_shard(**change))
    assert b'"frames' not in out.getvalue()


def test_a_frame_that_is_refused_leaves_the_others() -> None:
    """A writer names it at once, and what waits is sound: the caller may go on."""
    out = BytesIO()
    with writer(out) as write:
        write(make_shard(frame="a"))
        with pytest.raises(BadData, match="frame b: positions"):
            write(make_shard(frame="b", positions=np.array([3, 2, 1])))
        with pytest.raises(BadData, match="frame b: values that are not finite in float32"):
            write(make_shard(frame="b", tokens=np.full((3, 4), np.nan)))
        write(make_shard(frame="c"))
    assert [one.frame for one in read(out.getvalue())] == ["a", "c"]


def test_a_writer_that_fails_leaves_no_end_record() -> None:
    out = BytesIO()
    with pytest.raises(ZeroDivisionError), writer(out) as write:
        for _ in range(300):
            write(make_shard())
        raise ZeroDivisionError
    with pytest.raises(BadData, match="without its end record"):
        read(out.getvalue())


# ---------------------------------------------------------------- damage

SMALL = {
    codec: stream(make_shard(codec, frame="a"), make_shard(codec, frame="b")) for codec in CODECS
}


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_that_was_cut_is_refused(codec: Codec) -> None:
    data = SMALL[codec] + SMALL["float32"]
    for length in range(len(data)):
        if length == len(SMALL[codec]):
            continue  # whole
        with pytest.raises(BadData):
            list(read_shards(BytesIO(data[:length]), refused=lambda _: None))


@pytest.mark.parametrize("codec", CODECS)
def test_no_flipped_byte_passes_as_something_else(codec: Codec) -> None:
    """It is refused, or its record is left out, or (in a blank of the JSON) nothing has changed."""
    data = SMALL[codec]
    good = read(data)
    draw = np.random.default_rng(0)
    for place in range(len(data)):
        for value in {data[place] ^ 1, data[place] ^ 32, int(draw.integers(256))} - {data[place]}:
            bad = data[:place] + bytes([value]) + data[place + 1 :]
            told: list[Unusable] = []
            try:
                found = list(read_shards(BytesIO(bad), refused=told.append))
            except (BadData, NewerFormat):
                continue
            assert (not found and told) or all(map(same, found, good))
            if told:
                with pytest.raises(BadData):
                    read(bad)


def test_a_damaged_record_is_left_out_and_the_rest_is_read() -> None:
    others = make_shard("int8", frame="c")
    data = stream(make_shard(frame="a"), make_shard(frame="b"), others)
    place = data.index(make_shard().tokens.tobytes())
    bad = data[:place] + b"x" + data[place + 1 :]
    told: list[Unusable] = []
    found = list(read_shards(BytesIO(bad), where="up", refused=told.append))
    assert [one.frame for one in found] == ["c"]
    assert [str(one) for one in told] == [
        "up: record 2: a damaged record of 2 frames (its sum is wrong)"
    ]
    with pytest.raises(Unusable):
        read(bad)


def test_a_frame_of_values_that_are_not_finite_is_left_out() -> None:
    shards = [make_shard(frame=name) for name in "abc"]
    shards[1].tokens[0, 0] = np.nan
    tensors, header = shard_record.encode(shards)
    out = BytesIO()
    records.write_record(out, {}, {"kind": "shards", "version": 2, "tower": TOWER})
    records.write_record(out, tensors, shard_record.seal(tensors, header, TOWER))
    records.write_record(out, {}, {"kind": "end", "version": 2, "count": 3})
    told: list[Unusable] = []
    found = list(read_shards(BytesIO(out.getvalue()), where="up", refused=told.append))
    assert [one.frame for one in found] == ["a", "c"]
    assert [str(one) for one in told] == ["up: record 2 (frame b): values that are not finite"]
    with pytest.raises(Unusable, match="frame b"):
        read(out.getvalue())


@pytest.mark.parametrize("name", [name for name in make.FAULTS if name.endswith(".shards")])
def test_every_fault_is_refused_though_somebody_is_told(name: str) -> None:
    """What is left out instead is sound in all else: values not finite, and damage."""
    code, words, data = make.FAULTS[name]
    if "zstd" in name or "not finite" in words or "sum is wrong" in words:
        return
    told: list[Unusable] = []
    with pytest.raises((BadData, NewerFormat)) as refused:
        list(read_shards(BytesIO(data), refused=told.append))
    assert (refused.value.exit_code, told) == (code, [])


# ---------------------------------------------------------------- memory


class Repeated(io.RawIOBase):
    """A stream of one part again and again, made as it is read."""

    def __init__(self, part: bytes, times: int) -> None:
        self.pieces: Iterator[bytes] = (part for _ in range(times))
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        self.rest = self.rest or next(self.pieces, b"")
        piece, self.rest = self.rest[: len(view)], self.rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)


def peak_bytes(data: bytes, times: int = 1, *, must_hold: bool = False) -> tuple[int, int]:
    """The most memory that reading takes, and the number of frames; -1 if it is refused."""
    gc.collect()
    tracemalloc.start()
    found = read_shards(io.BufferedReader(Repeated(data, times)))
    try:
        count = len(list(found)) if must_hold else sum(1 for _ in found)
    except BadData:
        count = -1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, count


@pytest.mark.parametrize("codec", CODECS)
def test_memory_does_not_grow_with_the_stream(codec: Codec) -> None:
    """Here by tracemalloc; with 10,000 shards and by the whole process in test_inspect."""
    part = stream(*[make_shard(codec)] * 8)
    peak_bytes(part, 5)
    short, _ = peak_bytes(part, 10)
    peak, count = peak_bytes(part, 60)
    assert count == 480 and peak <= short + 16_384


def bomb(num_bytes: int) -> tuple[str, list[int], bytes]:
    """Zeros in a zstd frame."""
    data = zstandard.ZstdCompressor().compress(bytes(num_bytes))
    return "U8", [len(data)], data


BOMBS = {
    "index": make.part_2(make.frames(sizes={"index": 1 << 28}, stored={"index": bomb(1 << 28)})),
    "index, size too small": make.part_2(make.frames(stored={"index": bomb(1 << 28)})),
    "codes": make.part_2(
        make.frames_klt_kept(sizes={"codes": 1 << 28}, tensors={"codes": bomb(1 << 28)})
    ),
    "codes, size too small": make.part_2(
        make.frames_klt_kept(sizes={"codes": 6}, tensors={"codes": bomb(1 << 28)})
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_zstd_bomb_is_refused_before_it_is_unpacked(name: str) -> None:
    peak, count = peak_bytes(BOMBS[name])
    assert count == -1 and peak < 4 << 20


@pytest.mark.parametrize("text", ['{"":0}', '"ab"', "[0]", "[[[]]]"])
def test_an_index_of_many_values_takes_little(text: str) -> None:
    """As long as an index may be, of values that take most in Python: 256 MiB and 2 s at most."""
    count = ((1 << 21) - 2000) // (len(text) + 1)
    many = ("[" + ",".join([text] * count) + "]").encode()

    def case(name: str) -> bytes:
        index = make.dumps({**make.INDEX, name: []}).encode()
        index = index.replace(f'"{name}":[]'.encode(), f'"{name}":'.encode() + many)
        data = zstandard.ZstdCompressor().compress(index)
        stored = {"index": ("U8", [len(data)], data)}
        return make.part_2(make.frames(sizes={"index": len(index)}, stored=stored))

    cases = [case(name) for name in ("strings", "choices", "layouts")]
    kind = Kind("it", lambda rng: cases.pop(), lambda data, folder: read(data))
    assert run(kind, 0, range(3)).faults == []


def test_layouts_of_many_tokens_take_little() -> None:
    """256 pictures of 2^20 tokens each, all of them held: frames share their places."""
    index = {
        **make.INDEX,
        "strings": ["image/webp"],
        "layouts": [{"num_tokens": 1 << 20, "grid": [], "marks": "", "fixed": []}],
        "frames": ["f"] * 256,
        "images": None,
        "domains": [None] * 256,
        "times": None,
        "layout": [0] * 256,
        "counts": [0] * 256,
        **{name: [] for name in ("ids", "prompts", "choices")},
        "tasks": "",
        "pictures": [[0, 1, 1, 1]] * 256,
    }
    tensors = dict.fromkeys(("kept", "scores", "tokens"))
    data = make.packed(bytes(256))
    stored = {**tensors, "pictures": ("U8", [len(data)], data), "entropies": ("F16", [0], b"")}
    record = make.frames({"codec": "frame", "count": 256}, index, stored=stored)
    peak, count = peak_bytes(make.part_2(record, count=256), must_hold=True)
    assert count == 256 and peak < 16 << 20


def test_a_long_text_that_many_questions_share_is_bounded() -> None:
    """Written once, it would be gigabytes for whoever writes out the questions."""
    count = 10_000
    index = {
        "strings": ["night", "x" * 100_000],
        "counts": [count, 0],
        "ids": [""] * count,
        "tasks": "v" * count,
        "prompts": [1] * count,
        "choices": [None] * count,
    }
    record = make.frames(index=index, entropies=("F16", [count], bytes(2 * count)))
    with pytest.raises(BadData, match="4,194,304 characters of text"):
        read(make.part_2(record))


def test_codes_that_are_all_zero_are_bounded() -> None:
    """2^23 codes, 5 bytes each at most: what a reader unpacks from a kilobyte."""
    num_columns = (1 << 23) // 3
    content = bytes(3 * num_columns)
    data = b"\0" + zstandard.ZstdCompressor().compress(content)
    tensors = {"codes": ("U8", [len(data)], data)}
    part = make.part_2(make.frames_klt(content[:9], num_columns, tensors=tensors))
    peak, count = peak_bytes(part)
    assert count == 2 and peak < 256 << 20
