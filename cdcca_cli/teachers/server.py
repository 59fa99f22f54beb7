"""A teacher behind an OpenAI-compatible address: many requests in flight, retries, one order.

Transient faults (429, 5xx, dropped connections, timeouts, replies that are no answer) are tried
again after an exponentially growing pause, or the one that the server names. What would fail each
time (no permission, no such address, nobody there at the first request) stops at once. What a
server does not take (so many `top_logprobs`, say) is left out of all requests. `chat` knows what
requests and replies look like.
"""

import email.utils
import json
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from cdcca_cli import streams
from cdcca_cli.errors import BadData, SettingError, Unavailable, UsageError
from cdcca_cli.teachers import chat
from cdcca_cli.teachers.chat import Ask, Dialect, Reply
from cdcca_cli.teachers.settings import USUAL_KEY, ServerSettings
from cdcca_cli.text import load_json

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 8
"""Items that may be ahead of the one whose result is next, for each worker."""
_STOPS = {
    401: "does not accept the key",
    402: "wants to be paid",
    403: "forbids it",
    404: "has no such address or model",
    405: "takes no questions at this address",
}
_AGAIN = (408, 409, 425, 429)
_LONGEST_PAUSE, _LONGEST_NAMED_PAUSE = 30.0, 600.0  # seconds
_MOST_REPLY = 1 << 26  # bytes
_TRIES_FOR_LOGPROBS = 3
_MOST_IN_A_ROW = 16


@dataclass(frozen=True)
class Address:
    """Where a served teacher is: `https://host/v1#model`."""

    url: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises: UsageError, which quotes no credentials."""
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"`teacher`: not an address ({error})") from None
        if "@" in parts.netloc:
            raise UsageError(
                "`teacher`: an address with a user name or password: put the key into the "
                "environment variable that `api_key_env` names"
            )
        shown = streams.one_line(text[:200])
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise UsageError(f"`teacher` {shown}: expected an address like https://host/v1#model")
        if not parts.fragment:
            raise UsageError(f"`teacher` {shown}: name its model behind a #, as in {shown}#model")
        place = f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"
        return cls(place.removesuffix("/chat/completions"), parts.fragment)

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        host = urlsplit(self.url).hostname or ""
        is_here = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
        return self.url.startswith("https://") or is_here

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"


def is_address(teacher: str) -> bool:
    """Whether a teacher is named by an address."""
    return re.match(r"https?://", teacher, re.IGNORECASE) is not None


class _Transient(Exception):
    """A fault that may pass. pause: in seconds, if the server named it."""

    def __init__(self, words: str, pause: float | None = None) -> None:
        super().__init__(words)
        self.pause = pause


class _NoLogprobs(Exception):
    """An answer without the log-probabilities that were asked for."""


class Server:
    """A server that answers one request after another, from any number of threads.

    num_sent: requests, tries included.
    """

    def __init__(self, address: Address, settings: ServerSettings) -> None:
        """Raises: SettingError for a key that is not there."""
        import httpx2

        self.address, self.settings = address, settings
        self.num_sent = 0
        self._key = _key(settings, address)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        most = settings.concurrency
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(settings.timeout, pool=None),
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
            verify=address.url.startswith("https://"),  # certificates take a while to load
        )
        self._in_flight = threading.Semaphore(most)
        self._dialect = Dialect.first(settings)
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._not_before = 0.0
        self._num_in_a_row = 0

    def close(self) -> None:
        """Stop what waits, and close the connections."""
        self._stopped.set()
        self._client.close()

    @property
    def dialect(self) -> Dialect:
        """What the server takes, as far as is known."""
        return self._dialect

    def settle(self, asks: Sequence[Ask]) -> Reply:
        """Ask a first question, to learn what the server takes; another one if it refuses that.

        Raises: Unavailable if it answers none.
        """
        refused: BadData | None = None
        for ask in asks:
            try:
                return self._settle(ask)
            except BadData as error:
                refused = error
        raise Unavailable(f"{self.address}: answers nothing: {refused}")

    def _settle(self, ask: Ask) -> Reply:
        try:
            return self._persist(ask)
        except _NoLogprobs:
            self._concede(replace(self._dialect, top=None), "no log-probabilities", "gives none")
        except _Transient as error:
            raise Unavailable(f"{self.address}: {error}") from None
        return self._settle(ask)

    def ask(self, ask: Ask) -> Reply:
        """The answer to one request.

        Raises: BadData if this request is refused, or fails each time it is tried; Unavailable if
            nothing can be had any more.
        """
        try:
            reply = self._persist(ask)
        except _NoLogprobs:
            self._count_failure("answers without log-probabilities")
            raise BadData("an answer without log-probabilities") from None
        except _Transient as error:
            self._count_failure(str(error))
            raise BadData(f"failed {self.settings.attempts} times: {error}") from None
        except BadData as error:
            self._count_failure(str(error))
            raise
        self._num_in_a_row = 0
        return reply

    def _count_failure(self, words: str) -> None:
        with self._lock:
            self._num_in_a_row += 1
            number = self._num_in_a_row
        if number >= _MOST_IN_A_ROW:
            raise Unavailable(
                f"{self.address}: {number} requests in a row failed: {words}: what was answered is "
                "kept, so the same command goes on from there"
            )

    def _persist(self, ask: Ask) -> Reply:
        """Try a request until it is answered. Raises: _Transient or _NoLogprobs of the last try."""
        num_without = 0
        tried = 0
        while True:
            tried += 1
            try:
                return self._once(ask)
            except _NoLogprobs:
                num_without += 1
                if num_without == _TRIES_FOR_LOGPROBS:
                    raise
            except _Transient as error:
                if tried >= self.settings.attempts:
                    raise
                self._say_once(f"{error}: trying again")
                self._pause(tried, error.pause)

    def _pause(self, tried: int, named: float | None) -> None:
        """Wait before the next try; a pause that the server names holds for every request."""
        if named is not None:
            until = time.monotonic() + min(named, _LONGEST_NAMED_PAUSE)
            with self._lock:
                self._not_before = max(self._not_before, until)
            return
        pause = min(self.settings.backoff * 2.0 ** (tried - 1), _LONGEST_PAUSE)
        self._stopped.wait(pause * random.uniform(0.5, 1.0))

    def _once(self, ask: Ask) -> Reply:
        """Send a request once, but for what the server does not take."""
        while True:
            if (pause := self._not_before - time.monotonic()) > 0:
                self._stopped.wait(pause)
            if self._stopped.is_set():
                raise Unavailable(f"{self.address}: stopped")
            dialect = self._dialect
            status, pause_named, data = self._post(chat.body(ask, self.address.model, dialect))
            if status == 200:
                break
            words = self._words(data)
            if status in _STOPS or 300 <= status < 400:
                raise Unavailable(f"{self.address}: {_STOPS.get(status, 'is elsewhere')}{words}")
            if status in _AGAIN or status >= 500:
                raise _Transient(f"HTTP {status}{words}", pause_named)
            if (conceded := chat.conceded(dialect, words)) is None:
                raise BadData(f"refused with HTTP {status}{words}")
            self._concede(*conceded, words.removeprefix(": "), dialect)
        try:
            reply = chat.parse(load_json(data, "the reply"), "the reply")
        except BadData as error:
            raise _Transient(str(error)) from None
        if dialect.top is not None and reply.tokens is None and not reply.is_refused:
            raise _NoLogprobs
        return reply

    def _concede(self, dialect: Dialect, words: str, why: str, used: Dialect | None = None) -> None:
        """Ask differently from now on, and say so once. Args: used: what was refused."""
        with self._lock:
            if used is not None and used is not self._dialect:
                return  # another request has found it out
            self._dialect = dialect
        self._say_once(f"asked for {words} ({why[:200]})", words)

    def _say_once(self, text: str, what: str = "again") -> None:
        """Args: what: what it is about, which is said once."""
        with self._lock:
            is_new = what not in self._said
            self._said.add(what)
        if is_new:
            streams.message(f"{self.address}: {text}")

    def _post(self, body: dict[str, Any]) -> tuple[int, float | None, bytes]:
        """Status, the pause that is named, and the reply. Raises: _Transient, Unavailable."""
        import httpx2

        data = json.dumps(body, ensure_ascii=False).encode()
        url = f"{self.address.url}/chat/completions"
        found = bytearray()
        try:
            with self._in_flight:
                self.num_sent += 1
                end = time.monotonic() + self.settings.timeout
                with self._client.stream("POST", url, content=data) as response:
                    for piece in response.iter_bytes():
                        found += piece
                        if len(found) > _MOST_REPLY:
                            raise _Transient(f"a reply of more than {_MOST_REPLY:,} bytes")
                        if time.monotonic() > end:
                            raise _Transient(f"no whole reply within {self.settings.timeout:g} s")
                    pause = _named_pause(response.headers.get("retry-after"))
                    return response.status_code, pause, bytes(found)
        except httpx2.TimeoutException:
            raise _Transient(f"no reply within {self.settings.timeout:g} s") from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            words = str(error) or type(error).__name__
            if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol) or (
                "CERTIFICATE_VERIFY_FAILED" in words
            ):
                raise Unavailable(f"{self.address}: {words}") from None
            raise _Transient(f"the connection failed ({words})") from None

    def _words(self, data: bytes) -> str:
        """`: what the server says`, without the key."""
        try:
            words = chat.fault(load_json(data, "the reply"))
        except BadData:
            words = data[:200].decode("utf-8", "replace")
        words = " ".join(words.split())
        if self._key is not None:
            words = words.replace(self._key, "***")
        return f": {words}" if words else ""


def _key(settings: ServerSettings, address: Address) -> str | None:
    """The key, from the environment."""
    name = settings.api_key_env
    if name is None:
        return (os.environ.get(USUAL_KEY) or None) if address.is_private else None
    key = os.environ.get(name)
    if not key:
        raise SettingError("api_key_env", "the environment has no such variable", name)
    if not key.isascii() or not key.isprintable():
        raise SettingError("api_key_env", "its value is no key: not printable ASCII", name)
    return key


def _named_pause(text: str | None) -> float | None:
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


# ---------------------------------------------------------------- many at a time


@dataclass(eq=False)
class _Slot(Generic[T, R]):
    item: T
    is_done: threading.Event = field(default_factory=threading.Event)
    result: R | None = None
    error: BaseException | None = None

    def outcome(self) -> tuple[T, R | BadData]:
        """Wait for it. Raises: what the work raised, but for BadData."""
        self.is_done.wait()
        if isinstance(self.error, BadData):
            return self.item, self.error
        if self.error is not None:
            raise self.error
        return self.item, self.result  # type: ignore[return-value]


def in_order(
    work: Callable[[T], R], items: Iterable[T], num_workers: int
) -> Iterator[tuple[T, R | BadData]]:
    """Do `work` on several items at a time; yield each with its result or its BadData, in order.

    At most AHEAD * num_workers items are held. The threads do not outlive the program, so that it
    can be interrupted while they wait for a server.
    """
    todo: SimpleQueue[_Slot[T, R] | None] = SimpleQueue()
    pending: deque[_Slot[T, R]] = deque()

    def run() -> None:
        while (slot := todo.get()) is not None:
            try:
                slot.result = work(slot.item)
            except BaseException as error:  # for the one who waits
                slot.error = error
            slot.is_done.set()

    threads: list[threading.Thread] = []
    try:
        for item in items:
            slot = _Slot[T, R](item)
            pending.append(slot)
            todo.put(slot)
            if len(threads) < num_workers:
                threads.append(threading.Thread(target=run, daemon=True))
                threads[-1].start()
            while pending and (pending[0].is_done.is_set() or len(pending) >= AHEAD * num_workers):
                yield pending.popleft().outcome()
        while pending:
            yield pending.popleft().outcome()
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        for _ in threads:
            todo.put(None)
