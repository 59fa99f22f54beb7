"""What there is to learn: the asks of a stream, what the teacher says of them, the held-out part.

Tokens are kept in memory: training goes over them several times, in another order each time. What
the teacher says stays in its file, which is mapped into memory.

Does not ask the teacher (`teacher`) and does not train (`run`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cdcca_cli import streams
from cdcca_cli.distillation import teacher as asking
from cdcca_cli.distillation.batches import Example, check_fit, held_out_frames, is_held_out
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import lessons as lesson_files
from cdcca_cli.formats.lessons import Lesson, LessonFile, key_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel

TEACHER_BATCHES = 4
"""The teacher needs no gradients: it takes so many times the student's batch at once."""
KEPT_BYTES = 1 << 30
"""Decoded lessons that are kept in memory; the others are decoded again when they come up."""


class Said:
    """What a teacher says of shards, by shard and ask."""

    def __init__(self, file: LessonFile, shards: Sequence[Shard]) -> None:
        """Args: shards: of which there must be a lesson each."""
        assert file.head is not None
        self.teacher, self.vocabulary = file.head.teacher, file.head.vocabulary
        self.dtype, self.bits = file.head.dtype, file.head.bits
        self._file = file
        self._keys = {id(shard): key_of(shard) for shard in shards}
        self._kept: dict[str, Lesson] = {}
        self._kept_bytes = 0
        self._widths: dict[str, int] = {}

    def of(self, shard: Shard) -> Lesson:
        """Everything about one shard. BadData if it cannot be of this shard, or of one teacher."""
        key = self._keys[id(shard)]
        lesson = self._kept.get(key)
        if lesson is None:
            lesson = self._file.read(key)
            self._check(lesson, shard)
            self._kept_bytes += _num_bytes(lesson)
            if self._kept_bytes <= KEPT_BYTES:
                self._kept[key] = lesson
        return lesson

    def _check(self, lesson: Lesson, shard: Shard) -> None:
        """As many answers as asks, and numbers as wide as those of the first lesson read."""
        widths = {
            name: arrays[0].shape[1]
            for name, arrays in vars(lesson).items()
            if arrays and name in lesson_files.TENSORS
        }
        first = {name: self._widths.setdefault(name, width) for name, width in widths.items()}
        if len(lesson.answers) != len(shard.asks) or widths != first:
            raise BadData(
                f"frame {shard.frame[:80]}: its lesson has {len(lesson.answers)} answers, of rows "
                f"{widths} wide; expected {len(shard.asks)} of {first}: name another --cache"
            )


def _num_bytes(lesson: Lesson) -> int:
    lists = (lesson.queries, lesson.visual, lesson.answer or [], lesson.logits or [])
    return sum(array.nbytes for arrays in lists for array in arrays)


@dataclass(eq=False)
class Lessons:
    """Examples, what the teacher says of them, and which of them are for what.

    said: None where nobody is asked; answers and nats are empty then. train, held_out: numbers of
    examples. num_replayed: how many of `train` are of earlier rounds.
    """

    examples: list[Example]
    train: list[int]
    held_out: list[int]
    said: Said | None = None
    answers: list[str] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    num_unanswered: int = 0
    num_replayed: int = 0
    _places: list[int] = field(default_factory=list)

    def rows(self, number: int, name: str) -> np.ndarray:
        """(L, C): an example's `queries`, `visual`, `answer` or `logits`, float32.

        Raises: BadData if the lesson has none.
        """
        assert self.said is not None
        shard, place = self.examples[number].shard, self._places[number]
        lesson = self.said.of(shard)
        if name == "queries":
            return lesson.queries[lesson.inputs[place]]
        arrays: list[np.ndarray] | None = getattr(lesson, name)
        if arrays is None:
            raise BadData(
                f"frame {shard.frame[:80]}: the teacher's lessons have no {name}: name the "
                "teacher itself, and another --cache"
            )
        return arrays[place]


def gather(
    shards: Iterable[Shard],
    teacher: LoadedModel | None,
    student: LoadedModel,
    settings: DistillSettings,
    *,
    earlier: Iterable[Shard] = (),
) -> Lessons:
    """Read the stream, ask the teacher, and set some frames apart.

    Asks that the teacher answers with nothing are left out, and counted.

    Args:
        teacher: None: there are lessons in `settings.cache`; or, for methods without a teacher,
            nobody is asked.
        earlier: shards of earlier rounds, of which `settings.replay` is learnt again.
    Raises: BadData for an empty stream, a shard of another vision tower, a silent teacher, and
        shards of which the cache has no lesson.
    """
    fresh = _fitting(shards, student)
    if not fresh:
        raise BadData("the token stream asks nothing (no shards in it): there is nothing to learn")
    frames = {shard.frame for shard in fresh}
    held_out = held_out_frames([shard.frame for shard in fresh], settings.holdout)
    old = _fitting(earlier, student)
    others = {shard.frame for shard in old}
    again = [
        shard
        for shard in old
        if shard.frame not in frames and not is_held_out(shard.frame, settings.holdout)
    ]
    again = _share(again, settings.replay, settings.seed)
    if others and not again:
        same = sum(frame in frames for frame in others)
        streams.message(
            f"--replay: none of its {len(others)} frames is learnt again: {same} are in this "
            f"stream too, of the others {settings.replay:.0%} are taken, and no held-out one"
        )
    everything = [*fresh, *again]
    taught = everything
    if not settings.needs_teacher:  # a teacher that is named all the same judges, and no more
        taught = [shard for shard in fresh if shard.frame in held_out]
    said = _said(taught, teacher, settings)
    answers: dict[tuple[int, int], tuple[str, float]] = {}
    if said is not None:
        for shard in taught:
            lesson = said.of(shard)
            for n, answer in enumerate(zip(lesson.answers, lesson.nats, strict=True)):
                answers[id(shard), n] = answer
    silent = {where for where, (answer, _) in answers.items() if not answer}
    if answers and len(silent) == len(answers):
        raise BadData(
            f"the teacher answered with nothing to all {len(answers)} asks: is it the right "
            "checkpoint, and does its prompt fit?"
        )
    asks = [(shard, n) for shard in everything for n in range(len(shard.asks))]
    asks = [(shard, n) for shard, n in asks if (id(shard), n) not in silent]
    replayed = {id(shard) for shard in again}
    is_held = [shard.frame in held_out and id(shard) not in replayed for shard, _ in asks]
    if all(is_held):
        raise BadData(
            f"the teacher answered with nothing to {len(silent)} asks, which leaves none to learn "
            f"from (the other {len(asks)} are of held-out frames): is it the right checkpoint?"
        )
    return Lessons(
        examples=[Example(shard, shard.asks[n]) for shard, n in asks],
        train=[number for number, held in enumerate(is_held) if not held],
        held_out=[n for n, held in enumerate(is_held) if held] if said is not None else [],
        said=said,
        answers=[answers.get((id(shard), n), ("", 0.0))[0] for shard, n in asks],
        nats=[answers.get((id(shard), n), ("", 0.0))[1] for shard, n in asks],
        num_unanswered=len(silent),
        num_replayed=sum(id(shard) in replayed for shard, _ in asks),
        _places=[n for _, n in asks],
    )


def _fitting(shards: Iterable[Shard], student: LoadedModel) -> list[Shard]:
    """Those that ask something, each looked at as it comes."""
    kept = []
    for shard in shards:
        check_fit(shard, student, "student")
        if shard.asks:
            kept.append(shard)
    return kept


def _share(shards: list[Shard], share: float, seed: int) -> list[Shard]:
    """All shards of a share of the frames, drawn by their content: the same in another order."""
    ranks: dict[str, bytes] = {}
    for shard in shards:
        rank = hashlib.sha256(f"{seed} {key_of(shard)}".encode()).digest()
        ranks[shard.frame] = min(rank, ranks.get(shard.frame, rank))
    chosen = set(sorted(ranks, key=lambda frame: ranks[frame])[: round(share * len(ranks))])
    return [shard for shard in shards if shard.frame in chosen]


def _said(
    shards: list[Shard], teacher: LoadedModel | None, settings: DistillSettings
) -> Said | None:
    """The teacher's lessons of these shards, from the cache or asked for now."""
    if not shards:
        return None
    logits = settings.kl != "none"
    if teacher is not None:
        how = asking.Asking(TEACHER_BATCHES * settings.batch_size, logits, settings.cache_bits)
        path = lessons_path(settings, teacher.digest)
        return Said(asking.ask(teacher, shards, how, path), shards)
    if settings.cache is None:
        if settings.needs_teacher:
            raise UsageError(f"--method {settings.method} needs a teacher, or its lessons")
        return None
    if not settings.needs_teacher and not settings.cache.exists():
        return None
    file = lesson_files.open_lessons(settings.cache)
    for shard in shards:
        if not file.has(key_of(shard), logits=logits):
            if not settings.needs_teacher:
                streams.message(
                    f"{settings.cache}: has no lesson of held-out frame {shard.frame[:80]}: nobody "
                    "judges the held-out part"
                )
                return None
            of = " with logits" if logits and key_of(shard) in file else ""
            raise BadData(
                f"{settings.cache}: has no lesson{of} of frame {shard.frame[:80]} as it was "
                "sampled: name the teacher, and this file as its --cache"
            )
    return Said(file, shards)


def lessons_path(settings: DistillSettings, teacher_digest: str) -> Path | None:
    """Where a teacher's lessons are kept; None: nowhere after the run."""
    if settings.cache is not None or settings.work is None:
        return settings.cache
    return settings.work / f"{teacher_digest.removeprefix('sha256:')[:16]}.lessons"
