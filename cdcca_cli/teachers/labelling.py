"""Asking a teacher for the labels that are missing, and keeping them in a file.

Whatever answers is a `Teacher`. Labels come in the order of the shards, so the same shards give the
same bytes, after a run that was killed too.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cdcca_cli import distributed, files, progress
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import label_stream
from cdcca_cli.formats.label_stream import Labels, ShardKey, Writer
from cdcca_cli.formats.labels import Entry, Source
from cdcca_cli.formats.shard import Shard
from cdcca_cli.skipped import Skipped


class Teacher(Protocol):
    """Who answers questions about frames."""

    @property
    def source(self) -> Source:
        """Whose labels these are."""

    def check(self, shard: Shard) -> None:
        """Refuse a shard that this teacher cannot answer. Raises: BadData."""

    def announce(self, shards: Iterable[Shard], lacks: "Lacks") -> object:
        """Say what the missing labels will cost, if it costs more than time here.

        Raises: SettingError if that is more than is allowed.
        """

    def label(self, shards: Iterable[Shard], lacks: "Lacks", skipped: Skipped) -> Iterator[Entry]:
        """The labels that are missing, in the order of the shards.

        A question without an answer is named in `skipped`, and has no label.
        """

    def close(self) -> None:
        """Free what the teacher holds."""


class Lacks:
    """Which labels are missing."""

    def __init__(self, *kept: Labels) -> None:
        self._kept = kept

    def of_shard(self, shard: Shard) -> list[int]:
        """The places of the questions without a label."""
        key = ShardKey.of(shard)
        return [
            place
            for place in range(len(shard.questions))
            if not any(labels.has(key, place) for labels in self._kept)
        ]

    def some(self, shard: Shard) -> bool:
        """Whether a question of the shard has no label."""
        return bool(self.of_shard(shard))

    def of(self, entry: Entry) -> Entry:
        """Those labels of an entry that are missing."""
        questions = tuple(entry.labels)
        key = ShardKey(entry.payload, questions)
        missing = {
            question: entry.labels[question]
            for place, question in enumerate(questions)
            if not any(labels.has(key, place) for labels in self._kept)
        }
        return replace(entry, labels=missing)


def add_missing(
    teacher: Teacher, shards: Iterable[Shard], write: Writer, lacks: Lacks, skipped: Skipped
) -> int:
    """Ask for the labels that are missing, and write them. Returns: how many were written."""
    checked = _checked(teacher, shards)
    count = 0
    for entry in teacher.label(progress.track(checked, description="teacher"), lacks, skipped):
        write(entry)
        count += len(entry.labels)
    return count


def _checked(teacher: Teacher, shards: Iterable[Shard]) -> Iterator[Shard]:
    for shard in shards:
        teacher.check(shard)
        if shard.questions:
            yield shard


def open_labels(
    paths: Sequence[Path],
    teacher: str | None = None,
    skipped: Skipped | None = None,
    *,
    verify: bool = False,
) -> Labels:
    """The labels in some files.

    Args: teacher: whose; None: those of the only one there is. verify: as for `Labels`.
    Raises: MissingInput; BadData for a file of something else, and for several teachers.
    """
    found = []
    for path in paths:
        try:
            found.append((open(path, "rb", buffering=0), str(path)))  # noqa: SIM115 -- kept open
        except (OSError, ValueError) as error:
            raise MissingInput(files.reason(path, error)) from None
    labels = Labels(found, teacher=teacher, refused=refusing(skipped), verify=verify)
    names = sorted({source.name for source in labels.sources})
    if len(names) > 1:
        raise BadData(
            f"{labels.where}: holds labels of {len(names)} teachers ({', '.join(names)[:200]}): "
            "name the teacher whose labels are meant"
        )
    return labels


def refusing(skipped: Skipped | None) -> "Callable[[BadData], object] | None":
    """What is done with a bad record: named, counted and left out; without `skipped` an error."""
    return None if skipped is None else lambda error: skipped.add("label record", error)


def labelled(
    shards: Sequence[Shard],
    teacher: Teacher | None,
    paths: Sequence[Path],
    bits: int,
    skipped: Skipped,
) -> Labels:
    """The labels of shards: those in the files and, if there is a teacher, those that these lack.

    Args: paths: the last one gets what is missing; without any, a temporary file does.
    Raises: as `open_labels`, `Teacher.check`; CannotWrite.
    """
    name = None if teacher is None else teacher.source.name
    there = [path for path in paths if teacher is None or os.path.lexists(path)]
    # With a teacher, what is damaged is asked again: it has to be known before.
    kept = open_labels(there, name, skipped, verify=teacher is not None)
    if teacher is None or not any(map(Lacks(kept).some, shards)):
        for shard in shards if teacher is not None else ():
            teacher.check(shard)  # type: ignore[union-attr]
        return kept
    named = Skipped(quiet=True)  # the bad records have been named
    others = open_labels([path for path in there if path != paths[-1]], name, named, verify=True)
    path = paths[-1] if paths else None
    with ExitStack() as opened:
        if distributed.is_first():
            writing = label_stream.writing(path, bits, teacher=name, refused=refusing(named))
            write = opened.enter_context(writing)
        distributed.wait()
        if distributed.is_first():
            assert write.labels is not None
            lacks = Lacks(others, write.labels)
            teacher.announce(shards, lacks)
            add_missing(teacher, shards, write, lacks, skipped)
            added = write.labels
        else:
            assert path is not None
            lacks = Lacks(others, open_labels([path], name, named, verify=True))
            for _ in teacher.label(_checked(teacher, shards), lacks, skipped):
                pass
    distributed.wait()
    if not distributed.is_first():
        return open_labels(paths, name, named)
    return added.joined(others)
