"""What a model answered, by ask id, read from cdcca's predictions or other tools' result files.

- cdcca's predictions: JSON lines, one prediction each (`formats.predictions`).
- A-OKVQA's: one object {question_id: {"multiple_choice": text, "direct_answer": text}}.
- result lists: [{"question_id", "answer"}] as VQAv2's server takes them, [{"image_id", "caption"}]
  as COCO's does.
- CSV with a column question_id and a column multiple_choice or one whose name ends in "answer".

The format is found from the content. Several files count as one, and their order does not matter:
an id that is answered twice alike is counted, one that is answered in two ways is refused.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cdcca_cli import streams
from cdcca_cli.datasets import fields
from cdcca_cli.errors import BadData
from cdcca_cli.formats import predictions

_HEAD_BYTES = 1 << 20
_OBJECT_OF_OBJECTS = re.compile(rb'\{\s*("(?:[^"\\]|\\.)*"\s*:\s*\{|$)')
MAX_TEXT_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A free answer or caption, and the chosen text of a multiple choice; None where not given."""

    text: str | None = None
    choice: str | None = None


@dataclass(slots=True)
class Answers:
    """All answers by ask id, and how many stood there more than once."""

    by_id: dict[str, Answer] = field(default_factory=dict)
    num_duplicates: int = 0

    def add(self, ask_id: str, answer: Answer, where: str) -> None:
        for text in (answer.text, answer.choice):
            if text is not None and len(text) > MAX_TEXT_CHARS:
                raise BadData(
                    f"{where}: the answer to '{ask_id}' has more than {MAX_TEXT_CHARS:,} characters"
                )
        known = self.by_id.setdefault(ask_id, answer)
        if known is answer:
            return
        self.num_duplicates += 1
        if known != answer:
            raise BadData(
                f"{where}: '{ask_id}' is answered twice, and differently: score the files apart"
            )


def answers_of(given: Iterable[predictions.Prediction]) -> Iterator[tuple[str, Answer]]:
    """Predictions that are in memory already, as (ask id, answer)."""
    for prediction in given:
        yield prediction.id, Answer(prediction.answer, prediction.choice)


def read_answers(paths: Sequence[str | None]) -> Answers:
    """All answers of some files; None and "-" are standard input; zstd is taken off.

    Raises: BadData (65) naming file and entry; MissingInput (66); UsageError (2) for a terminal.
    """
    answers = Answers()
    for path in paths:
        where = streams.input_name(path)
        with streams.binary_input(path) as source:
            for ask_id, answer in _read(source, where):
                answers.add(ask_id, answer, where)
    return answers


def _read(source: BinaryIO, where: str) -> Iterator[tuple[str, Answer]]:
    head = source.read(_HEAD_BYTES)
    opening = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not opening and len(head) < _HEAD_BYTES:
        return
    if not opening or b"\0" in head:
        raise BadData(f"{where}: predictions are expected, found blanks or zeros")
    source = streams.pushed_back(head, source)
    if opening.startswith(b"{") and _is_prediction(opening.split(b"\n")[0], where):
        lines = streams.lines(source, where)
        yield from answers_of(predictions.read_predictions(lines, where=where))
    elif opening.startswith((b"{", b"[")):
        yield from _results(fields.parse_json(_whole(source, where), where), where)
    else:
        yield from _csv(source, where)


def _is_prediction(line: bytes, where: str) -> bool:
    """A line that is a whole object with an id or a version.

    Of one that is broken, or longer than what was looked at, the first value decides: A-OKVQA's
    is an object.
    """
    try:
        value = fields.parse_json(line, where)
    except BadData:
        return not _OBJECT_OF_OBJECTS.match(line)
    return isinstance(value, dict) and ("id" in value or "v" in value)


def _results(content: object, where: str) -> Iterator[tuple[str, Answer]]:
    if isinstance(content, dict):
        for ask_id, value in content.items():
            place = f"{where}: '{ask_id}'"
            item = fields.an_object(value, place)
            if not {"multiple_choice", "direct_answer"} & item.keys():
                raise BadData(f"{place}: neither 'multiple_choice' nor 'direct_answer' in it")
            choice = fields.optional_text(item, "multiple_choice", place)
            yield ask_id, Answer(fields.optional_text(item, "direct_answer", place), choice)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            place = f"{where}: entry {number}"
            yield _result(fields.an_object(value, place), place)
    else:
        raise BadData(f"{where}: predictions are expected, found {fields.describe(content)}")


def _result(item: Mapping[str, Any], place: str) -> tuple[str, Answer]:
    if "caption" in item:
        return fields.an_id(item, "image_id", place), Answer(fields.a_text(item, "caption", place))
    if "answer" in item:
        text = fields.a_text(item, "answer", place)
        return fields.an_id(item, "question_id", place), Answer(text)
    raise BadData(f"{place}: neither 'answer' nor 'caption' in it")


def _csv(source: BinaryIO, where: str) -> Iterator[tuple[str, Answer]]:
    try:
        text = _whole(source, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{where}: predictions are expected; not UTF-8 at byte {error.start}"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        choice = header.index("multiple_choice") if "multiple_choice" in header else None
        answer = next((i for i, name in enumerate(header) if name.endswith("answer")), None)
        if "question_id" not in header or (choice is None and answer is None):
            raise BadData(
                f"{where}: predictions are expected: JSON lines, JSON, or CSV with the columns "
                f"question_id and answer; found {fields.describe(','.join(header))}"
            )
        ask = header.index("question_id")
        for row in reader:
            if len(row) != len(header):
                raise BadData(
                    f"{where}: line {reader.line_num}: {len(row)} columns instead of {len(header)}"
                )
            yield row[ask], Answer(_cell(row, answer), _cell(row, choice))
    except csv.Error as error:
        raise BadData(f"{where}: line {reader.line_num}: not CSV ({error})") from None


def _cell(row: list[str], column: int | None) -> str | None:
    return None if column is None else row[column]


def _whole(source: BinaryIO, where: str) -> bytes:
    """The rest of the stream, up to the limit on JSON files."""
    data = source.read(fields.MAX_JSON_BYTES + 1)
    if len(data) > fields.MAX_JSON_BYTES:
        raise BadData(f"{where}: more than {fields.MAX_JSON_BYTES:,} bytes")
    return data
