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
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdcca_cli import streams
from cdcca_cli.datasets import fields
from cdcca_cli.errors import BadData

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


def read_answers(paths: Sequence[str | None]) -> Answers:
    """All answers of some files; None and "-" are standard input.

    Raises: BadData (65) naming file and entry; MissingInput (66); UsageError (2) for a terminal.
    """
    answers = Answers()
    for path in paths:
        where = streams.input_name(path)
        with streams.text_input(path) as lines:
            for ask_id, answer in _read(lines, where):
                answers.add(ask_id, answer, where)
    return answers


def _read(lines: Iterator[str], where: str) -> Iterator[tuple[str, Answer]]:
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    everything = itertools.chain((first,), lines)
    opening = first.lstrip()[0]
    if opening == "{" and _is_prediction(first, where):
        yield from _predictions(everything)
    elif opening in "{[":
        yield from _results(fields.parse_json(_whole(everything, where), where), where)
    else:
        yield from _csv(everything, where)


def _is_prediction(line: str, where: str) -> bool:
    """A line that is a whole object by itself, with an id; broken JSON is a prediction's fault."""
    try:
        value = fields.parse_json(line, where)
    except BadData:
        return '"id"' in line
    return isinstance(value, dict) and ("id" in value or "v" in value)


def _predictions(lines: Iterable[str]) -> Iterator[tuple[str, Answer]]:
    from cdcca_cli.formats import predictions

    for prediction in predictions.read_predictions(lines):
        yield prediction.id, Answer(prediction.answer, prediction.choice)


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


def _csv(lines: Iterable[str], where: str) -> Iterator[tuple[str, Answer]]:
    reader = csv.reader(io.StringIO(_whole(lines, where)), strict=True)
    try:
        header = next(reader)
        choice = header.index("multiple_choice") if "multiple_choice" in header else None
        text = next((i for i, name in enumerate(header) if name.endswith("answer")), None)
        if "question_id" not in header or (choice is None and text is None):
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
            yield (
                row[ask],
                Answer(
                    None if text is None else row[text], None if choice is None else row[choice]
                ),
            )
    except csv.Error as error:
        raise BadData(f"{where}: line {reader.line_num}: not CSV ({error})") from None


def _whole(lines: Iterable[str], where: str) -> str:
    """All lines as one text, up to the limit on JSON files."""
    parts, num_chars = [], 0
    for line in lines:
        num_chars += len(line) + 1
        if num_chars > fields.MAX_JSON_BYTES:
            raise BadData(f"{where}: more than {fields.MAX_JSON_BYTES:,} bytes")
        parts.append(line)
    return "\n".join(parts)
