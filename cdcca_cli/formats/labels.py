"""Labels: a teacher's outputs for token shards, kept so that it runs once.

A file of records (`records`) end to end: a head, then one entry for each shard, in the order in
which they were computed. It is only appended to. This module runs no teacher and knows no model.

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
    answers  K strings, each the teacher's answer; "" where it answered with nothing, or where it
             could not: then the question has no rows of `visual`
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
two entries with one key the later one counts. If the file ends inside an entry, the whole entries
count, and the next writer cuts the rest off.
"""

import fcntl
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_type_hints

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, CannotWrite, MissingInput
from cdcca_cli.formats import label_rows, records
from cdcca_cli.formats.digest import is_digest, overlay_digest
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.locks import lock
from cdcca_cli.formats.names import DTYPES
from cdcca_cli.formats.shard import Shard

VERSION = 1
ENTRY_VERSION = 2
KINDS = {"lessons": VERSION, "lesson": ENTRY_VERSION}
BITS = (32, 16, 8)
LIMITS = records.Limits(record_bytes=1 << 33)
_OPENINGS = 100
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


@dataclass(eq=False)
class LabelEntry:
    """The teacher's outputs for one shard with K questions, float32.

    queries: (L, C) of each input of the connector; inputs: the input of each question.
    visual: (L, D), answer: (A, D) and logits: (A, V) of each question; None where absent.
    kept: which rows there are of each of `queries` and `visual`; None: all.
    faults: why a question, by its place, has the answer "" and no rows; these are not stored.
    """

    answers: list[str]
    nats: list[float]
    inputs: list[int]
    queries: list[np.ndarray]
    visual: list[np.ndarray]
    answer: list[np.ndarray] | None = None
    logits: list[np.ndarray] | None = None
    kept: dict[str, list[Kept]] | None = None
    faults: dict[int, str] = field(default_factory=dict)


def key_of(shard: Shard) -> str:
    """Digest of a shard's questions and payload: pictures and codes as they were sent, else tokens.

    Decoded codes are equal to the last bit on one machine only.
    """
    questions = [
        [question.id, question.prompt, question.task, question.choices]
        for question in shard.questions
    ]
    described = [shard.frame, shard.tower, shard.num_tokens, questions]
    payload = {"tokens": shard.tokens, "positions": shard.positions}
    if shard.coding.codec == "klt" and shard.codes is not None:
        described += [shard.coding.codebook, shard.coding.step]
        payload["tokens"] = shard.codes
    elif shard.picture is not None:
        described += [shard.picture.media, shard.picture.size]
        payload = {"tokens": np.frombuffer(shard.picture.data, np.uint8)}
    content = records.dump_json(described).encode()
    # The names are hashed too.
    return overlay_digest({"said": np.frombuffer(content, np.uint8), **payload})


def encode(key: str, entry: LabelEntry, bits: int) -> bytes:
    """The record of an entry; BadData for values that are not finite."""
    where = f"the entry {key}"
    if not all(map(math.isfinite, entry.nats)):
        raise BadData(f"{where}: a cross-entropy that is not finite")
    tensors: dict[str, np.ndarray] = {}
    rows = entry.answer if entry.answer is not None else entry.logits
    for name in TENSORS:
        parts: list[np.ndarray] | None = getattr(entry, name)
        if parts is not None:
            values_RC = np.concatenate(parts)
            if not np.isfinite(values_RC).all():
                raise BadData(f"{where}: {name} has values that are not finite")
            tensors |= label_rows.stored(name, values_RC, bits)
    header = {
        "kind": "lesson",
        "version": 1,
        "key": key,
        "answers": entry.answers,
        "nats": entry.nats,
        "inputs": entry.inputs,
        "queries": [len(part) for part in entry.queries],
        "visual": [len(part) for part in entry.visual],
        "answer": [0] * len(entry.answers) if rows is None else [len(part) for part in rows],
    }
    if entry.kept is not None:
        header["version"] = ENTRY_VERSION
        for name, parts_kept in entry.kept.items():
            header[f"{name}_of"] = [part.count for part in parts_kept]
            tensors[f"{name}.kept"] = np.concatenate([part.rows_L for part in parts_kept])
    out = BytesIO()
    records.write_record(out, tensors, {**header, "sum": _sum(header, tensors)})
    return out.getvalue()


def _sum(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    rest = {name: value for name, value in header.items() if name != "sum"}
    text = np.frombuffer(records.dump_json(rest).encode(), np.uint8)
    return overlay_digest({**tensors, "header": text})


def decode(record: records.Record, where: str) -> LabelEntry:
    """The entry in a record, checked. BadData."""
    header, tensors = record.header, record.tensors
    found = _checked(header, where)
    present = {name for name in TENSORS if name in tensors}
    others = {f"{name}.scales" for name in present if tensors[name].dtype == np.int8}
    if header["version"] > 1:
        others |= {f"{name}.kept" for name in OF_THE_PICTURE}
    if not present >= {*OF_THE_PICTURE} or set(tensors) != present | others:
        raise BadData(f"{where}: an entry with the tensors {str(sorted(tensors))[:200]}")
    if _sum(header, tensors) != header["sum"]:
        raise BadData(f"{where}: damaged, its sum does not match: name another `cache`")
    split: dict[str, Any] = {
        name: label_rows.split(tensors, name, found["answer" if name == "logits" else name], where)
        for name in present
    }
    if header["version"] > 1:
        split["kept"] = {
            name: label_rows.split_kept(
                tensors[f"{name}.kept"], found[f"{name}_of"], found[name], name, where
            )
            for name in OF_THE_PICTURE
        }
    return LabelEntry(**{name: found[name] for name in ("answers", "nats", "inputs")}, **split)


def _checked(header: Mapping[str, Any], where: str) -> dict[str, Any]:
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


class _Place(NamedTuple):
    begin: int
    has_logits: bool


class LabelFile:
    """A file of labels. Entries are found by their keys; each is checked when it is read.

    faults: of the entries that were appended here, by key and place of the question.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        """Args: file: kept open. Raises: BadData, also for an empty file, NewerFormat."""
        self._file, self.where = file, where
        self.places: dict[str, _Place] = {}
        self.faults: dict[tuple[str, int], str] = {}
        file.seek(0)
        kinds = {"lessons": VERSION}
        first = records.read_record(file, kinds=kinds, limits=LIMITS, where=where)
        if first is None:
            raise BadData(f"{where}: empty; expected a teacher's labels")
        self.head = parse_head(first, where)
        self.end = first.num_bytes
        self._scan()

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def has(self, key: str, *, logits: bool) -> bool:
        """Whether there is an entry of this key, with logits if they are needed."""
        return key in self.places and (self.places[key].has_logits or not logits)

    def read(self, key: str) -> LabelEntry:
        """One entry. KeyError if there is none, BadData if it is damaged."""
        begin = self.places[key].begin
        where, kinds = self._at(begin), {"lesson": ENTRY_VERSION}
        self._file.seek(begin)
        record = records.read_record(self._file, kinds=kinds, limits=LIMITS, where=where)
        if record is None:
            raise BadData(f"{where}: cut short")
        return decode(record, where)

    def append(self, key: str, entry: LabelEntry) -> None:
        """Add an entry at the end; BadData for values that are not finite. For writers."""
        begin, data = self.end, encode(key, entry, self.head.bits)
        self.end += _write(self._file, begin, data, self.where)
        self.places[key] = _Place(begin, entry.logits is not None)
        self.faults |= {(key, place): fault for place, fault in entry.faults.items()}

    def _scan(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        while self.end < size:
            where = self._at(self.end)
            self._file.seek(self.end)
            try:
                head = records.read_head(self._file, limits=LIMITS, where=where) or b""
            except records.CutShort:
                return  # a writer was killed
            table, header = records.parse_head(head, where)
            records.expect_kind(header, {"lesson": ENTRY_VERSION}, where)
            num_bytes = len(head) + records.payload_bytes(table, where)
            if self.end + num_bytes > size:
                return
            if not is_digest(key := header.get("key")):
                raise BadData(f"{where}: 'key' is not a digest")
            self.places[str(key)] = _Place(self.end, "logits" in table)
            self.end += num_bytes

    def _at(self, place: int) -> str:
        return f"{self.where}: the entry at byte {place:,}"


def _write(file: BinaryIO, begin: int, data: bytes, where: str) -> int:
    left = memoryview(data)
    try:
        file.seek(begin)
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise CannotWrite(files.reason(where, error)) from None
    return len(data)


def parse_head(record: records.Record, where: str) -> Head:
    """The head in a file's first record, checked. BadData."""
    found = records.fields(record.header, _HEAD, where)
    if record.tensors:
        raise BadData(f"{where}: the head of its labels has tensors")
    head = Head(**{name: found[name] for name in get_type_hints(Head)})
    is_sound = is_digest(head.teacher) and is_digest(head.vocabulary)
    if head.bits not in BITS or head.dtype not in DTYPES or not is_sound:
        raise BadData(f"{where}: the head of its labels is damaged")
    return head


def open_labels(path: Path) -> LabelFile:
    """A file of labels to read. MissingInput, BadData, NewerFormat."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 -- the LabelFile keeps it open
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    return LabelFile(file, str(path))


@contextmanager
def writing(path: Path | None, head: Head) -> Iterator[LabelFile]:
    """A file of labels to read and extend, locked while the context lasts; readable afterwards.

    path: created if missing; None: a temporary file.
    Raises: BadData for labels of another teacher, vocabulary or dtype; CannotWrite.
    """
    where = str(path or "the labels")
    file = _locked(path, where)
    try:
        _begin(file, head, where)
        labels = LabelFile(file, where)
        size = os.fstat(file.fileno()).st_size
        if labels.end < size:
            unfinished = f"{size - labels.end:,} bytes of an unfinished entry"
            streams.message(f"{where}: {unfinished} at its end are removed and computed again")
            file.truncate(labels.end)
        expect(labels.head, head, where)
        yield labels
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _locked(path: Path | None, where: str) -> Any:
    """The file, open and locked; opened again if another launch has joined and removed it."""
    import tempfile

    for _ in range(_OPENINGS):
        try:
            if path is None:
                return tempfile.TemporaryFile(prefix="cdcca-", buffering=0)
            files.make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            # Unbuffered: a failed write must not be repeated when others may write.
            file = os.fdopen(descriptor, "r+b", buffering=0)
        except OSError as error:
            raise CannotWrite(files.reason(where, error)) from None
        lock(file, where)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return file
        file.close()
    raise CannotWrite(f"{where}: is removed whenever it is opened: name another place")


def _begin(file: Any, head: Head, where: str) -> None:
    """Write the head of an empty file, or of one whose writer was killed while it wrote this."""
    whole = records.encode_header({}, {"kind": "lessons", "version": VERSION, **vars(head)})
    size = os.fstat(file.fileno()).st_size
    if size < len(whole) and whole.startswith(file.read(size)):
        _write(file, 0, whole, where)


def expect(found: Head, head: Head, where: str) -> None:
    """Raises: BadData for labels of another teacher, vocabulary or dtype."""
    cures = {
        "teacher": ", or that teacher",
        "vocabulary": "",
        "dtype": f", or set `dtype` to {found.dtype}",
    }
    for name, cure in cures.items():
        kept, wanted = getattr(found, name), getattr(head, name)
        if kept != wanted:
            raise BadData(
                f"{where}: holds labels of {name} {kept}, not of {wanted}: name another "
                f"`cache`{cure}"
            )
