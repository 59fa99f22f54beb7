"""One server over HTTP: JSON there and back, many requests in flight, faults named or tried again.

Transient faults (429, 5xx, dropped connections, timeouts, replies that are no answer) are tried
again after an exponentially growing pause, or the one that the server names. What would fail each
time (no permission, no such address) stops at once. `openai` and `llama` know what requests and
replies look like.
"""

import email.utils
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from cdcca_cli import streams
from cdcca_cli.errors import BadData, SettingError, Unavailable
from cdcca_cli.serving.address import Address
from cdcca_cli.text import load_json

R = TypeVar("R")

USUAL_KEY = "OPENAI_API_KEY"
"""The environment variable with the key of a server, unless another is named."""

STOPS = {
    401: "does not accept the key",
    402: "wants to be paid",
    403: "forbids it",
    404: "has no such address or model",
    405: "takes no questions at this address",
}
_AGAIN = (408, 409, 425, 429)
_STARTING = (429, 502, 503, 504)  # said by the server, or by what stands before it
_LONGEST_PAUSE, _LONGEST_NAMED_PAUSE = 30.0, 600.0  # seconds
_STARTING_PAUSE = 0.25  # seconds
_MOST_REPLY = 1 << 26  # bytes
_MOST_WORDS = 300


@dataclass(frozen=True)
class Connection:
    """How a server is asked.

    concurrency: requests in flight. timeout: of one request, in seconds. attempts: times that a
    request is tried. backoff: seconds before the second try, doubled each time. api_key_env: the
    environment variable with the key; None: USUAL_KEY, over https or to this machine alone.
    """

    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 8
    backoff: float = 0.5
    api_key_env: str | None = None


class Transient(Exception):
    """A fault that may pass.

    pause: in seconds, if the server named it. is_down: whether no answer came at all, or the server
    says that it can give none now.
    """

    def __init__(self, words: str, pause: float | None = None, *, is_down: bool = True) -> None:
        super().__init__(words)
        self.pause, self.is_down = pause, is_down


class Client:
    """Sends requests to one server, from any number of threads.

    name: as messages name the server. num_sent: requests, tries included.
    """

    def __init__(
        self, address: Address, how: Connection, *, url: str | None = None, most: int = _MOST_REPLY
    ) -> None:
        """Args: url: to ask at; None: the address's. most: bytes of a reply.

        Raises: SettingError for a key that is not there; Unavailable for an environment that names
            proxies or certificates which cannot be used.
        """
        import httpx2

        self.name, self.how = str(address), how
        self.num_sent = 0
        self._url, self._most = address.url if url is None else url, most
        self._key = key_of(how.api_key_env, address)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        number = how.concurrency
        is_secure = address.url.startswith("https://")
        try:
            self._client = httpx2.Client(
                headers=headers,
                timeout=httpx2.Timeout(how.timeout, pool=None),
                limits=httpx2.Limits(max_connections=number, max_keepalive_connections=number),
                verify=is_secure,  # certificates take a while to load
                trust_env=is_secure or not address.is_here,  # no proxy leads to this machine
            )
        except (ValueError, OSError, ImportError) as error:
            words = f"the environment's proxies or certificates cannot be used ({error})"
            raise Unavailable(f"{self.name}: {words}") from None
        self._in_flight = threading.Semaphore(number)
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._not_before = 0.0

    def close(self) -> None:
        """Stop what waits, and close the connections."""
        self._stopped.set()
        self._client.close()

    def begin(self, path: str, seconds: float) -> Any:
        """The JSON at `path`, once a server has started; None if there is none.

        Args: seconds: how long a server that is starting (it refuses connections, or says that it
            can give no answer now) is waited for.
        Raises: Unavailable.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                status, _, data = self._send("GET", path, None)
                if status not in _STARTING:
                    break
                fault = f"is still starting (HTTP {status}){self._words(data)}"
            except Transient as error:
                fault = str(error)
            if time.monotonic() >= end:
                raise Unavailable(f"{self.name}: {fault}: after {seconds:g} s")
            self.say_once("not there yet: waiting for it to start")
            self._stopped.wait(_STARTING_PAUSE)
        if status in (401, 402, 403, 500):
            words = STOPS.get(status, f"HTTP {status}")
            raise Unavailable(f"{self.name}: {words}{self._words(data)}")
        try:
            return load_json(data, path) if status == 200 else None
        except BadData:
            return None

    def ask(
        self,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[Any], R],
        final: Collection[int] = (),
    ) -> R:
        """What `read` makes of the reply, which is asked for until it is sound.

        Args: body: None: a GET. read: raises BadData for a malformed reply, Final for one that
            would come again. final: statuses that would come again, too.
        Raises: BadData for a request that is refused, or answered with nonsense each time;
            Unavailable for a server that is down, or too slow.
        """

        def once() -> R:
            value = self.post(path, body, final)
            try:
                return read(value)
            except Final:
                raise
            except BadData as error:
                raise Transient(str(error), is_down=False) from None

        try:
            return self.persist(once)
        except Transient as error:
            kind = Unavailable if error.is_down else BadData
            raise kind(f"{self.name}: failed {self.how.attempts} times: {error}") from None

    def persist(self, once: Callable[[], R]) -> R:
        """Do it until no fault is met. Raises: Transient of the last try."""
        tried = 0
        while True:
            tried += 1
            try:
                return once()
            except Transient as error:
                if tried >= self.how.attempts:
                    raise
                self.say_once(f"{error}: trying again", "again")
                self._pause(tried, error.pause)

    def post(self, path: str, body: dict[str, Any] | None, final: Collection[int] = ()) -> Any:
        """The JSON that one request gets. Args: as in `ask`.

        Raises: Transient; Unavailable for what stops all; BadData for a request that is refused.
        """
        if (pause := self._not_before - time.monotonic()) > 0:
            self._stopped.wait(pause)
        if self._stopped.is_set():
            raise Unavailable(f"{self.name}: stopped")
        status, named, data = self._send("GET" if body is None else "POST", path, body)
        if status == 200:
            try:
                return load_json(data, "the reply")
            except BadData as error:
                raise Transient(str(error), is_down=False) from None
        words = self._words(data)
        if status in STOPS or 300 <= status < 400:
            elsewhere = f"redirects elsewhere (HTTP {status}), which is not followed"
            raise Unavailable(f"{self.name}: {STOPS.get(status, elsewhere)}{words}")
        if status not in final and (status in _AGAIN or status >= 500):
            raise Transient(f"HTTP {status}{words}", named, is_down=status != 500)
        message = f"{self.name}: refused with HTTP {status}{words}"
        raise Refused(message, words.removeprefix(": "))

    def say_once(self, text: str, what: str | None = None) -> None:
        """A message about this server. Args: what: what it is about, which is said once."""
        with self._lock:
            is_new = (what or text) not in self._said
            self._said.add(what or text)
        if is_new:
            streams.message(f"{self.name}: {text}")

    def _pause(self, tried: int, named: float | None) -> None:
        """Wait before the next try; a pause that the server names holds for every request.

        Our own pause is the least, as a server may name none at all (`Retry-After: 0`).
        """
        if named is not None:
            until = time.monotonic() + min(named, _LONGEST_NAMED_PAUSE)
            with self._lock:
                self._not_before = max(self._not_before, until)
        pause = min(self.how.backoff * 2.0 ** (tried - 1), _LONGEST_PAUSE)
        self._stopped.wait(pause * random.uniform(0.5, 1.0))

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[int, float | None, bytes]:
        """Status, the pause that is named, and the reply. Raises: Transient, Unavailable."""
        import httpx2

        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        found = bytearray()
        try:
            with self._in_flight:
                self.num_sent += 1
                end = time.monotonic() + self.how.timeout
                with self._client.stream(method, f"{self._url}{path}", content=data) as response:
                    for piece in response.iter_bytes():
                        found += piece
                        if len(found) > self._most:
                            raise Transient(f"a reply of more than {self._most:,} bytes")
                        if time.monotonic() > end:
                            raise Transient(f"no whole reply within {self.how.timeout:g} s")
                    pause = named_pause(response.headers.get("retry-after"))
                    return response.status_code, pause, bytes(found)
        except httpx2.TimeoutException:
            raise Transient(f"no reply within {self.how.timeout:g} s") from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            words = str(error) or type(error).__name__
            if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol) or (
                "CERTIFICATE_VERIFY_FAILED" in words
            ):
                raise Unavailable(f"{self.name}: {words}") from None
            raise Transient(f"the connection failed ({words})") from None

    def _words(self, data: bytes) -> str:
        """`: what the server says`, without the key."""
        try:
            words = fault(load_json(data, "the reply"))
        except BadData:
            words = data[:200].decode("utf-8", "replace")
        words = " ".join(words.split())
        if self._key is not None:
            words = words.replace(self._key, "***")
        return f": {words}" if words else ""


class Final(BadData):
    """What asking again cannot mend."""


class Refused(Final):
    """A request that the server refuses. words: its own."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


def fault(value: Any) -> str:
    """The message of an error that a server sent as JSON, or "" where it has none."""
    found = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(found, dict):
        found = found.get("message", found.get("detail"))
    return found[:_MOST_WORDS] if isinstance(found, str) else ""


def key_of(name: str | None, address: Address) -> str | None:
    """The key, from the environment variable `name`, without blanks around it.

    Raises: SettingError.
    """
    if name is None and not address.is_private:
        return None
    variable = USUAL_KEY if name is None else name
    key = os.environ.get(variable, "").strip()
    if not key and name is not None:
        raise SettingError("api_key_env", "the environment has no such variable", name)
    if not key.isascii() or not key.isprintable():
        raise SettingError("api_key_env", "its value is no key: not printable ASCII", variable)
    return key or None


def named_pause(text: str | None) -> float | None:
    """Seconds from a header Retry-After: a number of them, or a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None
