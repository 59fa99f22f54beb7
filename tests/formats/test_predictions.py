import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcca_cli.errors import BadData
from cdcca_cli.formats.predictions import (
    ENTROPIES,
    Prediction,
    decode_line,
    encode_line,
    read_predictions,
)

MODEL = "sha256:" + "7" * 64
TEXT = st.text(max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    choices = draw(st.none() | st.lists(TEXT, min_size=1, max_size=4))
    scores = st.none() if choices is None else st.none() | st.just([draw(NUMBERS) for _ in choices])
    entropy = {name: draw(st.floats(0, 1e6)) for name in ENTROPIES}
    share = draw(st.none() | st.floats(0, 1))
    return Prediction(
        id=draw(st.text(min_size=1, max_size=8)),
        image=draw(TEXT),
        task=draw(st.sampled_from(["vqa", "caption"])),
        prompt=draw(st.none() | TEXT),
        answer=draw(TEXT),
        choice=None if choices is None else draw(st.sampled_from(choices)),
        choices=choices,
        choice_scores=draw(scores),
        entropy=entropy,
        token_entropies=draw(st.none() | st.lists(st.floats(0, 20), max_size=3)),
        model=MODEL,
        domain=draw(st.none() | TEXT),
        margin=draw(st.none() | st.floats(0, 1)),
        entropy_of=None if share is None else draw(st.sampled_from(["top5", "top20"])),
        entropy_least=None if share is None else {k: share * v for k, v in entropy.items()},
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(predictions(), max_size=3))
def test_what_is_written_is_read_again(written: list[Prediction]) -> None:
    text = "".join(map(encode_line, written))
    assert text.count("\n") == len(written)
    assert list(read_predictions(text.split("\n"))) == written


PLAIN = Prediction(
    "q", "a.png", "vqa", "What?", "cat", None, None, None, dict.fromkeys(ENTROPIES, 0.5), None,
    MODEL, None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"entropy_of": "top20"}, "given together"),
        ({"entropy_least": dict.fromkeys(ENTROPIES, 0.1)}, "given together"),
        ({"entropy_of": "20", "entropy_least": dict.fromkeys(ENTROPIES, 0.1)}, "expected top20"),
        ({"entropy_of": "top20", "entropy_least": {"mean": 0.1}}, "entropy_least"),
        ({"entropy_of": "top20", "entropy_least": dict.fromkeys(ENTROPIES, 0.6)}, "not between"),
        ({"entropy_of": "top20", "entropy_least": dict.fromkeys(ENTROPIES, -0.1)}, "not between"),
    ],
)
def test_bounds_of_entropies_that_cannot_be(change: dict[str, object], words: str) -> None:
    row = json.loads(encode_line(PLAIN)) | change
    with pytest.raises(BadData, match=words):
        decode_line(json.dumps(row), "here")


def test_exact_entropies_have_no_bounds_in_the_file() -> None:
    """So that files are as before, and older readers skip what newer ones say."""
    assert not {"margin", "entropy_of", "entropy_least"} & json.loads(encode_line(PLAIN)).keys()


def test_other_keys_and_absent_ones_are_allowed() -> None:
    row = json.loads(encode_line(PLAIN))
    row = {name: value for name, value in row.items() if value is not None}
    assert decode_line(json.dumps({**row, "my note": [1]}), "here") == PLAIN


@pytest.mark.parametrize("margin", [-0.1, 1.1, "0.5"])
def test_a_margin_is_from_0_to_1(margin: object) -> None:
    row = json.loads(encode_line(PLAIN))
    assert "margin" not in row, "files of earlier versions have none"
    assert decode_line(json.dumps({**row, "margin": 0.25}), "here").margin == 0.25
    with pytest.raises(BadData, match="margin"):
        decode_line(json.dumps({**row, "margin": margin}), "here")


def test_empty_lines_are_skipped_and_counted() -> None:
    with pytest.raises(BadData, match="somewhere: line 4"):
        list(read_predictions(["", encode_line(PLAIN), " ", "{"], where="somewhere"))


@pytest.mark.parametrize(
    "entropy",
    [{}, dict.fromkeys(ENTROPIES, float("inf")), dict.fromkeys(ENTROPIES, -1.0)],
)
def test_what_could_not_be_read_is_not_written(entropy: dict[str, float]) -> None:
    unsound = Prediction(**{**PLAIN.__dict__, "entropy": entropy})
    with pytest.raises(BadData, match="question q"):
        encode_line(unsound)
