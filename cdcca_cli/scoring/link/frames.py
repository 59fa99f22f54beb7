"""The bytes of the same frames as pictures: raw pixels, the files themselves, coded, as video.

    raw_rgb       3 bytes a pixel of the image as shown
    original      the files; one that holds several frames (a video) counts once
    jpeg_q75      PIL's, quality 75, its defaults otherwise (4:2:0)
    webp_q75      the same
    avif_q50      the same, one thread (so the same on any machine)
    h264_crf23    libx264, crf 23, preset medium, yuv420p, one thread (so the same on any machine),
                  no container; all frames of one size in one stream, in their order

A video is coded at its own rate, images at 25 frames a second: x264's crf spends more bits on a
frame that is shown longer. The frames that were sent are coded alone, at the same rate. The last
line of an odd side is repeated, for yuv420p. Without PyAV, H.264 is left out with the reason, and
without Pillow's encoder AVIF. What libx264 refuses at one size is left out for the frames' own
sizes, whose sum it would be in, and measured at the encoder's size, or the other way round.

All forms are at the frames' own size, and on request also at the size that the vision encoder sees,
which is the fair comparison: whole frames resized to it (PIL, bicubic), not cropped.
"""

import io
import os
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from cdcca_cli import progress
from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import Unavailable
from cdcca_cli.payloads import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

CODED: dict[str, dict[str, Any]] = {
    "jpeg_q75": {"format": "jpeg", "quality": 75},
    "webp_q75": {"format": "webp", "quality": 75},
    "avif_q50": {"format": "avif", "quality": 50, "max_threads": 1, "autotiling": False},
}
"""How Pillow is asked for each form."""
AVIF = "avif_q50"
CRF = 23
H264 = f"h264_crf{CRF}"
FORMS = ("raw_rgb", "original", *CODED, H264)
ASSUMED_RATE = Fraction(25)
Size = tuple[int, int]
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without importing PIL


@dataclass
class FrameBytes:
    """Bytes by form, and "frames", their number; `sent` of the frames whose tokens went up.

    seen_every, seen_sent: at the encoder's size. sizes: the number of different sizes, and so of
    H.264 streams. left_out, seen_left_out: forms that could not be measured, with the reason.
    """

    every: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    seen_every: Counter[str] = field(default_factory=Counter)
    seen_sent: Counter[str] = field(default_factory=Counter)
    sizes: int = 0
    frames_per_second: float = float(ASSUMED_RATE)
    left_out: dict[str, str] = field(default_factory=dict)
    seen_left_out: dict[str, str] = field(default_factory=dict)


def measure_frames(
    frames: Iterable[Frame],
    sent: Container[str] = (),
    *,
    encoder_size: Size | None = None,
    images_per_second: Fraction = ASSUMED_RATE,
) -> FrameBytes:
    """Bytes by form of all frames, and of those whose id is in `sent`.

    Memory holds one image and one size's encoders; frames of another size than the first one's are
    read a second time for H.264. encoder_size: width and height.
    """
    known = [(frame, frame.id in sent) for frame in frames]
    rate = _rate(known[0][0], images_per_second) if known else images_per_second
    found = FrameBytes(frames_per_second=float(rate))
    found.left_out, found.seen_left_out = _missing(), _missing()
    stream = partial(_Stream, rate, len({is_sent for _, is_sent in known}) > 1)
    own, seen = stream(found.left_out), stream(found.seen_left_out)
    others: dict[Size, list[tuple[Frame, bool]]] = {}
    for frame, is_sent in progress.track(known, description="coding frames"):
        image = load_image(frame)
        _add(image, is_sent, found.every, found.sent, found.left_out)
        own.size = own.size or image.size
        if image.size == own.size:
            own.add(image, is_sent)
        else:
            others.setdefault(image.size, []).append((frame, is_sent))
        if encoder_size is not None:
            small = image.resize(encoder_size, resample=_BICUBIC)
            _add(small, is_sent, found.seen_every, found.seen_sent, found.seen_left_out)
            seen.add(small, is_sent)
    found.every["original"] = _stored_bytes(frame for frame, _ in known)
    found.sent["original"] = _stored_bytes(frame for frame, is_sent in known if is_sent)
    own.finish(found.every, found.sent)
    seen.finish(found.seen_every, found.seen_sent)
    for members in progress.track(others.values(), len(others), "coding other sizes"):
        other = stream(found.left_out)
        for frame, is_sent in members:
            other.add(load_image(frame), is_sent)
        other.finish(found.every, found.sent)
    found.sizes = (own.size is not None) + len(others)
    for left_out, *measured in (
        (found.left_out, found.every, found.sent),
        (found.seen_left_out, found.seen_every, found.seen_sent),
    ):
        for form in left_out:
            for sizes in measured:
                del sizes[form]
    return found


def _missing() -> dict[str, str]:
    """The forms that this machine has no encoder for."""
    found = {}
    if not pictures.can_encode(pictures.AVIF):
        found[AVIF] = f"this Pillow cannot write it: {pictures.CURE}"
    if not _has_h264():
        found[H264] = "needs PyAV with libx264: pip install 'cdcca[video]'"
    return found


def _stored_bytes(frames: Iterable[Frame]) -> int:
    return sum(os.stat(name).st_size for name in {os.fspath(frame.image) for frame in frames})


def _add(
    image: "Image",
    is_sent: bool,
    every: Counter[str],
    sent: Counter[str],
    left_out: Container[str],
) -> None:
    sizes = {"frames": 1, "raw_rgb": 3 * image.width * image.height}
    for form, options in CODED.items():
        if form not in left_out:
            coded = io.BytesIO()
            image.save(coded, **options)
            sizes[form] = coded.getbuffer().nbytes
    every.update(sizes)
    if is_sent:
        sent.update(sizes)


class _Stream:
    """All frames of one size, and those of them that were sent, each as a stream of its own.

    is_partial: some frames were sent, but not all. left_out: gets the reason if coding fails.
    """

    def __init__(self, rate: Fraction, is_partial: bool, left_out: dict[str, str]) -> None:
        self.size: Size | None = None
        self._left_out, self._rate, self._is_partial = left_out, rate, is_partial
        self._every: _Encoder | None = None
        self._sent: _Encoder | None = None
        self._has_sent = False

    def add(self, image: "Image", is_sent: bool) -> None:
        if H264 in self._left_out:
            return
        even = _even(image)
        self._has_sent |= is_sent
        try:
            self._every = self._every or _Encoder(even.size, self._rate)
            self._every.add(even)
            if is_sent and self._is_partial:
                self._sent = self._sent or _Encoder(even.size, self._rate)
                self._sent.add(even)
        except Unavailable as error:
            self._left_out[H264] = str(error)

    def finish(self, every: Counter[str], sent: Counter[str]) -> None:
        if H264 in self._left_out or self._every is None:
            return
        try:
            num_bytes = self._every.finish()
            every[H264] += num_bytes
            if self._sent is not None:
                sent[H264] += self._sent.finish()
            elif self._has_sent:  # all of them were
                sent[H264] += num_bytes
        except Unavailable as error:
            self._left_out[H264] = str(error)


def _even(image: "Image") -> "Image":
    width, height = image.size
    if not (width % 2 or height % 2):
        return image
    import numpy as np
    from PIL import Image

    pixels = np.pad(np.asarray(image), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return Image.fromarray(pixels)


def _rate(frame: Frame, images_per_second: Fraction) -> Fraction:
    """A video's own frames a second."""
    if frame.position is None:
        return images_per_second
    import av

    with av.open(os.fspath(frame.image)) as container:
        return Fraction(container.streams.video[0].average_rate or images_per_second)


def _has_h264() -> bool:
    try:
        import av

        av.Codec("libx264", "w")
    except (ImportError, ValueError):  # PyAV's UnknownCodecError is a ValueError
        return False
    return True


class _Encoder:
    def __init__(self, size: Size, rate: Fraction) -> None:
        import av

        context: Any = av.CodecContext.create("libx264", "w")
        context.width, context.height = size
        context.pix_fmt = "yuv420p"
        context.time_base, context.framerate = 1 / rate, rate
        context.options = {"crf": str(CRF), "preset": "medium"}
        context.thread_count = 1
        self._context, self._error = context, av.FFmpegError
        self._num_frames = self._num_bytes = 0

    def add(self, image: "Image") -> None:
        import av

        frame = av.VideoFrame.from_image(image)
        frame.pts = self._num_frames
        self._num_frames += 1
        self._encode(frame)

    def finish(self) -> int:
        """The bytes of the whole stream."""
        self._encode(None)
        return self._num_bytes

    def _encode(self, frame: Any) -> None:
        try:
            self._num_bytes += sum(packet.size for packet in self._context.encode(frame))
        except self._error as error:
            size = f"{self._context.width} x {self._context.height}"
            raise Unavailable(f"libx264 does not take frames of {size} ({error})") from None
