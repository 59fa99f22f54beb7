"""Candidates by the loaded model: answered now, or looked at where a rule needs their tokens.

Frames are halfway through the tower, where stage 2 goes on.

Legend: K questions of a frame.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from cdcca_cli import progress
from cdcca_cli.datasets import Frame
from cdcca_cli.errors import BadData
from cdcca_cli.models import LoadedModel, Picture, Seen, Trunk
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink.answers import answer_window, looked_at, windows
from cdcca_cli.uplink.candidates import Candidate, Figures, entropies_and_scores, figures_of
from cdcca_cli.uplink.kept_tokens import tail, trunk_of
from cdcca_cli.uplink.model_ranks import ranks_of
from cdcca_cli.uplink.settings import AnswerSettings, SampleSettings


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
            figures = [None if p is None else figures_of(p, settings) for p in found]
            texts = [None if p is None else p.answer for p in found]
            yield from _candidate(model, frame, figures, texts, trunk, settings, skipped)


def looked_at_all(
    model: LoadedModel,
    frames: Iterable[Frame],
    figures: Mapping[str, Figures],
    settings: SampleSettings,
    skipped: Skipped,
) -> Iterator[Candidate]:
    """Every frame that the tower takes, with the figures of earlier predictions."""
    for frame in frames:
        trunk = looked_at(model, frame, skipped, partial(trunk_of, model, settings=settings))
        if trunk is None:
            continue
        found = [figures.get(question.id) for question in frame.questions]
        yield from _candidate(model, frame, found, [], trunk, settings, skipped)


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
    entropies_K, scores_K = entropies_and_scores(figures_K)
    try:
        ranks_K = ranks_of(model, frame, answers_K, scores_K, trunk, settings)
    except BadData as error:
        skipped.add("frame", error)
    else:
        yield Candidate(frame, entropies_K, ranks_K, trunk)
