"""Any reply of a server gives a completion or a refusal; needs no llama.cpp."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.errors import BadData
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import Client, Connection, Final
from cdcca_cli.serving.llama import (
    Completion,
    LlamaServer,
    Prompt,
    Props,
    Step,
    _aligned,
    _completion,
)
from cdcca_cli.uplink.entropies import Listed
from tests.teachers.server import responding

NAMES = ["content", "tokens", "completion_probabilities", "top_logprobs", "id", "logprob"]
NAMES += ["stop_type", "total_slots", "media_marker", "modalities", "model_path"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values, json_values, json_values)
def test_any_json_gives_a_completion_or_a_refusal(value: Any, top: Any, tokens: Any) -> None:
    entry = {"id": 3, "logprob": -1.0, "top_logprobs": top}
    for one in (
        value,
        {"content": "a", "tokens": [3], "completion_probabilities": [entry]},
        {"content": "a", "tokens": tokens, "completion_probabilities": [{**entry}]},
        {"content": "a", "tokens": [3], "completion_probabilities": value},
    ):
        for forced in ((), (3,)):
            with suppress(BadData):
                assert isinstance(_completion(one, forced), Completion)
        assert isinstance(Props.parse(one), Props | None)


def _reply(**change: Any) -> dict[str, Any]:
    entries = [{"id": one, "logprob": -1.0} for one in (5, 6)]
    return {"content": "ab", "tokens": [5, 6], "completion_probabilities": entries} | change


@pytest.mark.parametrize(
    ("change", "forced", "words", "is_final"),
    [
        ({"tokens": [5]}, (), "other tokens", False),
        ({"content": None}, (), "without text", False),
        ({"tokens": [5, True]}, (), "ids of tokens", False),
        ({"tokens": [5, -1]}, (), "ids of tokens", False),
        ({"completion_probabilities": [{"id": 5, "logprob": None}]}, (), "are null", True),
        ({"completion_probabilities": [{"id": 5, "logprob": 0.5}]}, (), "invalid log-prob", False),
        ({"completion_probabilities": [{"id": 5, "logprob": True}]}, (), "invalid log-prob", False),
        ({"tokens": [], "completion_probabilities": None}, (), "without tokens", True),
        ({}, (5, 7), "asked for the tokens", True),
        ({}, (5, 6, 7), "asked for the tokens", True),
    ],
)
def test_what_is_no_answer_is_refused(
    change: dict[str, Any], forced: tuple[int, ...], words: str, is_final: bool
) -> None:
    with pytest.raises(BadData, match=words) as error:
        _completion(_reply(**change), forced)
    assert isinstance(error.value, Final) == is_final


def test_an_answer_without_its_likeliest_tokens_is_refused() -> None:
    """Compared with others, no numbers would be as good as the same ones."""

    class Silent(LlamaServer):
        def complete(self, *asked: Any, **how: Any) -> Completion:
            return _completion(_reply(), ())

    with pytest.raises(BadData, match="likeliest"):
        Silent.logprobs(Silent.__new__(Silent), Prompt("a"), 5, end=2)


def test_a_reply_without_ids_has_those_of_its_steps() -> None:
    found = _completion(_reply(tokens=None), ())
    assert found.ids == (5, 6) and all(step is not None for step in found.steps)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8))
def test_steps_that_were_left_out_are_found(tokens: list[tuple[int, bool]]) -> None:
    """As many steps as the reply has, each at a token of its id, in their order."""
    ids = [one for one, _ in tokens]
    given_steps = [Step(one, -1.0) for one, is_given in tokens if is_given]
    found = _aligned(ids, given_steps)
    assert [step for step in found if step is not None] == given_steps
    assert all(step is None or step.id == one for step, one in zip(found, ids, strict=True))


def test_a_probability_of_zero_is_the_lowest_number() -> None:
    """llama.cpp writes the lowest float32 for the logarithm of 0, as JSON has no infinity."""
    lowest = -3.4028234663852886e38
    top = [{"id": 5, "logprob": 0.0}, {"id": 7, "logprob": lowest}]
    entries = [{"id": 5, "logprob": 0.0, "top_logprobs": top}, {"id": 6, "logprob": -1.0}]
    first = _completion(_reply(completion_probabilities=entries), ()).steps[0]
    assert first is not None and first.top == {5: 0.0, 7: lowest}
    for vocabulary in (2, 9):
        listed = Listed.of(first.top.values(), vocabulary)
        assert (listed.least, listed.most, listed.margin) == (0.0, 0.0, 1.0)
        assert listed.is_exact == (vocabulary == 2)


def test_a_forced_token_of_probability_zero_has_no_score() -> None:
    entries = [{"id": one, "logprob": -3.4028234663852886e38} for one in (5, 6)]
    reply = {"content": "ab", "tokens": [5, 6], "completion_probabilities": entries}
    with responding(lambda path, body: reply) as served:
        client = Client(Address.parse(served.address), Connection(attempts=1))
        with pytest.raises(Final, match="too unlikely"):
            LlamaServer(client, Props()).score(Prompt("a"), [5], end=6)
