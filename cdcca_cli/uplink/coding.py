"""How the payload of a picked frame is coded: which codec, how coarsely, tokens or a picture.

The point is found once for a stream, from the settings and the curves of the device's codebook: the
coarsest step, and the coarsest quality, at which the teacher's loss grows by at most `max_loss`.
With another step, a picture may cost as much as that step does. With the payload `auto` both forms
are made, and the writer of the stream sends the smaller, group by group, so `auto` never takes more
bytes than the better one.

Legend: N kept tokens, C channels.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import BadData, MissingInput, SettingError
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.shard import Coding, Picture, Shard
from cdcca_cli.payloads import curve, klt, pictures
from cdcca_cli.uplink.settings import DEFAULT_MAX_LOSS, DEFAULT_QUALITY, PayloadSettings

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Coded:
    """A frame as it is sent. picture: the same frame, sent instead if a group takes fewer bytes."""

    shard: Shard
    picture: Picture | None = None


class Looking(Protocol):
    """What is needed of a model, loaded or known by its profile alone."""

    @property
    def tower_digest(self) -> str: ...

    def seen_as_picture(self, image: "Image", size: tuple[int, int] | None = None) -> "Image": ...


class Coder:
    """Codes the frames of one stream. token_coding, quality: None where that form is not made."""

    def __init__(
        self, model: Looking, settings: PayloadSettings, codebook: Codebook | None
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
        self.quality = self._quality()
        self._made: dict[str, Picture] | None = None  # by frame, if frames are coded several times

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
            step = curve.step_for(codebook, bits=settings.bits)
        elif step is None:
            most = settings.max_loss
            if most is None and codebook.curve.tokens:  # of a poor codebook, the best that it has
                finest = codebook.curve.tokens[0].step
                most = max(DEFAULT_MAX_LOSS, curve.loss_at(codebook, finest))
            step = curve.step_for(codebook, max_loss=most)
        return Coding("klt", codebook.digest, float(np.float32(step)))

    def _quality(self, only_measured: bool = False) -> int | None:
        settings = self._settings
        if settings.payload == "tokens":
            return None
        if settings.quality is not None:
            return settings.quality
        if settings.payload == "auto" and not pictures.can_encode(self.media):
            return None
        points = () if self._codebook is None else self._codebook.curve.frames
        points = tuple(point for point in points if point.media == self.media)
        if not points:
            if settings.max_loss is not None and settings.payload == "frame":
                raise SettingError(
                    "max_loss", f"needs a codebook that has measured {self.media}: give `quality`"
                )
            return None if only_measured else DEFAULT_QUALITY
        most = self._most_loss()
        point = curve.picture_within(points, most)
        is_equal = point.loss <= most or self.token_coding is None
        return point.quality if is_equal else None

    def _most_loss(self) -> float:
        """What a picture may cost: `max_loss`, or as much as the tokens that it would replace."""
        step = None if self.token_coding is None else self.token_coding.step
        if self._settings.max_loss is not None:
            return self._settings.max_loss
        if step is None or self._codebook is None or not self._codebook.curve.tokens:
            return DEFAULT_MAX_LOSS
        return curve.loss_at(self._codebook, step)

    @property
    def sends_scores(self) -> bool:
        return self._settings.scores

    @property
    def note(self) -> str:
        """What a user should know of the choice, in one line; empty if nothing."""
        if self._codebook is not None or self._settings.codec is not None:
            return ""
        forms = {"tokens": "int8", "auto": "int8 or as pictures"}.get(self._settings.payload)
        return f"the device has no codebook, so tokens are sent as {forms}" if forms else ""

    def with_step(self, step: float) -> "Coder":
        """The same with another step of klt, and the same pictures, which are made once.

        Raises: SettingError if klt is not used, or its point is given.
        """
        if self.token_coding is None or self.token_coding.codec != "klt":
            reason = "with `top` needs tokens in the codec klt, and so a codebook"
            raise SettingError("budget_bytes", reason)
        for name in ("step", "bits", "max_loss"):
            if getattr(self._settings, name) is not None:
                reason = "cannot be combined with `top` and `budget_bytes`, which set the step"
                raise SettingError(name, reason)
        if self._made is None:
            self._made = {}
        other = copy(self)
        other.token_coding = replace(self.token_coding, step=float(np.float32(step)))
        other.quality = other._quality(only_measured=True)
        return other

    def code(self, shard: Shard, frame: Frame) -> Coded:
        """The frame as it is sent. Raises: BadData, MissingInput.

        Args: shard: with the kept tokens, as they are.
        """
        picture = None
        if self.quality is not None:
            try:
                picture = self._picture_once(frame)
            except (BadData, MissingInput):  # too large, say: its tokens are there
                if self.token_coding is None:
                    raise
        if self.token_coding is None:
            empty = np.zeros((0, 0), np.float32)
            every = np.arange(shard.num_tokens, dtype=np.int32)
            coding = Coding("frame")
            layout = replace(shard.layout, boxes=())  # all are kept: nothing is to be shown
            sent = replace(shard, tokens=empty, positions=every, scores=None, coding=coding)
            sent = replace(sent, layout=layout)
            return Coded(replace(sent, picture=picture))
        shard = replace(shard, coding=self.token_coding)
        if self.token_coding.codec == "klt":
            assert self._codebook is not None and self.token_coding.step is not None
            codes = klt.encode(
                shard.tokens, shard.positions, self._codebook, self.token_coding.step
            )
            shard = replace(shard, codes=codes, tokens=np.zeros((0, 0), np.float32))
        return Coded(shard, picture)

    def _picture_once(self, frame: Frame) -> Picture:
        if self._made is None:
            return self._picture(frame)
        if frame.id not in self._made:
            self._made[frame.id] = self._picture(frame)
        return self._made[frame.id]

    def _picture(self, frame: Frame) -> Picture:
        """The picture as the tower sees it, or the frame's own file if that is smaller."""
        assert self.quality is not None
        image, side = load_image(frame), self._settings.side
        seen = self._model.seen_as_picture(image, None if side is None else (side, side))
        made = pictures.encode(seen, self.media, self.quality)
        own = self._own_file(frame)
        found = None if own is None else pictures.original(own, image, len(made.data))
        return found or made

    def _own_file(self, frame: Frame) -> bytes | None:
        """The bytes of a frame's file, if it is one picture."""
        if frame.position is not None or frame.capture is not None:
            return None
        try:
            return frame.image.read_bytes()
        except OSError:
            return None
