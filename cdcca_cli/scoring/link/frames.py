"""The bytes of the same frames as pictures: raw pixels, the files themselves, JPEG, WebP, H.264.

    raw_rgb       3 bytes a pixel of the image as shown
    original      the files; one that holds several frames (a video) counts once
    jpeg_q75      PIL's, quality 75, its defaults otherwise (4:2:0)
    webp_q75      the same
    h264_crf23    libx264, crf 23, preset medium, yuv420p, one thread (so the same on any machine),
                  no container; all frames of one size in one stream, in their order

x264's crf spends more bits on a frame that is shown longer: the same pictures take twice as much at
3 frames a second as at 25. A video is coded at its own rate, images at ffmpeg's default of 25. The
frames that were sent are coded alone, at the same rate. yuv420p needs even sides: the last line of
an odd one is repeated.

All forms are at the frames' own size, and on request also at the size that the vision encoder sees,
which is the fair comparison: whole frames resized to it (PIL, bicubic), not cropped.

H.264 is coded with PyAV (`pip install 'cdcca[video]'`), else with an ffmpeg program; if neither has
libx264 it is left out, with the reason. The two may differ by half a percent, because they convert
RGB to yuv420p differently. Neither time nor quality is measured.
"""

import io
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Container, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from cdcca_cli import progress
from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import CdccaError, Unavailable

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 75
CRF = 23
H264 = f"h264_crf{CRF}"
FORMS = ("raw_rgb", "original", f"jpeg_q{QUALITY}", f"webp_q{QUALITY}", H264)
ASSUMED_RATE = Fraction(25)
Size = tuple[int, int]


@dataclass
class FrameBytes:
    """Bytes by form, and "frames", their number. A form that is left out is in none of them.

    every: all frames; sent: those whose tokens went up. seen_every, seen_sent: at the encoder's
    size; empty without one. sizes: how many sizes the frames have, so how many H.264 streams.
    left_out: forms that could not be measured, with the reason.
    """

    every: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    seen_every: Counter[str] = field(default_factory=Counter)
    seen_sent: Counter[str] = field(default_factory=Counter)
    sizes: int = 0
    frames_per_second: float = float(ASSUMED_RATE)
    left_out: dict[str, str] = field(default_factory=dict)


def measure_frames(
    frames: Iterable[Frame],
    sent: Container[str] = (),
    *,
    encoder_size: Size | None = None,
    images_per_second: Fraction = ASSUMED_RATE,
) -> FrameBytes:
    """Bytes by form of all frames, and of those whose id is in `sent`.

    Memory holds one image and one size's encoders; frames of another size than the first one's are
    read a second time for H.264.

    Args: encoder_size: width and height that the vision encoder sees. images_per_second: for H.264
        of frames that are no video's.
    Raises: as `datasets.load_image`.
    """
    known = [(frame, frame.id in sent) for frame in frames]
    found = FrameBytes()
    rate = _rate(known[0][0], images_per_second) if known else images_per_second
    found.frames_per_second = float(rate)
    coding = _Coding(found, rate, partial=len({is_sent for _, is_sent in known}) > 1)
    with closing(coding):
        originals = _Originals(found)
        others: dict[Size, list[tuple[Frame, bool]]] = {}
        own = seen = None
        for frame, is_sent in progress.track(known, description="coding frames"):
            image = load_image(frame)
            originals.add(frame, is_sent)
            _add(image, is_sent, found.every, found.sent)
            own = own or coding.stream(image.size)
            if image.size == own.size:
                own.add(image, is_sent)
            else:
                others.setdefault(image.size, []).append((frame, is_sent))
            if encoder_size is not None:
                small = image.resize(encoder_size, resample=_BICUBIC)
                _add(small, is_sent, found.seen_every, found.seen_sent)
                seen = seen or coding.stream(encoder_size)
                seen.add(small, is_sent)
        if own is not None:
            own.finish(found.every, found.sent)
        if seen is not None:
            seen.finish(found.seen_every, found.seen_sent)
        for size, members in progress.track(others.items(), len(others), "coding other sizes"):
            stream = coding.stream(size)
            for frame, is_sent in members:
                stream.add(load_image(frame), is_sent)
            stream.finish(found.every, found.sent)
        found.sizes = (own is not None) + len(others)
    for form in found.left_out:
        for sizes in (found.every, found.sent, found.seen_every, found.seen_sent):
            del sizes[form]
    return found


_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without importing PIL


class _Originals:
    """The files themselves, each once."""

    def __init__(self, found: FrameBytes) -> None:
        self._known: list[tuple[set[str], Counter[str]]] = [
            (set(), found.every),
            (set(), found.sent),
        ]

    def add(self, frame: Frame, is_sent: bool) -> None:
        name = os.fspath(frame.image)
        for names, sizes in self._known[: 1 + is_sent]:
            if name not in names:
                names.add(name)
                sizes["original"] += os.stat(name).st_size


def _add(image: "Image", is_sent: bool, every: Counter[str], sent: Counter[str]) -> None:
    """Frames, raw pixels and stills."""
    sizes = {"frames": 1, "raw_rgb": 3 * image.width * image.height}
    for form in ("jpeg", "webp"):
        coded = io.BytesIO()
        image.save(coded, form, quality=QUALITY)
        sizes[f"{form}_q{QUALITY}"] = coded.getbuffer().nbytes
    every.update(sizes)
    if is_sent:
        sent.update(sizes)


# ---------------------------------------------------------------- H.264


class _Encoder(Protocol):
    def add(self, image: "Image") -> None: ...

    def finish(self) -> int: ...

    def close(self) -> None: ...


class _Coding:
    """Makes streams until one fails; then H.264 is left out, and the streams take and do nothing.

    partial: whether the frames that were sent are some, neither none nor all.
    """

    def __init__(self, found: FrameBytes, rate: Fraction, partial: bool) -> None:
        self.found, self.rate, self.partial = found, rate, partial
        self.make: type[_Pyav] | type[_Ffmpeg] | None = None
        self._under_way: list[_Encoder] = []
        try:
            self.make = _encoder()
        except Unavailable as error:
            found.left_out[H264] = str(error)

    def stream(self, size: Size) -> "_Stream":
        return _Stream(self, size)

    def begin(self, make: "type[_Pyav] | type[_Ffmpeg]", size: Size) -> _Encoder:
        encoder = make(size, self.rate)
        self._under_way.append(encoder)
        return encoder

    def end(self, encoder: _Encoder) -> int:
        """The bytes of the whole stream."""
        self._under_way.remove(encoder)
        try:
            return encoder.finish()
        finally:
            encoder.close()

    def close(self) -> None:
        while self._under_way:
            self._under_way.pop().close()

    def give_up(self, error: CdccaError) -> None:
        self.close()
        self.make = None
        self.found.left_out[H264] = str(error)


class _Stream:
    """All frames of one size, and those of them that were sent, each as a stream of its own."""

    def __init__(self, coding: _Coding, size: Size) -> None:
        self.size = size
        self._coding = coding
        self._every: _Encoder | None = None
        self._sent: _Encoder | None = None
        self._num_every = self._num_sent = 0

    def add(self, image: "Image", is_sent: bool) -> None:
        make = self._coding.make
        if make is None:
            return
        even = _even(image)
        try:
            self._every = self._every or self._coding.begin(make, even.size)
            self._every.add(even)
            self._num_every += 1
            self._num_sent += is_sent
            if is_sent and self._coding.partial:
                self._sent = self._sent or self._coding.begin(make, even.size)
                self._sent.add(even)
        except Unavailable as error:
            self._coding.give_up(error)

    def finish(self, every: Counter[str], sent: Counter[str]) -> None:
        """Adds the streams' bytes."""
        if self._coding.make is None or self._every is None:
            return
        try:
            num_bytes = self._coding.end(self._every)
            every[H264] += num_bytes
            if self._sent is not None:
                sent[H264] += self._coding.end(self._sent)
            elif self._num_sent == self._num_every:
                sent[H264] += num_bytes
        except Unavailable as error:
            self._coding.give_up(error)


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


def _encoder() -> "type[_Pyav] | type[_Ffmpeg]":
    """Whichever of the two is here with libx264. Raises: Unavailable."""
    try:
        import av

        av.Codec("libx264", "w")
        return _Pyav
    except (ImportError, ValueError):  # PyAV's UnknownCodecError is a ValueError
        pass
    program = shutil.which("ffmpeg")
    if program is not None:
        listed = subprocess.run(
            [program, "-hide_banner", "-encoders"], capture_output=True, check=False
        )
        if b" libx264 " in listed.stdout:
            return _Ffmpeg
    raise Unavailable("neither PyAV nor an ffmpeg with libx264 is here: pip install 'cdcca[video]'")


class _Pyav:
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
        self._encode(None)
        return self._num_bytes

    def close(self) -> None:
        """The library frees it with this object."""

    def _encode(self, frame: Any) -> None:
        try:
            self._num_bytes += sum(packet.size for packet in self._context.encode(frame))
        except self._error as error:
            size = f"{self._context.width} x {self._context.height}"
            raise Unavailable(f"libx264 does not take frames of {size} ({error})") from None


class _Ffmpeg:
    """The pixels go in through a pipe, what comes out into a file without a name."""

    def __init__(self, size: Size, rate: Fraction) -> None:
        # They have no name, and live as long as the process below.
        self._coded = tempfile.TemporaryFile()  # noqa: SIM115
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        taken = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*size)]
        taken += ["-framerate", str(rate), "-i", "pipe:0"]
        made = ["-c:v", "libx264", "-preset", "medium", "-crf", str(CRF), "-pix_fmt", "yuv420p"]
        made += ["-threads", "1", "-f", "h264", "pipe:1"]
        self._process = subprocess.Popen(
            [shutil.which("ffmpeg") or "ffmpeg", "-v", "error", *taken, *made],
            stdin=subprocess.PIPE,
            stdout=self._coded,
            stderr=self._said,
        )

    def add(self, image: "Image") -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(image.tobytes())
        except BrokenPipeError:
            self._process.wait()
            raise self._failed() from None

    def finish(self) -> int:
        self._process.communicate()
        if self._process.returncode:
            raise self._failed()
        return self._coded.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Leaves no process, whatever came between."""
        self._process.kill()  # nothing, once it has ended
        self._process.communicate()
        self._coded.close()
        self._said.close()

    def _failed(self) -> Unavailable:
        self._said.seek(0)
        words = self._said.read(2000).decode("utf-8", "replace").split()
        return Unavailable(f"ffmpeg failed: {' '.join(words)[:200]}")
