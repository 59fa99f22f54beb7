"""What is asked of a chat server and what it says: OpenAI-compatible requests and replies.

A question of a frame is asked freely or, if it has choices, by the letters of these. `parse` is
total: any JSON gives a `Reply` or BadData. Nothing here opens a connection (`server`) or a file
(`batch`).

A reply's tokens are those that the server lists. vLLM and llama-server list the end token too, as
`<|im_end|>` or as nothing; here it is b"". The hosted APIs leave it out.
"""

import base64
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

from cdcca_cli.errors import BadData
from cdcca_cli.families.family import SHORT_ANSWER, SHORT_CAPTION
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import Question
from cdcca_cli.teachers.settings import ServerSettings
from cdcca_cli.text import load_json

REFUSALS = ("content_filter", "refusal")
"""Reasons to finish that mean that there is no answer."""
END = b""
LETTERS = ascii_uppercase
"""Choices are asked by one of these; a question with more choices is not asked by letter."""
FEWER = (20, 10, 5, 1)
"""Numbers of `top_logprobs` to fall back to, where a server refuses more."""
_BY_LETTER = (
    "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
)
_LETTER = re.compile(r"\W*([A-Z])(?![\w'])")
_MOST_TOP = 1 << 18
_ROUNDED = 1e-3  # a log-probability this far above 0 is one of rounded numbers
_MOST_WORDS = 300


@dataclass(frozen=True)
class Ask:
    """One request. key: `custom_id` of a batch file, at most 64 characters.

    letters: those of the choices, if it is asked by letter.
    """

    key: str
    text: str
    picture: Picture
    max_tokens: int
    letters: str = ""


@dataclass(frozen=True)
class Dialect:
    """What a server takes. top: number of `top_logprobs`; None: no log-probabilities.

    limit: what it calls the longest answer. extra: more of the request's fields.
    """

    top: int | None = 20
    limit: str = "max_tokens"
    has_temperature: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def first(cls, settings: ServerSettings) -> "Dialect":
        """What is asked for first."""
        extra = load_json(settings.extra or "{}", "extra")
        return cls(top=settings.top_logprobs or None, extra=extra)


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


# ---------------------------------------------------------------- questions


def free_text(question: Question) -> str:
    """The words of a question that is answered freely, or of a caption.

    Raises: BadData for a question without words.
    """
    if question.task == "caption":
        return SHORT_CAPTION if question.prompt is None else question.prompt
    if question.prompt is None:
        raise BadData(f"question {question.id[:80]}: has no words to ask")
    return SHORT_ANSWER.replace("{prompt}", question.prompt)


def letter_text(question: Question) -> tuple[str, str]:
    """The words of a question that is answered by letter, and the letters of its choices."""
    choices = question.choices or []
    letters = LETTERS[: len(choices)]
    lines = "\n".join(f"{letter}. {one}" for letter, one in zip(letters, choices, strict=True))
    asked = _BY_LETTER.replace("{choices}", lines, 1)
    return asked.replace("{question}", question.prompt or "", 1), letters


def letter_scores(reply: Reply, letters: str) -> list[float] | None:
    """The log-probability of each letter where the answer has one, or at its beginning.

    A letter that is not among the likeliest tokens has the most that it can have: the last of
    them, or all that is left.
    Returns: None without log-probabilities, or if no letter is among the likeliest.
    """
    tokens = reply.tokens or ()
    named = [token for token in tokens if (_letter(token.piece) or "?") in letters]
    for token in (*named[:1], *tokens[:1]):
        top = token.top or ((token.piece, token.logp),)
        found = dict.fromkeys(letters, -math.inf)
        for piece, logp in top:
            if (letter := _letter(piece)) in found:
                assert letter is not None
                found[letter] = _log_sum((found[letter], logp))
        if max(found.values()) == -math.inf:
            continue
        rest = math.log(max(-math.expm1(min(0.0, _log_sum([logp for _, logp in top]))), 1e-9))
        most = min(rest, *(logp for _, logp in top))
        return [most if logp == -math.inf else min(logp, 0.0) for logp in found.values()]
    return None


def letter_of(text: str, letters: str) -> str | None:
    """The letter that an answer by letter begins with: `B`, `(B)`, `B. two dogs`."""
    match = _LETTER.match(text)
    return match[1] if match is not None and match[1] in letters else None


def _letter(piece: bytes) -> str | None:
    words = piece.decode("utf-8", "replace").strip(" \n\t().:*")
    return words if len(words) == 1 and words in LETTERS else None


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    if most == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(value - most) for value in values))


# ---------------------------------------------------------------- requests


def body(ask: Ask, model: str, dialect: Dialect) -> dict[str, Any]:
    """The request. The picture is the very file of the shard, before the words."""
    coded = base64.b64encode(ask.picture.data).decode()
    picture = {"url": f"data:{ask.picture.media};base64,{coded}"}
    content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": ask.text}]
    made: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        dialect.limit: ask.max_tokens,
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


def fault(value: Any) -> str:
    """The message of an error that a server sent as JSON, or "" where it has none."""
    found = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(found, dict):
        found = found.get("message", found.get("detail"))
    return found[:_MOST_WORDS] if isinstance(found, str) else ""


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
    _require(are_bytes, "bytes that are none")
    return bytes(values)


def _logp(entry: dict[str, Any]) -> float:
    value = entry.get("logprob")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _require(is_number and -1e30 < value <= _ROUNDED, "a log-probability that is none")  # type: ignore[operator]
    assert value is not None
    return min(float(value), 0.0)


def _of(kind: type, value: Any, what: str) -> Any:
    _require(isinstance(value, kind), f"{what}: expected {_NAMES[kind.__name__]}")
    return value


_NAMES = {"dict": "an object", "list": "a list", "str": "text"}


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise ValueError(words)
