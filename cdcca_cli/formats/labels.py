"""Labels: what a teacher answers to questions about frames, kept so that it is asked once.

A stream of records (`records`), in any order; files joined by `cat` are one stream. A record has
the labels of one teacher for K questions about one frame, and is whole by itself. This module runs
no teacher and knows no model; `label_stream` reads and writes streams.

Header, all keys always present:

    kind "label", version 1
    frame       the frame's id, for messages
    payload     digest of the frame as it was sent (`payload_digest`)
    teacher     who answered: a checkpoint's digest, or an address or a name ("https://host/v1#m");
                "student " and the digest of a device's model: that student before any training,
                whose answers are no teacher's (`distillation.anchors`)
    vocabulary  digest of the vocabulary that all ids are of; null if pieces stand for ids
    dtype       what the teacher computed in: "float32", "bfloat16" or "float16"; null: not known
    questions   K digests (`question_digest`), different ones
    answers     K strings; "" where the teacher answered with nothing
    nats        K numbers >= 0 or null: the teacher's negative log-probability per answer token
    ends        K of "stop", "length" (cut), "choice" (the answer is the likeliest choice) or null
    scores      K lists of numbers, or null: the log-probability of each of the question's choices
    inputs      K places in `queries`, or null: which input of the connector a question has
    lengths     {name: one whole number for each part} of the tensors that there are; parts are the
                inputs for `queries`, else the questions. A part may be empty
    counts      {name: one whole number for each part} of `queries` and `visual`, where not all rows
                are kept: how many there were
    sum         digest of the tensors as stored and, as one more tensor named "header", U8, of the
                rest of this header as canonical JSON

Tensors, each of which may be absent. R rows are all parts end to end. The features are F32, F16, or
I8 in [-127, 127] with another tensor, F32, of one scale a row, named `<name>.scales` (the value is
their product, as in `shard`):

    queries  (R, C)  what the connector made of the tokens, for each input
    visual   (R, D)  the language model's last attention at the visual positions
    answer   (R, D)  the same where each answer token is predicted
    queries.kept, visual.kept  (R,) I32: each row's number, from 0, among those there were,
                     ascending in each part; with `counts`

and of the answer's tokens, the end token included, if the teacher gave it:

    top       (R, k) F16: log-probabilities of the k likeliest tokens, descending; -65504 for a
              probability of 0, and where there are fewer
    top.rest  (R,) F16: log-probability of all other tokens together
    top.ids   (R, k) I32: their ids; -1 where there are fewer. Or, of a teacher without ids,
    top.pieces (R, k) U16: their lengths in bytes, 0 for the end token, and top.bytes U8: their
              bytes end to end

All values are finite; a feature with a value that its bits cannot hold is F32. Of two labels with
one payload, question and teacher the later one counts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import label_rows, label_tops, records
from cdcca_cli.formats.digest import is_digest, overlay_digest
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.label_tops import Top
from cdcca_cli.formats.names import DTYPES
from cdcca_cli.formats.shard import Question, Shard

VERSION = 1
LIMITS = records.Limits(record_bytes=1 << 33)
FEATURES = ("queries", "visual", "answer")
OF_THE_PICTURE = ("queries", "visual")
"""The features of which a label may keep some rows alone."""

End = Literal["stop", "length", "choice"]


@dataclass(eq=False)
class Label:
    """What a teacher answered to one question, and what it made of it.

    nats, end, scores: as in the record. queries (L, C), visual (N, D), answer_rows (A, D): float32,
    or None. Labels of one frame may share an array of queries. kept: which rows of `queries` and
    `visual` these are; a name that is missing: all.
    """

    answer: str
    nats: float | None = None
    end: End | None = None
    scores: list[float] | None = None
    top: Top | None = None
    queries: np.ndarray | None = None
    visual: np.ndarray | None = None
    answer_rows: np.ndarray | None = None
    kept: Mapping[str, Kept] | None = None

    @property
    def missing(self) -> set[str]:
        """The parts that it does not have: nats, top, queries, visual, answer."""
        parts = {"nats": self.nats, "top": self.top, "queries": self.queries, "visual": self.visual}
        parts["answer"] = self.answer_rows
        return {name for name, part in parts.items() if part is None}


STUDENT = "student "


@dataclass(frozen=True)
class Source:
    """Whose labels these are. name: the header's `teacher`."""

    name: str
    vocabulary: str | None = None
    dtype: str | None = None

    @property
    def is_student(self) -> bool:
        """Whether a student answered for itself."""
        return self.name.startswith(STUDENT)


@dataclass(eq=False)
class Entry:
    """A record: the labels of questions, by their digests, about one frame."""

    frame: str
    payload: str
    source: Source
    labels: dict[str, Label]


# ---------------------------------------------------------------- keys


def payload_digest(shard: Shard) -> str:
    """Digest of a frame as it was sent: a picture or codes as they are, else tokens and places.

    Decoded codes are equal to the last bit on one machine only.
    """
    described, payload = as_sent(shard)
    described = [shard.tower, shard.num_tokens, *described]
    return overlay_digest({"header": _json_bytes(described), **payload})


def as_sent(shard: Shard) -> tuple[list[Any], dict[str, np.ndarray]]:
    """How a frame's payload was coded, and its arrays."""
    if shard.coding.codec == "klt" and shard.codes is not None:
        coded = {"tokens": shard.codes, "positions": shard.positions}
        return [shard.coding.codebook, shard.coding.step], coded
    if shard.picture is not None:
        data = np.frombuffer(shard.picture.data, np.uint8)
        return [shard.picture.media, shard.picture.size], {"tokens": data}
    return [], {"tokens": shard.tokens, "positions": shard.positions}


def question_digest(question: Question) -> str:
    """Digest of what is asked: prompt, task and choices."""
    asked = [question.prompt, question.task, question.choices]
    return overlay_digest({"question": _json_bytes(asked)})


def _json_bytes(value: object) -> np.ndarray:
    return np.frombuffer(records.dump_json(value).encode(), np.uint8)


# ---------------------------------------------------------------- writing

_HEADER: dict[str, Any] = records.HEAD | {
    "frame": str,
    "payload": str,
    "teacher": str,
    "vocabulary": str | None,
    "dtype": str | None,
    "questions": list[str],
    "answers": list[str],
    "nats": list,
    "ends": list,
    "scores": list,
    "inputs": list,
    "lengths": dict,
    "counts": dict,
    "sum": str,
}


def encode(entry: Entry, bits: int) -> bytes:
    """The record of an entry. BadData for what no reader takes, as NaN or infinity.

    Args: bits: a number of the features.
    """
    found = list(entry.labels.values())
    inputs: dict[int, int] = {}  # by the identity of an array of queries
    for label in found:
        if label.queries is not None:
            inputs.setdefault(id(label.queries), len(inputs))
    firsts = {id(label.queries): label for label in reversed(found) if label.queries is not None}
    holders = {"queries": [firsts[key] for key in inputs], "visual": found, "answer": found}
    tensors: dict[str, np.ndarray] = {}
    lengths: dict[str, list[int]] = {}
    counts: dict[str, list[int]] = {}
    for name, labels in holders.items():
        parts = [label.answer_rows if name == "answer" else vars(label)[name] for label in labels]
        rows = [part for part in parts if part is not None]
        if not rows:
            continue
        values_RC = np.concatenate(rows)
        if not np.isfinite(values_RC).all():
            raise BadData(f"frame {entry.frame[:80]}: {name} has values that are not finite")
        tensors |= label_rows.stored(name, values_RC, bits)
        lengths[name] = [0 if part is None else len(part) for part in parts]
        kept = [(label.kept or {}).get(name) for label in labels]
        if any(kept):
            all_kept = [
                one or Kept(np.arange(length, dtype=np.int32), length)
                for one, length in zip(kept, lengths[name], strict=True)
            ]
            counts[name] = [one.count for one in all_kept]
            tensors[f"{name}.kept"] = np.concatenate([one.rows_L for one in all_kept])
    if any(label.top is not None for label in found):
        has_vocabulary, where = entry.source.vocabulary is not None, f"frame {entry.frame[:80]}"
        tensors |= label_tops.stored([label.top for label in found], has_vocabulary, where)
        lengths["top"] = [0 if label.top is None else len(label.top.rest_A) for label in found]
    header = {
        "kind": "label",
        "version": VERSION,
        "frame": entry.frame,
        "payload": entry.payload,
        "teacher": entry.source.name,
        "vocabulary": entry.source.vocabulary,
        "dtype": entry.source.dtype,
        "questions": list(entry.labels),
        "answers": [label.answer for label in found],
        "nats": [label.nats for label in found],
        "ends": [label.end for label in found],
        "scores": [label.scores for label in found],
        "inputs": [None if one.queries is None else inputs[id(one.queries)] for one in found],
        "lengths": lengths,
        "counts": counts,
    }
    check_header({**header, "sum": ""}, f"frame {entry.frame[:80]}")
    out = BytesIO()
    records.write_record(out, tensors, {**header, "sum": sum_of(header, tensors)})
    return out.getvalue()


def sum_of(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """The `sum` of a record's header and tensors."""
    rest = {name: value for name, value in header.items() if name != "sum"}
    return overlay_digest({**tensors, "header": _json_bytes(rest)})


# ---------------------------------------------------------------- reading


def check_header(header: Mapping[str, Any], where: str) -> None:
    """Refuse a record's header that is not sound by itself. BadData."""
    found = records.fields(header, _HEADER, where)
    digests = [found["payload"], *found["questions"]]
    digests += [found["vocabulary"]] * (found["vocabulary"] is not None)
    if not all(map(is_digest, digests)):
        raise BadData(f"{where}: a payload, question or vocabulary that is not a digest")
    if not found["teacher"] or found["dtype"] not in (None, *DTYPES):
        raise BadData(f"{where}: the teacher of its labels is damaged")
    questions = found["questions"]
    if not questions or len(set(questions)) != len(questions):
        raise BadData(f"{where}: no question, or one twice")
    for name in ("answers", "nats", "ends", "scores", "inputs"):
        if len(found[name]) != len(questions):
            raise BadData(
                f"{where}: {len(questions):,} questions, but {len(found[name]):,} in {name!r}"
            )
    _check_numbers(header, where)


def _check_numbers(header: Mapping[str, Any], where: str) -> None:
    """BadData for a number that is not finite, or of another type or range."""
    for value in header["nats"]:
        if value is not None and not _is_number(value, at_least=0):
            raise BadData(f"{where}: a cross-entropy that is not a number from 0 up")
    for scores in header["scores"]:
        is_list = isinstance(scores, list) and all(map(_is_number, scores))
        if scores is not None and not is_list:
            raise BadData(f"{where}: scores of choices that are not numbers")
    if any(end not in (None, "stop", "length", "choice") for end in header["ends"]):
        raise BadData(f"{where}: an unknown end of an answer")
    wholes = [value for value in header["inputs"] if value is not None]
    for parts in (*header["lengths"].values(), *header["counts"].values()):
        if not isinstance(parts, list):
            raise BadData(f"{where}: lengths that are no list")
        wholes += parts
    if any(type(value) is not int or not 0 <= value <= 1 << 31 for value in wholes):
        raise BadData(f"{where}: a length or place that is not a whole number from 0 up")


def _is_number(value: object, at_least: float = -math.inf) -> bool:
    if type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    return type(value) is float and math.isfinite(value) and value >= at_least


def decode(record: records.Record, where: str) -> Entry:
    """The entry in a record, checked. BadData."""
    header, tensors = record.header, record.tensors
    check_header(header, where)
    _check_tensor_names(header, tensors, where)
    if sum_of(header, tensors) != header["sum"]:
        raise BadData(f"{where}: damaged, its sum does not match")
    count, lengths = len(header["questions"]), header["lengths"]
    for name, parts in lengths.items():
        if name != "queries" and len(parts) != count:
            raise BadData(f"{where}: {count:,} questions, but {len(parts):,} lengths of {name}")
    inputs = header["inputs"]
    if any(place >= len(lengths.get("queries", ())) for place in inputs if place is not None):
        raise BadData(f"{where}: a question has an input that does not exist")
    rows = {
        name: label_rows.split(tensors, name, lengths[name], where)
        for name in FEATURES
        if name in lengths
    }
    kept = {
        name: label_rows.split_kept(tensors[f"{name}.kept"], counts, lengths[name], name, where)
        for name, counts in header["counts"].items()
    }
    tops = label_tops.split(tensors, lengths["top"], where) if "top" in lengths else [None] * count
    labels = {}
    for place, question in enumerate(header["questions"]):
        parts = {"visual": place, "answer": place}
        if inputs[place] is not None:
            parts["queries"] = inputs[place]
        found = {
            name: rows[name][at] for name, at in parts.items() if name in rows and lengths[name][at]
        }
        labels[question] = Label(
            answer=header["answers"][place],
            nats=header["nats"][place],
            end=header["ends"][place],
            scores=header["scores"][place],
            top=tops[place],
            queries=found.get("queries"),
            visual=found.get("visual"),
            answer_rows=found.get("answer"),
            kept={name: kept[name][parts[name]] for name in kept if name in found} or None,
        )
    source = Source(header["teacher"], header["vocabulary"], header["dtype"])
    return Entry(header["frame"], header["payload"], source, labels)


def _check_tensor_names(
    header: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str
) -> None:
    lengths, counts = header["lengths"], header["counts"]
    expected = set(lengths)
    for name in lengths:
        if name in FEATURES and name in tensors and tensors[name].dtype == np.int8:
            expected.add(f"{name}.scales")
    expected |= {f"{name}.kept" for name in counts}
    if "top" in lengths:
        expected |= {"top.rest"}
        expected |= {"top.ids"} if "top.ids" in tensors else {"top.pieces", "top.bytes"}
    is_known = set(lengths) <= {*FEATURES, "top"} and set(counts) <= {*OF_THE_PICTURE} & {*lengths}
    if not is_known or set(tensors) != expected:
        raise BadData(f"{where}: labels with the tensors {str(sorted(tensors))[:200]}")
    if header["vocabulary"] is None and "top.ids" in tensors:
        raise BadData(f"{where}: ids of a vocabulary that it does not name")
