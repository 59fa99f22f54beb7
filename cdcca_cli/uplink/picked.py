"""A picked frame without its tokens, and a device's model by its profile alone, which sends those.

With predictions and the payload `frame` a device needs no model to sample: the profile has the
tower's digest, how a frame becomes its picture, and how many tokens that is in which layout.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cdcca_cli.datasets import Frame, image_name
from cdcca_cli.errors import MissingInput
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.profile import PictureRule, Profile
from cdcca_cli.formats.shard import Layout, Question, Shard
from cdcca_cli.payloads import preparing
from cdcca_cli.uplink.settings import MODEL_RULES, PayloadSettings, SampleSettings

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class KnownModel:
    """What sampling needs of a model that is not loaded. digest: of the device's overlay."""

    digest: str
    tower_digest: str
    rule: PictureRule
    layout: Layout
    num_tokens: int

    @classmethod
    def of(cls, digest: str, profile: Profile) -> "KnownModel | None":
        """None where a frame's picture or layout depends on its size."""
        if profile.picture is None or profile.layout is None or profile.num_tokens is None:
            return None
        return cls(digest, profile.tower, profile.picture, profile.layout, profile.num_tokens)

    def seen_as_picture(self, image: "Image", size: tuple[int, int] | None = None) -> "Image":
        """As `LoadedModel.seen_as_picture`."""
        return preparing.seen_as_picture(image, self.rule, size)

    def shard(
        self, frame: Frame, entropies_K: Sequence[float | None], questions: Sequence[int]
    ) -> Shard:
        """A frame's shard without tokens, for a picture. Args: as in `kept_tokens.make_shard`."""
        return Shard(
            frame=frame.id,
            image=image_name(frame),
            domain=frame.domain,
            tokens=np.zeros((0, 0), np.float32),
            positions=np.arange(self.num_tokens, dtype=np.int32),
            scores=None,
            num_tokens=self.num_tokens,
            layout=self.layout,
            time=frame.time,
            tower=self.tower_digest,
            questions=questions_of(frame, entropies_K, questions),
        )


def known_model(
    device: Device, how: SampleSettings, coding: PayloadSettings, *, has_predictions: bool
) -> "KnownModel | str":
    """A device's model by its profile, where sampling needs no more; else why it needs more."""
    if not has_predictions:
        return "it answers the questions, where no `predictions` are given"
    if coding.payload != "frame":
        return f"`payload` {coding.payload} sends tokens: `payload` frame does not"
    if how.select in MODEL_RULES:
        return f"`select` {how.select} asks the model: entropy, margin and random do not"
    try:
        found = KnownModel.of(device.digest, device.profile())
    except MissingInput as error:
        return str(error)
    return found or "the device's pictures depend on the frame's size, so its profile has no rule"


def questions_of(
    frame: Frame, entropies_K: Sequence[float | None], places: Iterable[int]
) -> list[Question]:
    """The picked questions without their labels, which stay on the device."""
    picked = [(frame.questions[place], entropies_K[place]) for place in places]
    return [
        Question(question.id, question.prompt, question.task, question.choices, entropy)
        for question, entropy in picked
    ]
