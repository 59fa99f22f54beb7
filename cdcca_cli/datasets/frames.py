"""Frames: an image with the questions about it, and the pixels of the image.

Labels (the correct choice, ten answers, captions) belong to the questions; they are for scoring and
are never sent. `pictures`, `video`, `live` and `sources` know the formats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from cdcca_cli.datasets import pictures, video
from cdcca_cli.errors import BadData
from cdcca_cli.text import is_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from cdcca_cli.datasets.live import Capture

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Task = Literal["vqa", "caption"]
TASKS: tuple[Task, ...] = ("vqa", "caption")


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """A question about a frame, with its labels where the source has them.

    id: unique in its source; a caption has the id of its image.
    prompt: None asks for a caption in the family's own words.
    kind: as its source names it (VQAv2's answer type, a manifest's `kind`).
    """

    id: str
    prompt: str | None = None
    task: Task = "caption"
    choices: list[str] | None = None
    correct_choice_idx: int | None = None
    answers: list[str] | None = None
    captions: list[str] | None = None
    kind: str | None = None
    difficult_direct_answer: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One image and the questions about it. image: the file; of a video, with a `position` in it.

    id: unique in its source: the path in its folder or manifest, the image id of an annotation
    file, `clip.mp4#12` for a frame of a video, or `camera/1@2026-11-27T10:00:00.000Z`.
    time: of its capture, in seconds since 1970, if the source has one.
    capture: the picture itself, if there is no file: of a live source.
    """

    id: str
    image: Path
    questions: list[LabelledQuestion] = field(default_factory=list)
    domain: str | None = None
    position: int | None = None
    time: float | None = None
    capture: "Capture | None" = None


class Items(Protocol[T_co]):
    """Items of a known number, which can be read any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


Frames = Items[Frame]


class LazyFrames(Generic[T]):
    """Frames that are made from items when they are read."""

    def __init__(self, items: Items[T], frame_of: Callable[[T], Frame]) -> None:
        self._items, self._frame_of = items, frame_of

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Frame]:
        return map(self._frame_of, self._items)


def load_image(frame: Frame) -> "Image":
    """The frame's pixels as a PIL image in 8-bit RGB, upright.

    Raises: MissingInput (66); BadData (65) if it is not a whole picture or its name is not UTF-8.
    """
    if not is_text(frame.id):
        raise BadData(f"{frame.id}: its name is not UTF-8: rename the file")
    if frame.capture is not None:
        return frame.capture.load(frame.id)
    if frame.position is not None:
        return video.load(frame.image, frame.position)
    return pictures.load(frame.image)


def image_name(frame: Frame) -> str:
    """The frame's file as its source names it, or its bare name: never a path of this machine."""
    own = Path(frame.id).parts
    return frame.id if frame.image.parts[-len(own) :] == own else frame.image.name
