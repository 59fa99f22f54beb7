"""A teacher's outputs for token shards: computed once, kept in a file, read from there.

Every run, the first included, reads the outputs from a file of labels (`formats.labels`), so a
later run with another method or seed needs no teacher and gets the same numbers. Padding changes
the last bits of an output, so a chunk that lacks one of its entries is computed as a whole: a run
that was killed and started again ends with the same bits.

The pseudo-label of a question is the teacher's greedy free answer or, if that is none of the
question's choices, the choice that the teacher finds likeliest. No label of the target domain is
used.

A teacher with another vision tower than the student's looks at the pictures that were sent.

Several processes compute the chunks in turns; the first of them writes the file.

Shapes: B examples of a batch, L query tokens, A answer tokens, C and D the teacher's channels.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from cdcca_cli import progress, streams
from cdcca_cli.distillation import distributed
from cdcca_cli.distillation.encoding import Example, check_fit, encode
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import labels
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.labels import Head, LabelEntry, LabelFile, key_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, Spliced
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.payloads.opening import Opener

USUAL_BITS = 16
"""Bits a number in a new file of labels."""
TEACHER_BATCHES = 4
"""Batches of the student in one of the teacher, which needs no gradients."""
KEPT_BYTES = 1 << 30
"""Decoded labels that are kept in memory; the others are decoded again at each use."""


class TeacherOutputs:
    """A teacher's outputs for shards, read from a file of labels that has an entry for each."""

    def __init__(self, file: LabelFile, shards: Sequence[Shard]) -> None:
        assert file.head is not None
        self.head = file.head
        self._file = file
        self._keys = {id(shard): key_of(shard) for shard in shards}
        self._kept: dict[str, LabelEntry] = {}
        self._kept_bytes = 0
        self._widths: dict[str, int] = {}

    def of(self, shard: Shard) -> LabelEntry:
        """The entry of a shard. Raises: BadData for an entry of another shard or teacher."""
        key = self._keys[id(shard)]
        if key in self._kept:
            return self._kept[key]
        entry = self._file.read(key)
        self._check(entry, shard)
        num_bytes = sum(array.nbytes for array in chain(*_tensors(entry).values()))
        if self._kept_bytes + num_bytes <= KEPT_BYTES:
            self._kept_bytes += num_bytes
            self._kept[key] = entry
        return entry

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
            name: arrays[0].shape[1] for name, arrays in _tensors(entry).items() if len(arrays)
        }
        first = {name: self._widths.setdefault(name, width) for name, width in widths.items()}
        if len(entry.answers) != len(shard.questions) or widths != first:
            raise BadData(
                f"frame {shard.frame[:80]}: its entry has {len(entry.answers)} answers, of rows "
                f"{widths} wide; expected {len(shard.questions)} of {first}: name another `cache`"
            )


def _tensors(entry: LabelEntry) -> dict[str, list[np.ndarray]]:
    return {name: vars(entry)[name] for name in labels.TENSORS if vars(entry)[name] is not None}


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
    Raises: BadData for a shard of another vision tower, outputs that are not finite, and a file of
        another teacher or of other `cache_bits`; CannotWrite.
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
        entries = [
            _compute(teacher, [looking.open(shard) for shard in chunk], settings.needs_logits)
            for chunk in mine
        ]
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


@dataclass(frozen=True)
class _Output:
    """One question. input: the prompt if the connector reads it, else "". rows: (L, C) by name."""

    input: str
    answer: str
    nats: float
    rows: dict[str, np.ndarray]


@torch.no_grad()
def _compute(teacher: LoadedModel, chunk: Sequence[Shard], logits: bool) -> list[LabelEntry]:
    """Examples of one task share a batch, so that no answer waits for a caption."""
    examples = [Example(shard, question) for shard in chunk for question in shard.questions]
    outputs: dict[int, _Output] = {}
    for task, most in MAX_NEW_TOKENS.items():
        places = [place for place, example in enumerate(examples) if example.question.task == task]
        if places:
            batch = [examples[place] for place in places]
            outputs.update(zip(places, _compute_batch(teacher, batch, most, logits), strict=True))
    rows = iter(outputs[place] for place in range(len(examples)))
    return [_entry([next(rows) for _ in shard.questions]) for shard in chunk]


def _entry(outputs: list[_Output]) -> LabelEntry:
    """The entry of a shard's questions; the queries of an input are kept once."""
    inputs = list(dict.fromkeys(one.input for one in outputs))
    firsts = {one.input: one for one in reversed(outputs)}
    return LabelEntry(
        answers=[one.answer for one in outputs],
        nats=[one.nats for one in outputs],
        inputs=[inputs.index(one.input) for one in outputs],
        queries=[firsts[key].rows["queries"] for key in inputs],
        **{
            name: [one.rows[name] for one in outputs]
            for name in outputs[0].rows
            if name != "queries"
        },
    )


def _compute_batch(
    teacher: LoadedModel, examples: Sequence[Example], max_new_tokens: int, logits: bool
) -> list[_Output]:
    encoded = encode(teacher, examples)
    answers = _answers(teacher, examples, encoded.spliced, max_new_tokens)
    answer_BA = teacher.answer_ids(answers)
    forward = teacher.forward(encoded.spliced, answer_BA)
    nats_B = answer_cross_entropy(forward.logits, answer_BA).tolist()
    visual_B = forward.hidden_mask.sum(1).tolist()
    lengths_B = (answer_BA != IGNORED).sum(1).tolist()
    tensors = {
        "queries": (encoded.queries, visual_B),
        "visual": (forward.hidden, visual_B),
        "answer": (forward.answer_hidden, lengths_B),
        "logits": (forward.logits if logits else None, lengths_B),
    }
    rows: dict[str, list[np.ndarray]] = {}
    for name, (values, counts_B) in tensors.items():
        if values is None:
            continue
        array = values.float().cpu().numpy()
        if not np.isfinite(array).all():
            raise BadData(
                f"frame {examples[0].shard.frame[:80]} or one soon after: the teacher's outputs "
                "are not finite: try `dtype` float32"
            )
        rows[name] = [array[b, :count] for b, count in enumerate(counts_B)]
    return [
        _Output(
            input=prompt if teacher.reads_prompt else "",
            answer=answers[b],
            nats=max(nats_B[b], 0.0),
            rows={name: of_examples[b] for name, of_examples in rows.items()},
        )
        for b, prompt in enumerate(encoded.prompts)
    ]


def _answers(
    teacher: LoadedModel, examples: Sequence[Example], spliced: Spliced, max_new_tokens: int
) -> list[str]:
    """Free answers; the likeliest choice where a question has choices and the answer is none."""
    generated = teacher.generate(spliced, max_new_tokens)
    free = [teacher.decode(ids) for ids in generated.ids]
    unmatched = []
    for answer, example in zip(free, examples, strict=True):
        choices = example.question.choices or []
        unmatched.append([] if is_a_choice(answer, choices) else choices)
    if not any(unmatched):
        return free
    scores = teacher.score_choices(spliced, unmatched)
    return [
        choices[int(np.argmax(row))] if choices else answer
        for answer, choices, row in zip(free, unmatched, scores, strict=True)
    ]


def is_a_choice(answer: str, choices: Sequence[str]) -> bool:
    """Whether an answer is one of the choices, but for case and blanks around it."""
    return answer.strip().casefold() in {choice.strip().casefold() for choice in choices}
