"""Addresses of servers, and the keys that are sent to them."""

import pytest

from cdcca_cli.errors import UsageError
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import key_of


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("https://host/v1#a/b:7b", "https://host/v1", "a/b:7b"),
        ("HTTP://Host:8000/v1/#m", "http://host:8000/v1", "m"),
        ("https://host/v1/chat/completions#m", "https://host/v1", "m"),
        ("http://[::1]:80#m", "http://[::1]:80", "m"),
    ],
)
def test_an_address_is_parsed(text: str, url: str, model: str) -> None:
    assert Address.parse(text) == Address(url, model)
    assert Address.parse(str(Address.parse(text))) == Address(url, model)


@pytest.mark.parametrize(
    "text",
    ["https://host/v1", "https://host/v1#", "https:///v1#m", "ftp://host/v1#m", "host/v1#m",
     "https://host/v1?key=secret#m", "http://[::1#m", "http://host:99999/v1#m"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Address.parse(text)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="environment variable") as error:
        Address.parse("https://me:hunter2@host/v1#m")
    assert "hunter2" not in str(error.value)


def test_the_usual_key_is_not_sent_where_others_can_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "usual-key")
    for text, is_sent in (
        ("http://host/v1#m", False), ("https://host/v1#m", True), ("http://127.0.0.1/v1#m", True),
        ("http://127.0.0.1.host/v1#m", False), ("http://localhost:80/v1#m", True),
    ):  # fmt: skip
        assert (key_of(None, Address.parse(text)) is not None) == is_sent
    assert key_of("OPENAI_API_KEY", Address.parse("http://host/v1#m")) == "usual-key"


def test_the_path_of_chat_completions_is_no_part_of_the_root() -> None:
    for text in ("http://host:8080", "http://host:8080/", "http://host:8080/v1"):
        assert Address.parse(text, "server", needs_model=False).root == "http://host:8080"
    assert str(Address.parse("http://host:8080", "server", needs_model=False)) == "http://host:8080"
