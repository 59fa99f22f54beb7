"""What training reads: the examples of a stream, the held-out part, replayed frames, batches.

Tokens are kept in memory: training goes over them several times, in another order each time. What
the teacher says stays in its file (`teacher_outputs`).

Whether a frame is held out depends on its id and the share alone, so a frame that is held out in
one round is not trained on in any other, nor by replay, unless the share changes. With few frames
there may be none.

Does not ask the teacher, and does not train.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from cdcca_cli import streams
from cdcca_cli.distillation.encoding import Example, check_fit
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.teacher_outputs import TeacherOutputs, teacher_outputs
from cdcca_cli.errors import BadData
from cdcca_cli.formats.labels import key_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel

MASK = 2**64 - 1


@dataclass(eq=False)
class Dataset:
    """Examples, what the teacher says of them, and which of them are for what.

    places: of each example's question in its shard. answers, nats: the teacher's, by example; ""
    and 0 where it was not asked. outputs: None where no teacher was asked. train, held_out: numbers
    of examples. num_replayed: how many of `train` are of earlier rounds.
    """

    examples: list[Example]
    places: list[int]
    answers: list[str]
    nats: list[float]
    train: list[int]
    held_out: list[int]
    outputs: TeacherOutputs | None
    num_unanswered: int
    num_replayed: int

    def teacher_rows(self, number: int, name: str) -> np.ndarray:
        """(L, C): an example's `queries`, `visual`, `answer` or `logits`, float32."""
        assert self.outputs is not None
        return self.outputs.rows(self.examples[number].shard, self.places[number], name)


def build_dataset(
    shards: Iterable[Shard],
    teacher: LoadedModel | None,
    student: LoadedModel,
    settings: DistillSettings,
    *,
    earlier: Iterable[Shard] = (),
) -> Dataset:
    """Read the stream, ask the teacher, and hold some frames out.

    Questions that the teacher answers with nothing are left out, and counted.

    Args:
        teacher: None: its labels are in `settings.cache`, or the method needs none.
        earlier: shards of earlier rounds, of which `settings.replay_share` is trained on again.
    Raises: BadData for an empty stream, a shard of another vision tower, a stream of held-out
        frames alone, a teacher that answers with nothing, and shards of which the cache has no
        entry.
    """
    fresh = _with_questions(shards, student)
    if not fresh:
        raise BadData("the token stream has no questions: there is nothing to learn")
    is_training = settings.method != "none"
    if is_training and all(is_held_out(shard.frame, settings.holdout) for shard in fresh):
        raise BadData(
            f"every frame of the stream ({len({shard.frame for shard in fresh})}) is held out "
            f"(`holdout` {settings.holdout:.0%}): there is nothing to learn: send more frames"
        )
    replayed = _replayed(_with_questions(earlier, student), fresh, settings)
    asked = [*fresh, *replayed]
    if not settings.needs_teacher:  # a teacher that is named all the same judges, and no more
        asked = [shard for shard in fresh if is_held_out(shard.frame, settings.holdout)]
    outputs = teacher_outputs(asked, teacher, settings)
    answers: dict[tuple[int, int], tuple[str, float]] = {}
    if outputs is not None:
        for shard in asked:
            entry = outputs.of(shard)
            for place, answer in enumerate(zip(entry.answers, entry.nats, strict=True)):
                answers[id(shard), place] = answer
    questions = [
        (shard, place)
        for shard in [*fresh, *replayed]
        for place in range(len(shard.questions))
        if answers.get((id(shard), place), ("unasked", 0.0))[0]
    ]
    num_unanswered = sum(not answer for answer, _ in answers.values())
    if answers and num_unanswered == len(answers):
        raise BadData(
            f"the teacher answered with nothing to all {len(answers)} questions: is it the right "
            "checkpoint, and does its prompt fit?"
        )
    is_held = [is_held_out(shard.frame, settings.holdout) for shard, _ in questions]
    if is_training and all(is_held):
        raise BadData(
            f"the teacher answered with nothing to {num_unanswered} questions, which leaves none "
            f"to learn from (the other {len(questions)} are of held-out frames): is it the right "
            "checkpoint?"
        )
    found = [answers.get((id(shard), place), ("", 0.0)) for shard, place in questions]
    again = {id(shard) for shard in replayed}
    return Dataset(
        examples=[Example(shard, shard.questions[place]) for shard, place in questions],
        places=[place for _, place in questions],
        answers=[answer for answer, _ in found],
        nats=[nats for _, nats in found],
        train=[number for number, held in enumerate(is_held) if not held],
        held_out=[] if outputs is None else [n for n, held in enumerate(is_held) if held],
        outputs=outputs,
        num_unanswered=num_unanswered,
        num_replayed=sum(id(shard) in again for shard, _ in questions),
    )


def _with_questions(shards: Iterable[Shard], student: LoadedModel) -> list[Shard]:
    """Those that question something, each checked as it comes."""
    kept = []
    for shard in shards:
        check_fit(shard, student, "student")
        if shard.questions:
            kept.append(shard)
    return kept


# ---------------------------------------------------------------- the split and replay


def is_held_out(frame: str, share: float) -> bool:
    """Whether a frame judges, and is never trained on: its id hashes below the share."""
    place = (
        int.from_bytes(hashlib.sha256(frame.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    )
    return place < share


def _replayed(earlier: list[Shard], fresh: list[Shard], settings: DistillSettings) -> list[Shard]:
    """The shards of earlier rounds that are trained on again.

    All shards of a share of the frames that are neither in the stream nor held out, drawn by their
    content: the same in another order.
    """
    frames = {shard.frame for shard in fresh}
    ranks: dict[str, bytes] = {}
    for shard in earlier:
        if shard.frame not in frames and not is_held_out(shard.frame, settings.holdout):
            rank = hashlib.sha256(f"{settings.seed} {key_of(shard)}".encode()).digest()
            ranks[shard.frame] = min(rank, ranks.get(shard.frame, rank))
    count = round(settings.replay_share * len(ranks))
    chosen = set(sorted(ranks, key=lambda frame: ranks[frame])[:count])
    others = {shard.frame for shard in earlier}
    if others and not chosen:
        streams.message(
            f"`replay`: none of its {len(others)} frames is trained on again: "
            f"{len(others & frames)} are in this stream too, of the others "
            f"{settings.replay_share:.0%} are taken, and no held-out one"
        )
    return [shard for shard in earlier if shard.frame in chosen]


# ---------------------------------------------------------------- draws and batches


class Purpose(IntEnum):
    """What numbers are drawn for: two purposes never have the same ones."""

    ORDER = 0
    """The order of an epoch's examples."""
    INTERVAL = 1
    """The resamples of a bootstrap."""
    VIEWS = 2
    """CoTTA's views of a part of a batch."""
    RESTORE = 3
    """The parameters that CoTTA puts back after a step."""


def draws(seed: int, purpose: Purpose, number: int = 0) -> np.random.Generator:
    """Philox-4x64 keyed by the seed modulo 2^64 and by purpose and number (below 2^56)."""
    # As uint64: of a list that holds 2^63 and more numpy makes floats, and many seeds would be one.
    key = np.array([seed & MASK, (purpose << 56) + number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Batches of example numbers for one epoch: little padding, another order each time.

    Examples are shuffled, cut into pools of 16 batches, sorted by length within a pool, and the
    batches shuffled. All of it depends on seed and epoch alone.
    """
    source = draws(seed, Purpose.ORDER, epoch)
    order = source.permutation(len(lengths))
    batches: list[list[int]] = []
    pool = 16 * batch_size
    for start in range(0, len(order), pool):
        ranked = sorted(order[start : start + pool].tolist(), key=lambda number: lengths[number])
        batches += [ranked[at : at + batch_size] for at in range(0, len(ranked), batch_size)]
    for number in source.permutation(len(batches)):
        yield batches[number]
