"""A large JSON file, entry by entry: only one entry is in memory.

`entries` gives (None, number, value) for each value of a list, and (key, None, value) for each key
of an object; but a list in an object comes as (key, None, []) and then (key, number, value) for
each of its values. A repeated key comes twice.

`values` gives JSON values that follow each other, with any blanks between them: JSON lines, objects
over several lines (`jq .`), several objects on one line.

An entry has at most MAX_VALUE_CHARS characters, and so does a run of blanks.
"""

import codecs
import re
from collections.abc import Iterator
from itertools import count
from json import JSONDecodeError
from typing import Any, BinaryIO, NoReturn

from cdcca_cli.datasets import fields
from cdcca_cli.errors import BadData
from cdcca_cli.text import DECODER

MAX_VALUE_CHARS = 1 << 24
_CHUNK_BYTES = 1 << 20
_LITERAL_CHARS = 16  # none of true, -Infinity and \uD83D\uDE00 is longer
_NUMBER_TAIL = 4  # of "1.5e-7" cut after "1", "1." or "1.5e-", the rest must be seen
_BLANKS = re.compile(r"[ \t\n\r]*")

Entry = tuple[str | None, int | None, Any]


def entries(source: BinaryIO, where: str, *, most_chars: int | None = None) -> Iterator[Entry]:
    """The entries of one JSON list or object, from UTF-8 with or without a byte order mark.

    Raises: BadData (65) for anything else, for an entry with a repeated key or more than
    `most_chars` characters (MAX_VALUE_CHARS), and for more than fields.MAX_JSON_BYTES.
    """
    text = _Text(source, where, most_chars or MAX_VALUE_CHARS)
    opening = text.peek()
    if opening == "[":
        for number in text.members("[", "]"):
            yield None, number, text.value()
    elif opening == "{":
        for _ in text.members("{", "}"):
            if text.peek() != '"':
                text.refuse("a key was expected")
            key = text.value()
            text.take(":")
            if text.peek() != "[":
                yield key, None, text.value()
                continue
            yield key, None, []
            for number in text.members("[", "]"):
                yield key, number, text.value()
    else:
        raise BadData(f"{where}: expected a JSON list or object, found {text.describe()}")
    if text.peek():
        text.refuse("something follows its end")


def values(source: BinaryIO, where: str) -> Iterator[Any]:
    """JSON values that follow each other, from UTF-8. Raises: BadData (65), as `entries`."""
    text = _Text(source, where, MAX_VALUE_CHARS)
    while text.peek():
        yield text.value()


class _Text:
    """Decoded text and the current place in it; more is read when needed."""

    def __init__(self, source: BinaryIO, where: str, most_chars: int) -> None:
        self._source, self._where, self._most_chars = source, where, most_chars
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._place = 0  # in _text
        self._before = 0  # characters dropped from the front of _text
        self._num_bytes = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not a blank; "" at the end."""
        blanks = 0
        while True:
            match = _BLANKS.match(self._text, self._place)
            assert match is not None  # the pattern also matches the empty string
            blanks += match.end() - self._place
            self._place = match.end()
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            if blanks > MAX_VALUE_CHARS:
                self.refuse(f"more than {MAX_VALUE_CHARS:,} blanks")
            self._read()

    def take(self, *expected: str) -> str:
        """Step over the next character, which must be one of these."""
        found = self.peek()
        if found not in expected:
            self.refuse(f"{' or '.join(expected)} was expected" if found else "cut short")
        self._place += 1
        return found

    def members(self, opening: str, closing: str) -> Iterator[int]:
        """Step through the list or object that begins here: the number of each member."""
        self.take(opening)
        if self.peek() == closing:
            self.take(closing)
            return
        for number in count():
            yield number
            if self.take(",", closing) == closing:
                return

    def value(self) -> Any:
        """The value that begins here."""
        if not self.peek():
            self.refuse("cut short")
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
            except RecursionError:
                raise BadData(f"{self._where}: JSON nested too deeply") from None
            except JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    self.refuse(error.msg, error.pos)
            except ValueError as error:
                self.refuse(str(error))
            else:
                if self._ended or len(self._text) - end >= _NUMBER_TAIL:
                    self._place = end
                    return value
            if len(self._text) - self._place > self._most_chars:
                self.refuse(f"one value of more than {self._most_chars:,} characters")
            self._read()

    def _may_be_cut(self, error: JSONDecodeError) -> bool:
        """Whether more text could cure the error: a string without an end, or one near the end."""
        return error.msg.startswith("Unterminated") or len(self._text) - error.pos < _LITERAL_CHARS

    def describe(self) -> str:
        """What is here, for a message."""
        if not self.peek():
            return "nothing"
        return fields.describe(self._text[self._place : self._place + 40])

    def refuse(self, fault: str, place: int | None = None) -> NoReturn:
        at = self._before + (self._place if place is None else place)
        raise BadData(f"{self._where}: not JSON (character {at:,}: {fault})")

    def _read(self) -> None:
        """Read as much again as is held, so that a long value is decoded only a few times."""
        self._text = self._text[self._place :]
        self._before += self._place
        self._place = 0
        data = self._source.read(max(_CHUNK_BYTES, len(self._text)))
        self._ended = not data
        pending = len(self._utf8.getstate()[0])
        try:
            self._text += self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._num_bytes - pending + error.start
            raise BadData(f"{self._where}: not UTF-8 (byte {at:,})") from None
        self._num_bytes += len(data)
        if self._num_bytes > fields.MAX_JSON_BYTES:
            raise BadData(f"{self._where}: more than {fields.MAX_JSON_BYTES:,} bytes of JSON")
