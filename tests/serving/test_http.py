"""One server over HTTP: what a device meets. What a teacher meets is in `tests.teachers`."""

import time
from typing import Any

import pytest

from cdcca_cli.errors import SettingError, Unavailable
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import USUAL_KEY, Client, Connection, Refused, key_of, named_pause
from tests.teachers.server import responding

QUICK = Connection(timeout=2.0, attempts=3, backoff=0.1)


def test_a_pause_may_be_named_as_a_date() -> None:
    assert named_pause("3") == 3.0
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert named_pause(soon) == pytest.approx(60, abs=2)
    assert named_pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for words in ("soon", "", "-1", "1e9", "Wed, 99 Oct 2015"):
        assert named_pause(words) is None
    assert named_pause(None) is None


def client(address: str, how: Connection = QUICK) -> Client:
    return Client(Address.parse(address), how, url=address.partition("/v1")[0])


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_a_server_behind_another_may_be_starting(code: int) -> None:
    """What stands before it answers at once: the server is neither down nor another one."""
    codes = [code, code, 200]

    def starting(handler: Any) -> None:
        handler.send(codes.pop(0), b'{"total_slots": 1}')

    with responding(lambda path, body: {}, get=starting) as served:
        assert client(served.address).begin("/props", 5.0) == {"total_slots": 1}
        codes[:] = [code] * 9
        with pytest.raises(Unavailable, match=rf"still starting \(HTTP {code}\)"):
            client(served.address).begin("/props", 0.1)


def test_a_server_that_names_no_pause_is_not_asked_in_a_row() -> None:
    times: list[float] = []

    def busy(handler: Any, reply: dict[str, Any], number: int) -> bool:
        times.append(time.monotonic())
        handler.send(429, b"{}", {"Retry-After": "0"})
        return True

    with (
        responding(lambda path, body: {}, busy) as served,
        pytest.raises(Unavailable, match="429"),
    ):
        client(served.address).ask("/x", {}, lambda value: value)
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05 and times[2] - times[1] >= 0.1


def test_a_redirect_is_not_followed() -> None:
    """Whoever it leads to gets neither the request nor the key."""
    with responding(lambda path, body: {}) as other:
        there = {"Location": other.address}
        send = lambda handler, reply, number: handler.send(307, b"{}", there) or True  # noqa: E731
        with (
            responding(lambda path, body: {}, send) as served,
            pytest.raises(Unavailable, match=r"redirects elsewhere \(HTTP 307\)"),
        ):
            client(served.address).ask("/x", {}, lambda value: value)
        assert not other.asked


def test_a_request_that_is_refused_names_the_server() -> None:
    refuse = lambda handler, reply, number: handler.send(204, b"") or True  # noqa: E731
    with (
        responding(lambda path, body: {}, refuse) as served,
        pytest.raises(Refused, match=rf"127.0.0.1:{served.port}.*: refused with HTTP 204"),
    ):
        client(served.address).ask("/x", {}, lambda value: value)


HERE = Address.parse("http://127.0.0.1:1/v1#m")


@pytest.mark.parametrize("key", ["a\nb", "\u043a\u043b\u044e\u0447", "a\x00"])
def test_what_is_no_key_is_refused_and_not_repeated(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header of it would fail, with the key in the message."""
    monkeypatch.setattr("os.environ", {USUAL_KEY: key})
    with pytest.raises(SettingError, match=rf"{USUAL_KEY}: its value is no key") as refused:
        key_of(None, HERE)
    assert key not in str(refused.value)


def test_blanks_around_a_key_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of an environment file may end with \\r, and $(cat key) may begin with a blank."""
    for key, wanted in ((" sk-1\r\n", "sk-1"), (" ", None), ("", None)):
        monkeypatch.setattr("os.environ", {USUAL_KEY: key})
        assert key_of(None, HERE) == wanted


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with responding(lambda path, body: {"a": 1}) as served:
        assert client(served.address).ask("/x", {}, lambda value: value) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "odd://x:1"), ("SSL_CERT_FILE", "/not/there")],
)
def test_an_environment_that_cannot_be_used_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="proxies or certificates"):
        client("https://there.invalid/v1#m")
