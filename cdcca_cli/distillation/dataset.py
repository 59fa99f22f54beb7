"""Training data: the examples of a stream, the held-out part, replayed frames, batches.

Tokens are kept in a temporary file (`token_file`) and labels in theirs (`teachers.kept`), so memory
does not grow with the number of frames. Whether a frame is held out depends on its id and the share
alone, so a frame held out in one round is never trained on in another, unless the share changes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import accumulate

import numpy as np

from cdcca_cli import distributed, remote, streams
from cdcca_cli.distillation.settings import MOST_REPLAYED, DistillSettings
from cdcca_cli.distillation.token_file import TokenFile
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.labels import Label, Source, payload_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import Example, check_fit, too_long
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.kept import KeptLabels
from cdcca_cli.teachers.labelling import Teacher, labelled
from cdcca_cli.teachers.settings import LabelSettings

MASK = 2**64 - 1
MOST_HELD = 64
"""Held-out questions of earlier rounds, at most, beside those of the stream."""


@dataclass(eq=False)
class Dataset:
    """Examples with the teacher's labels, split into `train` and `held_out` (example numbers).

    labels: None without a teacher. places: of each question in its shard. answers, nats: the
    teacher's; "" without a label, None where the teacher gave none. missing: the parts that not all
    labels of `train` have. num_unlabelled, num_unanswered, num_refused: questions that are left
    out, because they have no label, the teacher's answer is empty, or the student cannot read them.
    num_replayed: how many of `train` are of earlier rounds.
    """

    labels: KeptLabels | None
    examples: list[Example] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    nats: list[float | None] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    train: list[int] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)
    num_unlabelled: int = 0
    num_unanswered: int = 0
    num_refused: int = 0
    num_replayed: int = 0

    @property
    def source(self) -> Source | None:
        """Whose labels there are."""
        return None if self.labels is None else self.labels.source

    def teacher_rows(self, number: int, name: str) -> np.ndarray:
        """(L, C): an example's `queries`, `visual` or `answer`, float32."""
        assert self.labels is not None
        return self.labels.rows(self.examples[number].shard, self.places[number], name)

    def teacher_kept(self, number: int, name: str) -> Kept:
        """Which of a picture's rows `teacher_rows` has of an example's `queries` or `visual`."""
        assert self.labels is not None
        return self.labels.kept(self.examples[number].shard, self.places[number], name)

    def label(self, number: int) -> Label:
        """An example's label."""
        assert self.labels is not None
        found = self.labels.of(self.examples[number].shard, self.places[number])
        assert found is not None
        return found


def build_dataset(
    shards: Iterable[Shard],
    teacher: Teacher | None,
    student: LoadedModel,
    settings: DistillSettings,
    *,
    earlier: Iterable[Shard] = (),
    asking: LabelSettings | None = None,
    skipped: Skipped | None = None,
) -> Dataset:
    """Read the stream, label it with the teacher, and hold some frames out.

    Questions without a label, or to which the teacher's answer is empty, are left out, and counted.

    Args:
        teacher: None if its labels are in `settings.labels`, or the method needs none.
        earlier: shards of earlier rounds, of which `settings.replay_share` is trained on again, at
            most `settings.replay_questions`. What was held out of them joins the held-out part, the
            latest first, at most MOST_HELD questions: a round alone has too few to judge by.
        skipped: counts questions that teacher or student cannot read, which are left out; None:
            they are errors.
    Raises: BadData if there is nothing to train on, and for a shard of another vision tower;
        UsageError without a teacher, or its labels, if the method needs them.
    """
    if teacher is None and settings.needs_teacher and not settings.labels:
        raise UsageError(f"`method` {settings.method} needs a teacher, or its labels")
    skipped = skipped or Skipped(strict=True)
    file = TokenFile()
    fresh = _with_questions(shards, student, file)
    if not fresh:
        raise BadData("the token stream has no questions: there is nothing to learn")
    is_training, frames = settings.method != "none", {shard.frame for shard in fresh}
    if is_training and all(is_held_out(frame, settings.holdout) for frame in frames):
        raise BadData(
            f"every frame of the stream ({len(frames)}) is held out "
            f"(`holdout` {settings.holdout:.0%}): there is nothing to learn: send more frames"
        )
    past = _with_questions(earlier, student, file)
    replayed = _replayed(past, fresh, settings)
    held = _held_before(past, frames, settings) if settings.needs_teacher else []
    dataset = Dataset(None)
    taught: list[Shard] = []
    if teacher is not None or settings.labels:
        taught = [*fresh, *replayed, *held]
        if not settings.needs_teacher:  # its labels only evaluate the held-out part
            taught = [shard for shard in fresh if is_held_out(shard.frame, settings.holdout)]
        paths = settings.label_files(None if teacher is None else teacher.source.name)
        bits = (asking or LabelSettings()).label_bits
        kept = labelled(taught, teacher, paths, bits, skipped)
        dataset.labels = KeptLabels(kept, taught)
    has_labels = {id(shard) for shard in taught}
    for number, shard in enumerate([*fresh, *replayed, *held]):
        _add(
            dataset,
            shard,
            student,
            skipped,
            has_labels=id(shard) in has_labels,
            is_replayed=len(fresh) <= number < len(fresh) + len(replayed),
            is_held=is_held_out(shard.frame, settings.holdout),
        )
    num_asked = sum(len(shard.questions) for shard in taught)
    if dataset.num_unlabelled and teacher is None:
        missing = f"{dataset.num_unlabelled} of {num_asked} questions have no label"
        where = ", ".join(settings.labels)
        if settings.needs_teacher and dataset.num_unlabelled == num_asked:
            raise BadData(f"{where}: {missing}: were they sampled again? Name the teacher too")
        streams.message(f"{where}: {missing}, and are left out")
    if num_asked and dataset.num_unanswered == num_asked:
        raise BadData(
            f"the teacher's answers to all {num_asked} questions are empty: is it the right "
            "checkpoint, and does its prompt fit?"
        )
    if is_training and not dataset.train:
        raise BadData(
            f"nothing is left to learn from: {dataset.num_unanswered} questions were left out "
            f"because the teacher's answer is empty, {dataset.num_unlabelled} because they have no "
            f"label, {dataset.num_refused} because the student cannot read them, and "
            f"{len(dataset.examples)} are of held-out frames"
        )
    return dataset


def anchor_dataset(
    shards: Iterable[Shard],
    source: Teacher,
    student: LoadedModel,
    settings: DistillSettings,
    skipped: Skipped,
) -> Dataset:
    """The frames of `anchors`, labelled by the student itself; some held out, as of the stream.

    Args: source: the student as it was at sequence 0; its labels are kept with the teacher's.
    Raises: BadData if there is no question that it answers, and for a shard of another vision
        tower; UsageError for several processes without a file of labels.
    """
    if settings.labels and remote.is_address(settings.labels[-1]):  # which gets no labels added
        settings = replace(settings, labels=())
    kept, bits = _with_questions(shards, student, TokenFile()), LabelSettings.label_bits
    paths = settings.label_files(source.source.name)
    if distributed.count() > 1 and not paths:
        raise UsageError("several processes share the anchors' labels in a file: give `work`")
    dataset = Dataset(KeptLabels(labelled(kept, source, paths, bits, skipped), kept))
    for shard in kept:
        _add(
            dataset,
            shard,
            student,
            skipped,
            has_labels=True,
            is_replayed=False,
            is_held=is_held_out(shard.frame, settings.holdout),
        )
    if not dataset.train:
        dataset.train, dataset.held_out = dataset.held_out, []
    if not dataset.train:
        raise BadData("`anchors`: holds no question that the student answers")
    return dataset


def _with_questions(shards: Iterable[Shard], student: LoadedModel, file: TokenFile) -> list[Shard]:
    kept = []
    for shard in shards:
        check_fit(shard, student, "student")
        if shard.questions:
            kept.append(file.put(shard))
    return kept


def _add(
    dataset: Dataset,
    shard: Shard,
    student: LoadedModel,
    skipped: Skipped,
    *,
    has_labels: bool,
    is_replayed: bool,
    is_held: bool,
) -> None:
    """Add a shard's questions, but those without a label, or that the student cannot read."""
    labels = dataset.labels if has_labels else None
    for place, question in enumerate(shard.questions):
        example = Example(shard, question)
        label = None if labels is None else labels.of(shard, place)
        if labels is not None and label is None:
            dataset.num_unlabelled += 1
            continue
        answer = "" if label is None else label.answer
        if fault := too_long(student, "student", example, [answer]):
            skipped.add("question", BadData(fault))
            dataset.num_refused += 1
            continue
        if label is not None and not answer:
            dataset.num_unanswered += 1
            continue
        if not is_held:
            dataset.train.append(len(dataset.examples))
            dataset.missing |= set() if label is None else label.missing
        elif label is not None:
            dataset.held_out.append(len(dataset.examples))
        dataset.examples.append(example)
        dataset.places.append(place)
        dataset.answers.append(answer)
        dataset.nats.append(None if label is None else label.nats)
        dataset.num_replayed += is_replayed


# ---------------------------------------------------------------- the split and replay


def is_held_out(frame: str, share: float) -> bool:
    """Whether a frame is held out: its id hashes below the share."""
    hashed = hashlib.sha256(frame.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(hashed[:8]) / 2**64 < share


def _replayed(earlier: list[Shard], fresh: list[Shard], settings: DistillSettings) -> list[Shard]:
    """All shards of some earlier frames: `replay_share` of those neither fresh nor held out.

    They are drawn alike from all earlier rounds, as long as they have no more questions than
    `replay_questions`.
    """
    frames = {shard.frame for shard in fresh}
    ranks: dict[str, bytes] = {}
    num_questions: Counter[str] = Counter()
    for shard in earlier:
        if shard.frame not in frames and not is_held_out(shard.frame, settings.holdout):
            rank = hashlib.sha256(f"{settings.seed} {payload_digest(shard)}".encode()).digest()
            ranks[shard.frame] = min(rank, ranks.get(shard.frame, rank))
            num_questions[shard.frame] += len(shard.questions)
    most = settings.replay_questions or MOST_REPLAYED * sum(len(s.questions) for s in fresh)
    drawn = sorted(ranks, key=lambda frame: ranks[frame])
    drawn = drawn[: round(settings.replay_share * len(ranks))]
    totals = accumulate(num_questions[frame] for frame in drawn)
    chosen = {frame for frame, total in zip(drawn, totals, strict=True) if total <= most}
    others = {shard.frame for shard in earlier}
    if others and not chosen and settings.replay_share:
        streams.message(
            f"`replay`: none of its {len(others)} frames is trained on again: "
            f"{len(others & frames)} are in this stream too, and `replay_share` "
            f"{settings.replay_share:.0%}, at most {most} questions, is of the others that are not "
            f"held out ({len(ranks)})"
        )
    return [shard for shard in earlier if shard.frame in chosen]


def _held_before(earlier: list[Shard], fresh: set[str], settings: DistillSettings) -> list[Shard]:
    """The shards of earlier held-out frames, the latest first, of at most MOST_HELD questions."""
    held = [
        shard
        for shard in reversed(earlier)
        if shard.frame not in fresh and is_held_out(shard.frame, settings.holdout)
    ]
    totals = accumulate(len(shard.questions) for shard in held)
    return [shard for shard, total in zip(held, totals, strict=True) if total <= MOST_HELD]


# ---------------------------------------------------------------- draws and batches


class Purpose(IntEnum):
    """Independent streams of one seed: batches, bootstrap, CoTTA's views and restoring, anchors."""

    ORDER = 0
    INTERVAL = 1
    VIEWS = 2
    RESTORE = 3
    ANCHORS = 4


def draws(seed: int, purpose: Purpose, number: int = 0) -> np.random.Generator:
    """Philox-4x64 keyed by the seed modulo 2^64 and by purpose and number (below 2^56)."""
    # As uint64: numpy would make floats of a list with a number of 2^63 or more.
    key = np.array([seed & MASK, (purpose << 56) + number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def shuffled_batches(
    lengths: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
    purpose: Purpose = Purpose.ORDER,
) -> Iterator[list[int]]:
    """Batches of example numbers for one epoch, with little padding.

    Examples are shuffled and cut into pools of 16 batches; each pool is sorted by length, and then
    the batches are shuffled.
    """
    source = draws(seed, purpose, epoch)
    order = source.permutation(len(lengths))
    batches: list[list[int]] = []
    pool = 16 * batch_size
    for start in range(0, len(order), pool):
        ranked = sorted(order[start : start + pool].tolist(), key=lambda number: lengths[number])
        batches += [ranked[at : at + batch_size] for at in range(0, len(ranked), batch_size)]
    for number in source.permutation(len(batches)):
        yield batches[number]
