"""What the teacher says of each shard: answers, queries and representation, computed once.

The pseudo-label of an ask is the teacher's free answer (greedy). If the ask has choices and the
free answer is none of them, it is the choice that the teacher finds likeliest: the choices are part
of the question, and knowing them makes the teacher better. (No label of the target domain is used.)

Everything it says is written to a file of lessons (`formats.lessons`) and read from there, in the
first run too: with a file of its own a second run, another method or another seed asks nothing, and
gets the same numbers. Shards are asked in chunks that the stream and the batch size decide. A chunk
of which a lesson is missing is computed as a whole, so a run that was killed ends with the same
bits. What is asked together is padded together, which moves a lesson's last bits: the same digest
twice takes the same lessons, or ones that were asked for in the same way.

Several processes take the chunks by turns, each with a file of its own beside the common one, and
the first of them joins these. What a launch that was killed has left is joined by the next.

Shapes: B examples of a batch, L query tokens, A answer tokens, C and D the teacher's channels.
Does not train, and never sees an image.
"""

import fcntl
import glob
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cdcca_cli import progress
from cdcca_cli.distillation import losses, processes
from cdcca_cli.distillation.batches import Example, check_fit, look_at, prepare
from cdcca_cli.errors import BadData
from cdcca_cli.formats import lessons
from cdcca_cli.formats.lessons import Head, Lesson, LessonFile
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.settings import MAX_NEW_TOKENS

USUAL_BITS = 16
"""How a new file of lessons keeps numbers, where nothing is said."""


@dataclass(frozen=True)
class Asking:
    """How a teacher is asked.

    batch_size: asks answered at once, at least; a frame's asks stay together. logits: whether the
    distributions of the answers are kept, too. bits: how lessons are stored (32, 16 or 8); None: as
    the file has them, and 16 in a new one.
    """

    batch_size: int
    logits: bool = False
    bits: int | None = None


def ask(
    teacher: LoadedModel, shards: Sequence[Shard], asking: Asking, path: Path | None
) -> LessonFile:
    """Make sure that there is a lesson for every shard; returns the file that has them.

    Args: path: the file of lessons, made if there is none; None: a temporary one.
    Raises: BadData for a shard of another vision tower, for outputs that are not finite, and for
        lessons of another teacher, or kept otherwise; CannotWrite.
    """
    for shard in shards:
        check_fit(shard, teacher, "teacher")
    dtype = str(teacher.dtype).removeprefix("torch.")
    head = Head(teacher.digest, teacher.vocabulary_digest, dtype, asking.bits or USUAL_BITS)
    chunks = list(_chunks(shards, asking.batch_size))
    if processes.count() > 1:
        assert path is not None
        return _together(teacher, chunks, asking, path, head)
    if path is not None and (file := _complete(path, head, shards, asking)) is not None:
        return file
    with lessons.writing(path, head) as file:
        _check_bits(file, asking)
        for chunk in progress.track(chunks, description="teacher"):
            _fill(teacher, chunk, asking, file, file)
    return file


def _complete(path: Path, head: Head, shards: Sequence[Shard], asking: Asking) -> LessonFile | None:
    """A file that need not be written to, as it has everything: it may be read-only."""
    if os.access(path, os.W_OK) or not os.access(path, os.R_OK):
        return None
    file = lessons.open_lessons(path)
    lessons.expect(file.head, head, str(path))
    _check_bits(file, asking)
    has_all = all(file.has(lessons.key_of(shard), logits=asking.logits) for shard in shards)
    return file if has_all else None


def _check_bits(file: LessonFile, asking: Asking) -> None:
    assert file.head is not None
    if asking.bits not in (None, file.head.bits):
        raise BadData(
            f"{file.where}: keeps {file.head.bits} bits a number: leave --cache-bits "
            f"{asking.bits} out, or name another --cache"
        )


def _together(
    teacher: LoadedModel, chunks: list[list[Shard]], asking: Asking, path: Path, head: Head
) -> LessonFile:
    """The same by all processes, each its share of the chunks."""
    launch = torch.tensor(secrets.randbelow(2**31), device=teacher.device)
    processes.share(launch)
    if processes.is_first():
        with lessons.writing(path, head) as file:
            _join(file, path.parent.glob(f"{glob.escape(path.name)}.part-*"))
    processes.wait()
    have = lessons.open_lessons(path)
    _check_bits(have, asking)
    assert have.head is not None
    part = Path(f"{path}.part-{int(launch):x}-{processes.rank()}")
    with lessons.writing(part, have.head) as own:
        mine = chunks[processes.rank() :: processes.count()]
        for chunk in progress.track(mine, description="teacher"):
            _fill(teacher, chunk, asking, have, own)
    processes.wait()
    if processes.is_first():
        with lessons.writing(path, head) as file:
            _join(file, path.parent.glob(f"{glob.escape(path.name)}.part-{int(launch):x}-*"))
    processes.wait()
    return lessons.open_lessons(path)


def _join(file: LessonFile, parts: Iterable[Path]) -> None:
    """Add what processes have left in files of their own, and remove these.

    One that is still written to, by another launch, stays.
    """
    for part in sorted(parts):
        try:
            source = open(part, "rb")  # noqa: SIM115 -- mapped as long as it is read
            fcntl.flock(source, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            continue
        with source:
            with suppress(BadData):  # its writer was killed before the first lesson
                made = LessonFile(source, str(part))
                if made.head == file.head:
                    for key in made.places:
                        file.append_record(made.raw(key))
            with suppress(OSError):
                os.unlink(part)


def _chunks(shards: Iterable[Shard], batch_size: int) -> Iterator[list[Shard]]:
    chunk: list[Shard] = []
    for shard in shards:
        chunk.append(shard)
        if sum(len(kept.asks) for kept in chunk) >= batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _fill(
    teacher: LoadedModel, chunk: list[Shard], asking: Asking, have: LessonFile, file: LessonFile
) -> None:
    """Compute a chunk unless `have` has all of it; what it lacks is added to `file`."""
    keys = [lessons.key_of(shard) for shard in chunk]
    missing = [not have.has(key, logits=asking.logits) for key in keys]
    if any(missing):
        for key, lesson, is_new in zip(
            keys, _compute(teacher, chunk, asking), missing, strict=True
        ):
            if is_new:
                file.append(key, lesson)


@dataclass(eq=False)
class _Said:
    """What the teacher says of one ask. queries are those of the ask's input."""

    answer: str
    nats: float
    input: str
    queries: np.ndarray
    visual: np.ndarray
    answer_rows: np.ndarray | None
    logits: np.ndarray | None


@torch.no_grad()
def _compute(teacher: LoadedModel, chunk: Sequence[Shard], asking: Asking) -> list[Lesson]:
    """Examples of one task share a batch, so that no answer waits for a caption."""
    examples = [Example(shard, ask) for shard in chunk for ask in shard.asks]
    said: dict[int, _Said] = {}
    for task, most in MAX_NEW_TOKENS.items():
        places = [place for place, example in enumerate(examples) if example.ask.task == task]
        if places:
            batch = [examples[place] for place in places]
            said.update(zip(places, _compute_batch(teacher, batch, most, asking), strict=True))
    rows = iter(said[place] for place in range(len(examples)))
    return [_lesson([next(rows) for _ in shard.asks]) for shard in chunk]


def _lesson(said: list[_Said]) -> Lesson:
    """Asks of one shard: queries of one input are kept once."""
    inputs: dict[str, int] = {}
    queries: list[np.ndarray] = []
    for one in said:
        if one.input not in inputs:
            inputs[one.input] = len(queries)
            queries.append(one.queries)
    answer = [one.answer_rows for one in said if one.answer_rows is not None]
    logits = [one.logits for one in said if one.logits is not None]
    return Lesson(
        answers=[one.answer for one in said],
        nats=[one.nats for one in said],
        inputs=[inputs[one.input] for one in said],
        queries=queries,
        visual=[one.visual for one in said],
        answer=answer or None,
        logits=logits or None,
    )


def _compute_batch(
    teacher: LoadedModel, examples: Sequence[Example], max_new_tokens: int, asking: Asking
) -> list[_Said]:
    batch = prepare(teacher, examples)
    seen = look_at(teacher, batch)
    answers = _answers(teacher, examples, seen.spliced, max_new_tokens)
    answer_BA = teacher.answer_ids(answers)
    forward = teacher.forward(seen.spliced, answer_BA)
    nats_B = losses.answer_cross_entropy(forward.logits, answer_BA).tolist()
    counts = forward.hidden_mask.sum(1).tolist()
    lengths = (answer_BA != losses.IGNORED).sum(1).tolist()
    queries_BLC = seen.queries.float().cpu().numpy()
    visual_BLD = forward.hidden.float().cpu().numpy()
    rows_BAD = None
    if forward.answer_hidden is not None:
        rows_BAD = forward.answer_hidden.float().cpu().numpy()
    logits_BAV = forward.logits.float().cpu().numpy() if asking.logits else None
    made = (queries_BLC, visual_BLD, rows_BAD, logits_BAV)
    if not all(values is None or np.isfinite(values).all() for values in made):
        raise BadData(
            f"frame {examples[0].shard.frame[:80]} or one soon after: the teacher's outputs are "
            "not finite: try --dtype float32"
        )
    return [
        _Said(
            answer=answer,
            nats=max(nats_B[b], 0.0),
            input=batch.inputs[row] if teacher.reads_prompt else "",
            queries=queries_BLC[b, : counts[b]],
            visual=visual_BLD[b, : counts[b]],
            answer_rows=None if rows_BAD is None else rows_BAD[b, : lengths[b]],
            logits=None if logits_BAV is None else logits_BAV[b, : lengths[b]],
        )
        for b, (answer, row) in enumerate(zip(answers, batch.rows_B.tolist(), strict=True))
    ]


def _answers(
    teacher: LoadedModel, examples: Sequence[Example], spliced: object, max_new_tokens: int
) -> list[str]:
    """Free answers, and for asks with choices of which they are none, the likeliest choice."""
    generated = teacher.generate(spliced, max_new_tokens)  # type: ignore[arg-type]
    free = [teacher.decode(ids) for ids in generated.ids]
    asked = [
        (example.ask.choices or []) if not is_a_choice(answer, example.ask.choices) else []
        for answer, example in zip(free, examples, strict=True)
    ]
    if not any(asked):
        return free
    scores = teacher.score_choices(spliced, asked)  # type: ignore[arg-type]
    return [
        choices[int(np.argmax(row))] if choices else answer
        for answer, choices, row in zip(free, asked, scores, strict=True)
    ]


def is_a_choice(answer: str, choices: Sequence[str] | None) -> bool:
    """Whether an answer is one of the choices, but for case and blanks around it."""
    return choices is not None and answer.strip().casefold() in {
        choice.strip().casefold() for choice in choices
    }
