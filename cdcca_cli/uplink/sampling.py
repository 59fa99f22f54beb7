"""From frames to shards: `cdcca sample`, Uncertainty-guided Token Sampling.

Stage 1 takes the entropy of the answer to every question (Eq. 2), from `answers` or from earlier
predictions, and picks questions by it or by another rule of `questions`. Frames with a picked
question are sent, with their picked questions only, and nearly the same picture is sent with a
question once (`near`). Stage 2 (`kept_tokens`) chooses tokens of those frames, and `coding` makes
the payload of them.

The ranking is known only at the end of the stream. Until then the trunk's hidden state of each
frame that could still be picked is in a spool on disk, so memory is flat and the tower runs once
per frame; by `k-center` every frame could. With `threshold` and `running` nothing is spooled. With
predictions the tower runs for picked frames
only, and a picked frame whose picture is bad leaves one shard fewer.

The last bits of a sum depend on the shape of a batch, and a rank can depend on one bit. So the
tower runs on one frame at a time, which makes the tokens independent of `batch_size`.

Legend: K questions of a frame, N visual tokens, C channels.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.datasets import Frame, LabelledQuestion, LiveFrames
from cdcca_cli.datasets.frames import TASKS
from cdcca_cli.errors import BadData, MissingInput, SettingError
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import LoadedModel
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink import budget, selection
from cdcca_cli.uplink.answers import answer_window, pixels_of, windows
from cdcca_cli.uplink.coding import Coded, Coder
from cdcca_cli.uplink.kept_tokens import make_shard, tail, trunk
from cdcca_cli.uplink.near import SentPictures
from cdcca_cli.uplink.questions import Interleaved, Rank, Spread, draw, ranks_of, score_of
from cdcca_cli.uplink.running import Running
from cdcca_cli.uplink.selection import Ranking
from cdcca_cli.uplink.settings import (
    DEFAULT_TOP,
    SPREAD_RULES,
    AnswerSettings,
    PayloadSettings,
    SampleSettings,
)
from cdcca_cli.uplink.spool import Spool


@dataclass(frozen=True)
class _Candidate:
    """A frame after stage 1. slot: the place of its hidden state in the spool.

    entropies_K: None for a question without an answer. ranks_K: by `select`, likewise; empty once
    it is ranked. hidden_1NC: the trunk's output; None if it has not run, or is in the spool.
    """

    frame: Frame
    entropies_K: list[float | None]
    ranks_K: list[Rank | None]
    hidden_1NC: Tensor | None = None
    slot: int | None = None


def sample_frames(
    model: LoadedModel,
    frames: Iterable[Frame],
    settings: SampleSettings | None = None,
    predictions: Iterable[Prediction] | None = None,
    skipped: Skipped | None = None,
    coder: Coder | None = None,
    running: Running | None = None,
    sent: SentPictures | None = None,
) -> Iterator[Coded]:
    """The frames of the questions that `select` picks, in the order of the input.

    Args:
        frames: iterated twice with `top` or predictions, else once. Live ones are iterated once,
            and need an end for `top` and `budget_bytes`.
        predictions: answers to use instead of answering, matched by the questions' ids.
        skipped: counts bad frames and questions, which are left out; None: they are errors.
        coder: makes the payloads; None: by the usual settings, without a codebook.
        running, sent: what earlier runs left for `running` and for repeats; changed by this one.
    Raises: SettingError for more blocks than the tower has; BadData if no prediction is of these
        frames; BadData, MissingInput for the first bad frame or question, if it may not be left
        out.
    """
    settings = settings or SampleSettings()
    skipped = skipped or Skipped(strict=True)
    sent = SentPictures() if sent is None else sent
    if settings.blocks > model.num_blocks:
        raise SettingError(
            "blocks", f"the vision tower has {model.num_blocks} blocks in use", settings.blocks
        )
    if isinstance(frames, LiveFrames):
        _check_live(frames, settings, predictions)
    num_questions: Mapping[str, int]
    if predictions is None:
        num_questions = _num_questions(frames) if settings.is_top else {}
        candidates = _answered(model, frames, settings, skipped)
    else:
        if settings.select == "bald":
            reason = "cannot be combined with `select` bald, which asks the model again"
            raise SettingError("predictions", reason)
        figures = _figures(model, predictions, settings)
        num_questions = _check_matched(frames, figures)
        tracked = progress.track(frames, description="sample")
        candidates = _looked_up(model, tracked, figures, settings, skipped)

    coder = coder or Coder(model, PayloadSettings(), None)
    counted: set[str] = set()

    def make(item: _Candidate, questions: Sequence[int], coder: Coder = coder) -> Coded | None:
        try:
            shard = make_shard(
                model,
                item.frame,
                item.entropies_K,
                questions,
                settings,
                item.hidden_1NC,
                with_scores=coder.sends_scores,
            )
            coded = coder.code(shard, item.frame)
        except (BadData, MissingInput) as error:
            if item.frame.id not in counted:
                skipped.add("frame", error)
            coded = None
        else:
            skipped.num_sound += item.frame.id not in counted
        if not settings.is_live:  # a budget makes a frame several times
            counted.add(item.frame.id)
        return coded

    def new(item: _Candidate, places: Sequence[int]) -> Sequence[int]:
        return places if settings.repeats else sent.new(item.frame, places)

    if settings.is_live:
        running = Running() if running is None else running
        found = _as_they_come(candidates, settings, running, new, make)
    else:
        found = _highest(candidates, settings, num_questions, new, make, coder)
    return _noted(found, sent)


Make = Callable[..., Coded | None]
"""Stage 2 of a frame, with the places of its picked questions, and perhaps another coder."""

New = Callable[[_Candidate, Sequence[int]], Sequence[int]]
"""The picked questions of a frame without those that nearly the same picture was sent with."""


def _check_live(
    frames: LiveFrames, settings: SampleSettings, predictions: Iterable[Prediction] | None
) -> None:
    """Raises: SettingError for what needs the end of the frames, or the same frames again."""
    if predictions is not None:
        raise SettingError("predictions", "are of frames that are there again, not of a camera's")
    if not settings.is_live and frames.duration is None:
        rule = "top" if settings.is_top else "budget_bytes"
        reason = "ranks all questions, and a live source has no end: give `duration`, `threshold`"
        raise SettingError(rule, f"{reason} or `running`")


def _num_questions(frames: Iterable[Frame]) -> Mapping[str, int]:
    """The number of questions of each task; of a live source the largest that it can have."""
    if isinstance(frames, LiveFrames):
        return dict.fromkeys(TASKS, frames.most_frames)
    return _by_task(frames, lambda _: True)


def _noted(found: Iterable[Coded], sent: SentPictures) -> Iterator[Coded]:
    for coded in found:
        sent.add(coded.shard)
        yield coded


def _by_task(frames: Iterable[Frame], counts: Callable[[str], bool]) -> Mapping[str, int]:
    """The number of questions of each task, of those whose id `counts`."""
    return Counter(
        question.task for frame in frames for question in frame.questions if counts(question.id)
    )


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
                hidden.append(trunk(model, pixels_13HW, settings))
        if not kept:
            continue
        tokens_FNC = torch.cat([tail(model, hidden_1NC, settings) for hidden_1NC in hidden])
        answers = answer_window(model, kept, tokens_FNC, how, skipped)
        for frame, hidden_1NC, found in zip(kept, hidden, answers, strict=True):
            entropies = [None if p is None else p.entropy[settings.entropy] for p in found]
            scores = [None if p is None else score_of(p, settings) for p in found]
            texts = [None if p is None else p.answer for p in found]
            ranks = ranks_of(model, frame, texts, scores, hidden_1NC, settings)
            yield _Candidate(frame, entropies, ranks, hidden_1NC)


_Figures = Mapping[str, tuple[float, float]]
"""The entropy and the score of each prediction, by its id."""


def _figures(
    model: LoadedModel, predictions: Iterable[Prediction], settings: SampleSettings
) -> _Figures:
    """The last prediction of an id counts."""
    figures: dict[str, tuple[float, float]] = {}
    models: set[str] = set()
    for prediction in predictions:
        score = score_of(prediction, settings)
        figures[prediction.id] = (prediction.entropy[settings.entropy], score)
        models.add(prediction.model)
    for other in sorted(models - {model.digest}):
        streams.message(
            f"the predictions are from a model at {short(other)}, this one is at "
            f"{short(model.digest)}: using their entropies all the same"
        )
    return figures


def _looked_up(
    model: LoadedModel,
    frames: Iterable[Frame],
    figures: _Figures,
    settings: SampleSettings,
    skipped: Skipped,
) -> Iterator[_Candidate]:
    for frame in frames:
        found = [figures.get(question.id) for question in frame.questions]
        entropies = [None if figure is None else figure[0] for figure in found]
        scores = [None if figure is None else figure[1] for figure in found]
        hidden_1NC = None
        if settings.select in SPREAD_RULES:
            pixels_13HW = pixels_of(model, frame, skipped)
            if pixels_13HW is None:
                continue
            hidden_1NC = trunk(model, pixels_13HW, settings)
        ranks = ranks_of(model, frame, [], scores, hidden_1NC, settings)
        yield _Candidate(frame, entropies, ranks, hidden_1NC)


def _check_matched(frames: Iterable[Frame], figures: _Figures) -> Mapping[str, int]:
    """The number of questions with a prediction, by task. Raises: BadData if none has."""
    everything = _by_task(frames, lambda _: True)
    matched = _by_task(frames, figures.__contains__)
    total, missing = sum(everything.values()), sum(everything.values()) - sum(matched.values())
    if total and missing == total:
        raise BadData(
            f"`predictions`: none of its {len(figures)} ids is a question about these frames "
            f"({total} questions): give the predictions that infer made of the same frames"
        )
    if missing:
        streams.message(f"{missing} of {total} questions have no prediction and are left out")
    return matched


def _as_they_come(
    candidates: Iterable[_Candidate],
    settings: SampleSettings,
    running: Running,
    new: New,
    make: Make,
) -> Iterator[Coded]:
    """Each frame by itself: the questions above the threshold, or of the running share."""
    share = settings.running
    if share is not None:
        running.begin(f"{settings.select} {settings.entropy}")

    def takes(question: LabelledQuestion, entropy: float | None, rank: Rank | None) -> bool:
        if entropy is None or not isinstance(rank, float):
            return False
        if share is None:
            return settings.threshold is not None and entropy >= settings.threshold
        drawn = draw("running", settings.seed, question.id)
        return running.takes(question.task, share, rank, drawn)

    for item in candidates:
        asked = zip(item.frame.questions, item.entropies_K, item.ranks_K, strict=True)
        places = new(item, [place for place, of in enumerate(asked) if takes(*of)])
        coded = make(item, places) if places else None
        if coded is not None:
            yield coded


def _highest(
    candidates: Iterable[_Candidate],
    settings: SampleSettings,
    num_questions: Mapping[str, int],
    new: New,
    make: Make,
    coder: Coder,
) -> Iterator[Coded]:
    with closing(Spool()) as spool:
        ranking: Interleaved | None = None
        waiting: dict[int, _Candidate] = {}
        for order, item in enumerate(candidates):
            ranking = ranking or _ranking(settings, num_questions)
            gone = ranking.offer(order, [q.task for q in item.frame.questions], item.ranks_K)
            for other in gone & waiting.keys():
                slot = waiting.pop(other).slot
                if slot is not None:
                    spool.free(slot)
            if order not in gone:
                slot = None if item.hidden_1NC is None else spool.put(item.hidden_1NC)
                waiting[order] = replace(item, ranks_K=[], hidden_1NC=None, slot=slot)

        def make_waiting(
            order: int, questions: Sequence[int], coder: Coder = coder
        ) -> Coded | None:
            item = waiting[order]
            hidden_1NC = None if item.slot is None else spool.get(item.slot)
            return make(replace(item, hidden_1NC=hidden_1NC), questions, coder)

        if ranking is None:
            return
        if not settings.is_top and settings.budget_bytes is not None:
            ranked = [(order, place) for order, place in ranking if new(waiting[order], [place])]
            yield from budget.longest(settings.budget_bytes, ranked, waiting, make_waiting)
            return
        most = (settings.top or DEFAULT_TOP).of(len(ranking))
        picked = {
            order: places
            for order, ranked in selection.by_frame(islice(ranking, most)).items()
            if (places := new(waiting[order], ranked))
        }
        if settings.budget_bytes is not None:
            coder = budget.finest(settings.budget_bytes, picked, make_waiting, coder)
        for order, places in picked.items():
            coded = make_waiting(order, places, coder)
            if coded is not None:
                yield coded


def _ranking(
    settings: SampleSettings,
    num_questions: Mapping[str, int],
) -> Interleaved:
    """The order of the questions, no longer than what can be picked of each task.

    Of two tasks one gets at most its exact share rounded up, hence one more than its share of what
    the source promised.
    """
    if settings.select in SPREAD_RULES:
        return Interleaved(lambda _: Spread())
    if settings.is_top:
        top = settings.top or DEFAULT_TOP
        return Interleaved(
            lambda task: Ranking(max_questions=top.of(num_questions[task]) + top.is_share)
        )
    most = (settings.budget_bytes or 0) // budget.LEAST_FRAME_BYTES
    return Interleaved(lambda _: Ranking(max_frames=most))
