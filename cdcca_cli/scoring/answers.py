"""Answers by question id, read from cdcca's predictions or other tools' result files.

- cdcca's predictions: JSON lines (`formats.predictions`).
- A-OKVQA's: one object {question_id: {"multiple_choice": text, "direct_answer": text}}, or a list
  of {"question_id", "multiple_choice", "direct_answer"}. A plain text instead of the inner object
  is a free answer, because it may not be one of the choices.
- Result lists: [{"question_id", "answer"}] (VQAv2's server), [{"image_id", "caption"}] (COCO,
  nocaps) and [{"question_id", "pred_ans"}] (LAVIS).
- JSON lines of such results; LLaVA's {"question_id", "text"}; lmms-eval's samples
  {"doc": {"question_id" or "image_id"}, "filtered_resps": [text]}. A question_id that is an image's
  file name, as in coco_cap's samples, is replaced by the image id in its last digits.
- CSV with a column question_id and a column multiple_choice, direct_answer, answer, or a single one
  whose name ends in "answer"; or with the columns image_id and caption.

A JSON object may span several lines, and several may share one. The format is found from
the content, never from the name. Several files count as one: a choice in one and a free answer in
another are both kept, repeated equal answers count once, and different answers to one question are
refused unless `keep_first` is set.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cdcca_cli import byte_streams, streams
from cdcca_cli.datasets import fields
from cdcca_cli.datasets.entries import entries, values
from cdcca_cli.errors import BadData
from cdcca_cli.formats import predictions
from cdcca_cli.formats.kind import HEAD_BYTES, describe

_OF_A_PREDICTION = re.compile(rb'"(v|model|entropy|token_entropies)"\s*:')
_RESULT_KEYS = frozenset(("question_id", "image_id", "doc"))
_OF_REFERENCES = frozenset(("answers", "direct_answers", "captions", "choices"))
_OF_AOKVQA = frozenset(("multiple_choice", "direct_answer"))
_IMAGE_NAME = re.compile(r"(?:.*[_/])?0*([0-9]{1,18})\.(?:jpe?g|png)", re.IGNORECASE | re.DOTALL)
_ANSWER_COLUMNS = ("direct_answer", "answer")
MAX_TEXT_CHARS = 100_000
MAX_ID_CHARS = 1024
MAX_EMPTY_LINES = 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A free answer or caption, and the chosen text of a multiple choice.

    choices, choice_scores: the model's options and the summed log-likelihood (nats) of each.
    """

    text: str | None = None
    choice: str | None = None
    choices: tuple[str, ...] | None = field(default=None, compare=False)
    choice_scores: tuple[float, ...] | None = field(default=None, compare=False)


@dataclass(slots=True)
class Answers:
    """All answers by question id, and the ids repeated with an equal or a different answer."""

    by_id: dict[str, Answer] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    _file_of: dict[str, str] = field(default_factory=dict)

    def add(
        self, question_id: str, answer: Answer, where: str, *, keep_first: bool = False
    ) -> None:
        if len(question_id) > MAX_ID_CHARS:
            raise BadData(f"{where}: an id of more than {MAX_ID_CHARS:,} characters")
        if max(len(answer.text or ""), len(answer.choice or "")) > MAX_TEXT_CHARS:
            most = f"{MAX_TEXT_CHARS:,} characters"
            raise BadData(f"{where}: the answer to '{question_id}' has more than {most}")
        known = self.by_id.setdefault(question_id, answer)
        if known is answer:
            self._file_of[question_id] = where
            return
        pairs = ((known.text, answer.text), (known.choice, answer.choice))
        both = [pair for pair in pairs if None not in pair]
        if any(ours != theirs for ours, theirs in both):
            if not keep_first:
                raise BadData(self._conflict(question_id, where))
            self.conflicts.append(question_id)
            return
        if both:
            self.duplicates.append(question_id)
        scored = answer if known.choice_scores is None else known
        self.by_id[question_id] = Answer(
            answer.text if known.text is None else known.text,
            answer.choice if known.choice is None else known.choice,
            scored.choices,
            scored.choice_scores,
        )

    def _conflict(self, question_id: str, where: str) -> str:
        first = self._file_of.get(question_id, where)
        place = "twice, differently" if first == where else f"differently in {first}"
        return (
            f"{where}: '{question_id}' is answered {place}: remove one answer, or keep the first "
            "with `duplicates` first"
        )


def answers_of(given: Iterable[predictions.Prediction]) -> Iterator[tuple[str, Answer]]:
    """Predictions that are in memory already, as (question id, answer)."""
    for one in given:
        choices = None if one.choices is None else tuple(one.choices)
        scores = None if one.choice_scores is None else tuple(one.choice_scores)
        yield one.id, Answer(one.answer, one.choice, choices, scores)


def read_answers(paths: Sequence[str | None], *, keep_first: bool = False) -> Answers:
    """All answers of some files; None and "-" are standard input.

    keep_first: keep the first of different answers to one question instead of refusing them.
    """
    answers = Answers()
    for path in paths:
        where = streams.input_name(path)
        with streams.binary_input(path) as source:
            for question_id, answer in _read(source, where):
                answers.add(question_id, answer, where, keep_first=keep_first)
    return answers


def _read(source: BinaryIO, where: str) -> Iterator[tuple[str, Answer]]:
    head = source.read(HEAD_BYTES)
    opening = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not opening and len(head) < HEAD_BYTES:
        return
    line, _, _ = opening.partition(b"\n")
    first, is_line = _first_object(line, opening)
    is_json = opening.startswith((b"{", b"["))
    known = describe(head)
    if known is not None and not (is_json and ("v" in first or known.startswith("predictions"))):
        raise BadData(f"{where}: expected predictions, found {known}")
    source = byte_streams.pushed_back(head, source)
    if not is_json:
        yield from _csv(_lines(source, where), where)
    elif "v" in first:
        lines = _lines(source, where) if is_line else map(json.dumps, values(source, where))
        yield from answers_of(predictions.read_predictions(lines, where=where))
    elif _RESULT_KEYS & first.keys() and is_line:
        for number, text in enumerate(_lines(source, where), 1):
            place = f"{where}: line {number}"
            if text.strip():
                yield _result(fields.parse_json(text, place), place)
    elif _RESULT_KEYS & first.keys():
        for number, value in enumerate(values(source, where), 1):
            yield _result(value, f"{where}: object {number}")
    else:
        yield from _results(source, where)


def _first_object(line: bytes, opening: bytes) -> tuple[Mapping[str, Any], bool]:
    """The first JSON object of a file, {} if there is none, and whether it is one line.

    A "v" is added to what looks like one of cdcca's predictions, even if the line is broken or cut.
    """
    if not line.startswith(b"{"):
        return {}, True
    value: dict[str, Any] = {}
    is_line = True
    try:
        value = fields.parse_json(line, "")
    except BadData:
        with suppress(BadData):
            value, is_line = next(values(io.BytesIO(opening), "")), False
    if {"id", "answer"} <= value.keys() or (not value and _OF_A_PREDICTION.search(line)):
        return {"v": None, **value}, is_line
    return value, is_line


def _lines(source: BinaryIO, where: str) -> Iterator[str]:
    """The lines of a file; a gigabyte of newlines is refused."""
    empty = 0
    for number, text in enumerate(streams.lines(source, where), 1):
        empty = 0 if text else empty + 1
        if empty > MAX_EMPTY_LINES:
            raise BadData(f"{where}: more than {MAX_EMPTY_LINES:,} empty lines up to line {number}")
        yield text


def _results(source: BinaryIO, where: str) -> Iterator[tuple[str, Answer]]:
    """One JSON value: A-OKVQA's object by question id, or a list of results."""
    for key, number, value in entries(source, where):
        if key is None:
            place = f"{where}: entry {number}"
            yield _result(value, place)
            continue
        place = f"{where}: {fields.describe(key)}"
        question_id = fields.an_id({"question_id": key}, "question_id", place)
        if isinstance(value, str):
            yield question_id, Answer(fields.a_text({key: value}, key, place))
            continue
        item = fields.an_object(value, place)
        if not _OF_AOKVQA & item.keys():
            raise BadData(f"{place}: neither 'multiple_choice' nor 'direct_answer' in it")
        yield question_id, _aokvqa(item, place)


def _aokvqa(item: Mapping[str, Any], place: str) -> Answer:
    choice = fields.optional_text(item, "multiple_choice", place)
    return Answer(fields.optional_text(item, "direct_answer", place), choice)


def _result(value: object, place: str) -> tuple[str, Answer]:
    item = fields.an_object(value, place)
    if "caption" in item:
        return fields.an_id(item, "image_id", place), Answer(fields.a_text(item, "caption", place))
    if "filtered_resps" in item:
        texts = fields.optional_texts(item, "filtered_resps", place) or []
        if len(texts) != 1:
            raise BadData(f"{place}: {len(texts)} 'filtered_resps' instead of one answer")
        return _sample_id(item, place), Answer(texts[0])
    for key in ("answer", "pred_ans", "text"):
        if key in item:
            text = fields.a_text(item, key, place)
            return fields.an_id(item, "question_id", place), Answer(text)
    if _OF_AOKVQA & item.keys():
        return fields.an_id(item, "question_id", place), _aokvqa(item, place)
    if _OF_REFERENCES & item.keys():
        raise BadData(f"{place}: annotations, not predictions: name this file as `references`")
    raise BadData(
        f"{place}: none of 'answer', 'caption', 'text', 'pred_ans', 'multiple_choice', "
        f"'direct_answer' and 'filtered_resps' in it, found {fields.keys_of(item)}"
    )


def _sample_id(item: Mapping[str, Any], place: str) -> str:
    place = f"{place}, 'doc'"
    doc = fields.an_object(item.get("doc"), place)
    question_id = fields.an_id(doc, "question_id" if "question_id" in doc else "image_id", place)
    image = _IMAGE_NAME.fullmatch(question_id)
    return image[1] if image else question_id


def _csv(lines: Iterator[str], where: str) -> Iterator[tuple[str, Answer]]:
    reader = csv.reader((text + "\n" for text in lines), strict=True)
    try:
        header = next((row for row in reader if row), [])
        question, answer, choice = _columns(header, where)
        for row in reader:
            if not row:
                continue
            place = f"{where}: line {reader.line_num}"
            if len(row) != len(header):
                raise BadData(f"{place}: {len(row)} columns instead of {len(header)}")
            item = dict(zip(header, row, strict=True))
            text = None if answer is None else fields.a_text(item, answer, place)
            chosen = None if choice is None else fields.a_text(item, choice, place)
            yield fields.an_id(item, question, place), Answer(text, chosen)
    except csv.Error as error:
        raise BadData(f"{where}: line {reader.line_num}: not CSV ({error})") from None


def _columns(header: list[str], where: str) -> tuple[str, str | None, str | None]:
    """The columns of ids, of free answers or captions, and of choices."""
    if len(set(header)) < len(header):
        raise BadData(f"{where}: two columns have the same name")
    if "question_id" not in header and {"image_id", "caption"} <= set(header):
        return "image_id", "caption", None
    answers = [name for name in _ANSWER_COLUMNS if name in header][:1]
    answers = answers or [name for name in header if name.endswith("answer")]
    choice = "multiple_choice" if "multiple_choice" in header else None
    if len(answers) > 1:
        raise BadData(
            f"{where}: expected one column of answers, found {' and '.join(answers)}: rename the "
            "right one to direct_answer"
        )
    if "question_id" not in header or (choice is None and not answers):
        raise BadData(
            f"{where}: expected predictions: JSON lines, JSON, or CSV with the columns "
            f"question_id and answer; found {fields.describe(','.join(header))}"
        )
    return "question_id", answers[0] if answers else None, choice
