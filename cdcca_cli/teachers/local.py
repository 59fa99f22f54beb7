"""A checkpoint as teacher: its answers, their distributions, its queries and representations.

The answer to a question is the teacher's greedy free answer or, if that is none of the question's
choices, the choice that the teacher finds likeliest. No label of the target domain is used.

A teacher with the student's vision tower reads the tokens; one with another looks at the pictures
that were sent. A picture that it refuses, a question that is too long for it, and outputs that are
not finite are faults of that frame or question alone, which then has no label.

Of a picture's rows at most MOST_ROWS are kept, so that a question of a wide model does not take
megabytes.

Padding changes the last bits of an output, so chunks of shards are always cut alike, and computed
whole if one of their labels is missing: a run that was killed and started again ends with the same
bits. Several processes compute the chunks in turns; the first of them gets all labels.

Shapes: B examples of a batch, L query tokens, A answer tokens, C and D the teacher's channels, V
its vocabulary, K the likeliest tokens.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import distributed
from cdcca_cli.errors import BadData
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.label_tops import Top, rest_of
from cdcca_cli.formats.labels import (
    OF_THE_PICTURE,
    End,
    Entry,
    Label,
    Source,
    payload_digest,
    question_digest,
)
from cdcca_cli.formats.shard import Shard, Unusable
from cdcca_cli.models import LoadedModel, Spliced
from cdcca_cli.models.encoding import (
    FORWARD_POSITIONS,
    Example,
    check_fit,
    encode,
    num_positions,
    passes,
    too_long,
)
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.payloads.opening import CodebookOf, Opener
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import Lacks
from cdcca_cli.teachers.settings import LabelSettings

MOST_ROWS = 64
"""Rows of a picture that are kept of each question's `queries` and `visual`."""
_NOT_FINITE = "the teacher's outputs are not finite: try `dtype` float32"


class LocalTeacher:
    """A loaded model that answers the questions of shards."""

    def __init__(
        self,
        model: LoadedModel,
        settings: LabelSettings | None = None,
        codebook_of: CodebookOf | None = None,
        name: str | None = None,
    ) -> None:
        """Args: codebook_of: of coded tokens, by digest; None: shards are opened before. name: in
        the labels, in place of the model's digest.
        """
        self.model, self._settings = model, settings or LabelSettings()
        dtype = str(model.dtype).removeprefix("torch.")
        self.source = Source(name or model.digest, model.vocabulary_digest, dtype)
        self._opener = Opener(model, codebook_of or _no_codebook, any_tower=True)

    def check(self, shard: Shard) -> None:
        """Refuse a shard of another vision tower, or with prompts in a template. BadData."""
        check_fit(shard, self.model, "teacher")

    def announce(self, shards: Iterable[Shard], lacks: Lacks) -> None:
        """Nothing: it costs time alone."""

    def close(self) -> None:
        """Free the model's weights."""
        self.model.unload()

    def label(self, shards: Iterable[Shard], lacks: Lacks, skipped: Skipped) -> Iterator[Entry]:
        """The labels that are missing, in the order of the shards; only in the first process."""
        cut = chunks(shards, self._settings.teacher_batch_size)
        num_processes = distributed.count()
        while each := list(islice(cut, num_processes)):
            wanted = [any(map(lacks.some, chunk)) for chunk in each]
            mine = distributed.rank()
            made = self._answer(each[mine]) if mine < len(each) and wanted[mine] else []
            for entries in distributed.gather(made):
                for entry, faults in entries:
                    left = lacks.of(entry)
                    for kind, fault in faults:
                        skipped.add(kind, BadData(fault))
                    if left.labels:
                        yield left

    @torch.no_grad()
    def _answer(self, chunk: Sequence[Shard]) -> list[tuple[Entry, list[tuple[str, str]]]]:
        """The labels of some shards, and their faults: a kind of member and a message each."""
        examples: list[Example] = []
        of_shard: list[range] = []
        faults: list[list[tuple[str, str]]] = []
        labels: dict[int, Label] = {}
        refused: set[int] = set()
        queries: dict[tuple[str, str], np.ndarray] = {}
        for shard in chunk:
            begin, found = len(examples), []
            try:
                opened = self._opener.open(shard)
                self.check(opened)
            except Unusable as error:
                opened = shard
                found.append(("frame", str(error)))
                refused |= {*range(begin, begin + len(shard.questions))}
            examples += [Example(opened, question) for question in opened.questions]
            of_shard.append(range(begin, len(examples)))
            for place in of_shard[-1]:
                choices = examples[place].question.choices or []
                if place in refused:
                    continue
                if fault := too_long(self.model, "teacher", examples[place], choices):
                    found.append(("question", fault))
                    refused.add(place)
            faults.append(found)
        for task, most in MAX_NEW_TOKENS.items():
            places: list[int] = [
                place
                for place, example in enumerate(examples)
                if example.question.task == task and place not in refused
            ]
            positions = [  # scoring reads a prompt once for each choice
                num_positions(self.model, one) * max(1, len(one.question.choices or ()))
                for one in map(examples.__getitem__, places)
            ]
            for run in passes(positions, len(places), FORWARD_POSITIONS):
                of_pass = places[run.start : run.stop]
                made = self._pass([examples[place] for place in of_pass], most, queries)
                for place, label in zip(of_pass, made, strict=True):
                    if label is not None:
                        labels[place] = label
        entries = []
        for shard, run, found in zip(chunk, of_shard, faults, strict=True):
            found += [
                ("question", f"{examples[place]}: {_NOT_FINITE}")
                for place in run
                if place not in labels and place not in refused
            ]
            of_question = {
                question_digest(examples[place].question): labels[place]
                for place in run
                if place in labels
            }
            entry = Entry(shard.frame, payload_digest(shard), self.source, of_question)
            entries.append((entry, found))
        return entries

    def _pass(
        self,
        examples: Sequence[Example],
        max_new_tokens: int,
        queries: dict[tuple[str, str], np.ndarray],
    ) -> list[Label | None]:
        """The labels of one pass; None where its outputs are not finite.

        Args: queries: of the inputs of the connector in earlier passes, which labels share.
        """
        model = self.model
        encoded = encode(model, examples)
        answers, ends, scores = self._answers(examples, encoded.spliced, max_new_tokens)
        answer_BA = model.answer_ids(answers)
        forward = model.forward(encoded.spliced, answer_BA)
        lengths_B = (answer_BA != -100).sum(1).tolist()
        counts_B = forward.hidden_mask.sum(1).tolist()
        features = {
            "queries": encoded.queries,
            "visual": forward.hidden,
            "answer": forward.answer_hidden,
        }
        found = {name: rows for name, rows in features.items() if rows is not None}
        sound_B = torch.ones(len(examples), dtype=torch.bool, device=model.device)
        for rows in found.values():
            sound_B &= rows.isfinite().flatten(1).all(1)
        labels: list[Label | None] = []
        for b, example in enumerate(examples):
            logp_AV = forward.logits[b, : lengths_B[b]].float().log_softmax(-1)
            own_A = logp_AV.gather(1, answer_BA[b, : lengths_B[b], None].to(logp_AV.device))[:, 0]
            nats = -float(own_A.mean()) if lengths_B[b] else 0.0
            if not (bool(sound_B[b]) and math.isfinite(nats)):
                labels.append(None)
                continue
            label = Label(
                answer=answers[b],
                nats=max(nats, 0.0),
                end=ends[b],
                scores=scores[b],
                top=top_of(logp_AV, self._settings.top),
            )
            if self._settings.features:
                payload = payload_digest(example.shard)
                kept = kept_rows(payload, counts_B[b])
                rows_L = torch.from_numpy(kept.rows_L).long()
                arrays = {
                    name: _array(rows[b][rows_L] if name in OF_THE_PICTURE else rows[b, :length])
                    for name, rows in found.items()
                    for length in [lengths_B[b]]
                }
                key = (payload, encoded.prompts[b] if model.reads_prompt else "")
                label.queries = queries.setdefault(key, arrays["queries"])
                label.visual, label.answer_rows = arrays["visual"], arrays.get("answer")
                if len(kept.rows_L) < kept.count:
                    label.kept = dict.fromkeys(OF_THE_PICTURE, kept)
            labels.append(label)
        return labels

    def _answers(
        self, examples: Sequence[Example], spliced: Spliced, max_new_tokens: int
    ) -> tuple[list[str], list[End | None], list[list[float] | None]]:
        """Free answers, or the likeliest choice where the free answer is none; how they ended."""
        generated = self.model.generate(spliced, max_new_tokens)
        answers = [self.model.decode(ids) for ids in generated.ids]
        ends: list[End | None] = [
            "length" if len(ids) >= max_new_tokens else "stop" for ids in generated.ids
        ]
        scores: list[list[float] | None] = [None] * len(answers)
        unmatched = []
        for answer, example in zip(answers, examples, strict=True):
            choices = example.question.choices or []
            unmatched.append([] if is_a_choice(answer, choices) else choices)
        if any(unmatched):
            scored = self.model.score_choices(spliced, unmatched)
            for b, (choices, row) in enumerate(zip(unmatched, scored, strict=True)):
                if choices:
                    answers[b], ends[b] = choices[int(np.argmax(row))], "choice"
                    scores[b] = [float(value) for value in row]
        return answers, ends, scores


def top_of(logp_AV: Tensor, count: int) -> Top | None:
    """The `count` likeliest tokens of each distribution, and the rest as one; None for none.

    Args: logp_AV: log-probabilities, float32.
    """
    if not count or not len(logp_AV):
        return None
    size = min(count, logp_AV.shape[1])
    found = logp_AV.topk(size, dim=1)
    logp_AK = _array(found.values)
    return Top(logp_AK, rest_of(logp_AK), found.indices.to(torch.int32).cpu().numpy())


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.float().cpu().numpy()
    return array


def is_a_choice(answer: str, choices: Sequence[str]) -> bool:
    """Whether an answer is one of the choices, but for case and blanks around it."""
    return answer.strip().casefold() in {choice.strip().casefold() for choice in choices}


def kept_rows(payload: str, count: int) -> Kept:
    """Which rows of a picture are kept: all, or one of each of MOST_ROWS parts of equal length.

    Args: payload: digest. Each picture's are drawn from it, so that together they are of all
        places, and do not lie in one column of a grid.
    """
    if count <= MOST_ROWS:
        return Kept(np.arange(count, dtype=np.int32), count)
    edges = np.arange(MOST_ROWS + 1) * count // MOST_ROWS
    digest = hashlib.sha256(payload.encode()).digest()
    source = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))
    return Kept(source.integers(edges[:-1], edges[1:]).astype(np.int32), count)


def chunks(shards: Iterable[Shard], batch_size: int) -> Iterator[list[Shard]]:
    """Shards that are answered together, each list of `batch_size` questions or a few more."""
    chunk: list[Shard] = []
    for shard in shards:
        chunk.append(shard)
        if sum(len(kept.questions) for kept in chunk) >= batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _no_codebook(digest: str) -> NoReturn:
    raise BadData(f"the codebook {digest} is not read here: shards are opened before")
