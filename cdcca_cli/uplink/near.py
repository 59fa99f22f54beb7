"""Pictures sent lately, so that nearly the same one does not go up again with the same question.

Two pictures are nearly the same if none of the 16 x 16 cells of their grey thumbnails differs by
more than 12 of 255. Among real frames that finds neighbours of a still camera, but none of a camera
in hand; a thing of a cell's size that moved makes a new picture, and so does other light.

A perceptual hash, as of the library ImageHash, is worse: its bits are signs, which noise turns
where a picture is flat. In 256 bits of dHash, neighbours of a still road camera differ by 21
(median) and two different frames of the shipped pair by 11; here by 3 and by 18, photographs by 70.
"""

import base64
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cdcca_cli.datasets import Frame, LabelledQuestion, load_image
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.text import counted

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_KEPT = 256
"""Pictures that are remembered: the last ones sent."""
_SIDE = 16
_MOST_DIFFERENCE = 12


@dataclass
class _Picture:
    """One picture: its thumbnail (256,), int16, and the questions asked of it."""

    thumbnail: np.ndarray
    questions: set[str]


class SentPictures:
    """The pictures sent in the last runs and in this one. num_repeats: questions left out."""

    def __init__(self) -> None:
        self._sent: deque[_Picture] = deque(maxlen=NUM_KEPT)
        self._picked: dict[str, _Picture] = {}  # by frame, those to be sent in this run
        self.num_repeats = 0

    def new(self, frame: Frame, places: Sequence[int]) -> list[int]:
        """The questions, by place, that no picture like this one has been sent with.

        They count as picked. Those of a picture that cannot be read are new.
        """
        if not places:
            return []
        try:
            picture = self._picked.get(frame.id) or _Picture(thumbnail(load_image(frame)), set())
        except (BadData, MissingInput):
            return [*places]
        asked = set().union(
            *(
                other.questions
                for other in (*self._sent, *self._picked.values())
                if other is not picture and _is_near(other.thumbnail, picture.thumbnail)
            )
        )
        found = [place for place in places if _key(frame.questions[place]) not in asked]
        self.num_repeats += len(places) - len(found)
        if found:
            picture.questions |= {_key(frame.questions[place]) for place in found}
            self._picked[frame.id] = picture
            if len(self._picked) > NUM_KEPT:
                del self._picked[next(iter(self._picked))]
        return found

    def add(self, shard: Shard) -> None:
        """Remember what was sent, with the questions that were."""
        picture = self._picked.pop(shard.frame, None)
        if picture is not None:
            questions = {_key(question) for question in shard.questions}
            self._sent.append(_Picture(picture.thumbnail, questions))

    def __str__(self) -> str:
        """For a summary: `, 2 questions of nearly the same picture not sent again`, or nothing."""
        if not self.num_repeats:
            return ""
        count = counted(self.num_repeats, "question")
        return f", {count} of nearly the same picture not sent again"

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "picture": base64.b64encode(one.thumbnail.astype(np.uint8).tobytes()).decode(),
                "questions": sorted(one.questions),
            }
            for one in self._sent
        ]

    @classmethod
    def from_json(cls, value: Any) -> "SentPictures":
        """Raises: KeyError, TypeError, ValueError for what `to_json` does not give."""
        found = cls()
        if not isinstance(value, list) or len(value) > NUM_KEPT:
            raise ValueError("pictures")
        for row in value:
            data = base64.b64decode(row["picture"], validate=True)
            if len(data) != _SIDE * _SIDE or not isinstance(row["questions"], list):
                raise ValueError("picture")
            if not all(isinstance(key, str) for key in row["questions"]):
                raise ValueError("questions")
            cells = np.frombuffer(data, np.uint8).astype(np.int16)
            found._sent.append(_Picture(cells, set(row["questions"])))
        return found


def thumbnail(image: "Image") -> np.ndarray:
    """The mean grey of each of 16 x 16 cells, (256,), int16 from 0 to 255."""
    from PIL import Image

    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.int16).reshape(-1)


def _is_near(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.abs(first - second).max() <= _MOST_DIFFERENCE)


def _key(question: Question | LabelledQuestion) -> str:
    """What is asked, whatever the id of the question."""
    text = json.dumps([question.task, question.prompt, question.choices])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
