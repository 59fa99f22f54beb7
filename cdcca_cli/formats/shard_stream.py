"""Streams of shards: writing version 2, reading versions 1 and 2 (`shard`)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.files import Writable
from cdcca_cli.formats import records, shard_check, shard_record, shard_v1
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import VERSION, Coding, Shard, Unusable
from cdcca_cli.skipped import Skipped

KINDS = {"shards": VERSION, "frames": VERSION, "end": VERSION, "shard": 1}
LIMITS = records.Limits(record_bytes=1 << 28)
_GROUP_VALUES = 1 << 23  # numbers of tokens or codes, and bytes of pictures
_GROUP_CHARS = 1 << 18
_MOST_END_BYTES = 1 << 10


class Writer:
    """Writes parts; frames go out in groups, so the last ones only with `end`.

    num_bytes: written so far.
    """

    def __init__(self, out: Writable) -> None:
        self._out = out
        self.num_bytes = 0
        self._tower: str | None = None
        self._count = 0
        self._waiting: list[tuple[Shard, Shard | None]] = []
        self._waiting_values = self._waiting_chars = 0

    def __call__(self, shard: Shard, picture: Picture | None = None) -> None:
        """Add a frame. Raises: BadData if it is not sound.

        Args: picture: of the same frame, sent instead where a group of them takes fewer bytes.
        """
        shard_check.check(shard)
        other = None
        if picture is not None:
            other = replace(shard, coding=Coding("frame"), picture=picture)
            shard_check.check(other)
        values = shard.codes if shard.codes is not None else shard.tokens
        sent = [one for one in (picture, shard.picture) if one is not None]
        size = values.size + sum(len(one.data) for one in sent)
        chars = shard_check.text_chars(shard)
        if self._waiting and (
            _key(shard, other) != _key(*self._waiting[0])
            or len(self._waiting) == shard_record.MOST_FRAMES
            or self._waiting_values + size > _GROUP_VALUES
            or self._waiting_chars + chars > _GROUP_CHARS
        ):
            self._flush()
        self._waiting.append((shard, other))
        self._waiting_values += size
        self._waiting_chars += chars

    def _flush(self) -> None:
        if not self._waiting:
            return
        shards = [shard for shard, _ in self._waiting]
        others = [other for _, other in self._waiting if other is not None]
        self._waiting, self._waiting_values, self._waiting_chars = [], 0, 0
        tensors, header = _smaller(shards, others)
        tower = shards[0].tower
        header = shard_record.seal(tensors, header, tower)
        # Never write what the reader would refuse.
        for _ in shard_record.decode(records.Record(tensors, header), tower, "the shards"):
            pass
        if tower != self._tower:
            if self._tower is not None:
                self._end()
            self._tower = tower
            head = {"kind": "shards", "version": VERSION, "tower": tower}
            self._write({}, head)
        self._write(tensors, header)
        self._count += len(shards)

    def _end(self) -> None:
        header = {"kind": "end", "version": VERSION, "count": self._count}
        self._write({}, header)
        self._count = 0

    def _write(self, tensors: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        self.num_bytes += records.write_record(self._out, tensors, header)

    def end(self) -> None:
        """Write what waits, and the end record."""
        self._flush()
        self._end()


def _key(shard: Shard, other: Shard | None) -> tuple[Any, ...]:
    return (*shard_record.group_key(shard), other is None)


def _smaller(
    shards: Sequence[Shard], others: Sequence[Shard]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The record of `shards`, or that of `others` if it has fewer bytes; with the other's size."""
    chosen = shard_record.encode(shards)
    if not others:
        return chosen
    rival = shard_record.encode(others)
    sizes = [sum(array.nbytes for array in tensors.values()) for tensors, _ in (chosen, rival)]
    if sizes[1] < sizes[0]:
        chosen = rival
    return chosen[0], chosen[1] | {"other": max(sizes)}


@contextmanager
def writer(out: Writable) -> Iterator[Writer]:
    """Yield a writer, and write the end record afterwards.

    After an exception there is no end record, so a reader refuses what was written.
    """
    writing = Writer(out)
    yield writing
    writing.end()


def encoded_bytes(shards: Iterable[Shard]) -> int:
    """How many bytes a stream of these shards has."""
    out = BytesIO()
    with writer(out) as write:
        for shard in shards:
            write(shard)
    return write.num_bytes


def read_shards(
    stream: BinaryIO,
    *,
    where: str = "the token stream",
    limits: records.Limits = LIMITS,
    refused: Callable[[Unusable], object] | None = None,
    ledger: Counter[str] | None = None,
    forms: dict[str, int | None] | None = None,
) -> Iterator[Shard]:
    """Shards one after the other, each checked. BadData, NewerFormat.

    Args:
        refused: called with the error for each frame whose values are not finite and for each
            record whose sum is wrong, which are then left out; None: they are errors.
        ledger: gets the bytes of the stream by what they hold.
        forms: gets what all frames take as `tokens` and as `frame`; None where it is not known.
    """
    part = _Part()
    number = 0
    while True:
        number += 1
        place = f"{where}: record {number}"
        record = records.read_record(stream, kinds=KINDS, limits=limits, where=place)
        if record is None:
            break
        kind = record.header["kind"]
        part.add(record, place)
        if kind == "shard":
            found: Iterator[Shard] = shard_v1.decode(record, place, refused)
        elif kind == "frames":
            found = shard_record.decode(record, part.tower, place, refused)
        else:
            found = iter(())
        if ledger is not None:
            is_frame = kind in ("shard", "frames")
            ledger.update(shard_record.bytes_of(record) if is_frame else {kind: record.num_bytes})
        if forms is not None and kind in ("shard", "frames"):
            for form, size in shard_record.forms_of(record).items():
                before = forms.get(form, 0)
                forms[form] = None if size is None or before is None else before + size
        yield from found
    if number == 1:
        raise BadData(f"{where}: empty; expected token shards: did the stage before it fail?")
    if not part.is_over:
        raise BadData(
            f"{where}: ends after {part.total:,} shards without its end record: it was cut, or the "
            "stage before it failed"
        )


def read_all(sources: Iterable[tuple[str, BinaryIO]], skipped: Skipped) -> Iterator[Shard]:
    """The shards of several named streams, without those that are bad. BadData, NewerFormat."""
    for name, source in sources:
        for shard in read_shards(source, where=name, refused=partial(skipped.add, "shard")):
            skipped.num_sound += 1
            yield shard


def expect_whole(stream: BinaryIO, where: str) -> None:
    """Refuse what cannot be continued: BadData unless its last record is an end record.

    Only the end is looked at: what was cut or is of another kind. The rest is left to readers.
    """
    end = b""
    while piece := stream.read(1 << 20):
        end = (end + piece)[-_MOST_END_BYTES:]
    if not any(_is_end(end[place:]) for place in range(len(end))):
        raise BadData(
            f"{where}: does not end as a token stream does, so what is added could not be read: it "
            "was cut, or is another kind of file. Move it away"
        )


def _is_end(data: bytes) -> bool:
    if len(data) != 8 + int.from_bytes(data[:8], "little"):
        return False
    try:
        return records.read_record(BytesIO(data), kinds={"end": VERSION}) is not None
    except CdccaError:
        return False


class _Part:
    """Where a reader is in a part: a head, frames, an end."""

    def __init__(self) -> None:
        self.tower = ""
        self.count = self.total = 0
        self.is_over = False
        self._version: int | None = None  # of this part; None between two parts

    def add(self, record: records.Record, where: str) -> None:
        """Take in the next record. Raises: BadData if it is out of place."""
        kind, version = record.header["kind"], record.header["version"]
        if kind == "shards":
            header = records.fields(record.header, records.HEAD | {"tower": str}, where)
            records.expect_tensors(record, {}, where)
            if version != VERSION or not is_digest(header["tower"]):
                raise BadData(f"{where}: a head of version {version}, or 'tower' is not a digest")
            self.tower = header["tower"]
        starts = kind == "shards" or (kind == "shard" and self._version is None)
        if starts != (self._version is None) and kind != "end":
            raise BadData(f"{where}: {kind!r} out of place: a part is a head, frames and an end")
        if self._version not in (None, version):
            raise BadData(f"{where}: version {version} in a part of version {self._version}")
        if kind == "end":
            self._end(record, where)
            return
        if kind != "shards":
            count = 1 if kind == "shard" else shard_record.count(record, where)
            self.count, self.total = self.count + count, self.total + count
        self._version, self.is_over = version, False

    def _end(self, record: records.Record, where: str) -> None:
        found = records.fields(record.header, records.HEAD | {"count": int}, where)
        records.expect_tensors(record, {}, where)
        if found["count"] != self.count:
            raise BadData(
                f"{where}: {self.count:,} shards, but its end record counts {found['count']:,}"
            )
        self.count, self._version, self.is_over = 0, None, True
