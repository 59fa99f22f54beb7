"""How the payload of a picked frame is coded: which codec, how coarsely, tokens or a picture.

The point is found once for a stream, from the settings and the curves of the device's codebook: the
coarsest step, and the coarsest quality, at which the teacher's loss grows by at most `max_loss`.
With the payload `auto` both forms are made, and the writer of the stream sends the smaller, group
by group, so `auto` never takes more bytes than the better one.

Legend: N kept tokens, C channels.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log
from typing import Any

import numpy as np

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.codebook import Codebook, PicturePoint, TokenPoint
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.shard import Coding, Picture, Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.payloads import klt, pictures
from cdcca_cli.uplink.settings import DEFAULT_MAX_LOSS, DEFAULT_QUALITY, PayloadSettings

FINEST_STEP, COARSEST_STEP = 1 / 16, 16.0
"""The steps among which a byte budget is met."""


@dataclass(frozen=True)
class Coded:
    """A frame as it is sent. picture: the same frame, sent instead if a group takes fewer bytes."""

    shard: Shard
    picture: Picture | None = None


class Coder:
    """Codes the frames of one stream. token_coding, quality: None where that form is not made."""

    def __init__(
        self, model: LoadedModel, settings: PayloadSettings, codebook: Codebook | None
    ) -> None:
        """Raises: SettingError for klt without a codebook, and a point beyond its curve."""
        self._model, self._settings = model, settings
        self._codebook = codebook
        if codebook is not None and codebook.tower != model.tower_digest:
            streams.message(
                f"the codebook is of the vision tower {short(codebook.tower)}, the model's is "
                f"{short(model.tower_digest)}: not used"
            )
            self._codebook = None
        self.media = f"image/{settings.media}"
        self.token_coding = None if settings.payload == "frame" else self._token_coding()
        self.quality = None if settings.payload == "tokens" else self._quality()

    def _token_coding(self) -> Coding:
        settings, codebook = self._settings, self._codebook
        codec: Any = settings.codec or ("int8" if codebook is None else "klt")
        if codec != "klt":
            if settings.step is not None or settings.bits is not None:
                name = "step" if settings.step is not None else "bits"
                raise SettingError(name, "is of the codec klt, and the device has no codebook")
            return Coding(codec)
        if codebook is None:
            raise SettingError(
                "codec", "klt needs a codebook, and the device has none: run calibrate, and apply"
            )
        step = settings.step
        if step is None and settings.bits is not None:
            step = step_for(codebook, "bits", settings.bits)
        elif step is None:
            step = step_for(codebook, "loss", settings.max_loss or DEFAULT_MAX_LOSS)
        return Coding("klt", codebook.digest, float(np.float32(step)))

    def _quality(self) -> int | None:
        settings = self._settings
        if settings.quality is not None:
            return settings.quality
        points = () if self._codebook is None else self._codebook.curve.frames
        points = tuple(point for point in points if point.media == self.media)
        if not points:
            if settings.max_loss is not None and settings.payload == "frame":
                raise SettingError(
                    "max_loss", f"needs a codebook that has measured {self.media}: give `quality`"
                )
            return DEFAULT_QUALITY
        most = settings.max_loss or DEFAULT_MAX_LOSS
        point = quality_for(points, most)
        is_equal = point.loss <= most or self.token_coding is None
        return point.quality if is_equal else None

    @property
    def note(self) -> str:
        """What a user should know of the choice, in one line; empty if nothing."""
        if self._codebook is None and self._settings.codec is None:
            return "the device has no codebook, so tokens are sent as int8 or as pictures"
        return ""

    def with_step(self, step: float) -> "Coder":
        """The same with another step of klt. Raises: SettingError if klt is not used."""
        if self.token_coding is None or self.token_coding.codec != "klt":
            raise SettingError("budget_bytes", "with `top` needs the codec klt")
        other = object.__new__(Coder)
        vars(other).update(vars(self))
        other.token_coding = replace(self.token_coding, step=float(np.float32(step)))
        return other

    def code(self, shard: Shard, frame: Frame) -> Coded:
        """The frame as it is sent. Raises: BadData, MissingInput.

        Args: shard: with the kept tokens, as they are.
        """
        picture = None if self.quality is None else self._picture(frame)
        if self.token_coding is None:
            empty = np.zeros((0, 0), np.float32)
            every = np.arange(shard.num_tokens, dtype=np.int32)
            coding = Coding("frame")
            sent = replace(shard, tokens=empty, positions=every, scores=None, coding=coding)
            return Coded(replace(sent, picture=picture))
        scores = shard.scores if self._settings.scores else None
        shard = replace(shard, coding=self.token_coding, scores=scores)
        if self.token_coding.codec == "klt":
            assert self._codebook is not None and self.token_coding.step is not None
            codes = klt.encode(
                shard.tokens, shard.positions, self._codebook, self.token_coding.step
            )
            shard = replace(shard, codes=codes, tokens=np.zeros((0, 0), np.float32))
        return Coded(shard, picture)

    def _picture(self, frame: Frame) -> Picture:
        """The picture as the tower sees it, or the frame's own file if that is smaller."""
        assert self.quality is not None
        image = load_image(frame)
        made = pictures.encode(
            self._model.seen(image, self._settings.side), self.media, self.quality
        )
        own = pictures.original(frame, image, fewer_than=len(made.data))
        return made if own is None else own


def step_for(codebook: Codebook, what: str, most: float) -> float:
    """The step at which the codebook's curve reaches this many `bits`, or this `loss`.

    Between two points the logarithm of the step goes with the logarithm of the bits, or with the
    loss; a loss is first made to rise with the step. Raises: SettingError beyond the curve.
    """
    points = codebook.curve.tokens
    name = "bits" if what == "bits" else "max_loss"
    if not points:
        raise SettingError(name, "the codebook has measured no curve: give `step`")
    values = [_height(point, what) for point in points]
    if what == "loss":
        values = np.maximum.accumulate(values).tolist()
    target = log(most) if what == "bits" else most
    below, above = min(values), max(values)
    if target < below or (what == "bits" and target > above):
        shown = [point.bits for point in points] if what == "bits" else values
        unit = "{:.2f} to {:.2f}" if what == "bits" else "{:.2%} to {:.2%}"
        limits = unit.format(min(shown), max(shown))
        raise SettingError(name, f"the codebook has measured {limits}", most)
    steps = [log(point.step) for point in points]
    if target >= above and what == "loss":
        return points[-1].step
    for (first, second), (low, high) in zip(pairwise(values), pairwise(steps), strict=True):
        if min(first, second) <= target <= max(first, second) and first != second:
            return exp(low + (high - low) * (target - first) / (second - first))
    return points[0].step


def _height(point: TokenPoint, what: str) -> float:
    return log(max(point.bits, 1e-6)) if what == "bits" else point.loss


def quality_for(points: tuple[PicturePoint, ...], max_loss: float) -> PicturePoint:
    """The point of lowest quality from which on the loss is at most `max_loss`; else the best."""
    best_first = sorted(points, key=lambda point: point.quality, reverse=True)
    found = best_first[0]
    for point in best_first:
        if point.loss > max_loss:
            break
        found = point
    return found
