"""Answers every question of every frame, with the entropy of the answer: `cdcca infer`.

Frames are taken in windows of a few batches; memory holds one window. Each frame goes through the
vision tower once; a window's questions are then sorted by task, choices and length, so that a batch
pads little. Predictions come out in the order of the input.

Every question gets a greedy free answer, with token entropies from the same pass. A question with
choices also gets the summed log-likelihood of each of them, and the likeliest as `choice`.

Legend: F frames of a window, B questions of a batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from cdcca_cli.datasets import Frame, LabelledQuestion, image_name, load_image
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import LoadedModel, Picture, Seen
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink.entropies import summarise
from cdcca_cli.uplink.settings import AnswerSettings

_WINDOW_BATCHES = 2
T = TypeVar("T")


@dataclass(frozen=True)
class _Job:
    """A question in a window. row: its frame's place. place: its own. choices: those to score."""

    row: int
    place: int
    frame: Frame
    question: LabelledQuestion
    text: str
    limit: int
    choices: list[str]

    @property
    def batch_key(self) -> tuple[str, bool]:
        """Only questions that agree in this share a batch."""
        return (self.question.task, bool(self.choices))


def answer_frames(
    model: LoadedModel,
    frames: Iterable[Frame],
    settings: AnswerSettings | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Prediction]:
    """Answer every question of every frame, in order.

    Args: skipped: counts bad frames and questions, which are left out; None: they are errors.
    Raises: BadData, MissingInput for the first bad frame or question, if it may not be left out.
    """
    settings = settings or AnswerSettings()
    skipped = skipped or Skipped(strict=True)
    for window in windows(frames, settings.batch_size):
        good, seen = _seen(model, window, skipped)
        if not good:
            continue
        for predictions in answer_window(model, good, seen, settings, skipped):
            yield from (prediction for prediction in predictions if prediction is not None)


def windows(frames: Iterable[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Runs of frames that hold a few batches of questions; a frame is never divided.

    A live frame is a run of its own: the next may be far off, and is newer the later it is taken.
    """
    window: list[Frame] = []
    num_questions = 0
    for frame in frames:
        window.append(frame)
        num_questions += len(frame.questions)
        is_full = max(num_questions, len(window)) >= _WINDOW_BATCHES * batch_size
        if is_full or frame.capture is not None:
            yield window
            window, num_questions = [], 0
    if window:
        yield window


@torch.no_grad()
def _seen(
    model: LoadedModel, frames: Sequence[Frame], skipped: Skipped
) -> tuple[list[Frame], list[Seen]]:
    """The frames that the tower takes, and what it makes of them: together, if it takes all."""
    read = [(frame, looked_at(model, frame, skipped, lambda picture: picture)) for frame in frames]
    pictures = [(frame, picture) for frame, picture in read if picture is not None]
    try:
        seen = model.see([picture for _, picture in pictures])
    except BadData:
        alone = [(frame, _see_alone(model, frame, picture, skipped)) for frame, picture in pictures]
        good = [(frame, found) for frame, found in alone if found is not None]
        return [frame for frame, _ in good], [found for _, found in good]
    return [frame for frame, _ in pictures], seen


def _see_alone(model: LoadedModel, frame: Frame, picture: Picture, skipped: Skipped) -> Seen | None:
    try:
        return model.see([picture])[0]
    except BadData as error:
        skipped.add("frame", BadData(f"{frame.id}: {error}"))
        return None


def looked_at(
    model: LoadedModel, frame: Frame, skipped: Skipped, look: Callable[[Picture], T]
) -> T | None:
    """What `look` makes of what the tower takes of a frame; None if it is bad and left out."""
    try:
        image = load_image(frame)
    except (BadData, MissingInput) as error:
        skipped.add("frame", error)
        return None
    try:
        return look(*model.prepare([image]))
    except BadData as error:
        skipped.add("frame", BadData(f"{frame.id}: {error}"))
        return None


@torch.no_grad()
def answer_window(
    model: LoadedModel,
    frames: Sequence[Frame],
    seen: Sequence[Seen],
    settings: AnswerSettings,
    skipped: Skipped,
) -> list[list[Prediction | None]]:
    """A prediction for each question of each frame, given what the tower made of each."""
    jobs = []
    for row, frame in enumerate(frames):
        for place, question in enumerate(frame.questions):
            job = _Job(
                row=row,
                place=place,
                frame=frame,
                question=question,
                text=model.format_prompt(question.prompt, question.task),
                limit=settings.max_new_tokens or MAX_NEW_TOKENS[question.task],
                choices=(question.choices or []) if settings.score_choices else [],
            )
            try:
                model.check_prompt(
                    question.prompt, question.task, job.limit, job.choices, seen[row]
                )
            except BadData as error:
                _leave_out(job, error, skipped)
            else:
                jobs.append(job)
    answered: dict[tuple[int, int], Prediction] = {}
    for batch in _batches(jobs, settings.batch_size):
        for job, prediction in _answers(model, batch, seen, settings.per_token):
            if prediction is None:
                fault = BadData(
                    "the model's outputs are not finite: a damaged checkpoint or overlay, or "
                    "values too large for this `dtype`"
                )
                _leave_out(job, fault, skipped, "answer")
            else:
                skipped.num_sound += 1
                answered[job.row, job.place] = prediction
    return [
        [answered.get((row, place)) for place in range(len(frame.questions))]
        for row, frame in enumerate(frames)
    ]


def _leave_out(job: _Job, error: BadData, skipped: Skipped, kind: str = "question") -> None:
    frame, question = job.frame.id, job.question.id
    name = frame if question == frame else f"{frame}: question {question}"
    skipped.add(kind, BadData(f"{name}: {error}"))


def _batches(jobs: list[_Job], batch_size: int) -> Iterator[list[_Job]]:
    """Questions of one kind and of similar length together."""
    batch: list[_Job] = []
    for job in sorted(jobs, key=lambda job: (*job.batch_key, len(job.text))):
        if batch and (len(batch) == batch_size or batch[0].batch_key != job.batch_key):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _answers(
    model: LoadedModel, batch: Sequence[_Job], seen: Sequence[Seen], per_token: bool
) -> Iterator[tuple[_Job, Prediction | None]]:
    """The answers of a batch; None where the model's outputs are not finite."""
    texts = [job.text for job in batch]
    spliced = model.read([seen[job.row] for job in batch], texts)
    generated = model.generate(spliced, batch[0].limit)
    scores: list[list[float]] | list[None] = [None] * len(batch)
    if batch[0].choices:
        scores = model.score_choices(spliced, [job.choices for job in batch])
    for job, ids, entropies, margins, score in zip(
        batch, generated.ids, generated.entropies, generated.margins, scores, strict=True
    ):
        question = job.question
        if not all(math.isfinite(value) for value in (*entropies, *(score or ()))):
            yield job, None
            continue
        yield (
            job,
            Prediction(
                id=question.id,
                image=image_name(job.frame),
                task=question.task,
                prompt=question.prompt,
                answer=model.decode(ids),
                choice=None if score is None else job.choices[score.index(max(score))],
                choices=question.choices,
                choice_scores=score,
                entropy=summarise(entropies),
                token_entropies=list(entropies) if per_token else None,
                model=model.digest,
                domain=job.frame.domain,
                margin=min(1.0, max(0.0, math.fsum(margins) / len(margins))),
            ),
        )
