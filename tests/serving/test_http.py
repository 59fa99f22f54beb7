"""One server over HTTP: what a device meets. What a teacher meets is in `tests.teachers`."""

import time
from typing import Any

import pytest

from cdcca_cli.errors import Unavailable
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import Client, Connection, Refused, named_pause
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
