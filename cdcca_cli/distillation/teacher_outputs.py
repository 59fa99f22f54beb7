"""What the teacher says of each shard: asked once, kept in a file, read from there.

Everything the teacher says is written to a file of labels (`formats.labels`) and read from there,
in the first run too: with a file of its own a second run, another method or another seed questions
nothing, and gets the same numbers. Shards are asked in chunks that the stream and the batch size
decide. A chunk of which an entry is missing is computed as a whole, so a run that was killed ends
with the same bits. What is asked together is padded together, which moves an entry's last bits.

The pseudo-label of a question is the teacher's free answer (greedy). If the question has choices
and the free answer is none of them, it is the choice that the teacher finds likeliest: the choices
are part of the question. (No label of the target domain is used.)

Several processes take the chunks by turns, each with a file of its own beside the common one, and
the first of them joins these. What a killed launch has left is joined by the next.

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

from cdcca_cli import progress, streams
from cdcca_cli.distillation import distributed
from cdcca_cli.distillation.encoding import Example, batch_inputs, check_fit, encode_inputs
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import labels
from cdcca_cli.formats.labels import Head, LabelEntry, LabelFile, key_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, Spliced
from cdcca_cli.models.settings import MAX_NEW_TOKENS

USUAL_BITS = 16
"""Bits a number in a new file of labels."""
TEACHER_BATCHES = 4
"""The teacher needs no gradients: it takes so many times the student's batch at once."""
KEPT_BYTES = 1 << 30
"""Decoded labels that are kept in memory; the others are decoded again when they come up."""


@dataclass(frozen=True)
class TeacherQuery:
    """How a teacher is asked.

    batch_size: questions answered at once, at least; a frame's questions stay together. logits:
    whether the distributions of the answers are kept too. bits: how labels are stored (32, 16 or
    8); None: as the file has them, and 16 in a new one. path: the file of labels, made if there is
    none; None: a temporary one.
    """

    batch_size: int
    logits: bool = False
    bits: int | None = None
    path: Path | None = None


class TeacherOutputs:
    """What a teacher says of shards."""

    def __init__(self, file: LabelFile, shards: Sequence[Shard]) -> None:
        """Args: shards: of which the file has an entry each."""
        self.head = file.head
        self._file = file
        self._keys = {id(shard): key_of(shard) for shard in shards}
        self._kept: dict[str, LabelEntry] = {}
        self._kept_bytes = 0
        self._widths: dict[str, int] = {}

    def of(self, shard: Shard) -> LabelEntry:
        """Everything about one shard. BadData if it cannot be of this shard, or of one teacher."""
        key = self._keys[id(shard)]
        entry = self._kept.get(key)
        if entry is None:
            entry = self._file.read(key)
            self._check(entry, shard)
            num_bytes = _num_bytes(entry)
            if self._kept_bytes + num_bytes <= KEPT_BYTES:
                self._kept_bytes += num_bytes
                self._kept[key] = entry
        return entry

    def rows(self, shard: Shard, place: int, name: str) -> np.ndarray:
        """(L, C) float32: `queries`, `visual`, `answer` or `logits` of one question of a shard.

        Raises: BadData if the entry has none.
        """
        entry = self.of(shard)
        if name == "queries":
            return entry.queries[entry.inputs[place]]
        arrays: list[np.ndarray] | None = getattr(entry, name)
        if arrays is None:
            raise BadData(
                f"frame {shard.frame[:80]}: the teacher's labels have no {name}: name the "
                "teacher itself, and another `cache`"
            )
        return arrays[place]

    def _check(self, entry: LabelEntry, shard: Shard) -> None:
        """As many answers as questions, and numbers as wide as those of the first entry read."""
        widths = {
            name: arrays[0].shape[1]
            for name, arrays in vars(entry).items()
            if arrays and name in labels.TENSORS
        }
        first = {name: self._widths.setdefault(name, width) for name, width in widths.items()}
        if len(entry.answers) != len(shard.questions) or widths != first:
            raise BadData(
                f"frame {shard.frame[:80]}: its entry has {len(entry.answers)} answers, of rows "
                f"{widths} wide; expected {len(shard.questions)} of {first}: name another `cache`"
            )


def _num_bytes(entry: LabelEntry) -> int:
    lists = (entry.queries, entry.visual, entry.answer or [], entry.logits or [])
    return sum(array.nbytes for arrays in lists for array in arrays)


def teacher_outputs(
    shards: Sequence[Shard], teacher: LoadedModel | None, settings: DistillSettings
) -> TeacherOutputs | None:
    """What the teacher says of these shards, from the cache or asked for now.

    Returns: None where there are no shards, and where a method that needs no teacher has none.
    Raises: BadData for a cache that lacks an entry that the method needs, and what `question`
    raises.
    """
    if not shards:
        return None
    logits = settings.kl != "none"
    if teacher is not None:
        path = settings.cache
        if path is None and settings.work is not None:
            path = settings.work / f"{teacher.digest.removeprefix('sha256:')[:16]}.labels"
        size = TEACHER_BATCHES * settings.batch_size
        query = TeacherQuery(size, logits, settings.cache_bits, path)
        return TeacherOutputs(query_teacher(teacher, shards, query), shards)
    cache = settings.cache
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
            f"{cache}: has no entry of held-out frame {lacking.frame[:80]}: the held-out part is "
            "not judged"
        )
        return None
    of = " with logits" if logits and key_of(lacking) in file else ""
    raise BadData(
        f"{cache}: has no entry{of} of frame {lacking.frame[:80]} as it was sampled: name the "
        "teacher, and this file as its `cache`"
    )


# ---------------------------------------------------------------- asking


def query_teacher(teacher: LoadedModel, shards: Sequence[Shard], query: TeacherQuery) -> LabelFile:
    """Make sure that there is an entry for every shard; returns the file that has them.

    Raises: BadData for a shard of another vision tower, for outputs that are not finite, and for
        labels of another teacher, or kept otherwise; CannotWrite.
    """
    for shard in shards:
        check_fit(shard, teacher, "teacher")
    dtype = str(teacher.dtype).removeprefix("torch.")
    head = Head(teacher.digest, teacher.vocabulary_digest, dtype, query.bits or USUAL_BITS)
    chunks = list(_chunks(shards, query.batch_size))
    if distributed.count() > 1:
        return _question_together(teacher, chunks, query, head)
    if (complete := _complete(head, shards, query)) is not None:
        return complete
    with labels.writing(query.path, head) as file:
        _check_bits(file, query)
        for chunk in progress.track(chunks, description="teacher"):
            _fill(teacher, chunk, query, file, file)
    return file


def _complete(head: Head, shards: Sequence[Shard], query: TeacherQuery) -> LabelFile | None:
    """A read-only file that has everything; None for any other."""
    path = query.path
    if path is None or os.access(path, os.W_OK) or not os.access(path, os.R_OK):
        return None
    file = labels.open_labels(path)
    labels.expect(file.head, head, str(path))
    _check_bits(file, query)
    has_all = all(file.has(key_of(shard), logits=query.logits) for shard in shards)
    return file if has_all else None


def _check_bits(file: LabelFile, query: TeacherQuery) -> None:
    if query.bits not in (None, file.head.bits):
        raise BadData(
            f"{file.where}: keeps {file.head.bits} bits a number: leave `cache_bits` {query.bits} "
            "out, or name another `cache`"
        )


def _question_together(
    teacher: LoadedModel, chunks: list[list[Shard]], query: TeacherQuery, head: Head
) -> LabelFile:
    """The same by all processes, each its share of the chunks."""
    path = query.path
    assert path is not None
    launch = torch.tensor(secrets.randbelow(2**31), device=teacher.device)
    distributed.broadcast(launch)
    if distributed.is_first():
        with labels.writing(path, head) as file:
            join(file, path.parent.glob(f"{glob.escape(path.name)}.part-*"))
    distributed.wait()
    have = labels.open_labels(path)
    _check_bits(have, query)
    part = Path(f"{path}.part-{int(launch):x}-{distributed.rank()}")
    with labels.writing(part, have.head) as own:
        mine = chunks[distributed.rank() :: distributed.count()]
        for chunk in progress.track(mine, description="teacher"):
            _fill(teacher, chunk, query, have, own)
    distributed.wait()
    if distributed.is_first():
        with labels.writing(path, head) as file:
            join(file, path.parent.glob(f"{glob.escape(path.name)}.part-{int(launch):x}-*"))
    distributed.wait()
    return labels.open_labels(path)


def join(file: LabelFile, parts: Iterable[Path]) -> None:
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
            with suppress(BadData):  # its writer was killed before the first entry
                made = LabelFile(source, str(part))
                if made.head == file.head:
                    for key in made.places:
                        file.copy(key, made)
            with suppress(OSError):
                os.unlink(part)


def _chunks(shards: Iterable[Shard], batch_size: int) -> Iterator[list[Shard]]:
    chunk: list[Shard] = []
    for shard in shards:
        chunk.append(shard)
        if sum(len(kept.questions) for kept in chunk) >= batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _fill(
    teacher: LoadedModel,
    chunk: list[Shard],
    query: TeacherQuery,
    have: LabelFile,
    file: LabelFile,
) -> None:
    """Compute a chunk unless `have` has all of it; what it lacks is added to `file`."""
    keys = [key_of(shard) for shard in chunk]
    missing = [not have.has(key, logits=query.logits) for key in keys]
    if any(missing):
        for key, entry, is_new in zip(keys, _compute(teacher, chunk, query), missing, strict=True):
            if is_new:
                file.append(key, entry)


@torch.no_grad()
def _compute(teacher: LoadedModel, chunk: Sequence[Shard], query: TeacherQuery) -> list[LabelEntry]:
    """Examples of one task share a batch, so that no answer waits for a caption."""
    examples = [Example(shard, question) for shard in chunk for question in shard.questions]
    outputs: dict[int, tuple[str, LabelEntry]] = {}
    for task, most in MAX_NEW_TOKENS.items():
        places = [place for place, example in enumerate(examples) if example.question.task == task]
        if places:
            batch = [examples[place] for place in places]
            outputs.update(zip(places, _compute_batch(teacher, batch, most, query), strict=True))
    rows = iter(outputs[place] for place in range(len(examples)))
    return [_joined([next(rows) for _ in shard.questions]) for shard in chunk]


def _joined(outputs: list[tuple[str, LabelEntry]]) -> LabelEntry:
    """One entry of a shard's questions, each with its input; queries of an input are kept once."""
    of_input = {key: one.queries[0] for key, one in reversed(outputs)}
    keys = list(dict.fromkeys(key for key, _ in outputs))
    each = [one for _, one in outputs]
    return LabelEntry(
        answers=[one.answers[0] for one in each],
        nats=[one.nats[0] for one in each],
        inputs=[keys.index(key) for key, _ in outputs],
        queries=[of_input[key] for key in keys],
        visual=[one.visual[0] for one in each],
        answer=[one.answer[0] for one in each if one.answer] or None,
        logits=[one.logits[0] for one in each if one.logits] or None,
    )


def _compute_batch(
    teacher: LoadedModel, examples: Sequence[Example], max_new_tokens: int, query: TeacherQuery
) -> list[tuple[str, LabelEntry]]:
    """For each example its input and an entry of this question alone."""
    batch = batch_inputs(teacher, examples)
    encoded = encode_inputs(teacher, batch)
    answers = _answers(teacher, examples, encoded.spliced, max_new_tokens)
    answer_BA = teacher.answer_ids(answers)
    forward = teacher.forward(encoded.spliced, answer_BA)
    nats_B = answer_cross_entropy(forward.logits, answer_BA).tolist()
    counts = forward.hidden_mask.sum(1).tolist()
    lengths = (answer_BA != IGNORED).sum(1).tolist()
    queries_BLC, visual_BLD = _array(encoded.queries), _array(forward.hidden)
    rows_BAD = _array(forward.answer_hidden)
    logits_BAV = _array(forward.logits if query.logits else None)
    for values in (queries_BLC, visual_BLD, rows_BAD, logits_BAV):
        if values is not None and not np.isfinite(values).all():
            raise BadData(
                f"frame {examples[0].shard.frame[:80]} or one soon after: the teacher's outputs "
                "are not finite: try `dtype` float32"
            )
    assert queries_BLC is not None and visual_BLD is not None
    return [
        (
            batch.inputs[row] if teacher.reads_prompt else "",
            LabelEntry(
                answers=[answers[b]],
                nats=[max(nats_B[b], 0.0)],
                inputs=[0],
                queries=[queries_BLC[b, : counts[b]]],
                visual=[visual_BLD[b, : counts[b]]],
                answer=None if rows_BAD is None else [rows_BAD[b, : lengths[b]]],
                logits=None if logits_BAV is None else [logits_BAV[b, : lengths[b]]],
            ),
        )
        for b, row in enumerate(batch.rows_B.tolist())
    ]


def _array(values: torch.Tensor | None) -> np.ndarray | None:
    return None if values is None else values.float().cpu().numpy()


def _answers(
    teacher: LoadedModel, examples: Sequence[Example], spliced: Spliced, max_new_tokens: int
) -> list[str]:
    """Free answers; where a question has choices and they are none of them, the likeliest."""
    generated = teacher.generate(spliced, max_new_tokens)
    free = [teacher.decode(ids) for ids in generated.ids]
    unmatched = [
        (example.question.choices or [])
        if not is_a_choice(answer, example.question.choices)
        else []
        for answer, example in zip(free, examples, strict=True)
    ]
    if not any(unmatched):
        return free
    scores = teacher.score_choices(spliced, unmatched)
    return [
        choices[int(np.argmax(row))] if choices else answer
        for answer, choices, row in zip(free, unmatched, scores, strict=True)
    ]


def is_a_choice(answer: str, choices: Sequence[str] | None) -> bool:
    """Whether an answer is one of the choices, but for case and blanks around it."""
    return choices is not None and answer.strip().casefold() in {
        choice.strip().casefold() for choice in choices
    }
