"""A teacher's outputs for token shards: computed once, kept in a file, read from there.

Every run, the first included, reads the outputs from a file of labels (`formats.labels`), so a
later run with another method or seed needs no teacher and gets the same numbers. Padding changes
the last bits of an output, so a chunk that lacks one of its entries is computed as a whole: a run
that was killed and started again ends with the same bits.

A teacher with another vision tower than the student's looks at the pictures that were sent.

Several processes compute the chunks in turns; the first of them writes the file.

Shapes: L query tokens, C channels.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np

from cdcca_cli import progress, streams
from cdcca_cli.distillation import distributed
from cdcca_cli.distillation.encoding import Example, check_fit
from cdcca_cli.distillation.labelling import entries_of
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import labels
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.labels import Head, LabelEntry, LabelFile, key_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.payloads.opening import Opener

USUAL_BITS = 16
"""Bits a number in a new file of labels."""
TEACHER_BATCHES = 4
"""Batches of the student in one of the teacher, which needs no gradients."""
KEPT_BYTES = 1 << 27
"""Decoded labels that are kept in memory, those used last; the others are decoded again."""


class TeacherOutputs:
    """A teacher's outputs for shards, read from a file of labels that has an entry for each."""

    def __init__(self, file: LabelFile, shards: Sequence[Shard]) -> None:
        assert file.head is not None
        self.head = file.head
        self._file = file
        self._keys = {id(shard): key_of(shard) for shard in shards}
        self._kept: OrderedDict[str, LabelEntry] = OrderedDict()
        self._kept_bytes = 0
        self._widths: dict[str, int] = {}

    def of(self, shard: Shard) -> LabelEntry:
        """The entry of a shard. Raises: BadData for an entry of another shard or teacher."""
        key = self._keys[id(shard)]
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        entry = self._file.read(key)
        self._check(entry, shard)
        self._kept[key] = entry
        self._kept_bytes += _num_bytes(entry)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _num_bytes(self._kept.popitem(last=False)[1])
        return entry

    def fault(self, shard: Shard, place: int) -> str:
        """Why the teacher could not answer a question; "" if it could."""
        entry = self.of(shard)
        if entry.answers[place] or len(entry.visual[place]):
            return ""
        unknown = f"{Example(shard, shard.questions[place])}: the teacher could not answer it"
        return self._file.faults.get((self._keys[id(shard)], place), unknown)

    def kept(self, shard: Shard, place: int, name: str) -> Kept:
        """Which of a picture's rows of one question `rows` has. Args: name: queries or visual."""
        entry = self.of(shard)
        part = entry.inputs[place] if name == "queries" else place
        if entry.kept is not None:
            return entry.kept[name][part]
        count = len(vars(entry)[name][part])
        return Kept(np.arange(count, dtype=np.int32), count)

    def rows(self, shard: Shard, place: int, name: str) -> np.ndarray:
        """(L, C) float32: the rows of one question in the tensor `name`. Raises: BadData."""
        entry = self.of(shard)
        if name == "queries":
            return entry.queries[entry.inputs[place]]
        arrays = _tensors(entry).get(name)
        if arrays is None:
            raise BadData(
                f"frame {shard.frame[:80]}: the teacher's labels have no {name}: name the "
                "teacher itself, and another `cache`"
            )
        return arrays[place]

    def _check(self, entry: LabelEntry, shard: Shard) -> None:
        widths = {
            name: rows.shape[1]
            for name, arrays in _tensors(entry).items()
            for rows in arrays
            if len(rows)
        }
        first = {name: self._widths.setdefault(name, width) for name, width in widths.items()}
        if len(entry.answers) != len(shard.questions) or widths != first:
            raise BadData(
                f"frame {shard.frame[:80]}: its entry has {len(entry.answers)} answers, of rows "
                f"{widths} wide; expected {len(shard.questions)} of {first}: name another `cache`"
            )


def _tensors(entry: LabelEntry) -> dict[str, list[np.ndarray]]:
    return {name: vars(entry)[name] for name in labels.TENSORS if vars(entry)[name] is not None}


def _num_bytes(entry: LabelEntry) -> int:
    return sum(array.nbytes for array in chain(*_tensors(entry).values()))


def teacher_outputs(
    shards: Sequence[Shard], teacher: LoadedModel | None, settings: DistillSettings
) -> TeacherOutputs | None:
    """The teacher's outputs for these shards, from the cache or computed now.

    Returns: None without shards, and for a method that needs no teacher and has none.
    Raises: BadData for a cache that lacks an entry; UsageError if teacher and cache are missing.
    """
    if not shards:
        return None
    cache, logits = settings.cache, settings.needs_logits
    if teacher is not None:
        path = cache
        if path is None and settings.work is not None:
            path = settings.work / f"{teacher.digest.removeprefix('sha256:')[:16]}.labels"
        return TeacherOutputs(label_shards(teacher, shards, settings, path), shards)
    if cache is None and settings.needs_teacher:
        raise UsageError(f"`method` {settings.method} needs a teacher, or its labels")
    if cache is None or not (settings.needs_teacher or cache.exists()):
        return None
    file = labels.open_labels(cache)
    lacking = next((one for one in shards if not file.has(key_of(one), logits=logits)), None)
    if lacking is None:
        return TeacherOutputs(file, shards)
    if not settings.needs_teacher:
        streams.message(
            f"{cache}: has no entry of held-out frame {lacking.frame[:80]}: the held-out frames "
            "are not evaluated"
        )
        return None
    with_logits = " with logits" if logits and key_of(lacking) in file else ""
    raise BadData(
        f"{cache}: has no entry{with_logits} of frame {lacking.frame[:80]} as it was sampled: name "
        "the teacher, and this file as its `cache`"
    )


# ---------------------------------------------------------------- labelling


def label_shards(
    teacher: LoadedModel, shards: Sequence[Shard], settings: DistillSettings, path: Path | None
) -> LabelFile:
    """A file with an entry for every shard; the missing ones are computed.

    Args: path: of the file; None: a temporary one.
    Raises: BadData for a shard of another vision tower, and a file of another teacher or of other
        `cache_bits`; CannotWrite.
    """
    for shard in shards:
        check_fit(shard, teacher, "teacher")
    dtype = str(teacher.dtype).removeprefix("torch.")
    head = Head(teacher.digest, teacher.vocabulary_digest, dtype, settings.cache_bits or USUAL_BITS)
    if (complete := _complete(path, head, shards, settings)) is not None:
        return complete
    with ExitStack() as opened:
        if distributed.is_first():
            file = opened.enter_context(labels.writing(path, head))
        distributed.wait()
        if not distributed.is_first():
            assert path is not None
            file = labels.open_labels(path)
        _check_bits(file, settings.cache_bits)
        _add_missing(file, teacher, shards, settings)
    distributed.wait()
    if path is None or distributed.is_first():
        return file
    return labels.open_labels(path)


def _add_missing(
    file: LabelFile, teacher: LoadedModel, shards: Sequence[Shard], settings: DistillSettings
) -> None:
    """Compute the chunks of which the file lacks an entry; the first process adds them to it."""

    def lacks(shard: Shard) -> bool:
        return not file.has(key_of(shard), logits=settings.needs_logits)

    all_chunks = _chunks(shards, TEACHER_BATCHES * settings.batch_size)
    chunks = [chunk for chunk in all_chunks if any(map(lacks, chunk))]
    looking = Opener(teacher, _no_codebook, any_tower=True)
    num_processes = distributed.count()
    rounds = [chunks[at : at + num_processes] for at in range(0, len(chunks), num_processes)]
    for each in progress.track(rounds, description="teacher"):
        mine = each[distributed.rank() : distributed.rank() + 1]
        entries = [entries_of(teacher, chunk, looking, settings.needs_logits) for chunk in mine]
        gathered = chain(*chain(*distributed.gather(entries)))
        if distributed.is_first():
            for shard, entry in zip(chain(*each), gathered, strict=True):
                if lacks(shard):
                    file.append(key_of(shard), entry)


def _no_codebook(digest: str) -> Codebook:
    raise BadData(f"the codebook {digest} is not read here: shards are opened before")


def _complete(
    path: Path | None, head: Head, shards: Sequence[Shard], settings: DistillSettings
) -> LabelFile | None:
    """A read-only file that has everything; None for any other."""
    if path is None or os.access(path, os.W_OK) or not os.access(path, os.R_OK):
        return None
    file = labels.open_labels(path)
    labels.expect(file.head, head, str(path))
    _check_bits(file, settings.cache_bits)
    has_all = all(file.has(key_of(shard), logits=settings.needs_logits) for shard in shards)
    return file if has_all else None


def _check_bits(file: LabelFile, bits: int | None) -> None:
    assert file.head is not None
    if bits not in (None, file.head.bits):
        raise BadData(
            f"{file.where}: keeps {file.head.bits} bits a number: leave `cache_bits` {bits} out, "
            "or name another `cache`"
        )


def _chunks(shards: Iterable[Shard], batch_size: int) -> Iterator[list[Shard]]:
    chunk: list[Shard] = []
    for shard in shards:
        chunk.append(shard)
        if sum(len(kept.questions) for kept in chunk) >= batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
