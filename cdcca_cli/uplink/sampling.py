"""From frames to shards, coarse to fine: `cdcca sample`, Uncertainty-guided Token Sampling.

Legend: K asks of a frame, N visual tokens, C channels.

Stage 1 gives every ask of every frame the entropy of its answer (Eq. 2), by the pass of `answers`
or from predictions made earlier, and picks asks by it. A frame goes up if one of its asks was
picked, with the picked asks only. Stage 2 gives every token of those frames a score, the variance
over Monte Carlo dropout (Eq. 3, 4), and keeps the best; what is sent are the clean tokens.

**Memory is flat and the tower runs once per frame.** What ranks high is known only at the end of
the stream, so the trunk's hidden state of each frame that could still be picked waits in a spool on
disk, and gives up its place when its last ask falls out of the ranking. At the end stage 2 goes on
from there, in the order of the input. With `threshold` nothing waits: a frame is sent or not.
With predictions the tower runs for the picked frames alone.

**The same tokens whatever the batch.** Sums in floating point depend on the shape of a batch in
their last bits, and a rank can hang on a bit. So the tower takes one frame at a time here, and
stage 2 one frame's passes; only the language model of stage 1 runs in batches of `batch_size`.

Does not write: a shard is a value, and `formats.shard` knows its bytes.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import records
from cdcca_cli.formats import shard as shard_format
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Ask, Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.uplink import selection, variance
from cdcca_cli.uplink.answers import AnswerSettings, answer_window, image_name, windows
from cdcca_cli.uplink.selection import Ranking
from cdcca_cli.uplink.settings import DEFAULT_KEEP, DEFAULT_TOP, SampleSettings
from cdcca_cli.uplink.spool import Spool


@dataclass(frozen=True)
class _Judged:
    """A frame after stage 1. entropies_K: None for an ask that has no figure.

    hidden_1NC: the trunk's output; None if it has not run.
    """

    frame: Frame
    entropies_K: list[float | None]
    hidden_1NC: Tensor | None = None


def sample_frames(
    model: LoadedModel,
    frames: Iterable[Frame],
    settings: SampleSettings | None = None,
    predictions: Iterable[Prediction] | None = None,
) -> Iterator[Shard]:
    """The most uncertain tokens of the most uncertain asks, as shards in the order of the input.

    Args:
        frames: gone through twice, first to count the asks; without predictions, by threshold or
            budget, once.
        predictions: entropies to use instead of answering, matched by the asks' ids.
    Raises: UsageError: more blocks than the tower has. BadData: an image, a figure or a prediction
        is bad, no token of a frame varies, or no prediction belongs to the frames.
    """
    settings = settings or SampleSettings()
    if settings.blocks > model.num_blocks:
        raise UsageError(
            f"--blocks {settings.blocks}: the vision tower has {model.num_blocks} that are used"
        )
    if predictions is None:
        num_asks = sum(len(frame.asks) for frame in frames) if settings.is_top else 0
        judged = _answered(model, frames, settings)
    else:
        figures = _figures(model, predictions, settings.entropy)
        num_asks = _matched(frames, figures)
        tracked = progress.track(frames, description="sample")
        judged = (_Judged(frame, _look_up(frame, figures)) for frame in tracked)
    if settings.threshold is not None:
        return _above(model, judged, settings, settings.threshold)
    return _highest(model, judged, settings, num_asks)


def _answered(
    model: LoadedModel, frames: Iterable[Frame], settings: SampleSettings
) -> Iterator[_Judged]:
    """Stage 1 by answering: the trunk once per frame, everything else from its output."""
    how = AnswerSettings(settings.batch_size, settings.max_new_tokens, score_choices=False)
    for window in windows(progress.track(frames, description="sample"), settings.batch_size):
        hidden = [_trunk(model, frame, settings) for frame in window]
        tokens_FNC = torch.cat([_tail(model, hidden_1NC, settings) for hidden_1NC in hidden])
        answers = answer_window(model, window, tokens_FNC, how)
        for frame, hidden_1NC, predictions in zip(window, hidden, answers, strict=True):
            entropies: list[float | None] = [p.entropy[settings.entropy] for p in predictions]
            yield _Judged(frame, entropies, hidden_1NC)


def _figures(
    model: LoadedModel, predictions: Iterable[Prediction], summary: str
) -> dict[str, float]:
    """The entropy of each prediction by its id; a later one of the same id replaces it."""
    figures: dict[str, float] = {}
    makers: set[str] = set()
    for prediction in predictions:
        figures[prediction.id] = prediction.entropy[summary]
        makers.add(prediction.model)
    for maker in sorted(makers - {model.digest}):
        streams.message(
            f"the predictions are of a model at {short(maker)}, this one is at "
            f"{short(model.digest)}: using their entropies all the same"
        )
    return figures


def _look_up(frame: Frame, figures: Mapping[str, float]) -> list[float | None]:
    return [figures.get(ask.id) for ask in frame.asks]


def _matched(frames: Iterable[Frame], figures: Mapping[str, float]) -> int:
    """How many asks have a figure; says it where some have none."""
    num_asks = num_matched = 0
    for frame in frames:
        num_asks += len(frame.asks)
        num_matched += sum(figure is not None for figure in _look_up(frame, figures))
    if num_asks and not num_matched:
        raise BadData(
            f"--predictions: none of its {len(figures)} ids is asked of these frames "
            f"({num_asks} asks): give the predictions that infer made of the same frames"
        )
    if num_matched < num_asks:
        streams.message(
            f"{num_asks - num_matched} of {num_asks} asks have no prediction and are left out"
        )
    return num_matched


def _above(
    model: LoadedModel, judged: Iterable[_Judged], settings: SampleSettings, threshold: float
) -> Iterator[Shard]:
    for item in judged:
        asks = [
            place
            for place, entropy in enumerate(item.entropies_K)
            if entropy is not None and entropy >= threshold
        ]
        if asks:
            yield make_shard(model, item.frame, item.entropies_K, asks, settings, item.hidden_1NC)


def _highest(
    model: LoadedModel, judged: Iterable[_Judged], settings: SampleSettings, num_asks: int
) -> Iterator[Shard]:
    with Spool() as spool:
        ranking: Ranking | None = None
        waiting: dict[int, _Judged] = {}
        slots: dict[int, int] = {}
        for order, item in enumerate(judged):
            ranking = ranking or _ranking(settings, num_asks, model.num_tokens, item)
            gone = ranking.offer(order, item.entropies_K)
            for other in gone & waiting.keys():
                del waiting[other]
                if other in slots:
                    spool.free(slots.pop(other))
            if order not in gone:
                waiting[order] = replace(item, hidden_1NC=None)
                if item.hidden_1NC is not None:
                    slots[order] = spool.put(item.hidden_1NC)

        def make(order: int, asks: Sequence[int]) -> Shard:
            item = waiting[order]
            hidden_1NC = spool.get(slots[order]) if order in slots else None
            return make_shard(model, item.frame, item.entropies_K, asks, settings, hidden_1NC)

        if ranking is None:
            return
        if settings.budget_bytes is not None:
            yield from _within(settings.budget_bytes, ranking, waiting, make)
        else:
            for order, asks in ranking.by_frame().items():
                yield make(order, asks)


def _ranking(settings: SampleSettings, num_asks: int, num_tokens: int, first: _Judged) -> Ranking:
    """A ranking no longer than what can be picked in the end."""
    if settings.is_top:
        return Ranking(max_asks=(settings.top or DEFAULT_TOP).of(num_asks))
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
    waiting: Mapping[int, _Judged],
    make: Callable[[int, Sequence[int]], Shard],
) -> Iterator[Shard]:
    """Asks from the top while the whole stream, end record included, fits; then no more."""
    taken: dict[int, Shard] = {}
    places: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    total = 0
    for order, place in ranking:
        asks = sorted([*places.get(order, []), place])
        if order in taken:
            item = waiting[order]
            shard = replace(taken[order], asks=_asks(item.frame, item.entropies_K, asks))
        else:
            shard = make(order, asks)
        size = shard_format.encoded_bytes(shard)
        grown = total - sizes.get(order, 0) + size
        if grown + _end_bytes(len(taken.keys() | {order})) > budget_bytes:
            break
        taken[order], places[order], sizes[order], total = shard, asks, size, grown
    if not taken:
        streams.message(f"a budget of {budget_bytes:,} bytes holds not one shard: nothing is sent")
    return (taken[order] for order in sorted(taken))


def _end_bytes(count: int) -> int:
    """The bytes of the end record of a stream of `count` shards."""
    header = {"kind": "end", "version": shard_format.VERSION, "count": count}
    return records.write_record(io.BytesIO(), {}, header)


def make_shard(
    model: LoadedModel,
    frame: Frame,
    entropies_K: Sequence[float | None],
    asks: Sequence[int],
    settings: SampleSettings,
    hidden_1NC: Tensor | None = None,
) -> Shard:
    """Stage 2 of one frame: its best tokens, with those of its asks that were picked.

    Args:
        entropies_K: of all its asks, in nats. asks: the places of the picked ones, ascending.
        hidden_1NC: what the trunk gave for it; None: it runs now.
    """
    if hidden_1NC is None:
        hidden_1NC = _trunk(model, frame, settings)
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
        asks=_asks(frame, entropies_K, asks),
        bits=settings.bits,
    )


def _asks(frame: Frame, entropies_K: Sequence[float | None], places: Iterable[int]) -> list[Ask]:
    """What goes up of the asks: never their labels."""
    picked = [(frame.asks[place], entropies_K[place]) for place in places]
    return [Ask(ask.id, ask.prompt, ask.task, ask.choices, entropy) for ask, entropy in picked]


def _scored(
    model: LoadedModel, frame: Frame, hidden_1NC: Tensor, settings: SampleSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The clean tokens (N, C) of one frame and the score of each, (N,), both float32."""
    if settings.by == "vis":
        tokens_NC, variance_N = variance.token_variance(
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
    generator = variance.frame_generator(settings.seed, frame.id)
    return tokens, generator.random(len(tokens), dtype=np.float32)


@torch.no_grad()
def _trunk(model: LoadedModel, frame: Frame, settings: SampleSettings) -> Tensor:
    pixels_13HW = model.preprocess([load_image(frame)])
    return model.trunk(pixels_13HW, model.num_blocks - settings.blocks)


@torch.no_grad()
def _tail(model: LoadedModel, hidden_1NC: Tensor, settings: SampleSettings) -> Tensor:
    return model.tail(hidden_1NC, model.num_blocks - settings.blocks)
