"""A JSON file one entry at a time, so that what is wrong with it is found before it is held.

    for key, number, value in entries(source, "val.json"):

A list gives (None, number, value) for each of its values. An object gives (key, None, value) for
each of its keys; but a value that is a list comes as (key, None, []) and then, each on its own, as
(key, number, value). Whatever comes twice in the object comes twice here: the caller knows which
keys matter to it.

Only one entry is in memory, of at most MAX_VALUE_CHARS, and no more than that of blanks is read
over: a gigabyte of nothing is refused near its beginning. Nothing here knows what the entries are.
"""

import codecs
import re
from collections.abc import Iterator
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

    Args: most_chars: of one entry; None: MAX_VALUE_CHARS.

    Raises: BadData (65), `where` first, for anything that is not one JSON list or object, holds an
        object with the same key twice inside an entry, or is larger than fields.MAX_JSON_BYTES.
    """
    text = _Text(source, where, most_chars or MAX_VALUE_CHARS)
    opening = text.peek()
    if opening == "[":
        for number, value in text.items():
            yield None, number, value
    elif opening == "{":
        yield from _members(text, where)
    else:
        raise BadData(f"{where}: expected a JSON list or object, found {text.describe()}")
    if text.peek():
        text.refuse("something follows its end")


def _members(text: "_Text", where: str) -> Iterator[Entry]:
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return
    while True:
        if text.peek() != '"':
            text.refuse("a key was expected")
        key = text.value()
        text.take(":")
        if text.peek() == "[":
            yield key, None, []
            for number, value in text.items():
                yield key, number, value
        else:
            yield key, None, text.value()
        if text.take(",", "}") == "}":
            return


class _Text:
    """Decoded text with a place in it, read on as needed."""

    def __init__(self, source: BinaryIO, where: str, most_chars: int) -> None:
        self._source, self._where, self._most_chars = source, where, most_chars
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._place = 0  # in _text
        self._before = 0  # characters that were dropped from its front
        self._num_bytes = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        blanks = 0
        while True:
            match = _BLANKS.match(self._text, self._place)
            assert match is not None  # the pattern matches nothing, too
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

    def items(self) -> Iterator[tuple[int, Any]]:
        """The values of the list that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        number = 0
        while True:
            yield number, self.value()
            if self.take(",", "]") == "]":
                return
            number += 1

    def value(self) -> Any:
        """The whole value that begins here."""
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
        """Whether more text could mend it: it shows near the end, or a string has none yet."""
        return error.msg.startswith("Unterminated") or len(self._text) - error.pos < _LITERAL_CHARS

    def describe(self) -> str:
        """What stands here, for a message."""
        if not self.peek():
            return "nothing"
        return fields.describe(self._text[self._place : self._place + 40])

    def refuse(self, fault: str, place: int | None = None) -> NoReturn:
        at = self._before + (self._place if place is None else place)
        raise BadData(f"{self._where}: not JSON (character {at:,}: {fault})")

    def _read(self) -> None:
        """As much again as is here, so that a long value is not tried once a chunk."""
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
