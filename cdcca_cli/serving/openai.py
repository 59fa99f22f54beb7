"""Chat completions, the OpenAI-compatible interface: a picture and words, an answer by token.

`parse` is total: any JSON gives a `Reply` or BadData. What a server does not take (so many
`top_logprobs`, say) is left out of all requests.

A reply's tokens are those that the server lists. vLLM and llama-server list the end token too, as
`<|im_end|>` or as nothing; here it is b"". The hosted APIs leave it out.
"""

import base64
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdcca_cli.errors import BadData
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import Client, Connection, Refused, Transient, fault

REFUSALS = ("content_filter", "refusal")
"""Reasons to finish that mean that there is no answer."""
END = b""
FEWER = (20, 10, 5, 1)
"""Numbers of `top_logprobs` to fall back to, where a server refuses more."""
PATH = "/chat/completions"
_MOST_TOP = 1 << 18
_ROUNDED = 1e-3  # a log-probability this far above 0 is one of rounded numbers
_TRIES_FOR_LOGPROBS = 3


@dataclass(frozen=True)
class Dialect:
    """What a server takes. top: number of `top_logprobs`; None: no log-probabilities.

    limit: what it calls the longest answer. extra: more of the request's fields.
    """

    top: int | None = 20
    limit: str = "max_tokens"
    has_temperature: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Token:
    """One token of an answer. logp: its log-probability. top: the likeliest, best first."""

    piece: bytes
    logp: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a server answered. tokens: None without log-probabilities."""

    text: str
    finish: str | None = None
    tokens: tuple[Token, ...] | None = None

    @property
    def is_refused(self) -> bool:
        return self.finish in REFUSALS

    @property
    def is_cut(self) -> bool:
        return self.finish == "length"

    @property
    def nats(self) -> float | None:
        """Mean negative log-probability of a token."""
        if not self.tokens:
            return None
        return -math.fsum(token.logp for token in self.tokens) / len(self.tokens)


class NoLogprobs(Exception):
    """An answer without the log-probabilities that were asked for."""


class ChatServer:
    """A server that answers one request after another, from any number of threads."""

    def __init__(self, address: Address, how: Connection, dialect: Dialect) -> None:
        """Args: dialect: what is asked for first. Raises: SettingError for a missing key."""
        self.client = Client(address, how)
        self.close = self.client.close
        self._model = address.model
        self._dialect = dialect
        self._lock = threading.Lock()

    @property
    def dialect(self) -> Dialect:
        """What the server takes, as far as is known."""
        return self._dialect

    @property
    def num_sent(self) -> int:
        """Requests, tries included."""
        return self.client.num_sent

    def complete(self, text: str, picture: Picture, max_tokens: int) -> Reply:
        """The answer to one request, tried until it comes.

        Raises: Transient or NoLogprobs of the last try; BadData if this request is refused;
            Unavailable if nothing can be had any more.
        """
        num_without = 0
        while True:
            try:
                return self.client.persist(lambda: self._once(text, picture, max_tokens))
            except NoLogprobs:
                num_without += 1
                if num_without == _TRIES_FOR_LOGPROBS:
                    raise

    def concede(self, dialect: Dialect, words: str, why: str, used: Dialect | None = None) -> None:
        """Ask differently from now on, and say so once. Args: used: what was refused."""
        with self._lock:
            if used is not None and used is not self._dialect:
                return  # another request has found it out
            self._dialect = dialect
        self.client.say_once(f"asked for {words} ({why[:200]})", words)

    def _once(self, text: str, picture: Picture, max_tokens: int) -> Reply:
        """Send a request once, but for what the server does not take."""
        while True:
            dialect = self._dialect
            sent = body(text, picture, max_tokens, self._model, dialect)
            try:
                value = self.client.post(PATH, sent)
                break
            except Refused as error:
                if (other := conceded(dialect, error.words)) is None:
                    raise
                self.concede(*other, error.words, dialect)
        try:
            reply = parse(value, "the reply")
        except BadData as error:
            raise Transient(str(error), is_down=False) from None
        if dialect.top is not None and reply.tokens is None and not reply.is_refused:
            raise NoLogprobs
        return reply


# ---------------------------------------------------------------- requests


def body(
    text: str, picture: Picture, max_tokens: int, model: str, dialect: Dialect
) -> dict[str, Any]:
    """The request. The picture's file is sent as it is, before the words."""
    coded = base64.b64encode(picture.data).decode()
    shown = {"url": f"data:{picture.media};base64,{coded}"}
    content = [{"type": "image_url", "image_url": shown}, {"type": "text", "text": text}]
    made: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        dialect.limit: max_tokens,
    }
    if dialect.has_temperature:
        made["temperature"] = 0
    if dialect.top is not None:
        made |= {"logprobs": True, "top_logprobs": dialect.top}
    return made | dialect.extra


def conceded(dialect: Dialect, refusal: str) -> tuple[Dialect, str] | None:
    """What to ask for instead, and that in words, of a server that refused a request.

    Args: refusal: its message. Returns: None if the message names nothing that can be left out.
    """
    words = refusal.casefold()
    if dialect.top is not None and "logprobs" in words:
        lower = [number for number in FEWER if number < dialect.top]
        is_amount = any(char.isdigit() for char in words) or "most" in words or "max" in words
        if lower and is_amount:
            return replace(dialect, top=lower[0]), f"{lower[0]} likeliest tokens instead"
        return replace(dialect, top=None), "no log-probabilities"
    if "max_completion_tokens" in words and dialect.limit == "max_tokens":
        return replace(dialect, limit="max_completion_tokens"), "max_completion_tokens"
    if "temperature" in words and dialect.has_temperature:
        return replace(dialect, has_temperature=False), "its own temperature"
    return None


# ---------------------------------------------------------------- replies


def parse(value: Any, where: str) -> Reply:
    """The reply in a chat completion. Args: where: the beginning of a message. Raises: BadData."""
    try:
        return _reply(value)
    except ValueError as error:
        raise BadData(f"{where}: {error}") from None


def _reply(value: Any) -> Reply:
    choices = _of(dict, value, "the reply").get("choices")
    if choices is None and (words := fault(value)):
        raise ValueError(f"an error instead of an answer: {words}")
    found = _of(list, choices, "choices")
    _require(len(found) == 1, f"{len(found)} answers, expected one")
    choice = _of(dict, found[0], "the choice")
    finish = choice.get("finish_reason")
    _require(finish is None or isinstance(finish, str), "a finish reason that is no text")
    message = _of(dict, choice.get("message"), "message")
    text, refusal = message.get("content"), message.get("refusal")
    if finish in REFUSALS or (isinstance(refusal, str) and refusal):
        return Reply("", finish if finish in REFUSALS else REFUSALS[-1])
    # A model that thinks first has nothing to say if it is cut before its answer.
    _require(isinstance(text, str) or (text is None and "content" in message), "no content")
    return Reply(text or "", finish, _tokens(choice.get("logprobs"), text or "", finish))


def _tokens(value: Any, text: str, finish: str | None) -> tuple[Token, ...] | None:
    if value is None or _of(dict, value, "logprobs").get("content") is None:
        return None
    entries = _of(list, value["content"], "logprobs")
    raw = [
        (_piece(entry), _logp(entry), tuple(_top(entry)))
        for entry in (_of(dict, entry, "a token") for entry in entries)
    ]
    if not raw and text:
        return None
    end = _end([piece for piece, _, _ in raw], text, finish)
    if end is None:
        return tuple(Token(*each) for each in raw)
    tokens = []
    for place, (piece, logp, top) in enumerate(raw):
        named: dict[bytes, float] = {}
        for each, value in top:
            named.setdefault(END if each == end else each, value)
        tokens.append(Token(END if place == len(raw) - 1 else piece, logp, tuple(named.items())))
    return tuple(tokens)


def _end(pieces: Sequence[bytes], text: str, finish: str | None) -> bytes | None:
    """The last piece, if it is the end token: those before are the whole text."""
    if not pieces or finish == "length":
        return None
    words = b"".join(text.encode().split())
    if b"".join(b"".join(pieces[:-1]).split()) != words:
        return None
    return pieces[-1] if b"".join(pieces[-1].split()) or not pieces[-1] else None


def _top(entry: dict[str, Any]) -> Iterator[tuple[bytes, float]]:
    top = entry.get("top_logprobs")
    entries = [] if top is None else _of(list, top, "top_logprobs")
    _require(len(entries) <= _MOST_TOP, f"{len(entries):,} likeliest tokens")
    pairs = [(_piece(_of(dict, one, "a token")), _logp(one)) for one in entries]
    yield from sorted(pairs, key=lambda pair: -pair[1])


def _piece(entry: dict[str, Any]) -> bytes:
    """A token as bytes: half a character is no text."""
    found = entry.get("bytes")
    if found is None:
        return str(_of(str, entry.get("token"), "a token's text")).encode("utf-8", "replace")
    values = _of(list, found, "bytes")
    are_bytes = all(type(value) is int and 0 <= value < 256 for value in values)
    _require(are_bytes, "bytes outside 0 to 255")
    return bytes(values)


def _logp(entry: dict[str, Any]) -> float:
    value = entry.get("logprob")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _require(is_number and -1e30 < value <= _ROUNDED, "an invalid log-probability")  # type: ignore[operator]
    assert value is not None
    return min(float(value), 0.0)


def _of(kind: type, value: Any, what: str) -> Any:
    _require(isinstance(value, kind), f"{what}: expected {_NAMES[kind.__name__]}")
    return value


_NAMES = {"dict": "an object", "list": "a list", "str": "text"}


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise ValueError(words)
