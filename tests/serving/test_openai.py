"""Chat completions: requests, replies, and what a server does not take."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.errors import BadData
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.serving import openai
from cdcca_cli.serving.http import fault
from cdcca_cli.serving.openai import Dialect, Reply

PICTURE = Picture(b"\xff\xd8the very bytes", "image/jpeg", (4, 3))


def reply(text: str | None, finish: str = "stop", logprobs: Any = None, **more: Any) -> Any:
    message = {"role": "assistant", "content": text, **more}
    return {"choices": [{"message": message, "finish_reason": finish, "logprobs": logprobs}]}


def token(text: str, logp: float, top: list[tuple[str, float]] | None = None, **more: Any) -> Any:
    found = {"token": text, "logprob": logp, **more}
    if top is not None:
        found["top_logprobs"] = [{"token": one, "logprob": value} for one, value in top]
    return found


def test_a_request_has_the_shards_own_picture_before_the_words() -> None:
    made = openai.body("What is it?", PICTURE, 16, "big/model", Dialect(top=5))
    (message,) = made["messages"]
    picture, text = message["content"]
    head, coded = picture["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64" and base64.b64decode(coded) == PICTURE.data
    assert text == {"type": "text", "text": "What is it?"}
    assert made["model"] == "big/model" and made["temperature"] == 0 and made["max_tokens"] == 16
    assert made["logprobs"] is True and made["top_logprobs"] == 5


def test_a_request_has_nothing_that_the_server_does_not_take() -> None:
    dialect = Dialect(None, "max_completion_tokens", has_temperature=False, extra={"seed": 1})
    made = openai.body("What is it?", PICTURE, 16, "m", dialect)
    assert set(made) == {"model", "messages", "max_completion_tokens", "seed"}


def test_the_end_token_is_found_as_each_server_names_it() -> None:
    """vLLM: `<|im_end|>`; llama-server: nothing; the hosted APIs leave it out."""
    for end in ("<|im_end|>", ""):
        listed = [token("two", -0.1, [("two", -0.1), (end, -3.0)])]
        listed += [token(" dogs", -0.2, [(" dogs", -0.2)]), token(end, -0.3, [(end, -0.3)])]
        found = openai.parse(reply("two dogs", logprobs={"content": listed}), "x")
        assert found.tokens is not None
        assert [one.piece for one in found.tokens] == [b"two", b" dogs", b""]
        assert found.tokens[0].top == ((b"two", -0.1), (b"", -3.0))
        assert found.nats == pytest.approx(0.2)
        hosted = openai.parse(reply("two dogs", logprobs={"content": listed[:2]}), "x")
        assert hosted.tokens is not None
        assert [one.piece for one in hosted.tokens] == [b"two", b" dogs"]
    cut = openai.parse(reply("two dogs", "length", {"content": listed[:2]}), "x")
    assert cut.is_cut and cut.tokens is not None and cut.tokens[-1].piece == b" dogs"


def test_half_a_character_is_kept_in_bytes() -> None:
    listed = [token("\ufffd", -0.5, bytes=[0xC3]), token("\ufffd", -0.5, bytes=[0xA9])]
    found = openai.parse(reply("\u00e9", logprobs={"content": listed}), "x")
    assert found.tokens is not None
    assert b"".join(one.piece for one in found.tokens).decode() == "\u00e9"


def test_what_is_no_log_probability_is_none() -> None:
    assert openai.parse(reply("yes"), "x").tokens is None
    assert openai.parse(reply("yes", logprobs={"content": None}), "x").tokens is None
    assert openai.parse(reply("yes", logprobs={"content": []}), "x").tokens is None
    for bad in (None, "1", True, 0.5, -1e31, [1]):
        with pytest.raises(BadData, match="log-probability"):
            openai.parse(reply("yes", logprobs={"content": [token("yes", bad)]}), "x")  # type: ignore[arg-type]
    rounded = openai.parse(reply("yes", logprobs={"content": [token("yes", 1e-6)]}), "x")
    assert rounded.nats == 0.0


def test_refusals_are_replies_without_words() -> None:
    assert openai.parse(reply(None, refusal="I cannot."), "x").is_refused
    assert openai.parse(reply("half", "content_filter"), "x") == Reply("", "content_filter")
    assert openai.parse(reply(None, "length"), "x") == Reply("", "length")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "expected an object"),
        ([], "expected an object"),
        ({}, "expected a list"),
        ({"error": {"message": "no memory"}}, "no memory"),
        ({"choices": []}, "0 answers"),
        ({"choices": [*reply("a")["choices"], *reply("b")["choices"]]}, "2 answers"),
        ({"choices": [{}]}, "message"),
        ({"choices": [{"message": {}}]}, "no content"),
        ({"choices": [{"message": {"content": ["a"]}}]}, "no content"),
        (reply("a", 3), "finish"),  # type: ignore[arg-type]
        (reply("a", logprobs=[]), "logprobs"),
        (reply("a", logprobs={"content": {}}), "logprobs"),
        (reply("a", logprobs={"content": [{"logprob": -1}]}), "text"),
        (reply("a", logprobs={"content": [token("a", -1, bytes=[256])]}), "bytes"),
        (reply("a", logprobs={"content": [token("a", -1, bytes=[True])]}), "bytes"),
    ],
)
def test_what_is_no_answer_is_refused(value: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        openai.parse(value, "the reply")


NAMES = ["choices", "message", "content", "finish_reason", "logprobs", "token", "bytes", "logprob"]
NAMES += ["top_logprobs", "refusal", "error"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values, json_values, json_values)
def test_any_json_gives_a_reply_or_a_refusal(value: Any, content: Any, logprobs: Any) -> None:
    listed = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": logprobs}]}
    for one in (
        value,
        {"choices": [value]},
        reply(content, logprobs=logprobs),
        reply("a", logprobs={"content": logprobs}),
        reply("a", logprobs=listed),
    ):
        with suppress(BadData):
            assert isinstance(openai.parse(one, "x"), Reply)
        fault(one)


@pytest.mark.parametrize(
    ("words", "top"),
    [
        ("Invalid value for 'top_logprobs': must be less than or equal to 20.", 20),
        ("Requested sample logprobs of 64, which is greater than max allowed: 20", 20),
        ("logprobs are not supported with this model", None),
        ("This model does not support logprobs", None),
    ],
)
def test_a_server_that_refuses_log_probabilities_gets_fewer(words: str, top: int | None) -> None:
    found = openai.conceded(Dialect(top=64), words)
    assert found is not None and found[0] == Dialect(top=top)


def test_what_else_a_server_may_not_take() -> None:
    words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    found = openai.conceded(Dialect(), words)
    assert found is not None and found[0].limit == "max_completion_tokens"
    assert openai.conceded(found[0], words) is None
    found = openai.conceded(Dialect(), "'temperature' does not support 0 with this model")
    assert found is not None and not found[0].has_temperature
    assert openai.conceded(Dialect(), "the picture is too large") is None
    dialect, seen = Dialect(top=1000), []
    while (found := openai.conceded(dialect, "at most 0 top_logprobs")) is not None:
        dialect = found[0]
        seen.append(dialect.top)
    assert seen == [20, 10, 5, 1, None]


def test_a_request_can_be_written_as_json() -> None:
    assert (
        json.loads(json.dumps(openai.body("What is it?", PICTURE, 16, "m", Dialect())))["model"]
        == "m"
    )
