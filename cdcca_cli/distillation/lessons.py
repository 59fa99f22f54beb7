"""What there is to learn: the asks of a stream, the teacher's targets, and the held-out part.

Everything is kept in memory: training goes over it several times, in another order each time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cdcca_cli import progress
from cdcca_cli.distillation.batches import Example, check_fit, held_out_frames
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.teacher import Target, teach
from cdcca_cli.errors import BadData
from cdcca_cli.families import LoadedModel
from cdcca_cli.formats.shard import Shard

TEACHER_BATCHES = 4
"""The teacher needs no gradients: it takes so many times the student's batch at once."""


@dataclass(eq=False)
class Lessons:
    """Examples with their targets, and which of them are for what."""

    examples: list[Example]
    targets: list[Target]
    train: list[int]
    held_out: list[int]
    num_unanswered: int


def gather(
    shards: Iterable[Shard],
    teacher: LoadedModel,
    student: LoadedModel,
    settings: DistillSettings,
) -> Lessons:
    """Read the stream, ask the teacher, and set some frames apart.

    Asks that the teacher answers with nothing are left out, and counted.

    Raises: BadData for an empty stream, a shard of another vision tower, a silent teacher.
    """

    def fitting() -> Iterable[Shard]:
        for shard in shards:
            check_fit(shard, student, "student")
            yield shard

    taught = teach(teacher, fitting(), TEACHER_BATCHES * settings.batch_size, settings.work)
    pairs = list(progress.track(taught, description="teacher"))
    if not pairs:
        raise BadData("the token stream asks nothing (no shards in it): there is nothing to learn")
    answered = [(example, target) for example, target in pairs if target.answer]
    if not answered:
        raise BadData(
            f"the teacher answered with nothing to all {len(pairs)} asks: is it the right "
            "checkpoint, and does its prompt fit?"
        )
    examples = [example for example, _ in answered]
    frames = [example.shard.frame for example in examples]
    kept_back = held_out_frames(frames, settings.holdout)
    return Lessons(
        examples=examples,
        targets=[target for _, target in answered],
        train=[number for number, frame in enumerate(frames) if frame not in kept_back],
        held_out=[number for number, frame in enumerate(frames) if frame in kept_back],
        num_unanswered=len(pairs) - len(answered),
    )
