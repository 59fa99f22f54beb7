"""Stage 1 before the choice: each frame with the entropies of its answers and its questions' ranks.

The answers come from the model, with the frames halfway through the tower, where stage 2 goes on,
or from the predictions of an earlier `infer`.

Legend: K questions of a frame, N visual tokens, C channels.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cdcca_cli import progress, streams
from cdcca_cli.datasets import Frame
from cdcca_cli.errors import BadData
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import LoadedModel, Picture, Seen, Trunk
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink.answers import answer_window, looked_at, windows
from cdcca_cli.uplink.kept_tokens import tail, trunk_of
from cdcca_cli.uplink.questions import Rank, ranks_of, score_of
from cdcca_cli.uplink.settings import SPREAD_RULES, AnswerSettings, SampleSettings
from cdcca_cli.uplink.spool import Slot


@dataclass(frozen=True)
class Candidate:
    """A frame after stage 1. slot: the place of its hidden state in the spool.

    entropies_K: None for a question without an answer. ranks_K: by `select`, likewise; empty once
    it is ranked. trunk: halfway through the tower; None if it has not run, or is in the spool.
    """

    frame: Frame
    entropies_K: list[float | None]
    ranks_K: list[Rank | None]
    trunk: Trunk | None = None
    slot: Slot | None = None


def count_by_task(frames: Iterable[Frame], counts: Callable[[str], bool]) -> Mapping[str, int]:
    """The number of questions of each task, of those whose id `counts`."""
    return Counter(
        question.task for frame in frames for question in frame.questions if counts(question.id)
    )


def answered(
    model: LoadedModel, frames: Iterable[Frame], settings: SampleSettings, skipped: Skipped
) -> Iterator[Candidate]:
    """Every frame, answered now."""
    how = AnswerSettings(settings.batch_size, settings.max_new_tokens, score_choices=False)

    def in_two_steps(picture: Picture) -> tuple[Trunk, Seen]:
        trunk = trunk_of(model, picture, settings)
        return trunk, tail(model, trunk)

    for window in windows(progress.track(frames, description="sample"), settings.batch_size):
        kept, trunks, seen = [], [], []
        for frame in window:
            looked = looked_at(model, frame, skipped, in_two_steps)
            if looked is not None:
                kept.append(frame)
                trunks.append(looked[0])
                seen.append(looked[1])
        if not kept:
            continue
        answers = answer_window(model, kept, seen, how, skipped)
        for frame, trunk, found in zip(kept, trunks, answers, strict=True):
            figures = [None if p is None else _figures(p, settings) for p in found]
            texts = [None if p is None else p.answer for p in found]
            yield from _candidate(model, frame, figures, texts, trunk, settings, skipped)


Figures = tuple[float, float]
"""Of a question: the entropy of its answer and its score."""


def _figures(prediction: Prediction, settings: SampleSettings) -> Figures:
    return prediction.entropy[settings.entropy], score_of(prediction, settings)


def _candidate(
    model: LoadedModel,
    frame: Frame,
    figures_K: Sequence[Figures | None],
    answers_K: Sequence[str | None],
    trunk: Trunk | None,
    settings: SampleSettings,
    skipped: Skipped,
) -> Iterator[Candidate]:
    """The frame with the ranks of its questions; nothing if the model fails on it."""
    entropies_K, scores_K = (
        [None if figures is None else figures[place] for figures in figures_K] for place in (0, 1)
    )
    try:
        ranks_K = ranks_of(model, frame, answers_K, scores_K, trunk, settings)
    except BadData as error:
        skipped.add("frame", error)
    else:
        yield Candidate(frame, entropies_K, ranks_K, trunk)


def figures_by_id(
    model: LoadedModel, predictions: Iterable[Prediction], settings: SampleSettings
) -> dict[str, Figures]:
    """The figures of each prediction; the last one of an id counts."""
    figures: dict[str, Figures] = {}
    models: set[str] = set()
    for prediction in predictions:
        figures[prediction.id] = _figures(prediction, settings)
        models.add(prediction.model)
    for other in sorted(models - {model.digest}):
        streams.message(
            f"the predictions are from a model at {short(other)}, this one is at "
            f"{short(model.digest)}: using their entropies all the same"
        )
    return figures


def looked_up(
    model: LoadedModel,
    frames: Iterable[Frame],
    figures: Mapping[str, Figures],
    settings: SampleSettings,
    skipped: Skipped,
) -> Iterator[Candidate]:
    """Every frame, with the figures of earlier predictions."""
    for frame in frames:
        trunk = None
        if settings.select in SPREAD_RULES:
            trunk = looked_at(model, frame, skipped, partial(trunk_of, model, settings=settings))
            if trunk is None:
                continue
        found = [figures.get(question.id) for question in frame.questions]
        yield from _candidate(model, frame, found, [], trunk, settings, skipped)


def check_matched(frames: Iterable[Frame], figures: Mapping[str, Figures]) -> Mapping[str, int]:
    """The number of questions with a prediction, by task. Raises: BadData if none has."""
    everything = count_by_task(frames, lambda _: True)
    matched = count_by_task(frames, figures.__contains__)
    total, missing = sum(everything.values()), sum(everything.values()) - sum(matched.values())
    if total and missing == total:
        raise BadData(
            f"`predictions`: none of its {len(figures)} ids is a question about these frames "
            f"({total} questions): give the predictions that infer made of the same frames"
        )
    if missing:
        streams.message(f"{missing} of {total} questions have no prediction and are left out")
    return matched
