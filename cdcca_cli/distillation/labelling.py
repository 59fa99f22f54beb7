"""What a teacher makes of some shards: its answers, features and, if they are wanted, logits.

The pseudo-label of a question is the teacher's greedy free answer or, if that is none of the
question's choices, the choice that the teacher finds likeliest. No label of the target domain is
used.

Of a picture's rows at most MOST_ROWS are kept, so that a question of a wide model does not take
megabytes.

Shapes: B examples of a batch, L query tokens, A answer tokens, C and D the teacher's channels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.distillation.encoding import (
    FORWARD_POSITIONS,
    Example,
    encode,
    num_positions,
    passes,
)
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy
from cdcca_cli.errors import BadData
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.labels import OF_THE_PICTURE, LabelEntry, key_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, Spliced
from cdcca_cli.models.settings import MAX_NEW_TOKENS

MOST_ROWS = 64
"""Rows of a picture that are kept of each question's `queries` and `visual`."""


@dataclass(frozen=True)
class _Output:
    """One question. input: the prompt if the connector reads it, else "". rows: (L, C) by name.

    kept: which of the picture's rows these are.
    """

    input: str
    answer: str
    nats: float
    rows: dict[str, np.ndarray]
    kept: Kept


@torch.no_grad()
def entries_of(teacher: LoadedModel, chunk: Sequence[Shard], logits: bool) -> list[LabelEntry]:
    """The teacher's outputs for some shards, computed together; `logits`: with those of answers.

    Examples of one task share a batch, so that no answer waits for a caption.
    Raises: BadData for outputs that are not finite.
    """
    examples = [Example(shard, question) for shard in chunk for question in shard.questions]
    keys = {id(shard): key_of(shard) for shard in chunk}
    outputs: dict[int, _Output] = {}
    for task, most in MAX_NEW_TOKENS.items():
        places = [place for place, example in enumerate(examples) if example.question.task == task]
        positions = [  # scoring reads a prompt once for each choice
            num_positions(teacher, one) * max(1, len(one.question.choices or ()))
            for one in map(examples.__getitem__, places)
        ]
        for each in passes(positions, len(places), FORWARD_POSITIONS):
            of_pass = places[each.start : each.stop]
            batch = [examples[place] for place in of_pass]
            made = _compute_batch(teacher, batch, keys, most, logits)
            outputs.update(zip(of_pass, made, strict=True))
    rows = iter(outputs[place] for place in range(len(examples)))
    return [_entry([next(rows) for _ in shard.questions]) for shard in chunk]


def _entry(outputs: list[_Output]) -> LabelEntry:
    """The entry of a shard's questions; the queries of an input are kept once."""
    inputs = list(dict.fromkeys(one.input for one in outputs))
    firsts = {one.input: one for one in reversed(outputs)}
    kept = None
    if any(len(one.kept.rows_L) < one.kept.count for one in outputs):
        kept = {
            "queries": [firsts[key].kept for key in inputs],
            "visual": [one.kept for one in outputs],
        }
    return LabelEntry(
        answers=[one.answer for one in outputs],
        nats=[one.nats for one in outputs],
        inputs=[inputs.index(one.input) for one in outputs],
        queries=[firsts[key].rows["queries"] for key in inputs],
        kept=kept,
        **{
            name: [one.rows[name] for one in outputs]
            for name in outputs[0].rows
            if name != "queries"
        },
    )


def kept_rows(key: str, count: int) -> Kept:
    """Which rows of a picture are kept: all, or one of each of MOST_ROWS parts of equal length.

    Args: key: of the shard. Each picture's are drawn from it, so that together they are of all
        places, and do not lie in one column of a grid.
    """
    if count <= MOST_ROWS:
        return Kept(np.arange(count, dtype=np.int32), count)
    edges = np.arange(MOST_ROWS + 1) * count // MOST_ROWS
    digest = hashlib.sha256(key.encode()).digest()
    source = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))
    return Kept(source.integers(edges[:-1], edges[1:]).astype(np.int32), count)


def _compute_batch(
    teacher: LoadedModel,
    examples: Sequence[Example],
    keys: Mapping[int, str],
    max_new_tokens: int,
    logits: bool,
) -> list[_Output]:
    """The outputs of one pass. Args: keys: of each example's shard, by its `id`."""
    encoded = encode(teacher, examples)
    answers = _answers(teacher, examples, encoded.spliced, max_new_tokens)
    answer_BA = teacher.answer_ids(answers)
    forward = teacher.forward(encoded.spliced, answer_BA)
    nats_B = answer_cross_entropy(forward.logits, answer_BA).tolist()
    counts_B = forward.hidden_mask.sum(1).tolist()
    kept_B = [
        kept_rows(keys[id(example.shard)], count)
        for example, count in zip(examples, counts_B, strict=True)
    ]
    lengths_B = (answer_BA != IGNORED).sum(1).tolist()
    tensors = {
        "queries": encoded.queries,
        "visual": forward.hidden,
        "answer": forward.answer_hidden,
        "logits": forward.logits if logits else None,
    }
    rows: dict[str, list[Tensor]] = {}
    for name, values in tensors.items():
        if values is None:
            continue
        is_finite_B = values.flatten(1).isfinite().all(1)
        if not bool(is_finite_B.all()):
            bad = examples[int(is_finite_B.int().argmin())]
            raise BadData(
                f"frame {bad.shard.frame[:80]}: the teacher's outputs are not finite: try `dtype` "
                "float32, or leave the frame out"
            )
        rows[name] = [
            row[torch.from_numpy(kept.rows_L).long()] if name in OF_THE_PICTURE else row[:length]
            for row, kept, length in zip(values, kept_B, lengths_B, strict=True)
        ]
    return [
        _Output(
            input=prompt if teacher.reads_prompt else "",
            answer=answers[b],
            nats=max(nats_B[b], 0.0),
            rows={name: of_examples[b].float().cpu().numpy() for name, of_examples in rows.items()},
            kept=kept_B[b],
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
