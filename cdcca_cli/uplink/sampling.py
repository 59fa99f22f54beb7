"""From frames to shards: `cdcca sample`, Uncertainty-guided Token Sampling.

Stage 1 takes the entropy of the answer to every question (Eq. 2), from `answers` or from earlier
predictions, and picks questions by it or by another rule of `questions`. Frames with a picked
question are sent, with their picked questions only, and nearly the same picture is sent with a
question once (`near`). Stage 2 (`kept_tokens`) chooses tokens of those frames, and `coding` makes
the payload of them.

The ranking is known only at the end of the stream. Until then the trunk's hidden state of each
frame that could still be picked is in a spool on disk, so memory is flat and the tower runs once
per frame; by `k-center` every frame could. With `threshold` and `running` nothing is spooled. With
predictions the tower runs for picked frames only (for all by `k-center`), and a picked frame whose
picture is bad leaves one shard fewer.

Legend: K questions of a frame, N visual tokens, C channels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from cdcca_cli import progress
from cdcca_cli.datasets import Frame, LabelledQuestion, LiveFrames
from cdcca_cli.datasets.frames import TASKS
from cdcca_cli.errors import BadData, MissingInput, SettingError
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Shard
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink import budget, selection
from cdcca_cli.uplink.candidates import (
    Candidate,
    check_matched,
    count_by_task,
    figures_by_id,
    looked_up,
)
from cdcca_cli.uplink.coding import Coded, Coder
from cdcca_cli.uplink.near import SentPictures
from cdcca_cli.uplink.picked import KnownModel
from cdcca_cli.uplink.questions import Interleaved, Point, Rank, Spread, draw
from cdcca_cli.uplink.running import Running
from cdcca_cli.uplink.selection import Ranking
from cdcca_cli.uplink.settings import (
    DEFAULT_TOP,
    SPREAD_RULES,
    PayloadSettings,
    SampleSettings,
)

if TYPE_CHECKING:
    from cdcca_cli.models import LoadedModel
    from cdcca_cli.uplink.spool import Spool


def sample_frames(
    model: "LoadedModel | KnownModel",
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
        model: one that is known by its profile takes predictions and makes the payload `frame`.
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
    coder = coder or Coder(model, PayloadSettings(), None)
    if not isinstance(model, KnownModel) and settings.uses_dropout(with_scores=coder.sends_scores):
        _check_blocks(settings, model)
    if isinstance(frames, LiveFrames):
        _check_live(frames, settings, predictions)
    _check_coder(coder, settings)
    num_questions: Mapping[str, int]
    kind = ""
    if predictions is None:
        assert not isinstance(model, KnownModel), "answers need the model"
        from cdcca_cli.uplink import answered

        num_questions = _num_questions(frames) if settings.is_top else {}
        candidates = answered.answered(model, frames, settings, skipped)
    else:
        if settings.select == "bald":
            reason = "cannot be combined with `select` bald, which asks the model again"
            raise SettingError("predictions", reason)
        figures, kind = figures_by_id(model.digest, predictions, settings)
        num_questions = check_matched(frames, figures)
        tracked = progress.track(frames, description="sample")
        if settings.select in SPREAD_RULES:
            assert not isinstance(model, KnownModel), "k-center needs the model"
            from cdcca_cli.uplink import answered

            candidates = answered.looked_at_all(model, tracked, figures, settings, skipped)
        else:
            candidates = looked_up(tracked, figures)

    counted: set[str] = set()

    def make(item: Candidate, questions: Sequence[int], coder: Coder = coder) -> Coded | None:
        try:
            shard = _shard(model, item, questions, settings, with_scores=coder.sends_scores)
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

    def new(item: Candidate, places: Sequence[int]) -> Sequence[int]:
        return places if settings.repeats else sent.new(item.frame, places)

    if settings.is_live:
        running = Running() if running is None else running
        rule = " ".join(filter(None, (settings.select, settings.entropy, kind)))
        found = _as_they_come(candidates, settings, running, rule, new, make)
    else:
        found = _highest(candidates, settings, num_questions, new, make, coder)
    return _noted(found, sent)


Make = Callable[..., Coded | None]
"""Stage 2 of a frame, with the places of its picked questions, and perhaps another coder."""

New = Callable[[Candidate, Sequence[int]], Sequence[int]]
"""The picked questions of a frame without those that nearly the same picture was sent with."""


def _shard(
    model: "LoadedModel | KnownModel",
    item: Candidate,
    questions: Sequence[int],
    settings: SampleSettings,
    *,
    with_scores: bool,
) -> Shard:
    if isinstance(model, KnownModel):
        return model.shard(item.frame, item.entropies_K, questions)
    from cdcca_cli.uplink.kept_tokens import make_shard

    return make_shard(
        model,
        item.frame,
        item.entropies_K,
        questions,
        settings,
        item.trunk,
        with_scores=with_scores,
    )


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


def _check_blocks(settings: SampleSettings, model: "LoadedModel") -> None:
    """Raises: SettingError for more blocks with dropout than the vision tower has."""
    if not model.num_blocks:
        name, cure = ("select", "entropy") if settings.select == "bald" else ("by", "norm")
        reason = f"{model.family} has no vision blocks to put dropout in: use {cure}"
        raise SettingError(name, reason, getattr(settings, name))
    if settings.blocks > model.num_blocks:
        raise SettingError(
            "blocks", f"the vision tower has {model.num_blocks} blocks in use", settings.blocks
        )


def _check_coder(coder: Coder, settings: SampleSettings) -> None:
    """Raises: SettingError, before any frame is read, for what this coder cannot do."""
    if settings.is_top and settings.budget_bytes is not None:
        coder.with_step(budget.COARSEST_STEP)
    for name in ("keep", "beta"):
        if coder.token_coding is None and getattr(settings, name) is not None:
            raise SettingError(name, "is of tokens, and `payload` frame sends pictures")


def _num_questions(frames: Iterable[Frame]) -> Mapping[str, int]:
    """The number of questions of each task; of a live source the largest that it can have."""
    if isinstance(frames, LiveFrames):
        return dict.fromkeys(TASKS, frames.most_frames)
    return count_by_task(frames, lambda _: True)


def _noted(found: Iterable[Coded], sent: SentPictures) -> Iterator[Coded]:
    for coded in found:
        sent.add(coded.shard)
        yield coded


def _as_they_come(
    candidates: Iterable[Candidate],
    settings: SampleSettings,
    running: Running,
    rule: str,
    new: New,
    make: Make,
) -> Iterator[Coded]:
    """Each frame by itself: the questions above the threshold, or of the running share."""
    share = settings.running
    if share is not None:
        running.begin(rule)

    def takes(question: LabelledQuestion, entropy: float | None, rank: Rank | None) -> bool:
        if entropy is None or rank is None or isinstance(rank, Point):
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
    candidates: Iterable[Candidate],
    settings: SampleSettings,
    num_questions: Mapping[str, int],
    new: New,
    make: Make,
    coder: Coder,
) -> Iterator[Coded]:
    with ExitStack() as stack:
        spool: Spool | None = None
        ranking: Interleaved | None = None
        waiting: dict[int, Candidate] = {}
        for order, item in enumerate(candidates):
            ranking = ranking or _ranking(settings, num_questions)
            gone = ranking.offer(order, [q.task for q in item.frame.questions], item.ranks_K)
            for other in gone & waiting.keys():
                slot = waiting.pop(other).slot
                if slot is not None and spool is not None:
                    spool.free(slot)
            if order not in gone:
                slot = None
                if item.trunk is not None:
                    spool = spool or stack.enter_context(closing(_new_spool()))
                    slot = spool.put(item.trunk)
                waiting[order] = replace(item, ranks_K=[], trunk=None, slot=slot)

        def make_waiting(
            order: int, questions: Sequence[int], coder: Coder = coder
        ) -> Coded | None:
            item = waiting[order]
            trunk = None if item.slot is None or spool is None else spool.get(item.slot)
            return make(replace(item, trunk=trunk), questions, coder)

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


def _new_spool() -> "Spool":
    from cdcca_cli.uplink.spool import Spool

    return Spool()


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
