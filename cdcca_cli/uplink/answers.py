"""The pass over frames that answers their asks and says how sure each answer is: `cdcca infer`.

Legend: F frames of a window, B asks of a batch, N visual tokens, C channels.

Frames are taken in windows of a few batches. In a window each frame goes through the vision tower
once, however much is asked of it; its asks are then sorted by task, by whether there are choices
and by length, so that a batch pads little, and answered in batches. Predictions come out in the
order of the input, and a window is all that memory holds.

Every ask gets a free answer by greedy decoding, whose token entropies come from the same pass; one
with choices gets the summed log-likelihood of each of them too, and the likeliest as its `choice`.

Does not choose anything by what it finds: `sampling` does.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdcca_cli.datasets import Frame, LabelledAsk, load_image
from cdcca_cli.errors import BadData
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import LoadedModel
from cdcca_cli.uplink.entropy import summarise
from cdcca_cli.uplink.settings import AnswerSettings

MAX_NEW_TOKENS = {"vqa": 16, "caption": 40}
"""The longest answer by task, in tokens, if nothing else is asked for."""
_WINDOW_BATCHES = 2


@dataclass(frozen=True)
class _Job:
    """One ask on its way through a batch: `row` is its frame's place in the window."""

    row: int
    place: int
    ask: LabelledAsk
    text: str

    @property
    def batch_key(self) -> tuple[str, bool]:
        """Only asks that agree in this share a batch."""
        return (self.ask.task, bool(self.ask.choices))


def answer_frames(
    model: LoadedModel, frames: Iterable[Frame], settings: AnswerSettings | None = None
) -> Iterator[Prediction]:
    """Answer every ask of every frame, in order.

    Raises: BadData for an image that cannot be read, or a model whose figures are not finite.
    """
    settings = settings or AnswerSettings()
    for window in windows(frames, settings.batch_size):
        tokens = [
            vision_tokens(model, window[start : start + settings.batch_size])
            for start in range(0, len(window), settings.batch_size)
        ]
        for predictions in answer_window(model, window, torch.cat(tokens), settings):
            yield from predictions


def windows(frames: Iterable[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Frames in runs that hold a few batches of asks each; a frame is never divided."""
    window: list[Frame] = []
    num_asks = 0
    for frame in frames:
        window.append(frame)
        num_asks += len(frame.asks)
        if max(num_asks, len(window)) >= _WINDOW_BATCHES * batch_size:
            yield window
            window, num_asks = [], 0
    if window:
        yield window


@torch.no_grad()
def vision_tokens(model: LoadedModel, frames: Sequence[Frame]) -> Tensor:
    """The vision tower's tokens of some frames, as one batch: (F, N, C)."""
    return model.vision_tokens(model.preprocess([load_image(frame) for frame in frames]))


@torch.no_grad()
def answer_window(
    model: LoadedModel, frames: Sequence[Frame], tokens_FNC: Tensor, settings: AnswerSettings
) -> list[list[Prediction]]:
    """Answer the asks of frames whose tokens are there.

    Returns: for each frame, one prediction for each of its asks.
    """
    jobs = [
        _Job(row, place, ask, model.format_prompt(ask.prompt, ask.task))
        for row, frame in enumerate(frames)
        for place, ask in enumerate(frame.asks)
    ]
    answered: dict[tuple[int, int], Prediction] = {}
    for batch in _batches(jobs, settings.batch_size):
        tokens_BNC = tokens_FNC[[job.row for job in batch]]
        for job, prediction in zip(
            batch, _answer_batch(model, frames, batch, tokens_BNC, settings), strict=True
        ):
            answered[job.row, job.place] = prediction
    return [
        [answered[row, place] for place in range(len(frame.asks))]
        for row, frame in enumerate(frames)
    ]


def _batches(jobs: list[_Job], batch_size: int) -> Iterator[list[_Job]]:
    """Asks of one kind and about one length together; one limit on the answer holds for a batch."""
    batch: list[_Job] = []
    for job in sorted(jobs, key=lambda job: (*job.batch_key, len(job.text))):
        if batch and (len(batch) == batch_size or batch[0].batch_key != job.batch_key):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _answer_batch(
    model: LoadedModel,
    frames: Sequence[Frame],
    batch: Sequence[_Job],
    tokens_BNC: Tensor,
    settings: AnswerSettings,
) -> list[Prediction]:
    texts = [job.text for job in batch]
    features_BLD = model.project(model.queries(tokens_BNC, prompts=texts))
    spliced = model.splice(features_BLD, texts)
    limit = settings.max_new_tokens or MAX_NEW_TOKENS[batch[0].ask.task]
    generated = model.generate(spliced, limit)
    scores: list[list[float]] | list[None] = [None] * len(batch)
    if settings.score_choices and batch[0].ask.choices:
        scores = model.score_choices(spliced, [job.ask.choices or [] for job in batch])
    return [
        _prediction(model, frames[job.row], job.ask, ids, entropies, score, settings.per_token)
        for job, ids, entropies, score in zip(
            batch, generated.ids, generated.entropies, scores, strict=True
        )
    ]


def _prediction(
    model: LoadedModel,
    frame: Frame,
    ask: LabelledAsk,
    ids: list[int],
    entropies: list[float],
    scores: list[float] | None,
    per_token: bool,
) -> Prediction:
    if not all(math.isfinite(figure) for figure in (*entropies, *(scores or ()))):
        raise BadData(
            f"{frame.id}: the model's figures for ask {ask.id} are not finite: "
            "a damaged checkpoint or overlay, or values too large for this --dtype"
        )
    choice = None
    if scores is not None and ask.choices is not None:
        choice = ask.choices[max(range(len(scores)), key=scores.__getitem__)]
    return Prediction(
        id=ask.id,
        image=image_name(frame),
        task=ask.task,
        prompt=ask.prompt,
        answer=model.decode(ids),
        choice=choice,
        choices=ask.choices,
        choice_scores=scores,
        entropy=summarise(entropies),
        token_entropies=list(entropies) if per_token else None,
        model=model.digest,
        domain=frame.domain,
    )


def image_name(frame: Frame) -> str:
    """The frame's file as its source names it, or its bare name: never a path of this machine."""
    own = Path(frame.id).parts
    return frame.id if frame.image.parts[-len(own) :] == own else frame.image.name
