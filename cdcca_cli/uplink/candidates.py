"""Stage 1 before the choice: each frame with the entropies of its answers and its questions' ranks.

The answers come from the model, with the frames halfway through the tower, where stage 2 goes on
(`answered`), or from the predictions of an earlier `infer`: then no model is needed here.

Legend: K questions of a frame.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cdcca_cli import streams
from cdcca_cli.datasets import Frame
from cdcca_cli.errors import BadData
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.uplink.questions import Rank, score_of
from cdcca_cli.uplink.settings import ENTROPY_RULES, SampleSettings

if TYPE_CHECKING:
    from cdcca_cli.models import Trunk
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
    trunk: "Trunk | None" = None
    slot: "Slot | None" = None


def count_by_task(frames: Iterable[Frame], counts: Callable[[str], bool]) -> Mapping[str, int]:
    """The number of questions of each task, of those whose id `counts`."""
    return Counter(
        question.task for frame in frames for question in frame.questions if counts(question.id)
    )


Figures = tuple[float, float]
"""Of a question: the entropy of its answer and its score."""


def figures_of(prediction: Prediction, settings: SampleSettings) -> Figures:
    """Of one answer. Raises: BadData if the prediction lacks what the rule needs."""
    return prediction.entropy[settings.entropy], score_of(prediction, settings)


class Given(NamedTuple):
    """The figures of predictions, by id. kind: what their entropies are of; "" if of all tokens."""

    figures: dict[str, Figures]
    kind: str


def figures_by_id(
    digest: str, predictions: Iterable[Prediction], settings: SampleSettings
) -> Given:
    """The figures of each prediction; the last one of an id counts.

    Args: digest: of the device's model.
    Raises: BadData for entropies of several kinds, where they are compared.
    """
    figures: dict[str, Figures] = {}
    kinds: dict[str, str] = {}
    models: set[str] = set()
    for prediction in predictions:
        figures[prediction.id] = figures_of(prediction, settings)
        kinds[prediction.id] = prediction.entropy_of or ""
        models.add(prediction.model)
    found = sorted({*kinds.values()})
    if len(found) > 1 and settings.select in ENTROPY_RULES:
        listed = " and ".join(kind or "all tokens" for kind in found)
        raise BadData(
            f"`predictions`: their entropies are of {listed}, which cannot be compared: answer all "
            "frames in one way, or use `select` margin"
        )
    for other in sorted(models - {digest}):
        streams.message(
            f"the predictions are from a model at {short(other)}, this one is at "
            f"{short(digest)}: using their entropies all the same"
        )
    is_compared = settings.select in ENTROPY_RULES
    return Given(figures, found[0] if found and is_compared else "")


def looked_up(frames: Iterable[Frame], figures: Mapping[str, Figures]) -> Iterator[Candidate]:
    """Every frame, with the figures of earlier predictions; a question's score is its rank."""
    for frame in frames:
        found = [figures.get(question.id) for question in frame.questions]
        yield Candidate(frame, *entropies_and_scores(found))


def entropies_and_scores(
    figures_K: Sequence[Figures | None],
) -> tuple[list[float | None], list[Any]]:
    """The two figures of each question, apart."""
    entropies_K, scores_K = (
        [None if figures is None else figures[place] for figures in figures_K] for place in (0, 1)
    )
    return entropies_K, scores_K


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
