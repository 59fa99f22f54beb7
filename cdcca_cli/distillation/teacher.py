"""What the teacher says of each shard: answers, queries and representation, computed once.

The pseudo-label of an ask is the teacher's free answer (greedy). If the ask has choices and the
free answer is none of them, it is the choice that the teacher finds likeliest: the choices are part
of the question, and knowing them makes the teacher better. (No label of the target domain is used.)

With a folder, outputs are also kept on disk, one file for each batch, written when it is complete:

    teacher-<16 hex digits of the key>.safetensors

a record (`formats.records`) of kind "teacher-outputs", version 1, header {"answers": list of
strings, "key", "kind", "lengths": list of L, "version"}, tensors `queries` (sum of L, C) and
`representation` (sum of L, D), F32. The key is a digest over the teacher's digest, the content of
the batch's shards and how the answers were made, so a file is either right or not found; a batch is
always computed as a whole, so an interrupted run ends with the same bits as an unbroken one.

Shapes: B examples of a batch, L query tokens, C and D the teacher's channels.
Does not train, and never sees an image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import streams
from cdcca_cli.distillation.batches import Example, check_fit, content_digest, look
from cdcca_cli.errors import BadData
from cdcca_cli.families import LoadedModel
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard

VERSION = 1
KINDS = {"teacher-outputs": VERSION}
LIMITS = records.Limits(record_bytes=1 << 34)
MAX_NEW_TOKENS = {"vqa": 16, "caption": 40}
"""The longest answer by task, in tokens."""


@dataclass(eq=False)
class Target:
    """What the student should come to: the teacher's outputs for one example.

    queries: (L, C) float32. representation: (L, D) float32, on the CPU.
    """

    answer: str
    queries: Tensor
    representation: Tensor


def teach(
    teacher: LoadedModel, shards: Iterable[Shard], batch_size: int, work: Path | None = None
) -> Iterator[tuple[Example, Target]]:
    """The teacher's outputs for every ask of the shards, in their order.

    Args:
        batch_size: asks answered at once, at least; a frame's asks stay together.
        work: a folder where outputs are kept and looked for.
    Raises: BadData for a shard of another vision tower, and for outputs that are not finite.
    """
    for chunk in _chunks(shards, batch_size):
        for shard in chunk:
            check_fit(shard, teacher, "teacher")
        examples = [Example(shard, ask) for shard in chunk for ask in shard.asks]
        if examples:
            yield from zip(examples, _targets(teacher, chunk, examples, work), strict=True)


def _chunks(shards: Iterable[Shard], batch_size: int) -> Iterator[list[Shard]]:
    chunk: list[Shard] = []
    for shard in shards:
        chunk.append(shard)
        if sum(len(kept.asks) for kept in chunk) >= batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _targets(
    teacher: LoadedModel, chunk: list[Shard], examples: list[Example], work: Path | None
) -> list[Target]:
    if work is None:
        return _compute(teacher, examples)
    key = _key(teacher, chunk)
    path = work / f"teacher-{key.removeprefix('sha256:')[:16]}.safetensors"
    kept = _read(path, key, len(examples))
    if kept is None:
        kept = _compute(teacher, examples)
        _write(path, key, kept)
    return kept


@torch.no_grad()
def _compute(teacher: LoadedModel, examples: Sequence[Example]) -> list[Target]:
    """Examples of one task share a batch, so that no answer waits for a caption."""
    targets: dict[int, Target] = {}
    for task, most in MAX_NEW_TOKENS.items():
        places = [place for place, example in enumerate(examples) if example.ask.task == task]
        if places:
            batch = [examples[place] for place in places]
            targets.update(zip(places, _compute_batch(teacher, batch, most), strict=True))
    return [targets[place] for place in range(len(examples))]


def _compute_batch(
    teacher: LoadedModel, examples: Sequence[Example], max_new_tokens: int
) -> list[Target]:
    seen = look(teacher, examples)
    generated = teacher.generate(seen.spliced, max_new_tokens)
    free = [teacher.decode(ids) for ids in generated.ids]
    asked = [
        (example.ask.choices or []) if not is_a_choice(answer, example.ask.choices) else []
        for answer, example in zip(free, examples, strict=True)
    ]
    scores = teacher.score_choices(seen.spliced, asked) if any(asked) else [[] for _ in asked]
    answers = [
        choices[int(np.argmax(row))] if choices else answer
        for answer, choices, row in zip(free, asked, scores, strict=True)
    ]
    forward = teacher.forward(seen.spliced, teacher.answer_ids(answers))
    counts = forward.hidden_mask.sum(1).tolist()
    queries_BLC = seen.queries.float().cpu()
    hidden_BLD = forward.hidden.float().cpu()
    if not (queries_BLC.isfinite().all() and hidden_BLD.isfinite().all()):
        raise BadData(
            f"frame {examples[0].shard.frame[:80]} or one soon after: the teacher's outputs are "
            "not finite: try --dtype float32"
        )
    return [
        Target(answer, queries_LC[:count], hidden_LD[:count])
        for answer, queries_LC, hidden_LD, count in zip(
            answers, queries_BLC, hidden_BLD, counts, strict=True
        )
    ]


def is_a_choice(answer: str, choices: Sequence[str] | None) -> bool:
    """Whether an answer is one of the choices, but for case and blanks around it."""
    return choices is not None and answer.strip().casefold() in {
        choice.strip().casefold() for choice in choices
    }


def _key(teacher: LoadedModel, chunk: Sequence[Shard]) -> str:
    how = [teacher.digest, content_digest(chunk), teacher.compute, str(teacher.dtype)]
    said = records.dump_json([*how, MAX_NEW_TOKENS]).encode()
    return overlay_digest({"key": np.frombuffer(said, np.uint8)})


def _write(path: Path, key: str, targets: Sequence[Target]) -> None:
    out = BytesIO()
    header = {
        "kind": "teacher-outputs",
        "version": VERSION,
        "key": key,
        "answers": [target.answer for target in targets],
        "lengths": [len(target.queries) for target in targets],
    }
    tensors = {
        "queries": torch.cat([target.queries for target in targets]).numpy(),
        "representation": torch.cat([target.representation for target in targets]).numpy(),
    }
    records.write_record(out, tensors, header)
    streams.atomic_write_bytes(path, out.getvalue())


def _read(path: Path, key: str, num_examples: int) -> list[Target] | None:
    """The outputs kept in `path`; None if there are none, or not these."""
    try:
        with open(path, "rb") as source:
            record = records.read_only_record(source, KINDS, limits=LIMITS, where=str(path))
    except FileNotFoundError:
        return None
    except BadData:
        streams.message(f"{path}: damaged, computed again")
        return None
    header, tensors = record.header, record.tensors
    lengths, answers = header.get("lengths"), header.get("answers")
    if header.get("key") != key or not isinstance(lengths, list) or not isinstance(answers, list):
        return None
    if not len(lengths) == len(answers) == num_examples or set(tensors) != {
        "queries",
        "representation",
    }:
        return None
    queries = torch.from_numpy(tensors["queries"]).split(lengths)
    representations = torch.from_numpy(tensors["representation"]).split(lengths)
    rows = zip(answers, queries, representations, strict=True)
    return [Target(*row) for row in rows]
