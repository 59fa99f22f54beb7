"""Answers every question of every frame, with the entropy of the answer: `cdcca infer`.

Legend: F frames of a window, B questions of a batch, N visual tokens, C channels.

Frames are taken in windows of a few batches. In a window each frame goes through the vision tower
once; the questions are then sorted by task, by whether there are choices and by length, so that a
batch pads little, and answered in batches. Predictions come out in the order of the input, and
memory holds one window.

Every question gets a free answer by greedy decoding, whose token entropies come from the same pass;
one with choices also gets the summed log-likelihood of each of them, and the likeliest as `choice`.

A frame that cannot be read and a question that the model cannot take are left out (`Skipped`).

Does not select anything by entropy: `sampling` does.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdcca_cli.datasets import Frame, LabelledQuestion, load_image
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink.settings import AnswerSettings
from cdcca_cli.uplink.uncertainty import summarise

_WINDOW_BATCHES = 2


@dataclass(frozen=True)
class _Job:
    """One question on its way through a batch: `row` is its frame's place in the window."""

    row: int
    place: int
    question: LabelledQuestion
    text: str

    @property
    def batch_key(self) -> tuple[str, bool]:
        """Only questions that agree in this share a batch."""
        return (self.question.task, bool(self.question.choices))


def answer_frames(
    model: LoadedModel,
    frames: Iterable[Frame],
    settings: AnswerSettings | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Prediction]:
    """Answer every question of every frame, in order.

    Args: skipped: counts what is left out because it is bad; None: nothing may be.
    Raises: BadData, MissingInput for the first bad frame or question where nothing may be left out.
    """
    settings = settings or AnswerSettings()
    skipped = skipped or Skipped(strict=True)
    for window in windows(frames, settings.batch_size):
        read = [(frame, pixels_of(model, frame, skipped)) for frame in window]
        sound = [(frame, pixels_13HW) for frame, pixels_13HW in read if pixels_13HW is not None]
        if not sound:
            continue
        tokens = [
            _vision_tokens(
                model, [pixels for _, pixels in sound[start : start + settings.batch_size]]
            )
            for start in range(0, len(sound), settings.batch_size)
        ]
        kept = [frame for frame, _ in sound]
        for predictions in answer_window(model, kept, torch.cat(tokens), settings, skipped):
            yield from (prediction for prediction in predictions if prediction is not None)


def windows(frames: Iterable[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Frames in runs that hold a few batches of questions each; a frame is never divided."""
    window: list[Frame] = []
    num_questions = 0
    for frame in frames:
        window.append(frame)
        num_questions += len(frame.questions)
        if max(num_questions, len(window)) >= _WINDOW_BATCHES * batch_size:
            yield window
            window, num_questions = [], 0
    if window:
        yield window


def pixels_of(model: LoadedModel, frame: Frame, skipped: Skipped) -> Tensor | None:
    """The frame as the model takes it, (1, 3, H, W); None if it is bad and was left out."""
    try:
        return model.preprocess([load_image(frame)])
    except (BadData, MissingInput) as error:
        skipped.add("frame", error)
        return None


@torch.no_grad()
def _vision_tokens(model: LoadedModel, pixels: Sequence[Tensor]) -> Tensor:
    """The vision tower's tokens of some frames, as one batch: (F, N, C)."""
    return model.vision_tokens(torch.cat(list(pixels)))


@torch.no_grad()
def answer_window(
    model: LoadedModel,
    frames: Sequence[Frame],
    tokens_FNC: Tensor,
    settings: AnswerSettings,
    skipped: Skipped,
) -> list[list[Prediction | None]]:
    """Answer the questions of frames whose tokens are there.

    Returns: for each frame, one prediction for each of its questions; None: it was left out.
    """
    jobs = []
    for row, frame in enumerate(frames):
        for place, question in enumerate(frame.questions):
            jobs.append(
                _Job(row, place, question, model.format_prompt(question.prompt, question.task))
            )
    answered: dict[tuple[int, int], Prediction | None] = {}
    for batch in _batches(jobs, settings.batch_size):
        answers = _answer_batch(model, frames, batch, tokens_FNC, settings, skipped)
        for job, prediction in zip(batch, answers, strict=True):
            answered[job.row, job.place] = prediction
    return [
        [answered[row, place] for place in range(len(frame.questions))]
        for row, frame in enumerate(frames)
    ]


def _batches(jobs: list[_Job], batch_size: int) -> Iterator[list[_Job]]:
    """Questions of one kind and about one length together, so one length limit is for all."""
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
    tokens_FNC: Tensor,
    settings: AnswerSettings,
    skipped: Skipped,
) -> list[Prediction | None]:
    """Answer a batch; one that the model refuses is halved until the bad question is alone."""
    texts = [job.text for job in batch]
    tokens_BNC = tokens_FNC[[job.row for job in batch]]
    limit = settings.max_new_tokens or MAX_NEW_TOKENS[batch[0].question.task]
    scores: list[list[float]] | list[None] = [None] * len(batch)
    try:
        spliced = model.splice(model.project(model.queries(tokens_BNC, prompts=texts)), texts)
        generated = model.generate(spliced, limit)
        if settings.score_choices and batch[0].question.choices:
            scores = model.score_choices(spliced, [job.question.choices or [] for job in batch])
    except BadData as error:
        if len(batch) == 1:
            _leave_out(frames[batch[0].row], batch[0].question, error, skipped)
            return [None]
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        return [
            prediction
            for half in halves
            for prediction in _answer_batch(model, frames, half, tokens_FNC, settings, skipped)
        ]
    answers: list[Prediction | None] = []
    for job, ids, entropies, score in zip(
        batch, generated.ids, generated.entropies, scores, strict=True
    ):
        frame = frames[job.row]
        if all(math.isfinite(figure) for figure in (*entropies, *(score or ()))):
            skipped.num_sound += 1
            answers.append(
                _prediction(model, frame, job.question, ids, entropies, score, settings.per_token)
            )
        else:
            fault = BadData(
                "the model's figures are not finite: a damaged checkpoint or overlay, or values "
                "too large for this `dtype`"
            )
            _leave_out(frame, job.question, fault, skipped)
            answers.append(None)
    return answers


def _leave_out(frame: Frame, question: LabelledQuestion, error: BadData, skipped: Skipped) -> None:
    name = frame.id if question.id == frame.id else f"{frame.id}: question {question.id}"
    skipped.add("question", BadData(f"{name}: {error}"))


def _prediction(
    model: LoadedModel,
    frame: Frame,
    question: LabelledQuestion,
    ids: list[int],
    entropies: list[float],
    scores: list[float] | None,
    per_token: bool,
) -> Prediction:
    choice = None
    if scores is not None and question.choices is not None:
        choice = question.choices[max(range(len(scores)), key=scores.__getitem__)]
    return Prediction(
        id=question.id,
        image=image_name(frame),
        task=question.task,
        prompt=question.prompt,
        answer=model.decode(ids),
        choice=choice,
        choices=question.choices,
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
