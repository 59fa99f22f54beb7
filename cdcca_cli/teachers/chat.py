"""What is asked of a served teacher, and what its answers say: of a question, or of its choices.

A question of a frame is asked freely or, if it has choices, by the letters of these.
`serving.openai` knows requests and replies. Nothing here opens a connection (`server`) or a file
(`batch`).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from cdcca_cli.errors import BadData
from cdcca_cli.families.family import SHORT_ANSWER, SHORT_CAPTION
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import Question
from cdcca_cli.serving import openai
from cdcca_cli.serving.openai import Dialect, Reply
from cdcca_cli.teachers.settings import ServerSettings
from cdcca_cli.text import load_json

LETTERS = ascii_uppercase
"""Choices are asked by one of these; a question with more choices is not asked by letter."""
_BY_LETTER = (
    "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
)
_LETTER = re.compile(r"\W*([A-Z])(?![\w'])")


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


def body(ask: Ask, model: str, dialect: Dialect) -> dict[str, Any]:
    """The request. The picture is the very file of the shard, before the words."""
    return openai.body(ask.text, ask.picture, ask.max_tokens, model, dialect)


def first_dialect(settings: ServerSettings) -> Dialect:
    """What is asked for first."""
    extra = load_json(settings.extra or "{}", "extra")
    return Dialect(top=settings.top_logprobs or None, extra=extra)
