"""A served teacher: faults that pass, faults that do not, and many requests in flight."""

import signal as signals
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.errors import BadData, SettingError, Unavailable
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.serving import http
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.in_order import in_order
from cdcca_cli.serving.openai import Reply
from cdcca_cli.teachers.chat import Ask
from cdcca_cli.teachers.server import Server
from cdcca_cli.teachers.settings import ServerSettings
from cdcca_cli.teachers.settings import _fields as fields
from tests.teachers import server as fakes
from tests.teachers.server import Hashed, answering, once, sending, status

QUICK = ServerSettings(backoff=0.01, timeout=5, concurrency=4)
PICTURE = Picture(b"\xff\xd8bytes", "image/jpeg", (4, 3))
ASKS = [Ask(f"key-{number}", f"What is {number}?", PICTURE, 16) for number in range(12)]


def replies(address: str, settings: ServerSettings = QUICK, asks: Any = ASKS) -> list[Any]:
    """Each reply, or the words of its failure."""
    server = Server(Address.parse(address), settings)
    server.settle(asks[:3])
    found = in_order(server.ask, asks, settings.num_workers)
    try:
        return [str(one) if isinstance(one, BadData) else one for _, one in found]
    finally:
        server.close()


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    with answering(Hashed()) as served:
        found = replies(served.address)
    assert all(isinstance(one, Reply) and one.tokens for one in found)
    assert len({one.text for one in found}) > 2
    return found


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(http.streams, "message", said.append)
    return said


def _without_logprobs(reply: dict[str, Any]) -> dict[str, Any]:
    (choice,) = reply["choices"]
    return {**reply, "choices": [{**choice, "logprobs": None}]}


FAULTS = {
    "429": status(429, {"error": {"message": "slow down"}}),
    "429, wait": status(429, None, Retry_After="0"),
    "500": status(500, {"error": {"message": "out of memory"}}),
    "503 while loading": status(503, {"error": {"message": "Loading model"}}),
    "connection cut in the body": fakes.cut_off,
    "connection dropped": fakes.hung_up,
    "half JSON": sending(lambda reply: b'{"choices": [{"mess'),
    "a page of HTML": sending(lambda reply: b"<html>busy</html>"),
    "a list": sending(lambda reply: []),
    "null": sending(lambda reply: None),
    "NaN": sending(lambda reply: b'{"choices": NaN}'),
    "not UTF-8": sending(lambda reply: b"\xff\xfe"),
    "no answer": sending(lambda reply: {**reply, "choices": []}),
    "two answers": sending(lambda reply: {**reply, "choices": reply["choices"] * 2}),
    "an error with status 200": sending(lambda reply: {"error": {"message": "busy"}}),
    "no log-probabilities": sending(_without_logprobs),
}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_of_each_request_the_answers_are_the_same(
    name: str, undisturbed: list[Any]
) -> None:
    with answering(Hashed(), once(FAULTS[name])) as served:
        assert replies(served.address) == undisturbed
        assert min(served.asked.values()) >= 2, "no fault was met"


def test_a_server_too_slow_is_asked_again(undisturbed: list[Any]) -> None:
    settings = ServerSettings(backoff=0.01, timeout=0.3, concurrency=12)
    with answering(Hashed(), once(fakes.silent(1.0))) as served:
        assert replies(served.address, settings) == undisturbed


def test_a_server_that_drips_is_asked_again(undisturbed: list[Any]) -> None:
    def drip(handler: Any, reply: dict[str, Any]) -> None:
        handler.send(200, b"", length=1000)
        for _ in range(10):
            handler.wfile.write(b" ")
            time.sleep(0.1)
        handler.close_connection = True

    settings = ServerSettings(backoff=0.01, timeout=0.4, concurrency=12)
    with answering(Hashed(), once(drip)) as served:
        assert replies(served.address, settings) == undisturbed


def test_the_pause_that_a_server_names_is_kept() -> None:
    times: list[float] = []

    def limited(handler: Any, reply: dict[str, Any], number: int) -> bool:
        times.append(time.monotonic())
        if number == 0:
            handler.send(429, b"{}", {"Retry-After": "1"})
        return number == 0

    with answering(Hashed(), limited) as served:
        replies(served.address, asks=ASKS[:1])
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize(
    ("code", "words"),
    [(401, "key"), (403, "forbids"), (404, "address or model"), (302, "elsewhere")],
)
def test_what_cannot_pass_stops_at_once(code: int, words: str) -> None:
    fault = lambda handler, reply, number: not handler.send(code, b'{"error": {"message": "no"}}')  # noqa: E731
    with answering(Hashed(), fault) as served:
        with pytest.raises(Unavailable, match=words):
            replies(served.address)
        assert served.asked.total() == 1


def test_a_server_that_is_down_stops_the_run() -> None:
    with answering(Hashed()) as served:
        address = served.address
    settings = ServerSettings(backoff=0.01, attempts=3)
    with pytest.raises(Unavailable, match="connection failed"):
        replies(address, settings)


def test_a_server_that_goes_down_stops_the_run() -> None:
    """After 16 failures in a row, not after all of the questions."""
    asks = [Ask(f"{number}", f"What is {number}?", PICTURE, 16) for number in range(200)]
    count = 0

    def dying(handler: Any, reply: dict[str, Any], number: int) -> bool:
        nonlocal count
        count += 1
        if count > 40:
            handler.close_connection = True
        return count > 40

    with answering(Hashed(), dying) as served:
        server = Server(Address.parse(served.address), ServerSettings(backoff=0, attempts=2))
        found: list[Any] = []
        with pytest.raises(Unavailable, match=r"in a row .* goes on from there"):
            for _, one in in_order(server.ask, asks, 4):
                found.append(one)
        assert sum(isinstance(one, Reply) for one in found) >= 36
        assert count < 200


def test_a_request_that_fails_each_time_is_named_and_the_others_go_on(
    undisturbed: list[Any],
) -> None:
    def unlucky(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_it = served.bodies and "What is 7?" in str(handler.asked_for)
        if is_it:
            handler.send(500, b'{"error": {"message": "cannot"}}')
        return bool(is_it)

    with answering(Hashed(), unlucky) as served:
        found = replies(served.address, ServerSettings(backoff=0.01, attempts=3, concurrency=4))
    assert "failed 3 times: HTTP 500: cannot" in found[7]
    assert found[:7] + found[8:] == undisturbed[:7] + undisturbed[8:]


def test_a_request_that_is_refused_is_not_repeated() -> None:
    def refusing(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_it = "What is 7?" in str(handler.asked_for)
        if is_it:
            handler.send(400, b'{"error": {"message": "Failed to load image"}}')
        return is_it

    with answering(Hashed(), refusing) as served:
        found = replies(served.address)
        assert "HTTP 400: Failed to load image" in found[7]
        assert max(served.asked.values()) <= 2  # the first one settles what is asked


def test_a_server_that_takes_fewer_likeliest_tokens_gets_them(messages: list[str]) -> None:
    def strict(handler: Any, reply: dict[str, Any], number: int) -> bool:
        too_many = handler.asked_for.get("top_logprobs", 0) > 5
        if too_many:
            words = b'{"error": {"message": "top_logprobs must be less than or equal to 5"}}'
            handler.send(400, words)
        return too_many

    with answering(Hashed(), strict) as served:
        found = replies(served.address, ServerSettings(top_logprobs=64, concurrency=4))
    assert all(len(token.top) <= 5 for one in found for token in one.tokens)
    assert [words.split(": ", 1)[1][:34] for words in messages] == [
        "asked for 20 likeliest tokens inst", "asked for 10 likeliest tokens inst",
        "asked for 5 likeliest tokens inste",
    ]  # fmt: skip


@pytest.mark.parametrize("code", [400, 422])
def test_a_server_that_refuses_log_probabilities_gives_text(
    code: int, messages: list[str], undisturbed: list[Any]
) -> None:
    def strict(handler: Any, reply: dict[str, Any], number: int) -> bool:
        has = "logprobs" in handler.asked_for
        if has:
            handler.send(code, b'{"detail": "logprobs are not supported"}')
        return has

    with answering(Hashed(), strict) as served:
        found = replies(served.address)
    assert [(one.text, one.tokens) for one in found] == [(one.text, None) for one in undisturbed]
    assert len(messages) == 1 and "no log-probabilities" in messages[0]


def test_a_server_that_never_gives_log_probabilities_gives_text(messages: list[str]) -> None:
    def without(handler: Any, reply: dict[str, Any], number: int) -> bool:
        sending(_without_logprobs)(handler, reply)
        return True

    with answering(Hashed(), without) as served:
        found = replies(served.address)
    assert all(one.tokens is None for one in found)
    assert len(messages) == 1 and "no log-probabilities" in messages[0]


def test_requests_are_in_flight_together_up_to_the_limit() -> None:
    with answering(Hashed(), seconds=0.05) as served:
        replies(served.address, ServerSettings(concurrency=6), ASKS * 2)
        assert served.most_at_once == 6


# ---------------------------------------------------------------- the key


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "usual-key")
    monkeypatch.setenv("MINE", "my-key")
    with answering(Hashed()) as served:
        replies(served.address, QUICK, ASKS[:1])
        replies(served.address, ServerSettings(api_key_env="MINE"), ASKS[:1])
        monkeypatch.delenv("OPENAI_API_KEY")
        replies(served.address, QUICK, ASKS[:1])
    sent = [
        headers.get("Authorization", headers.get("authorization")) for headers in served.headers
    ]
    assert sent == ["Bearer usual-key"] * 2 + ["Bearer my-key"] * 2 + [None] * 2
    with pytest.raises(SettingError, match="no such variable"):
        Server(Address.parse(served.address), ServerSettings(api_key_env="NOT_THERE"))
    monkeypatch.setenv("MINE", "a\nb")
    with pytest.raises(SettingError, match="no key"):
        Server(Address.parse(served.address), ServerSettings(api_key_env="MINE"))


def test_a_key_that_the_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    words = b'{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    fault = lambda handler, reply, number: not handler.send(401, words)  # noqa: E731
    with answering(Hashed(), fault) as served, pytest.raises(Unavailable) as error:
        replies(served.address)
    assert "Incorrect API key" in str(error.value) and "sk-secret" not in str(error.value)


def test_more_fields_of_a_request() -> None:
    settings = ServerSettings(extra='{"chat_template_kwargs": {"enable_thinking": false}}')
    with answering(Hashed()) as served:
        replies(served.address, settings, ASKS[:1])
    assert served.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(ValueError, match="JSON object"):
        fields("[1]")


# ---------------------------------------------------------------- interrupted


def test_a_run_that_waits_for_a_server_is_interrupted_at_once() -> None:
    """Ctrl-C while every request hangs ends the process, not the timeout of 120 s."""
    with answering(Hashed(), lambda *_: bool(time.sleep(20)) or True) as served:
        code = (
            "from cdcca_cli.serving.in_order import in_order\n"
            "from cdcca_cli.teachers.server import *\n"
            "from tests.teachers.test_server import ASKS\n"
            f"server = Server(Address.parse({served.address!r}), ServerSettings())\n"
            "print('begin', flush=True)\n"
            "list(in_order(server.ask, ASKS, 8))\n"
        )
        root = Path(__file__).parents[2]
        child = subprocess.Popen(
            [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        while not served.bodies:
            time.sleep(0.02)
        begin = time.monotonic()
        child.send_signal(signals.SIGINT)
        _, errors = child.communicate(timeout=15)
        assert time.monotonic() - begin < 3
        assert b"KeyboardInterrupt" in errors
