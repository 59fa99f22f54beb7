"""From frames to shards: `cdcca sample`, Uncertainty-guided Token Sampling.

Stage 1 takes the entropy of the answer to every question (Eq. 2), from `answers` or from earlier
predictions, and picks questions by it or by another rule of `questions`. Frames with a picked
question are sent, with their picked questions only, and nearly the same picture is sent with a
question once (`near`). Stage 2 scores each token of those frames by its variance over Monte Carlo
dropout (Eq. 3, 4) and keeps the best; the tokens sent come from the pass without dropout.

The ranking is known only at the end of the stream. Until then the trunk's hidden state of each
frame that could still be picked is in a spool on disk, so memory is flat and the tower runs once
per frame; by `k-center` every frame could. With `threshold` and `running` nothing is spooled. With
predictions the tower runs for picked frames only (for all by `k-center`), and a picked frame whose
picture is bad leaves one shard fewer.

Legend: K questions of a frame, N visual tokens, C channels.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.datasets import Frame, LabelledQuestion, load_image
from cdcca_cli.errors import BadData, MissingInput, SettingError
from cdcca_cli.formats import records
from cdcca_cli.formats import shard as shard_format
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink import selection, uncertainty
from cdcca_cli.uplink.answers import image_name
from cdcca_cli.uplink.candidates import (
    Candidate,
    answered,
    check_matched,
    count_by_task,
    figures_by_id,
    looked_up,
)
from cdcca_cli.uplink.candidates import tail as _tail
from cdcca_cli.uplink.candidates import trunk as _trunk
from cdcca_cli.uplink.near import SentPictures
from cdcca_cli.uplink.questions import Interleaved, Point, Rank, Spread, draw
from cdcca_cli.uplink.running import Running
from cdcca_cli.uplink.selection import Ranking
from cdcca_cli.uplink.settings import (
    DEFAULT_KEEP,
    DEFAULT_TOP,
    SPREAD_RULES,
    SampleSettings,
)
from cdcca_cli.uplink.spool import Spool


def sample_frames(
    model: LoadedModel,
    frames: Iterable[Frame],
    settings: SampleSettings | None = None,
    predictions: Iterable[Prediction] | None = None,
    skipped: Skipped | None = None,
    running: Running | None = None,
    sent: SentPictures | None = None,
) -> Iterator[Shard]:
    """The tokens of the questions that `select` picks, in the order of the input.

    Args:
        frames: iterated twice with `top` or predictions, else once.
        predictions: answers to use instead of answering, matched by the questions' ids.
        skipped: counts bad frames and questions, which are left out; None: they are errors.
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
    num_questions: Mapping[str, int]
    if predictions is None:
        num_questions = count_by_task(frames, lambda _: True) if settings.is_top else {}
        candidates = answered(model, frames, settings, skipped)
    else:
        if settings.select == "bald":
            reason = "cannot be combined with `select` bald, which asks the model again"
            raise SettingError("predictions", reason)
        figures = figures_by_id(model, predictions, settings)
        num_questions = check_matched(frames, figures)
        tracked = progress.track(frames, description="sample")
        candidates = looked_up(model, tracked, figures, settings, skipped)

    def make(item: Candidate, questions: Sequence[int]) -> Shard | None:
        try:
            shard = make_shard(
                model, item.frame, item.entropies_K, questions, settings, item.hidden_1NC
            )
        except (BadData, MissingInput) as error:
            skipped.add("frame", error)
            return None
        skipped.num_sound += 1
        return shard

    def new(item: Candidate, places: Sequence[int]) -> Sequence[int]:
        return places if settings.repeats else sent.new(item.frame, places)

    if settings.is_live:
        running = Running() if running is None else running
        shards = _as_they_come(candidates, settings, running, new, make)
    else:
        shards = _highest(model.num_tokens, candidates, settings, num_questions, new, make)
    return _noted(shards, sent)


Make = Callable[[Candidate, Sequence[int]], Shard | None]
"""Stage 2 of a frame, with the places of its picked questions."""

New = Callable[[Candidate, Sequence[int]], Sequence[int]]
"""The picked questions of a frame without those that nearly the same picture was sent with."""


def _noted(shards: Iterable[Shard], sent: SentPictures) -> Iterator[Shard]:
    for shard in shards:
        sent.add(shard)
        yield shard


def _as_they_come(
    candidates: Iterable[Candidate],
    settings: SampleSettings,
    running: Running,
    new: New,
    make: Make,
) -> Iterator[Shard]:
    """Each frame by itself: the questions above the threshold, or of the running share."""
    share = settings.running
    if share is not None:
        running.begin(f"{settings.select} {settings.entropy}")

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
        shard = make(item, places) if places else None
        if shard is not None:
            yield shard


def _highest(
    num_tokens: int,
    candidates: Iterable[Candidate],
    settings: SampleSettings,
    num_questions: Mapping[str, int],
    new: New,
    make: Make,
) -> Iterator[Shard]:
    with closing(Spool()) as spool:
        ranking: Interleaved | None = None
        waiting: dict[int, Candidate] = {}
        for order, item in enumerate(candidates):
            if ranking is None:
                ranking = _ranking(settings, num_questions, num_tokens, item)
            gone = ranking.offer(order, [q.task for q in item.frame.questions], item.ranks_K)
            for other in gone & waiting.keys():
                slot = waiting.pop(other).slot
                if slot is not None:
                    spool.free(slot)
            if order not in gone:
                slot = None if item.hidden_1NC is None else spool.put(item.hidden_1NC)
                waiting[order] = replace(item, ranks_K=[], hidden_1NC=None, slot=slot)

        def make_waiting(order: int, questions: Sequence[int]) -> Shard | None:
            item = waiting[order]
            hidden_1NC = None if item.slot is None else spool.get(item.slot)
            return make(replace(item, hidden_1NC=hidden_1NC), questions)

        if ranking is None:
            return
        if settings.budget_bytes is not None:
            ranked = ((order, place) for order, place in ranking if new(waiting[order], [place]))
            yield from _within(settings.budget_bytes, ranked, waiting, make_waiting)
            return
        most = (settings.top or DEFAULT_TOP).of(len(ranking))
        for order, picked in selection.by_frame(islice(ranking, most)).items():
            places = new(waiting[order], picked)
            shard = make_waiting(order, places) if places else None
            if shard is not None:
                yield shard


def _ranking(
    settings: SampleSettings,
    num_questions: Mapping[str, int],
    num_tokens: int,
    first: Candidate,
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
    if first.hidden_1NC is None:
        return Interleaved(lambda _: Ranking())
    num_kept = 1
    if settings.beta is None:
        num_kept = (settings.keep or DEFAULT_KEEP).of(num_tokens)
    payload_bytes = num_kept * first.hidden_1NC.shape[-1] * settings.bits // 8
    return Interleaved(lambda _: Ranking(max_frames=(settings.budget_bytes or 0) // payload_bytes))


def _within(
    budget_bytes: int,
    ranking: Iterable[tuple[int, int]],
    waiting: Mapping[int, Candidate],
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
