"""Lessons: the labels of versions 0.1 to 0.6, which are still read (`labels` replaces them).

A file of records (`records`) end to end: a head, then one entry for each shard, in the order in
which they were computed.

Head. No tensors. Header, all keys always present:

    kind "lessons", version 1
    teacher     digest of the teacher
    vocabulary  digest of its vocabulary: whether its logits are another model's too
    dtype       what it computed in: "float32", "bfloat16" or "float16"
    bits        32, 16 or 8: how an entry's numbers are stored

Entry, of one shard with K questions. Header, all keys always present:

    kind "lesson", version 1, or 2 if not all rows of `queries` and `visual` are kept
    key      digest of the shard's content, questions included (`key_of`)
    sum      digest of the tensors as stored and, as one more tensor named "header", U8, of the
             rest of this header as canonical JSON
    answers  K strings, each the teacher's answer; "" where it answered with nothing
    nats     K numbers >= 0: the teacher's own cross-entropy of its answer, per answer token
    inputs   K whole numbers: which input of `queries` each question has
    queries  lengths L_i of the inputs' rows, one for each input
    visual   lengths L_k of the questions' rows of `visual`
    answer   lengths A_k of the questions' rows of `answer` and `logits`
    queries_of, visual_of   version 2 alone: how many rows there were, for each length of `queries`
                            and `visual`

Tensors, each F32, F16, or I8 in [-127, 127] with another tensor, F32, of one scale a row, named
`<name>.scales` (the value is their product, as in `shard`):

    queries  (sum L_i, C)  what the connector made of the tokens, for each input
    visual   (sum L_k, D)  the language model's last attention at the visual positions
    answer   (sum A_k, D)  the same where each answer token is predicted; absent where that
                           attention does not see the answer
    logits   (sum A_k, V)  of the answer's tokens; may be absent

and in version 2 two of I32, which have for each row its number, from 0, among those there were,
ascending in each input or question: queries.kept (sum L_i,) and visual.kept (sum L_k,).

All values are finite; a tensor with a value that its bits cannot hold is F32. Scales are >= 0. Of
two entries with one key the later one counts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import label_rows, records
from cdcca_cli.formats.digest import is_digest, overlay_digest
from cdcca_cli.formats.label_tops import Top, rest_of
from cdcca_cli.formats.labels import Label, Source, as_sent, sum_of
from cdcca_cli.formats.names import DTYPES, LABEL_BITS
from cdcca_cli.formats.shard import Shard

VERSION = 1
ENTRY_VERSION = 2
KINDS = {"lessons": VERSION, "lesson": ENTRY_VERSION}
MOST_TOP = 64
"""Logits of the whole vocabulary become the distribution of that many tokens."""
TENSORS = ("queries", "visual", "answer", "logits")
OF_THE_PICTURE = ("queries", "visual")
"""The tensors of which an entry may keep some rows alone."""


@dataclass(frozen=True)
class Head:
    """The teacher of the labels, and how they are stored."""

    teacher: str
    vocabulary: str
    dtype: str
    bits: int


_HEAD = records.HEAD | get_type_hints(Head)
_LENGTHS = {"inputs": list[int], "queries": list[int], "visual": list[int], "answer": list[int]}
_ENTRY = records.HEAD | _LENGTHS
_ENTRY |= {"key": str, "sum": str, "answers": list[str], "nats": list[float]}
_COUNTS = {f"{name}_of": list[int] for name in OF_THE_PICTURE}


def key_of(shard: Shard) -> str:
    """Digest of a shard's questions and payload: pictures and codes as they were sent, else tokens.

    Decoded codes are equal to the last bit on one machine only.
    """
    questions = [
        [question.id, question.prompt, question.task, question.choices]
        for question in shard.questions
    ]
    how, payload = as_sent(shard)
    described = [shard.frame, shard.tower, shard.num_tokens, questions, *how]
    content = records.dump_json(described).encode()
    # The names are hashed too.
    return overlay_digest({"said": np.frombuffer(content, np.uint8), **payload})


def decode(record: records.Record, where: str) -> list[Label]:
    """The labels of an entry's questions, in their order, checked. BadData."""
    header, tensors = record.header, record.tensors
    found = check_entry(header, where)
    present = {name for name in TENSORS if name in tensors}
    others = {f"{name}.scales" for name in present if tensors[name].dtype == np.int8}
    if header["version"] > 1:
        others |= {f"{name}.kept" for name in OF_THE_PICTURE}
    if not present >= {*OF_THE_PICTURE} or set(tensors) != present | others:
        raise BadData(f"{where}: an entry with the tensors {str(sorted(tensors))[:200]}")
    if sum_of(header, tensors) != header["sum"]:
        raise BadData(f"{where}: damaged, its sum does not match")
    rows: dict[str, list[np.ndarray]] = {
        name: label_rows.split(tensors, name, found["answer" if name == "logits" else name], where)
        for name in present
    }
    kept = {}
    if header["version"] > 1:
        kept = {
            name: label_rows.split_kept(
                tensors[f"{name}.kept"], found[f"{name}_of"], found[name], name, where
            )
            for name in OF_THE_PICTURE
        }
    labels = []
    for place, answer in enumerate(found["answers"]):
        part = {"queries": found["inputs"][place], "visual": place}
        labels.append(
            Label(
                answer=answer,
                nats=found["nats"][place],
                top=_top(rows["logits"][place]) if "logits" in rows else None,
                queries=rows["queries"][part["queries"]],
                visual=rows["visual"][place],
                answer_rows=rows["answer"][place] if "answer" in rows else None,
                kept={name: parts[part[name]] for name, parts in kept.items()} or None,
            )
        )
    return labels


def _top(logits_AV: np.ndarray) -> Top:
    """The likeliest tokens by the logits of the whole vocabulary."""
    logits_AV = logits_AV.astype(np.float64)
    logp_AV = logits_AV - np.logaddexp.reduce(logits_AV, axis=1, keepdims=True)
    order_AV = np.argsort(-logp_AV, axis=1, kind="stable")
    ids_AK = order_AV[:, :MOST_TOP]
    logp_AK = np.take_along_axis(logp_AV, ids_AK, 1).astype(np.float32)
    return Top(logp_AK, rest_of(logp_AK), ids_AK.astype(np.int32))


def check_entry(header: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of an entry's header. BadData."""
    version: int = header["version"]
    found = records.fields(header, _ENTRY if version == 1 else _ENTRY | _COUNTS, where)
    if not is_digest(found["key"]):
        raise BadData(f"{where}: 'key' is not a digest")
    for name in ("nats", "inputs", "visual", "answer"):
        if len(found[name]) != len(found["answers"]):
            raise BadData(
                f"{where}: {len(found['answers']):,} answers, but {len(found[name]):,} in {name!r}"
            )
    numbers = ("nats", *_LENGTHS, *(_COUNTS if version > 1 else ()))
    if any(value < 0 for name in numbers for value in found[name]):
        raise BadData(f"{where}: a number below 0")
    if any(number >= len(found["queries"]) for number in found["inputs"]):
        raise BadData(f"{where}: a question has an input that does not exist")
    return found


def parse_head(header: Mapping[str, Any], tensors: Collection[str], where: str) -> Source:
    """Whose labels follow a head. tensors: the names of those it has. BadData."""
    found = records.fields(header, _HEAD, where)
    if tensors:
        raise BadData(f"{where}: the head of its labels has tensors")
    head = Head(**{name: found[name] for name in get_type_hints(Head)})
    is_sound = is_digest(head.teacher) and is_digest(head.vocabulary)
    if head.bits not in LABEL_BITS or head.dtype not in DTYPES or not is_sound:
        raise BadData(f"{where}: the head of its labels is damaged")
    return Source(head.teacher, head.vocabulary, head.dtype)
