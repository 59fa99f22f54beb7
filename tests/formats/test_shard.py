import gc
import io
import tracemalloc
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats import shard
from cdcca_cli.formats.shard import Question, Shard
from tests.golden import make

TOWER = "sha256:" + "5" * 64
TEXT = st.text(max_size=6)


def make_shard(bits: int = 32, num_kept: int = 3, channels: int = 4, **change: object) -> Shard:
    generator = np.random.default_rng(num_kept * channels)
    values: dict = {
        "frame": "f",
        "image": "f.png",
        "domain": None,
        "tokens": generator.normal(size=(num_kept, channels)).astype(np.float32),
        "positions": np.arange(num_kept, dtype=np.int32) * 2,
        "scores": generator.random(num_kept).astype(np.float32),
        "num_tokens": num_kept * 2,
        "tower": TOWER,
        "questions": [Question("q", "What?", "vqa", ["a", "b"], 0.5)],
        "bits": bits,
    }
    return Shard(**(values | change))


def stream(*shards: Shard) -> bytes:
    out = BytesIO()
    with shard.writer(out) as write:
        for one in shards:
            write(one)
    return out.getvalue()


def read(data: bytes) -> list[Shard]:
    return list(shard.read_shards(BytesIO(data)))


def assert_same(found: Shard, expected: Shard) -> None:
    for name in ("frame", "image", "domain", "num_tokens", "tower", "questions", "bits"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("tokens", "positions", "scores"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


ASKS = st.builds(
    Question,
    id=TEXT,
    prompt=st.none() | TEXT,
    task=st.sampled_from(["vqa", "caption"]),
    choices=st.none() | st.lists(TEXT, min_size=1, max_size=3),
    entropy=st.none() | st.floats(0, 20),
)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    num_tokens = draw(st.sampled_from([1, 5, 36, 65536, 65537, 2**31 - 1]))
    places = st.integers(0, num_tokens - 1)
    positions = sorted(draw(st.sets(places, min_size=1, max_size=4)))
    shape = (len(positions), draw(st.integers(1, 4)))
    return Shard(
        frame=draw(st.text(min_size=1, max_size=6)),
        image=draw(TEXT),
        domain=draw(st.none() | TEXT),
        tokens=draw(arrays.arrays(np.float32, shape, elements=FINITE)),
        positions=np.array(positions, np.int32),
        scores=draw(arrays.arrays(np.float32, shape[:1], elements=FINITE)),
        num_tokens=num_tokens,
        tower=TOWER,
        questions=draw(st.lists(ASKS, max_size=2)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(shards(), max_size=3))
def test_what_is_written_is_read_again(written: list[Shard]) -> None:
    found = read(stream(*written))
    assert len(found) == len(written)
    for one, other in zip(found, written, strict=True):
        assert_same(one, other)
        assert one.num_bytes == shard.encoded_bytes(other) == sum(shard.shard_bytes(one).values())


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_eight_bits_are_at_most_half_a_scale_off(tokens_NC: np.ndarray) -> None:
    """|x - code * scale| <= scale / 2, but for float32 rounding (2^-20 of the row's largest)."""
    codes_NC, scales_N = shard.quantize_absmax(tokens_NC)
    decoded_NC = shard.dequantize_absmax(codes_NC, scales_N)
    largest_N = np.abs(tokens_NC).max(axis=1)
    assert (np.abs(codes_NC.astype(int)) <= 127).all()
    # Below the smallest scale that float32 has, a row is rounded to zero.
    allowed_N = scales_N.astype(float) / 2 + largest_N * 2.0**-20 + 127 * 2.0**-149
    assert (np.abs(decoded_NC.astype(float) - tokens_NC).max(axis=1) <= allowed_N).all()


def test_eight_bits_by_hand() -> None:
    """Row 0: scale 254 / 127 = 2; 254, -3, 1, 5 give 127, -1.5, 0.5, 2.5, halves to even."""
    tokens = np.array([[254, -3, 1, 5], [0, 0, 0, 0]], np.float32)
    codes, scales = shard.quantize_absmax(tokens)
    assert codes.tolist() == [[127, -2, 0, 2], [0, 0, 0, 0]]
    assert scales.tolist() == [2.0, 0.0]


def test_reading_again_what_eight_bits_gave_changes_little_and_never_grows() -> None:
    once = read(stream(make_shard(8)))[0]
    twice = read(stream(once))[0]
    np.testing.assert_allclose(twice.tokens, once.tokens, rtol=1e-6)


def test_ledger_by_hand() -> None:
    """3 tokens of 4 channels: 12 values; positions take 2 bytes each up to 65,536 tokens."""
    for bits, payload, scales in ((32, 48, 0), (16, 24, 0), (8, 12, 12)):
        ledger = shard.shard_bytes(make_shard(bits))
        header = ledger.pop("header")
        assert ledger == {"payload": payload, "scales": scales, "positions": 6, "scores": 12}
        assert header == len(stream(make_shard(bits))) - len(stream()) - sum(ledger.values())
    assert shard.shard_bytes(make_shard(num_tokens=70_000))["positions"] == 12


def test_streams_end_to_end_are_a_stream() -> None:
    first, second = stream(make_shard(frame="a")), stream(make_shard(frame="b"))
    together = read(first + stream() + second)
    assert [one.frame for one in together] == ["a", "b"]
    for one, other in zip(together, read(first) + read(second), strict=True):
        assert_same(one, other)


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
    data = stream(make_shard(8), make_shard(16), make_shard(32))
    for one, other in zip(
        shard.read_shards(io.BufferedReader(Trickle(data, most), 16)), read(data), strict=True
    ):
        assert_same(one, other)


def test_a_writer_that_fails_leaves_no_end_record() -> None:
    out = BytesIO()
    with pytest.raises(ZeroDivisionError), shard.writer(out) as write:
        write(make_shard())
        raise ZeroDivisionError
    with pytest.raises(BadData, match="without its end record"):
        read(out.getvalue())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": np.full((3, 4), np.nan, np.float32)}, "not finite"),
        ({"scores": np.array([1, np.inf, 0], np.float32)}, "not finite"),
        (
            {"tokens": np.full((3, 4), 70_000, np.float32), "bits": 16},
            "not finite in this many bits",
        ),
        (
            {"tokens": np.full((3, 4), 3.4028235e38, np.float32), "bits": 8},
            "not finite in this many",
        ),
        ({"positions": np.array([0, 2, 6])}, "positions"),
        ({"positions": np.array([0, 2, 2])}, "positions"),
        ({"positions": np.array([0, 65536 + 2, 4])}, "positions"),
        ({"positions": np.array([-65536, 2, 4])}, "positions"),
        ({"positions": np.array([0.0, 1.5, 4])}, "positions"),
        ({"positions": np.array([0, 2])}, "positions of shape"),
        ({"tokens": np.zeros((0, 4), np.float32), "positions": np.zeros(0)}, "shape"),
        ({"tokens": np.zeros(4, np.float32), "bits": 8}, "tokens"),
        ({"bits": 4}, "not 4"),
        ({"frame": ""}, "empty"),
        ({"tower": "none"}, "not a digest"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"questions": [Question("q", None, "chat")]}, "task"),  # type: ignore[arg-type]
        ({"questions": [Question("q", None, "vqa", [])]}, "choices"),
    ],
)
def test_what_could_not_be_read_is_not_written(change: dict, words: str) -> None:
    out = BytesIO()
    with pytest.raises(BadData, match=words):
        shard.write_shard(out, make_shard(**change))
    assert out.getvalue() == b""


NOT_FINITE = {
    "tokens_f32": make.shard({"frame": "bad"}, tokens=("F32", [2, 1], make.floats(1, make.NAN))),
    "scores": make.shard({"frame": "bad"}, scores=("F32", [2], make.floats(make.INF, 1))),
    "tokens_f16": make.record(
        {**make.SHARD_F16, "frame": "bad"},
        {**make.TENSORS_F16, "tokens": ("F16", [2, 1], make.halves(1, make.NAN))},
    ),
    "scales_i8": make.record(
        {**make.SHARD_I8, "frame": "bad"},
        {**make.TENSORS_I8, "scales": ("F32", [2], make.floats(make.INF, 0))},
    ),
    "products_i8": make.record(
        {**make.SHARD_I8, "frame": "bad"},
        {**make.TENSORS_I8, "scales": ("F32", [2], make.floats(3e38, 0))},
    ),
}


@pytest.mark.parametrize("fault", NOT_FINITE)
def test_a_shard_of_values_that_are_no_numbers_is_named_and_left_out(fault: str) -> None:
    """The end record counts it all the same; without somebody to tell it is an error."""
    bad, good = NOT_FINITE[fault], make.shard()
    data = good + bad + good + make.end(3) + bad + make.end(1)
    told: list[BadData] = []
    found = list(shard.read_shards(BytesIO(data), where="up", refused=told.append))
    assert [one.frame for one in found] == ["f1", "f1"]
    lines = [str(error) for error in told]
    assert [line[: line.index(":", 5)] for line in lines] == [
        "up: record 2 (frame bad)",
        "up: record 4 (frame bad)",
    ]
    assert all("not finite" in line for line in lines)
    with pytest.raises(BadData, match=r"record 2 \(frame bad\): .*not finite"):
        read(data)


@pytest.mark.parametrize("count", [1, 3])
def test_one_that_is_left_out_is_counted(count: int) -> None:
    data = make.shard() + NOT_FINITE["scores"] + make.end(count)
    with pytest.raises(BadData, match=f"2 shards, but its end record counts {count}"):
        list(shard.read_shards(BytesIO(data), refused=lambda _: None))


@pytest.mark.parametrize("name", [name for name in make.FAULTS if name.endswith(".shards")])
def test_every_other_fault_is_refused_though_somebody_is_told(name: str) -> None:
    """Also where the values are no numbers on top of it: what is left out is sound in all else."""
    code, words, data = make.FAULTS[name]
    if "zstd" in name or words == "not finite":
        return
    told: list[BadData] = []
    with pytest.raises((BadData, NewerFormat)) as refused:
        list(shard.read_shards(BytesIO(data), refused=told.append))
    assert (refused.value.exit_code, told) == (code, [])


@pytest.mark.parametrize(
    "change",
    [{"labels": []}, {"asks": [{**make.ASK, "task": "chat"}]}, {"image": 3}, {"num_tokens": 17}],
    ids=lambda change: next(iter(change)),
)
def test_no_numbers_and_another_fault_are_refused(change: dict) -> None:
    data = make.shard(change, scores=("F32", [2], make.floats(make.NAN, 1))) + make.end(1)
    with pytest.raises(BadData):
        list(shard.read_shards(BytesIO(data), refused=lambda _: None))


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


def test_memory_does_not_grow_with_the_stream() -> None:
    """Here by tracemalloc; with 10,000 shards and by the whole process in test_inspect."""
    part = stream(make_shard(8, num_kept=4, channels=8))

    def peak_bytes(times: int) -> int:
        gc.collect()
        tracemalloc.start()
        count = sum(1 for _ in shard.read_shards(io.BufferedReader(Repeated(part, times))))
        assert count == times
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_bytes(10)
    assert peak_bytes(600) <= peak_bytes(50) + 16_384
