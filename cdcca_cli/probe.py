"""Labelled frames that a device is scored on; nothing of them is learnt from.

Does not load a model, nor answer anything: `rounds` and `probation` do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdcca_cli.datasets import Frame, Frames, Reference, read_frames, read_references
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.scoring.answers import answers_of
from cdcca_cli.scoring.measures import counts_for
from cdcca_cli.scoring.scores import Scores, score


@dataclass(frozen=True)
class Probe:
    """Frames, and the labels of what is asked of them."""

    frames: Frames
    references: Mapping[str, Reference]

    def allows(self, metric: str) -> bool:
        """Whether any label is for this metric."""
        return any(counts_for(metric, reference.ask) for reference in self.references.values())

    def asked_for(self, metric: str) -> list[Frame]:
        """The frames with the asks that this metric scores, and no others."""
        found = []
        for frame in self.frames:
            if asks := [ask for ask in frame.asks if counts_for(metric, ask)]:
                found.append(replace(frame, asks=asks))
        return found


def read_probe(path: Path, images: Path | None = None) -> Probe:
    """Labelled frames from a manifest or an annotation file, as `read_frames`.

    Raises: as `read_frames`; BadData (65) if there are no labels.
    """
    return Probe(read_frames(path, images=images), read_references(path))


def scored(
    predictions: Iterable[Prediction],
    references: Mapping[str, Reference],
    metrics: Sequence[str] | None = None,
) -> Scores:
    """Scores of predictions by all that the labels allow, whatever file they came from.

    metrics: these alone.
    """
    return score(references, dict(answers_of(predictions)), task="manifest", metrics=metrics)
