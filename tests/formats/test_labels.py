"""Records of labels: what is written is read, damage is BadData, and what a label belongs to."""

import hashlib
import random
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData, CdccaError, NewerFormat
from cdcca_cli.formats import label_stream, labels, records
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.label_stream import ShardKey
from cdcca_cli.formats.label_tops import LOWEST
from cdcca_cli.formats.labels import (
    Entry,
    Label,
    Source,
    Top,
    payload_digest,
    question_digest,
)
from cdcca_cli.formats.names import LABEL_BITS
from cdcca_cli.formats.shard import Coding, Layout, Picture, Question, Shard
from tests.golden import make

SOURCE = Source("sha256:" + "7e" * 32, "sha256:" + "70" * 32, "float32")
SERVED = Source("https://host/v1#m")
LARGE = 65_000.0  # near the end of 16 bits


def digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}"


def decoded(data: bytes) -> Entry:
    """The only record in some bytes."""
    record = records.read_record(BytesIO(data), kinds=label_stream.KINDS)
    assert record is not None and record.num_bytes == len(data)
    return labels.decode(record, "here")


def again(entry: Entry, bits: int = 32) -> Entry:
    return decoded(labels.encode(entry, bits))


# ---------------------------------------------------------------- what is written is read


def floats(shape: tuple[int, int], least: float = -LARGE, most: float = LARGE) -> Any:
    numbers = st.floats(least, most, width=32)
    return arrays.arrays(np.float32, shape, elements=numbers)


@st.composite
def any_top(draw: st.DrawFn, has_ids: bool) -> Top:
    """Of 1 to 3 tokens, 0 to 3 likeliest of each."""
    num_tokens, width = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    logp_AK = draw(floats((num_tokens, width), -100, 0))
    rest_A = draw(floats((num_tokens, 1), -100, 0))[:, 0]
    if has_ids:
        ids = st.integers(-1, 2**31 - 1)
        return Top(logp_AK, rest_A, draw(arrays.arrays(np.int32, logp_AK.shape, elements=ids)))
    row = st.lists(st.binary(max_size=3), min_size=width, max_size=width)
    pieces = draw(st.lists(row, min_size=num_tokens, max_size=num_tokens))
    return Top(logp_AK, rest_A, pieces_AK=pieces)


@st.composite
def any_entry(draw: st.DrawFn) -> Entry:
    """Of 1 to 3 questions; each part of each label may be missing."""
    has_ids, channels, width = draw(st.booleans()), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    source = SOURCE if has_ids else draw(st.sampled_from((SOURCE, SERVED)))
    inputs = [draw(floats((draw(st.integers(1, 3)), channels))) for _ in range(2)]
    kept_inputs = [draw(st.none() | any_kept(len(rows))) for rows in inputs]
    rows = st.none() | st.integers(1, 3).flatmap(lambda length: floats((length, width)))
    found: dict[str, Label] = {}
    for number in range(draw(st.integers(1, 3))):
        label = Label(
            draw(st.text(max_size=5)),
            nats=draw(st.none() | st.floats(0, 100)),
            end=draw(st.sampled_from((None, "stop", "length", "choice"))),
            scores=draw(st.none() | st.lists(st.floats(-1e6, 1e6), max_size=3)),
            top=draw(st.none() | any_top(has_ids)),
            visual=draw(rows),
            answer_rows=draw(rows),
        )
        kept = {}
        if (place := draw(st.none() | st.sampled_from((0, 1)))) is not None:
            label.queries, kept["queries"] = inputs[place], kept_inputs[place]
        if label.visual is not None:
            kept["visual"] = draw(st.none() | any_kept(len(label.visual)))
        label.kept = {name: one for name, one in kept.items() if one is not None} or None
        found[digest(number)] = label
    return Entry(draw(st.text(max_size=5)), digest(7), source, found)


@st.composite
def any_kept(draw: st.DrawFn, length: int) -> Kept:
    rows = draw(st.sets(st.integers(0, 9), min_size=length, max_size=length))
    return Kept(np.array(sorted(rows), np.int32), draw(st.integers(10, 12)))


FEATURES = ("queries", "visual", "answer_rows")


def half_a_step(values_RC: np.ndarray, bits: int) -> np.ndarray:
    """(R, C): how far a stored value may be off.

    16 bits: 11 of them are significant, so half a step is 2^-11 of the value, or 2^-25 where steps
    become no smaller. 8 bits: a step is 1 / 127 of the row's largest; computing it in float32 adds
    2^-20 of that, and what float32 itself cannot divide any further.
    """
    sizes_RC = np.abs(values_RC.astype(float))
    if bits == 32:
        return 0 * sizes_RC
    if bits == 16:
        return np.maximum(sizes_RC * 2.0**-11, 2.0**-25)
    largest_R1 = sizes_RC.max(axis=1, keepdims=True)
    return largest_R1 / 254 + largest_R1 * 2.0**-20 + 127 * 2.0**-149 + 0 * sizes_RC


def assert_alike(found: Label, expected: Label, bits: int = 32) -> None:
    """Equal but for rounding, the fill of distributions, and rows that are all kept."""
    for name in ("answer", "nats", "end", "scores", "missing"):
        assert getattr(found, name) == getattr(expected, name)
    for name in FEATURES:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is not None:
            assert ours.dtype == np.float32 and ours.shape == theirs.shape
            assert (np.abs(ours.astype(float) - theirs) <= half_a_step(theirs, bits)).all()
    for name, kept in (expected.kept or {}).items():
        assert found.kept is not None
        assert found.kept[name].rows_L.tolist() == kept.rows_L.tolist()
        assert found.kept[name].count == kept.count
    if expected.top is not None:
        assert found.top is not None
        assert_alike_tops(found.top, expected.top)


def assert_alike_tops(found: Top, expected: Top) -> None:
    width = expected.logp_AK.shape[1]
    allowed = half_a_step(expected.logp_AK, 16)
    assert (np.abs(found.logp_AK[:, :width] - expected.logp_AK) <= allowed).all()
    assert (found.logp_AK[:, width:] == LOWEST).all()
    np.testing.assert_allclose(found.rest_A, expected.rest_A, rtol=2**-11, atol=2**-25)
    if expected.ids_AK is not None:
        assert found.ids_AK is not None and found.pieces_AK is None
        assert found.ids_AK[:, :width].tolist() == expected.ids_AK.tolist()
        assert (found.ids_AK[:, width:] == -1).all()
    elif width:
        assert found.pieces_AK is not None and expected.pieces_AK is not None
        assert [row[:width] for row in found.pieces_AK] == expected.pieces_AK
        assert not any(any(row[width:]) for row in found.pieces_AK)


@settings(max_examples=100, deadline=None)
@given(any_entry(), st.sampled_from(LABEL_BITS))
def test_a_record_is_read_again_at_most_half_a_step_off(entry: Entry, bits: int) -> None:
    found = again(entry, bits)
    assert (found.frame, found.payload, found.source) == (entry.frame, entry.payload, entry.source)
    assert list(found.labels) == list(entry.labels)
    for ours, theirs in zip(found.labels.values(), entry.labels.values(), strict=True):
        assert_alike(ours, theirs, bits)


@settings(max_examples=50, deadline=None)
@given(any_entry(), st.sampled_from((32, 16)))
def test_what_was_read_is_written_byte_for_byte(entry: Entry, bits: int) -> None:
    data = labels.encode(entry, bits)
    assert labels.encode(decoded(data), bits) == data


def make_label(seed: int = 0, *, queries: np.ndarray | None = None) -> Label:
    """All parts: 3 queries of 4 channels unless they are given, an answer of 2 tokens."""
    generator = np.random.default_rng(seed)

    def rows(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    logp_AK = -np.sort(-np.abs(rows(2, 3)), axis=1)
    return Label(
        f"red {seed}",
        nats=0.25,
        end="stop",
        scores=[-1.0, -2.0],
        top=Top(-np.abs(logp_AK), -np.abs(rows(2)), np.arange(6, dtype=np.int32).reshape(2, 3)),
        queries=rows(3, 4) if queries is None else queries,
        visual=rows(3, 5),
        answer_rows=rows(2, 5),
    )


def make_entry(number: int = 0, source: Source = SOURCE, *, num_questions: int = 2) -> Entry:
    """Of the shard with this number: its questions share their queries."""
    queries = make_label(number).queries
    questions = [digest(1000 * (number + 1) + place) for place in range(num_questions)]
    found = {
        question: make_label(10 * number + place, queries=queries)
        for place, question in enumerate(questions)
    }
    return Entry(f"f{number}", digest(number + 1), source, found)


def header_of(data: bytes) -> dict[str, Any]:
    record = records.read_record(BytesIO(data))
    assert record is not None
    return record.header


def test_queries_that_questions_share_are_stored_once() -> None:
    entry = make_entry(num_questions=3)
    one, two, three = entry.labels.values()
    three.queries = (three.queries + 1) if three.queries is not None else None
    data = labels.encode(entry, 32)
    header = header_of(data)
    assert (header["inputs"], header["lengths"]["queries"]) == ([0, 0, 1], [3, 3])
    one, two, three = decoded(data).labels.values()
    assert one.queries is two.queries and one.queries is not three.queries


def test_distributions_of_one_record_may_differ_in_width() -> None:
    """The narrower ones are filled up: -1 and the lowest number of 16 bits."""
    entry = make_entry()
    first, second = entry.labels.values()
    narrow = Top(np.array([[-0.5]], np.float32), np.array([-np.inf], np.float32))
    second.top = replace(narrow, ids_AK=np.array([[3]], np.int32))
    found = [label.top for label in again(entry).labels.values()]
    assert found[0] is not None and found[0].logp_AK.shape == (2, 3)
    assert found[1] is not None and found[1].ids_AK is not None
    assert found[1].ids_AK.tolist() == [[3, -1, -1]]
    assert found[1].logp_AK.tolist() == [[-0.5, LOWEST, LOWEST]]
    assert found[1].rest_A.tolist() == [LOWEST]
    first.top = replace(narrow, pieces_AK=[[b"a"]])
    second.top = Top(
        np.zeros((1, 2), np.float32), narrow.rest_A, pieces_AK=[["é".encode(), b"\xff"]]
    )
    found = [label.top for label in again(entry).labels.values()]
    assert [top and top.pieces_AK for top in found] == [[[b"a", b""]], [[b"\xc3\xa9", b"\xff"]]]


@pytest.mark.parametrize("bits", LABEL_BITS)
def test_a_number_that_does_not_fit_is_kept_as_it_is(bits: int) -> None:
    """65,520 rounds to infinity in 16 bits; in 8, float32's largest times 127 / 127 may."""
    large = np.float32(65_520 if bits == 16 else np.finfo(np.float32).max)
    entry = make_entry()
    for label in entry.labels.values():
        label.visual = np.full((3, 5), large)
    found = next(iter(again(entry, bits).labels.values()))
    assert found.visual is not None
    np.testing.assert_allclose(found.visual, large, rtol=1e-6)


def test_the_same_labels_are_the_same_bytes() -> None:
    assert labels.encode(make_entry(3), 8) == labels.encode(make_entry(3), 8)


# ---------------------------------------------------------------- what is not written


def pieces(data: bytes) -> Top:
    return Top(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), pieces_AK=[[data]])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"visual": np.full((3, 5), NAN, np.float32)}, "visual has values that are not finite"),
        ({"queries": np.full((3, 4), INF, np.float32)}, "queries has values that are not finite"),
        ({"nats": NAN}, "cross-entropy"),
        ({"nats": -0.1}, "cross-entropy"),
        ({"nats": np.float32(1)}, "cross-entropy"),
        ({"scores": [0.5, INF]}, "scores of choices"),
        ({"end": "refused"}, "unknown end"),
        ({"answer": "\ud83d"}, "surrogate"),
        ({"top": replace(make_label().top, rest_A=np.array([0, NAN]))}, "no log-probabilities"),
        ({"top": replace(make_label().top, logp_AK=np.full((2, 3), 0.5))}, "no log-probabilities"),
        ({"top": pieces(b"a")}, "of some answers alone"),
        ({"answer": "x" * (1 << 20)}, "can be read again"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_no_reader_takes_is_not_written(change: dict[str, Any], words: str) -> None:
    for bits in LABEL_BITS:
        entry = make_entry()
        for name, value in change.items():
            setattr(next(iter(entry.labels.values())), name, value)
        with pytest.raises(BadData, match=words):
            labels.encode(entry, bits)


def test_no_record_without_questions_or_with_a_token_of_64_kib() -> None:
    with pytest.raises(BadData, match="no question"):
        labels.encode(replace(make_entry(), labels={}), 32)
    with pytest.raises(BadData, match="not a digest"):
        labels.encode(replace(make_entry(), payload="f1"), 32)
    with pytest.raises(BadData, match="ids of no vocabulary"):
        labels.encode(make_entry(source=SERVED), 32)
    entry = Entry("f", digest(1), SERVED, {digest(2): Label("", top=pieces(bytes(65_535)))})
    assert len(labels.encode(entry, 32)) > 65_535
    entry.labels[digest(2)].top = pieces(bytes(65_536))
    with pytest.raises(BadData, match="65,535 bytes"):
        labels.encode(entry, 32)


# ---------------------------------------------------------------- damage


def values_of(entry: Entry) -> list[Any]:
    """All that was read, comparable."""
    found: list[Any] = [entry.frame, entry.payload, entry.source]
    for question, label in entry.labels.items():
        arrays_ = [getattr(label, name) for name in FEATURES]
        top = label.top
        if top is not None:
            arrays_ += [top.logp_AK, top.rest_A, top.ids_AK]
        kept = {
            name: (one.rows_L.tolist(), one.count)
            for name, one in sorted((label.kept or {}).items())
        }
        found += [question, label.answer, label.nats, label.end, label.scores, kept]
        found += [None if one is None else one.tolist() for one in arrays_]
        found += [None if top is None else top.pieces_AK]
    return found


@pytest.mark.parametrize(
    "data",
    [make.label_kept(), make.label_i8(), make.label_pieces()],
    ids=["ids", "8 bits", "pieces"],
)
def test_any_byte_changed_is_an_error_or_an_equal_reading(data: bytes) -> None:
    """Equal: a blank behind the header's JSON, say."""
    source = random.Random(0)
    expected, num_read = values_of(decoded(data)), 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << source.randrange(8)
        try:
            found = decoded(bytes(broken))
        except (BadData, NewerFormat) as error:
            assert "\n" not in str(error)
            continue
        num_read += 1
        assert values_of(found) == expected
    assert num_read < len(data) / 50


def test_every_refusal_is_one_of_ours() -> None:
    """A cut is told apart from damage, but its class has no exit code of its own."""
    assert records.CutShort.exit_code == BadData.exit_code
    assert records.CutShort not in CdccaError.__subclasses__()


# ---------------------------------------------------------------- what a label belongs to

SHARD = Shard(
    frame="f",
    image="f.png",
    domain=None,
    tokens=np.array([[1, 2], [3, 4]], np.float32),
    positions=np.array([0, 3], np.int32),
    scores=np.array([1, 2], np.float32),
    num_tokens=5,
    tower="sha256:" + "5" * 64,
    questions=[Question("q", "What?", "vqa", ["a", "b"], 0.5)],
)
(ASKED,) = SHARD.questions
SENT = replace(SHARD, coding=Coding("frame"), picture=Picture(b"RIFF", "image/webp", (4, 3)))
CODED = replace(
    SHARD,
    coding=Coding("klt", "sha256:" + "6" * 64, 0.5),
    codes=np.array([[1, 0], [0, -1]], np.int32),
)


@pytest.mark.parametrize(
    "change",
    [
        {"frame": "g"},
        {"image": "elsewhere.png"},
        {"domain": "night"},
        {"time": 5.0},
        {"scores": None},
        {"coding": Coding("int8")},
        {"layout": Layout((1, 5), "<img>")},
        {"questions": []},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_payload_is_what_was_sent_of_a_picture(change: dict[str, Any]) -> None:
    """Not its name, how its tokens were stored, or what was asked."""
    assert payload_digest(replace(SHARD, **change)) == payload_digest(SHARD)


@pytest.mark.parametrize(
    ("shard", "change"),
    [
        (SHARD, {"tokens": SHARD.tokens + np.float32(1e-6)}),
        (SHARD, {"positions": SHARD.positions + 1}),
        (SHARD, {"num_tokens": 6}),
        (SHARD, {"tower": "sha256:" + "6" * 64}),
        (SENT, {"picture": Picture(b"RIFE", "image/webp", (4, 3))}),
        (SENT, {"picture": Picture(b"RIFF", "image/jpeg", (4, 3))}),
        (SENT, {"picture": Picture(b"RIFF", "image/webp", (3, 4))}),
        (CODED, {"codes": np.array([[1, 0], [0, 1]], np.int32)}),
        (CODED, {"coding": Coding("klt", "sha256:" + "6" * 64, 0.75)}),
        (CODED, {"coding": Coding("klt", "sha256:" + "7" * 64, 0.5)}),
        (CODED, {"positions": CODED.positions + 1}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_payload_has_another_digest(shard: Shard, change: dict[str, Any]) -> None:
    assert payload_digest(replace(shard, **change)) != payload_digest(shard)


def test_what_was_sent_coded_is_known_by_its_codes() -> None:
    """Decoded tokens differ between machines; so do pictures' tokens."""
    other = SHARD.tokens + np.float32(1e-6)
    for shard in (CODED, SENT):
        assert payload_digest(replace(shard, tokens=other)) == payload_digest(shard)
    assert len({payload_digest(shard) for shard in (SHARD, CODED, SENT)}) == 3


def test_two_questions_with_one_prompt_share_a_label() -> None:
    """Neither the id nor how sure the device was is part of what is asked."""
    for change in ({"id": "r"}, {"entropy": None}):
        assert question_digest(replace(ASKED, **change)) == question_digest(ASKED)
    key = ShardKey.of(replace(SHARD, questions=[ASKED, replace(ASKED, id="r")]))
    assert key.questions == (question_digest(ASKED),) * 2
    assert key.payload == payload_digest(SHARD)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Why?"},
        {"prompt": None},
        {"task": "caption"},
        {"choices": ["b", "a"]},
        {"choices": None},
    ],
    ids=str,
)
def test_another_question_has_another_digest(change: dict[str, Any]) -> None:
    assert question_digest(replace(ASKED, **change)) != question_digest(ASKED)
