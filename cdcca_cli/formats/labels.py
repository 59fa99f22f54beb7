"""Labels, version 1: a teacher's outputs for token shards, kept so that it runs once.

A file of records (`records`) end to end: a head, then any number of entries, one for each shard,
in the order in which they were computed. It grows at its end and is never rewritten.

Head. No tensors. Header, all keys always present:

    kind "lessons", version 1
    teacher     digest of the teacher
    vocabulary  digest of its vocabulary: whether its logits are another model's too
    dtype       what it computed in: "float32", "bfloat16" or "float16"
    bits        32, 16 or 8: how an entry's numbers are stored

Entry, of one shard with K questions. Header, all keys always present:

    kind "lesson", version 1
    key      digest of the shard's content, questions included (`key_of`)
    sum      digest of the tensors as they are stored and, as one more of them, named "header" and
             U8, of the rest of this header as canonical JSON
    answers  K strings, each the teacher's answer; "" where it answered with nothing
    nats     K numbers >= 0: the teacher's own cross-entropy of its answer, per answer token
    inputs   K whole numbers: which input of `queries` each question has
    queries  lengths L_i of the inputs' rows, one for each input
    visual   lengths L_k of the questions' rows of `visual`
    answer   lengths A_k of the questions' rows of `answer` and `logits`

Tensors, each F32, F16, or I8 in [-127, 127] with another tensor, F32, of one scale a row, named
`<name>.scales` (the value is their product, as in `shard`):

    queries  (sum L_i, C)  what the connector made of the tokens, for each input
    visual   (sum L_k, D)  the language model's last attention at the visual positions
    answer   (sum A_k, D)  the same where each token of the answer is predicted; absent where that
                           attention does not see the answer
    logits   (sum A_k, V)  of the answer's tokens; absent unless they were asked for

All values are finite; a tensor with a value that its bits cannot hold is F32. Scales are not below
0. Of two entries with one key the later one counts. A file that ends inside an entry is one whose
writer was killed: the whole entries count, and the next writer cuts the rest off.

Runs no teacher and knows no model.
"""

import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, CannotWrite, MissingInput
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest, overlay_digest
from cdcca_cli.formats.locks import lock, unlock
from cdcca_cli.formats.names import DTYPES
from cdcca_cli.formats.shard import Shard, dequantize_absmax, quantize_absmax

VERSION = 1
KINDS = {"lessons": VERSION, "lesson": VERSION}
BITS = (32, 16, 8)
LIMITS = records.Limits(header_bytes=1 << 20, record_bytes=1 << 33)
_OPENINGS = 100
_HEAD_KEYS = {"kind", "version", "teacher", "vocabulary", "dtype", "bits"}
_KEYS = {"kind", "version", "key", "sum", "answers", "nats", "inputs", "queries", "visual"}
_KEYS |= {"answer"}
TENSORS = ("queries", "visual", "answer", "logits")


@dataclass(frozen=True)
class Head:
    """Whose labels these are."""

    teacher: str
    vocabulary: str
    dtype: str
    bits: int


@dataclass(eq=False)
class LabelEntry:
    """What the teacher says of one shard with K questions. Arrays are float32, one for each.

    queries: of each input of the connector, (L, C); inputs: the input of each question.
    visual: (L, D) of each question. answer: (A, D) of each question, logits: (A, V); None where
    absent.
    """

    answers: list[str]
    nats: list[float]
    inputs: list[int]
    queries: list[np.ndarray]
    visual: list[np.ndarray]
    answer: list[np.ndarray] | None = None
    logits: list[np.ndarray] | None = None


def key_of(shard: Shard) -> str:
    """Digest of what a shard questions; the same however many bits its tokens were stored in."""
    questions = [
        [question.id, question.prompt, question.task, question.choices]
        for question in shard.questions
    ]
    content = records.dump_json([shard.frame, shard.tower, shard.num_tokens, questions]).encode()
    return overlay_digest(
        {
            "said": np.frombuffer(content, np.uint8),
            "tokens": shard.tokens,
            "positions": shard.positions,
        }
    )


# ---------------------------------------------------------------- one entry


def encode(key: str, entry: LabelEntry, bits: int) -> bytes:
    """The record of an entry; BadData for values that are not finite."""
    where = f"the entry {key}"
    if not all(map(math.isfinite, entry.nats)):
        raise BadData(f"{where}: a cross-entropy that is not finite")
    tensors: dict[str, np.ndarray] = {}
    lengths = {"queries": _lengths(entry.queries), "visual": _lengths(entry.visual)}
    rows = entry.answer if entry.answer is not None else entry.logits
    lengths["answer"] = [0] * len(entry.answers) if rows is None else _lengths(rows)
    for name in TENSORS:
        parts: list[np.ndarray] | None = getattr(entry, name)
        if parts is not None:
            values_RC = np.concatenate(parts)
            if not np.isfinite(values_RC).all():
                raise BadData(f"{where}: {name} has values that are not finite")
            tensors |= _stored(name, values_RC, bits)
    header = {
        "kind": "lesson",
        "version": VERSION,
        "key": key,
        "answers": entry.answers,
        "nats": entry.nats,
        "inputs": entry.inputs,
        **lengths,
    }
    out = BytesIO()
    records.write_record(out, tensors, {**header, "sum": _sum(header, tensors)})
    return out.getvalue()


def _sum(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """As the module's docstring has it: of the tensors, with the rest of the header as one more."""
    rest = {name: value for name, value in header.items() if name != "sum"}
    text = np.frombuffer(records.dump_json(rest).encode(), np.uint8)
    return overlay_digest({**tensors, "header": text})


def _lengths(parts: Sequence[np.ndarray]) -> list[int]:
    return [len(part) for part in parts]


def _stored(name: str, values_RC: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        if bits == 8:
            codes_RC, scales_R = quantize_absmax(values_RC)
            if np.isfinite(dequantize_absmax(codes_RC, scales_R)).all():
                return {name: codes_RC, f"{name}.scales": scales_R}
        if bits == 16:
            half_RC = values_RC.astype(np.float16)
            if np.isfinite(half_RC).all():
                return {name: half_RC}
    return {name: values_RC.astype(np.float32)}


def decode(record: records.Record, where: str) -> LabelEntry:
    """The entry in a record, checked. BadData."""
    header, tensors = record.header, record.tensors
    lengths = _checked(header, where)
    present = {name for name in TENSORS if name in tensors}
    scales = {f"{name}.scales" for name in present if tensors[name].dtype == np.int8}
    if not present >= {"queries", "visual"} or set(tensors) != present | scales:
        raise BadData(f"{where}: an entry with the tensors {str(sorted(tensors))[:200]}")
    if _sum(header, tensors) != header["sum"]:
        raise BadData(f"{where}: damaged, its sum does not match: name another `cache`")
    split: dict[str, Any] = {
        name: _split(tensors, name, lengths["answer" if name == "logits" else name], where)
        for name in present
    }
    return LabelEntry(
        answers=header["answers"],
        nats=[float(value) for value in header["nats"]],
        inputs=header["inputs"],
        **split,
    )


def _checked(header: Mapping[str, Any], where: str) -> dict[str, list[int]]:
    """The lists of lengths, after a look at everything that is not a tensor."""
    records.exact_keys(header, _KEYS, where)
    if not is_digest(header["key"]):
        raise BadData(f"{where}: 'key' is not a digest")
    answers = records.list_of(header, "answers", str, where) or []
    nats = records.list_of(header, "nats", float, where) or []
    lists = {
        name: records.list_of(header, name, int, where) or []
        for name in ("inputs", "queries", "visual", "answer")
    }
    of_questions = (nats, lists["inputs"], lists["visual"], lists["answer"])
    if any(len(values) != len(answers) for values in of_questions):
        raise BadData(f"{where}: {len(answers):,} answers, but another number of other things")
    if any(value < 0 for value in chain(nats, *lists.values())):
        raise BadData(f"{where}: a number below 0")
    if any(number >= len(lists["queries"]) for number in lists["inputs"]):
        raise BadData(f"{where}: a question of an input that is not there")
    return lists


def _split(
    tensors: Mapping[str, np.ndarray], name: str, lengths: Sequence[int], where: str
) -> list[np.ndarray]:
    stored = tensors[name]
    if stored.ndim != 2 or stored.dtype not in (np.float32, np.float16, np.int8):
        raise BadData(f"{where}: {name} of {stored.ndim} dimensions, {stored.dtype}")
    if len(stored) != sum(lengths):
        raise BadData(f"{where}: {len(stored):,} rows of {name}; expected {sum(lengths):,}")
    if stored.dtype == np.int8:
        scales_R = tensors[f"{name}.scales"]
        if scales_R.shape != stored.shape[:1] or scales_R.dtype != np.float32:
            raise BadData(f"{where}: {name} has another number of scales than of rows")
        if (scales_R < 0).any() or (stored == -128).any():
            raise BadData(f"{where}: {name} has scales below 0, or codes of -128")
        with np.errstate(over="ignore", invalid="ignore"):
            values = dequantize_absmax(stored, scales_R)
    else:
        values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise BadData(f"{where}: {name} has values that are not finite")
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


# ---------------------------------------------------------------- the file


class LabelFile:
    """A file of labels, mapped into memory: what is read of it is what is used.

    Labels are found by their keys; each is checked when it is read.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        """Args: file: open for reading at least; it is kept open. Raises: BadData, NewerFormat."""
        self._file, self.where = file, where
        self.places: dict[str, tuple[int, bool]] = {}
        self.end = 0
        self._map: mmap.mmap | None = None
        self.head = self._scan()

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def has(self, key: str, *, logits: bool) -> bool:
        """Whether there is an entry of this key, with logits if they are asked for."""
        found = self.places.get(key)
        return found is not None and (found[1] or not logits)

    def read(self, key: str) -> LabelEntry:
        """One entry. KeyError if there is none, BadData if it is damaged."""
        place = self.places[key][0]
        where = self._at(place)
        try:
            if self._map is None or place >= len(self._map):
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._map.seek(place)
        except ValueError:  # the file is shorter than it was
            raise BadData(f"{where}: cut short") from None
        source = cast(BinaryIO, self._map)
        record = records.read_record(source, kinds={"lesson": VERSION}, limits=LIMITS, where=where)
        if record is None:
            raise BadData(f"{where}: cut short")
        return decode(record, where)

    def append(self, key: str, entry: LabelEntry) -> None:
        """Add an entry at the end; BadData for values that are not finite. For writers."""
        assert self.head is not None
        data = encode(key, entry, self.head.bits)
        self._write(data)
        self.places[key] = (self.end - len(data), entry.logits is not None)

    def append_record(self, data: bytes) -> None:
        """Add a record as another file of the same head has it."""
        place = self.end
        self._write(data)
        head = records.read_head(BytesIO(data)) or b""
        self._note(*records.parse_head(head, self.where), place)

    def begin(self, head: Head) -> None:
        """Write the head of an empty file."""
        self._write(_encode_head(head))
        self.head = head

    def raw(self, key: str) -> bytes:
        """An entry's record, as its bytes."""
        place = self.places[key][0]
        self._file.seek(place)
        head = records.read_head(self._file, limits=LIMITS, where=self.where) or b""
        self._file.seek(place)
        return self._file.read(records.num_bytes_of(head, self.where))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            self._file.seek(self.end)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise CannotWrite(files.reason(self.where, error)) from None
        self.end += len(data)

    def _scan(self) -> Head | None:
        """Find every whole record; None for an empty file."""
        size = os.fstat(self._file.fileno()).st_size
        found: Head | None = None
        while self.end < size:
            where = self._at(self.end) if found is not None else self.where
            self._file.seek(self.end)
            try:
                head = records.read_head(self._file, limits=LIMITS, where=where) or b""
            except records.CutShort:
                if found is None:
                    raise
                break  # a writer was killed
            table, header = records.parse_head(head, where)
            if found is None:
                found = parse_head(header, table, where)
                self.end = len(head)
                continue
            records.expect_kind(header, {"lesson": VERSION}, where)
            num_bytes = records.num_bytes_of(head, where)
            if self.end + num_bytes > size:
                break
            self._note(table, header, self.end)
            self.end += num_bytes
        return found

    def _note(self, table: Mapping[str, Any], header: Mapping[str, Any], place: int) -> None:
        key = header.get("key")
        if not is_digest(key):
            raise BadData(f"{self._at(place)}: 'key' is not a digest")
        self.places[str(key)] = (place, "logits" in table)

    def _at(self, place: int) -> str:
        return f"{self.where}: the entry at byte {place:,}"


def parse_head(header: Mapping[str, Any], tensors: Mapping[str, object], where: str) -> Head:
    """The head in a file's first record, checked. BadData, NewerFormat."""
    records.expect_kind(header, {"lessons": VERSION}, where)
    records.exact_keys(header, _HEAD_KEYS, where)
    if tensors:
        raise BadData(f"{where}: the head of its labels has tensors")
    bits = records.field(header, "bits", int, where)
    dtype = records.field(header, "dtype", str, where)
    digests = (header["teacher"], header["vocabulary"])
    if bits not in BITS or dtype not in DTYPES or not all(map(is_digest, digests)):
        raise BadData(f"{where}: the head of its labels is damaged")
    return Head(*digests, dtype, bits)


def _encode_head(head: Head) -> bytes:
    return records.encode_header({}, {"kind": "lessons", "version": VERSION, **vars(head)})


def open_labels(path: Path) -> LabelFile:
    """A file of labels to read from. MissingInput, BadData for an empty one, NewerFormat."""
    try:
        file = open(path, "rb")  # noqa: SIM115 -- it stays open as long as what is mapped
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    found = LabelFile(file, str(path))
    if found.head is None:
        raise BadData(f"{path}: empty; expected a teacher's labels")
    return found


@contextmanager
def writing(path: Path | None, head: Head) -> Iterator[LabelFile]:
    """A file of labels to read from and add to, for one process at a time; others wait.

    Args: path: made if it is not there; None: a temporary one, gone at the end.
    Raises: BadData for labels of another teacher, or of one with another vocabulary or dtype;
        CannotWrite.
    """
    where = str(path or "the labels")
    # The file stays open (and locked no longer) for those who read from it afterwards.
    file = _locked(path, where)
    try:
        _forget_cut_head(file, head)
        labels = LabelFile(file, where)
        size = os.fstat(file.fileno()).st_size
        if labels.end < size:
            streams.message(
                f"{where}: its last {size - labels.end:,} bytes are of labels that were not "
                "finished: computed again"
            )
            file.truncate(labels.end)
        if labels.head is None:
            labels.begin(head)
        expect(labels.head, head, where)
        yield labels
    finally:
        unlock(file)


def _locked(path: Path | None, where: str) -> Any:
    """The file, open and locked: another launch may remove it (as one it has joined) in between."""
    import tempfile

    for _ in range(_OPENINGS):
        try:
            if path is None:
                return tempfile.TemporaryFile(prefix="cdcca-", buffering=0)
            files.make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            # Unbuffered: what could not be written must not be tried again once others may write.
            file = os.fdopen(descriptor, "r+b", buffering=0)
        except OSError as error:
            raise CannotWrite(files.reason(where, error)) from None
        lock(file, where)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return file
        file.close()
    raise CannotWrite(f"{where}: is removed whenever it is opened: name another place")


def _forget_cut_head(file: Any, head: Head) -> None:
    """Empty a file whose writer was killed in the head that is to be written now."""
    whole = _encode_head(head)
    size = os.fstat(file.fileno()).st_size
    if 0 < size < len(whole) and whole.startswith(file.read(size)):
        file.truncate(0)


def expect(found: Head | None, head: Head, where: str) -> None:
    """Raises: BadData for labels of another teacher, vocabulary or dtype."""
    if found is None or found.teacher != head.teacher:
        of = "no teacher" if found is None else f"teacher {found.teacher}"
        raise BadData(
            f"{where}: holds the labels of {of}, not of {head.teacher}: name another `cache`, or "
            "that teacher"
        )
    if found.vocabulary != head.vocabulary:
        raise BadData(
            f"{where}: the teacher's vocabulary was {found.vocabulary} then, and is "
            f"{head.vocabulary} now: name another `cache`"
        )
    if found.dtype != head.dtype:
        raise BadData(
            f"{where}: the teacher computed in {found.dtype} then, and in {head.dtype} now: set "
            f"`dtype` to {found.dtype}, or name another `cache`"
        )
