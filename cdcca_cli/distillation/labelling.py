"""What a teacher makes of some shards: its answers, features and, if they are wanted, logits.

The pseudo-label of a question is the teacher's greedy free answer or, if that is none of the
question's choices, the choice that the teacher finds likeliest. No label of the target domain is
used.

A picture that the teacher refuses, a question that is too long for it, and outputs that are not
finite are faults of that frame or question alone: it has the answer "" and no rows.

Of a picture's rows at most MOST_ROWS are kept, so that a question of a wide model does not take
megabytes.

Shapes: B examples of a batch, L query tokens, A answer tokens, C and D the teacher's channels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.distillation.encoding import (
    FORWARD_POSITIONS,
    Example,
    encode,
    num_positions,
    passes,
    too_long,
)
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.labels import OF_THE_PICTURE, LabelEntry, key_of
from cdcca_cli.formats.shard import Shard, Unusable
from cdcca_cli.models import LoadedModel, Spliced
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.payloads.opening import Opener

MOST_ROWS = 64
"""Rows of a picture that are kept of each question's `queries` and `visual`."""


@dataclass(frozen=True)
class _Output:
    """One question. input: the prompt if the connector reads it, else "". rows: (L, C) by name.

    kept: which of the picture's rows these are. fault: why there is no answer and there are no
        rows; "" for the others.
    """

    input: str = ""
    answer: str = ""
    nats: float = 0.0
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: Kept = field(default_factory=lambda: Kept(np.zeros(0, np.int32), 0))
    fault: str = ""


@torch.no_grad()
def entries_of(
    teacher: LoadedModel, chunk: Sequence[Shard], looking: Opener, logits: bool
) -> list[LabelEntry]:
    """The teacher's outputs for some shards, computed together.

    Examples of one task share a batch, so that no answer waits for a caption.

    Args: looking: opens shards for this teacher. logits: whether those of the answers are kept.
    """
    examples: list[Example] = []
    outputs: dict[int, _Output] = {}
    keys: dict[int, str] = {}
    for shard in chunk:
        begin = len(examples)
        try:
            opened, fault = looking.open(shard), ""
        except Unusable as error:
            opened, fault = shard, str(error)
        keys[id(opened)] = key_of(opened)
        examples += [Example(opened, question) for question in opened.questions]
        for place, example in enumerate(examples[begin:], begin):
            choices = example.question.choices or []
            if found := fault or too_long(teacher, "teacher", example, choices):
                outputs[place] = _Output(fault=found)
    for task, most in MAX_NEW_TOKENS.items():
        places = [
            place
            for place, example in enumerate(examples)
            if example.question.task == task and place not in outputs
        ]
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
    return [_entry([next(rows) for _ in shard.questions], logits) for shard in chunk]


def _entry(outputs: list[_Output], logits: bool) -> LabelEntry:
    """The entry of a shard's questions; the queries of an input are kept once."""
    sound = [one for one in outputs if not one.fault] or [_no_rows(logits)]
    inputs = list(dict.fromkeys(one.input for one in sound))
    firsts = {one.input: one for one in reversed(sound)}
    none = {name: rows[:0] for name, rows in sound[0].rows.items()}
    rows = [none if one.fault else one.rows for one in outputs]
    kept = None
    if any(len(one.kept.rows_L) < one.kept.count for one in outputs):
        kept = {
            "queries": [firsts[key].kept for key in inputs],
            "visual": [one.kept for one in outputs],
        }
    return LabelEntry(
        answers=[one.answer for one in outputs],
        nats=[one.nats for one in outputs],
        inputs=[0 if one.fault else inputs.index(one.input) for one in outputs],
        queries=[firsts[key].rows["queries"] for key in inputs],
        kept=kept,
        faults={place: one.fault for place, one in enumerate(outputs) if one.fault},
        **{name: [each[name] for each in rows] for name in none if name != "queries"},
    )


def _no_rows(logits: bool) -> _Output:
    """In place of the outputs of a shard without any, whose widths nobody knows."""
    names = [*OF_THE_PICTURE, *(["logits"] if logits else [])]
    return _Output(rows={name: np.zeros((0, 1), np.float32) for name in names})


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
    """The outputs of one pass; those that are not finite are a fault.

    Args: keys: of each example's shard, by its `id`.
    """
    encoded = encode(teacher, examples)
    answers = _answers(teacher, examples, encoded.spliced, max_new_tokens)
    answer_BA = teacher.answer_ids(answers)
    forward = teacher.forward(encoded.spliced, answer_BA)
    nats_B = answer_cross_entropy(forward.logits, answer_BA)
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
    is_sound_B = nats_B.isfinite()
    for name, values in tensors.items():
        if values is None:
            continue
        is_sound_B &= values.flatten(1).isfinite().all(1)
        rows[name] = [
            row[torch.from_numpy(kept.rows_L).long()] if name in OF_THE_PICTURE else row[:length]
            for row, kept, length in zip(values, kept_B, lengths_B, strict=True)
        ]
    return [
        _Output(
            input=prompt if teacher.reads_prompt else "",
            answer=answers[b],
            nats=max(float(nats_B[b]), 0.0),
            rows={name: of_examples[b].float().cpu().numpy() for name, of_examples in rows.items()},
            kept=kept_B[b],
        )
        if is_sound_B[b]
        else _Output(
            fault=f"{examples[b]}: the teacher's outputs are not finite: try `dtype` float32"
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
