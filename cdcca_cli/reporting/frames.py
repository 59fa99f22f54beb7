"""Labelled frames that a run was scored on, or saw: right answers and pictures by id."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cdcca_cli.datasets import Frame, Reference, load_image, read_frames, read_references
from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.reporting.found import Unreadable
from cdcca_cli.scoring.evaluation import named

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLE = 200


@dataclass(eq=False)
class FrameSet:
    """Frames by id, and the labels of their questions; none of a folder of bare pictures."""

    name: str
    source: str
    frames: Mapping[str, Frame]
    references: Mapping[str, Reference]

    def image(self, frame: str) -> "Image | None":
        """The pixels of a frame. Raises: CdccaError if it is damaged."""
        found = self.frames.get(frame)
        return None if found is None else load_image(found)


class FrameSets:
    """What `references` names, as `[NAME=]FRAMES`; without a name the file's or folder's counts."""

    def __init__(self, given: Iterable[str], images: Path | None, bad: Unreadable) -> None:
        """Raises: as `read_frames` and `read_references`."""
        self._bad = bad
        self.sets = [self._read(*named(text), images) for text in given]

    def _read(self, name: str | None, path: str, images: Path | None) -> FrameSet:
        source = Path(path)
        own = source.parent.name if source.stem == "frames" else source.stem
        frames = {
            frame.id: replace(frame, questions=[]) for frame in read_frames(path, images=images)
        }
        try:
            references = read_references(path)
        except BadData:  # pictures alone
            references = {}
        return FrameSet(name or own, path, frames, references)

    def called(self, name: str) -> FrameSet | None:
        """The set of this name."""
        return next((one for one in self.sets if one.name == name), None)

    def of_questions(self, name: str, ids: Iterable[str]) -> FrameSet | None:
        """The labelled set of this name, or else the one that knows most of some question ids."""
        own = self.called(name)
        if own is not None and own.references:
            return own
        wanted = list(ids)[:_SAMPLE]
        return _most([one.references for one in self.sets], wanted, self.sets)

    def of_frames(self, ids: Iterable[str]) -> FrameSet | None:
        """The set that knows most of some frames' ids."""
        wanted = list(ids)[:_SAMPLE]
        return _most([one.frames for one in self.sets], wanted, self.sets)

    @cached_property
    def is_empty(self) -> bool:
        return not self.sets

    def image(self, found: FrameSet | None, frame: str) -> "Image | None":
        """The pixels of a frame; None if there are none, or they are damaged, which is named."""
        try:
            return None if found is None else found.image(frame)
        except CdccaError as error:
            self._bad.add(frame, error)
            return None


def _most(
    known: list[Mapping[str, object]], wanted: list[str], sets: list[FrameSet]
) -> FrameSet | None:
    """The set that has most of what is wanted, if that is at least half of it."""
    counts = [sum(one in has for one in wanted) for has in known]
    best = max(range(len(sets)), key=lambda i: (counts[i], -i), default=None)
    if best is None or not counts[best] or 2 * counts[best] < len(wanted):
        return None
    return sets[best]
