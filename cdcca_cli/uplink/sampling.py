"""From frames to shards: `cdcca sample`, Uncertainty-guided Token Sampling.

Stage 1 takes the entropy of the answer to every question (Eq. 2), from `answers` or from earlier
predictions, and picks questions by it. Frames with a picked question are sent, with their picked
questions only. Stage 2 scores each token of those frames by its variance over Monte Carlo dropout
(Eq. 3, 4) and keeps the best; the tokens sent come from the pass without dropout.

The ranking is known only at the end of the stream. Until then the trunk's hidden state of each
frame that could still be picked is in a spool on disk, so memory is flat and the tower runs once
per frame. With `threshold` nothing is spooled. With predictions the tower runs for picked frames
only, and a picked frame whose picture is bad leaves one shard fewer.

The last bits of a sum depend on the shape of a batch, and a rank can depend on one bit. So the
tower runs on one frame at a time, which makes the tokens independent of `batch_size`.

Legend: K questions of a frame, N visual tokens, C channels.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.datasets import Frame, LiveFrames, load_image
from cdcca_cli.errors import BadData, MissingInput, SettingError
from cdcca_cli.formats import records
from cdcca_cli.formats import shard as shard_format
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink import selection, uncertainty
from cdcca_cli.uplink.answers import answer_window, image_name, pixels_of, windows
from cdcca_cli.uplink.selection import Ranking
from cdcca_cli.uplink.settings import DEFAULT_KEEP, DEFAULT_TOP, AnswerSettings, SampleSettings
from cdcca_cli.uplink.spool import Spool


@dataclass(frozen=True)
class _Candidate:
    """A frame after stage 1. slot: the place of its hidden state in the spool.

    entropies_K: None for a question without an answer. hidden_1NC: the trunk's output; None if it
    has not run, or is in the spool.
    """

    frame: Frame
    entropies_K: list[float | None]
    hidden_1NC: Tensor | None = None
    slot: int | None = None


def sample_frames(
    model: LoadedModel,
    frames: Iterable[Frame],
    settings: SampleSettings | None = None,
    predictions: Iterable[Prediction] | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Shard]:
    """The most uncertain tokens of the most uncertain questions, in the order of the input.

    Args:
        frames: iterated twice with `top` or predictions, else once. Live ones are iterated once,
            and need an end for `top` and `budget_bytes`.
        predictions: entropies to use instead of answering, matched by the questions' ids.
        skipped: counts bad frames and questions, which are left out; None: they are errors.
    Raises: SettingError for more blocks than the tower has; BadData if no prediction is of these
        frames; BadData, MissingInput for the first bad frame or question, if it may not be left
        out.
    """
    settings = settings or SampleSettings()
    skipped = skipped or Skipped(strict=True)
    if settings.blocks > model.num_blocks:
        raise SettingError(
            "blocks", f"the vision tower has {model.num_blocks} blocks in use", settings.blocks
        )
    if isinstance(frames, LiveFrames):
        _check_live(frames, settings, predictions)
    if predictions is None:
        num_questions = _num_questions(frames) if settings.is_top else 0
        candidates = _answered(model, frames, settings, skipped)
    else:
        entropies = _entropies(model, predictions, settings.entropy)
        num_questions = _check_matched(frames, entropies)
        tracked = progress.track(frames, description="sample")
        candidates = (_Candidate(frame, _look_up(frame, entropies)) for frame in tracked)

    def make(item: _Candidate, questions: Sequence[int]) -> Shard | None:
        try:
            shard = make_shard(
                model, item.frame, item.entropies_K, questions, settings, item.hidden_1NC
            )
        except (BadData, MissingInput) as error:
            skipped.add("frame", error)
            return None
        skipped.num_sound += 1
        return shard

    if settings.threshold is not None:
        return _above(candidates, settings.threshold, make)
    return _highest(model.num_tokens, candidates, settings, num_questions, make)


def _check_live(
    frames: LiveFrames, settings: SampleSettings, predictions: Iterable[Prediction] | None
) -> None:
    """Raises: SettingError for what needs the end of the frames, or the same frames again."""
    if predictions is not None:
        raise SettingError("predictions", "are of frames that are there again, not of a camera's")
    if settings.threshold is None and frames.duration is None:
        rule = "top" if settings.is_top else "budget_bytes"
        raise SettingError(
            rule,
            "ranks all questions, and a live source has no end: give `duration` or `threshold`",
        )


def _num_questions(frames: Iterable[Frame]) -> int:
    """The number of questions; of a live source the largest that it can have."""
    if isinstance(frames, LiveFrames):
        return frames.most_frames
    return sum(len(frame.questions) for frame in frames)


Make = Callable[[_Candidate, Sequence[int]], Shard | None]
"""Stage 2 of a frame, with the places of its picked questions."""


def _answered(
    model: LoadedModel, frames: Iterable[Frame], settings: SampleSettings, skipped: Skipped
) -> Iterator[_Candidate]:
    how = AnswerSettings(settings.batch_size, settings.max_new_tokens, score_choices=False)
    for window in windows(progress.track(frames, description="sample"), settings.batch_size):
        kept, hidden = [], []
        for frame in window:
            pixels_13HW = pixels_of(model, frame, skipped)
            if pixels_13HW is not None:
                kept.append(frame)
                hidden.append(_trunk(model, pixels_13HW, settings))
        if not kept:
            continue
        tokens_FNC = torch.cat([_tail(model, hidden_1NC, settings) for hidden_1NC in hidden])
        answers = answer_window(model, kept, tokens_FNC, how, skipped)
        for frame, hidden_1NC, predictions in zip(kept, hidden, answers, strict=True):
            entropies = [None if p is None else p.entropy[settings.entropy] for p in predictions]
            yield _Candidate(frame, entropies, hidden_1NC)


def _entropies(
    model: LoadedModel, predictions: Iterable[Prediction], summary: str
) -> dict[str, float]:
    """The entropy of each prediction by its id; the last one of an id counts."""
    entropies: dict[str, float] = {}
    models: set[str] = set()
    for prediction in predictions:
        entropies[prediction.id] = prediction.entropy[summary]
        models.add(prediction.model)
    for other in sorted(models - {model.digest}):
        streams.message(
            f"the predictions are from a model at {short(other)}, this one is at "
            f"{short(model.digest)}: using their entropies all the same"
        )
    return entropies


def _look_up(frame: Frame, entropies: Mapping[str, float]) -> list[float | None]:
    return [entropies.get(question.id) for question in frame.questions]


def _check_matched(frames: Iterable[Frame], entropies: Mapping[str, float]) -> int:
    """The number of questions with a prediction. Raises: BadData if none has."""
    matched = [question.id in entropies for frame in frames for question in frame.questions]
    if matched and not any(matched):
        raise BadData(
            f"`predictions`: none of its {len(entropies)} ids is a question about these frames "
            f"({len(matched)} questions): give the predictions that infer made of the same frames"
        )
    if not all(matched):
        streams.message(
            f"{matched.count(False)} of {len(matched)} questions have no prediction and are left "
            "out"
        )
    return sum(matched)


def _above(candidates: Iterable[_Candidate], threshold: float, make: Make) -> Iterator[Shard]:
    for item in candidates:
        questions = [
            place
            for place, entropy in enumerate(item.entropies_K)
            if entropy is not None and entropy >= threshold
        ]
        shard = make(item, questions) if questions else None
        if shard is not None:
            yield shard


def _highest(
    num_tokens: int,
    candidates: Iterable[_Candidate],
    settings: SampleSettings,
    num_questions: int,
    make: Make,
) -> Iterator[Shard]:
    with closing(Spool()) as spool:
        ranking: Ranking | None = None
        waiting: dict[int, _Candidate] = {}
        num_ranked = 0
        for order, item in enumerate(candidates):
            ranking = ranking or _ranking(settings, num_questions, num_tokens, item)
            num_ranked += sum(entropy is not None for entropy in item.entropies_K)
            gone = ranking.offer(order, item.entropies_K)
            for other in gone & waiting.keys():
                slot = waiting.pop(other).slot
                if slot is not None:
                    spool.free(slot)
            if order not in gone:
                slot = None if item.hidden_1NC is None else spool.put(item.hidden_1NC)
                waiting[order] = replace(item, hidden_1NC=None, slot=slot)

        def make_waiting(order: int, questions: Sequence[int]) -> Shard | None:
            item = waiting[order]
            hidden_1NC = None if item.slot is None else spool.get(item.slot)
            return make(replace(item, hidden_1NC=hidden_1NC), questions)

        if ranking is None:
            return
        if settings.budget_bytes is not None:
            yield from _within(settings.budget_bytes, ranking, waiting, make_waiting)
            return
        ranking.shorten((settings.top or DEFAULT_TOP).of(num_ranked))
        for order, questions in ranking.by_frame().items():
            shard = make_waiting(order, questions)
            if shard is not None:
                yield shard


def _ranking(
    settings: SampleSettings, num_questions: int, num_tokens: int, first: _Candidate
) -> Ranking:
    """A ranking no longer than what can be picked."""
    if settings.is_top:
        return Ranking(max_questions=(settings.top or DEFAULT_TOP).of(num_questions))
    if first.hidden_1NC is None:
        return Ranking()
    num_kept = 1
    if settings.beta is None:
        num_kept = (settings.keep or DEFAULT_KEEP).of(num_tokens)
    payload_bytes = num_kept * first.hidden_1NC.shape[-1] * settings.bits // 8
    return Ranking(max_frames=(settings.budget_bytes or 0) // payload_bytes)


def _within(
    budget_bytes: int,
    ranking: Ranking,
    waiting: Mapping[int, _Candidate],
    make: Callable[[int, Sequence[int]], Shard | None],
) -> Iterator[Shard]:
    """Questions from the top until the stream, with its end record, would be too long."""
    made: dict[int, Shard | None] = {}
    taken: dict[int, Shard] = {}
    places: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    total = 0
    for order, place in ranking:
        questions = sorted([*places.get(order, []), place])
        if order not in made:
            made[order] = make(order, questions)
        shard = made[order]
        if shard is None:
            continue
        item = waiting[order]
        shard = replace(shard, questions=_questions(item.frame, item.entropies_K, questions))
        size = shard_format.encoded_bytes(shard)
        grown = total - sizes.get(order, 0) + size
        if grown + _end_bytes(len(taken.keys() | {order})) > budget_bytes:
            break
        taken[order], places[order], sizes[order], total = shard, questions, size, grown
    if not taken:
        streams.message(f"a budget of {budget_bytes:,} bytes holds no shard: nothing is sent")
    return (taken[order] for order in sorted(taken))


def _end_bytes(count: int) -> int:
    header = {"kind": "end", "version": shard_format.VERSION, "count": count}
    return records.write_record(io.BytesIO(), {}, header)


def make_shard(
    model: LoadedModel,
    frame: Frame,
    entropies_K: Sequence[float | None],
    questions: Sequence[int],
    settings: SampleSettings,
    hidden_1NC: Tensor | None = None,
) -> Shard:
    """Stage 2 of one frame: its best tokens and its picked questions.

    Args: entropies_K: of all its questions, in nats. questions: the places of the picked ones,
        ascending. hidden_1NC: the trunk's output; None: the trunk runs now.
    Raises: BadData, MissingInput for a bad picture; BadData if a value is not finite or no token
        varies.
    """
    if hidden_1NC is None:
        hidden_1NC = _trunk(model, model.preprocess([load_image(frame)]), settings)
    tokens_NC, scores_N = _scored(model, frame, hidden_1NC.to(model.device), settings)
    if settings.beta is not None:
        positions = selection.keep_above(scores_N, settings.beta)
    else:
        positions = selection.keep_highest(scores_N, settings.keep or DEFAULT_KEEP)
    return Shard(
        frame=frame.id,
        image=image_name(frame),
        domain=frame.domain,
        tokens=tokens_NC[positions],
        positions=positions,
        scores=scores_N[positions],
        num_tokens=len(tokens_NC),
        tower=model.tower_digest,
        questions=_questions(frame, entropies_K, questions),
        bits=settings.bits,
    )


def _questions(
    frame: Frame, entropies_K: Sequence[float | None], places: Iterable[int]
) -> list[Question]:
    """The picked questions without their labels, which stay on the device."""
    picked = [(frame.questions[place], entropies_K[place]) for place in places]
    return [
        Question(question.id, question.prompt, question.task, question.choices, entropy)
        for question, entropy in picked
    ]


def _scored(
    model: LoadedModel, frame: Frame, hidden_1NC: Tensor, settings: SampleSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (N, C) of one frame and the score of each, (N,), both float32."""
    if settings.by == "vis":
        tokens_NC, variance_N = uncertainty.token_variance(
            model,
            hidden_1NC,
            frame.id,
            blocks=settings.blocks,
            passes=settings.passes,
            rate=settings.dropout,
            seed=settings.seed,
        )
        return tokens_NC.float().cpu().numpy(), variance_N.cpu().numpy()
    tokens = _tail(model, hidden_1NC, settings)[0].float().cpu().numpy()
    if settings.by == "norm":
        return tokens, selection.token_norm(tokens)
    generator = uncertainty.frame_generator(settings.seed, frame.id)
    return tokens, generator.random(len(tokens), dtype=np.float32)


@torch.no_grad()
def _trunk(model: LoadedModel, pixels_13HW: Tensor, settings: SampleSettings) -> Tensor:
    return model.trunk(pixels_13HW, model.num_blocks - settings.blocks)


@torch.no_grad()
def _tail(model: LoadedModel, hidden_1NC: Tensor, settings: SampleSettings) -> Tensor:
    return model.tail(hidden_1NC, model.num_blocks - settings.blocks)
