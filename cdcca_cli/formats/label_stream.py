"""Streams of labels: finding labels in files, and adding to one (`labels`, `lessons`).

A file is scanned once, its headers alone; a record is checked when it is read. Each label takes 32
bytes of memory. What is no record is passed over up to the next record, so that a file which was
cut and then joined to others loses nothing but what was cut.
"""

import fcntl
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, CannotWrite, NewerFormat
from cdcca_cli.formats import labels, lessons, records
from cdcca_cli.formats.labels import LIMITS, Entry, Label, Source
from cdcca_cli.formats.locks import lock
from cdcca_cli.formats.shard import Shard

KINDS = {"label": labels.VERSION, **lessons.KINDS}
_MARK = b'{"__metadata__":{"cdcca":"{'
"""What stands 8 bytes after the beginning of each record that cdcca writes."""
_FIRST = tuple(_MARK + key for key in (rb"\"answers\":[", rb"\"bits\":"))
"""What a record of labels begins with, after 8 bytes, and what old ones do."""
_OPENINGS = 100
_PIECE_BYTES = 1 << 20
_MOST_UNSORTED = 1 << 16

Refused = Callable[[BadData], object]


class Place(NamedTuple):
    """Where a label is. source: whose it is, a place in `Labels.sources`."""

    file: int
    begin: int
    source: int


@dataclass(frozen=True)
class ShardKey:
    """The digests of a shard's payload and of its questions.

    lesson_of: computes the shard's key in old labels, which is asked for where there are any.
    """

    payload: str
    questions: tuple[str, ...]
    lesson_of: Callable[[], str] | None = None

    @classmethod
    def of(cls, shard: Shard) -> "ShardKey":
        questions = tuple(map(labels.question_digest, shard.questions))
        return cls(labels.payload_digest(shard), questions, partial(lessons.key_of, shard))

    @cached_property
    def lesson(self) -> str | None:
        """The shard's key in old labels."""
        return None if self.lesson_of is None else self.lesson_of()


class Labels:
    """The labels in some files. Of two of one question the later one counts, files in their order.

    sources: whose labels there are.
    """

    def __init__(
        self,
        found: Sequence[tuple[BinaryIO, str]],
        *,
        teacher: str | None = None,
        refused: Refused | None = None,
        verify: bool = False,
    ) -> None:
        """Scan the files.

        Args:
            found: seekable files, kept open, and their names.
            teacher: whose labels count; None: every teacher's.
            refused: called with the error for each record that is bad, which is then left out;
                None: they are errors.
            verify: whether each record is read whole, so that only sound labels are found.
        Raises: BadData for a file that does not begin with labels; NewerFormat.
        """
        self._files = list(found)
        self._teacher, self._refused, self._verify = teacher, refused, verify
        self.sources: list[Source] = []
        self._index = _Index()
        self._has_lessons = False
        self._latest: tuple[tuple[int, int], Entry | list[Label]] | None = None
        self._bad: set[tuple[int, int]] = set()
        self.ends = [self._scan(number) for number in range(len(self._files))]

    @property
    def where(self) -> str:
        """The files' names, for messages."""
        return ", ".join(name for _, name in self._files)

    def __len__(self) -> int:
        return len(self._index)

    def has(self, key: ShardKey, place: int) -> bool:
        """Whether there is a label of a shard's question."""
        return any(True for _ in self._find(key, place))

    def read(self, key: ShardKey, place: int) -> tuple[Label, Source] | None:
        """The label of a shard's question, and whose it is; None without one that is sound."""
        for found in self._find(key, place):
            try:
                entry = self._entry(found)
            except BadData as error:
                self._refuse(error)
                self._bad.add((found.file, found.begin))
                continue
            label: Label | None = None
            if isinstance(entry, Entry):
                if entry.payload == key.payload:
                    label = entry.labels.get(key.questions[place])
            elif len(entry) == len(key.questions):
                label = entry[place]
            if label is not None:
                return label, self.sources[found.source]
        return None

    def joined(self, others: "Labels") -> "Labels":
        """These labels and those of other files."""
        files = [*others._files, *self._files]
        return Labels(files, teacher=self._teacher, refused=self._refused)

    def add(self, entry: Entry, begin: int) -> None:
        """Take in a record that was added to the only file."""
        source = self._source(entry.source)
        for question in entry.labels:
            self._index.add(entry.payload, question, Place(0, begin, source))

    def _find(self, key: ShardKey, place: int) -> Iterator[Place]:
        """Where a label may be, the latest first; records that are bad left out."""
        names = [(key.payload, key.questions[place])]
        if self._has_lessons and key.lesson is not None:
            names.append((key.lesson, ""))
        for name in names:
            for found in self._index.find(*name):
                if (found.file, found.begin) not in self._bad:
                    yield found

    def _entry(self, found: Place) -> Entry | list[Label]:
        key = (found.file, found.begin)
        if self._latest is not None and self._latest[0] == key:
            return self._latest[1]
        file, name = self._files[found.file]
        where = f"{name}: the labels at byte {found.begin:,}"
        file.seek(found.begin)
        record = records.read_record(file, kinds=KINDS, limits=LIMITS, where=where)
        if record is None:
            raise BadData(f"{where}: cut short")
        entry = _decode(record, where)
        self._latest = key, entry
        return entry

    def _source(self, source: Source) -> int:
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)

    # ---- the scan

    def _scan(self, number: int) -> int:
        """Take in a file's records. Returns: where the whole ones end."""
        file, name = self._files[number]
        size = file.seek(0, os.SEEK_END)
        if not size:
            return 0
        position = end = 0
        head: Source | None = None
        previous = -1
        while position < size:
            where = f"{name}: the labels at byte {position:,}"
            try:
                after, head = self._take(number, position, size, head, where)
                previous, position, end = position, after, after
                continue
            except NewerFormat:
                raise
            except BadData as error:
                if position == 0 and not _begins_as_labels(file):
                    raise
                fault, is_cut = error, isinstance(error, records.CutShort)
            # A record that was cut is followed by others inside of what it seems to have.
            earlier = self._fault(number, previous) if previous >= 0 else None
            if earlier is not None:
                self._bad.add((number, previous))
                self._refuse(earlier)
            found = _next_record(file, (position if earlier is None else previous + 8) + 1, size)
            if found is None and is_cut:
                return end  # a writer was killed, or is at work
            if earlier is None:
                self._refuse(fault)
            if found is None:
                return size
            previous, position = -1, found
        return end

    def _refuse(self, fault: BadData) -> None:
        if self._refused is None:
            raise fault
        self._refused(fault)

    def _take(
        self, number: int, position: int, size: int, head: Source | None, where: str
    ) -> tuple[int, Source | None]:
        """Take in the record at a position. Returns: where it ends, and the head that holds."""
        file = self._files[number][0]
        file.seek(position)
        data = records.read_head(file, limits=LIMITS, where=where) or b""
        table, header = records.parse_head(data, where)
        records.expect_kind(header, KINDS, where)
        slots, num_bytes = records.check_table(table, where)
        after = position + len(data) + num_bytes
        if after > size:
            raise records.CutShort(f"{where}: cut short")
        if header["kind"] == "lessons":
            return after, lessons.parse_head(header, table, where)
        if self._verify:
            if after - position > LIMITS.record_bytes:
                raise BadData(f"{where}: a record of {after - position:,} bytes")
            tensors = records.read_tensors(file, slots, num_bytes, where)
            _decode(records.Record(tensors, header), where)
        place = Place(number, position, 0)
        if header["kind"] == "lesson":
            if head is None:
                raise BadData(f"{where}: lessons without their head")
            found = header if self._verify else lessons.check_entry(header, where)
            self._put(found["key"], [""], head, place)
            self._has_lessons = True
        else:
            if not self._verify:
                labels.check_header(header, where)
            source = Source(header["teacher"], header["vocabulary"], header["dtype"])
            self._put(header["payload"], header["questions"], source, place)
        return after, head

    def _put(self, payload: str, questions: Sequence[str], source: Source, place: Place) -> None:
        if source.name != self._teacher and (self._teacher is not None or source.is_student):
            return
        place = place._replace(source=self._source(source))
        for question in questions:
            self._index.add(payload, question, place)

    def _fault(self, number: int, begin: int) -> BadData | None:
        """What is wrong with a record whose header is sound."""
        try:
            self._entry(Place(number, begin, 0))
        except BadData as error:
            return error
        return None


def _decode(record: records.Record, where: str) -> Entry | list[Label]:
    """The labels in a record; none in the head of old ones. BadData."""
    kind = record.header["kind"]
    if kind == "lessons":
        return []
    return lessons.decode(record, where) if kind == "lesson" else labels.decode(record, where)


def _begins_as_labels(file: BinaryIO) -> bool:
    """Whether a file that is damaged at its beginning is one of labels, or may be one that was cut.

    Others may follow a record that was cut in its first bytes.
    """
    file.seek(0)
    data = file.read(2 * (8 + max(map(len, _FIRST))))
    is_length = data[0] % 8 == 0 and any(data[:3]) and not any(data[3:8])
    rest = data[8:]
    return any(one in data or (is_length and one.startswith(rest)) for one in _FIRST)


def _next_record(file: BinaryIO, begin: int, size: int) -> int | None:
    """The first place from `begin` on that looks like the beginning of a record."""
    place = begin
    while place < size:
        file.seek(place)
        piece = file.read(_PIECE_BYTES + 8 + len(_MARK))
        at = piece.find(_MARK, 8)
        if at >= 0:
            return place + at - 8
        place += _PIECE_BYTES
    return None


class _Index:
    """Places by the digests of payload and question: 32 bytes each, sorted when it is asked."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._places = array("q")
        self._sorted: np.ndarray | None = None
        self._fresh: dict[int, list[Place]] = {}
        self._num_fresh = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, payload: str, question: str, place: Place) -> None:
        key = _key(payload, question)
        self._keys.append(key)
        self._places.extend((place.begin, place.file << 32 | place.source))
        if self._sorted is not None:
            self._fresh.setdefault(key, []).append(place)
            self._num_fresh += 1
            if self._num_fresh > _MOST_UNSORTED:
                self._sorted = None

    def find(self, payload: str, question: str) -> Iterator[Place]:
        """The places of a key, the latest first."""
        if not self._keys:
            return
        keys = np.frombuffer(self._keys, np.uint64)
        if self._sorted is None:
            self._sorted = np.argsort(keys, kind="stable")
            self._fresh, self._num_fresh = {}, 0
        key = _key(payload, question)
        wanted, order = np.uint64(key), self._sorted
        first, last = (
            int(np.searchsorted(keys[: len(order)], wanted, side, sorter=order))
            for side in ("left", "right")
        )
        del keys  # an array cannot grow while it is seen
        yield from reversed(self._fresh.get(key, []))
        for at in reversed(order[first:last].tolist()):
            begin, packed = self._places[2 * at : 2 * at + 2]
            yield Place(packed >> 32, begin, packed & 0xFFFFFFFF)


def _key(payload: str, question: str) -> int:
    """64 bits of the two digests; what is found is compared with the whole ones in the record."""
    return int(payload[7:23], 16) ^ (int(question[7:23], 16) if question else 0)


# ---------------------------------------------------------------- writing


class Writer:
    """Adds records to a file of labels, or to a stream that cannot be read back."""

    def __init__(self, file: Any, where: str, bits: int, kept: Labels | None) -> None:
        """Args: kept: what the file has already; None: it is a stream."""
        self._file, self._where, self._bits = file, where, bits
        self.labels = kept
        self._end = kept.ends[0] if kept is not None else 0

    def __call__(self, entry: Entry) -> None:
        """Add a record. Raises: BadData for values that are not finite; CannotWrite."""
        left = memoryview(labels.encode(entry, self._bits))
        begin, end = self._end, self._end + len(left)
        try:
            if self.labels is not None:
                self._file.seek(begin)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise CannotWrite(files.reason(self._where, error)) from None
        self._end = end
        if self.labels is not None:
            self.labels.add(entry, begin)


@contextmanager
def writing(
    path: Path | None, bits: int, *, teacher: str | None = None, refused: Refused | None = None
) -> Iterator[Writer]:
    """A file of labels to read and extend, locked while the context lasts; readable afterwards.

    Args: path: created if missing; None: a temporary file. teacher, refused: as for `Labels`.
    Raises: as `Labels`; CannotWrite.
    """
    where = str(path or "the labels")
    file = _locked(path, where)
    try:
        found = Labels([(file, where)], teacher=teacher, refused=refused, verify=True)
        size = os.fstat(file.fileno()).st_size
        if found.ends[0] < size:
            unfinished = f"{size - found.ends[0]:,} bytes of an unfinished record"
            streams.message(f"{where}: {unfinished} at its end are removed and computed again")
            file.truncate(found.ends[0])
        yield Writer(file, where, bits, found)
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
