"""Pictures of a video file, through PyAV, an optional package (`pip install 'cdcca[video]'`).

The frames of the first video stream, in order of presentation, rotated as the file asks. The file
is decoded once to find them, because containers are often wrong about it. Frames loaded in order
are decoded once; going back starts the file again. `live` decodes streams with the same parts.

A damaged frame keeps its position and is refused when it is loaded; so are the frames after it, up
to the next key frame. (No decoder reports a damaged last picture of a cut HEVC or MPEG-2 stream.)
"""

import math
import re
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli.datasets.pictures import require_file
from cdcca_cli.errors import BadData, Unavailable

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts")
)
MAGIC = re.compile(
    rb"RIFF....AVI|....ftyp|\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01|\x30\x26\xb2\x75|OggS"
    rb"|\x47.{187}\x47",
    re.S,
)
"""How video files begin. HEIC and AVIF pictures begin like MP4: look for them first."""
_STAMP_SECONDS = 1e-3  # the coarsest unit of time stamps (Matroska): less is no difference


class Picked:
    """Frames of a file: the position of each, and its time in seconds since 1970, None if unknown.

    The time is the creation time in the file's metadata (UTC) plus the frame's time stamp. 16 bytes
    a frame: a day of video has millions.
    """

    def __init__(self) -> None:
        self._positions, self._times = array("q"), array("d")

    def add(self, position: int, time: float | None) -> None:
        self._positions.append(position)
        self._times.append(math.nan if time is None else time)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[tuple[int, float | None]]:
        for position, time in zip(self._positions, self._times, strict=True):
            yield position, None if math.isnan(time) else time


def pick(path: Path, every: float | None = None, duration: float | None = None) -> Picked:
    """The frames of a file: all of them, or by their time stamps.

    every: take the first whole frame, and the first in each further interval of so many seconds.
    duration: leave out what is so many seconds after the first frame, or later.
    Raises: MissingInput (66), BadData (65), Unavailable (69) without PyAV.
    """
    require_file(path)
    picked = Picked()
    num_good = 0
    elapsed = due = before = 0.0  # seconds since the first frame; the last time stamp
    for position, (frame, begun) in enumerate(_decoded(path)):
        stamp = None if frame is None else frame.time
        if frame is not None:
            num_good += 1
            if stamp is None and (every is not None or duration is not None):
                raise BadData(f"{path}: its frames have no time stamps for `every` and `duration`")
        if stamp is not None:
            elapsed += max(stamp - before, 0.0) if num_good > 1 else 0.0  # stamps may start again
            before = stamp
            if duration is not None and elapsed > duration - _STAMP_SECONDS:
                break
        if every is not None:
            if frame is None or elapsed < due - _STAMP_SECONDS:
                continue
            due = ((elapsed + _STAMP_SECONDS) // every + 1) * every
        picked.add(position, None if begun is None or stamp is None else begun + stamp)
    if not num_good:
        raise BadData(f"{path}: a video without a frame that can be decoded")
    return picked


def load(path: Path, position: int) -> "Image":
    """The frame at `position` as RGB; the file stays open. BadData (65) if damaged or not there."""
    global _open_decoder
    if _open_decoder is None or _open_decoder.path != path or _open_decoder.position > position:
        _open_decoder = _Decoder(path)
    try:
        found = _open_decoder.advance(position)
    except BaseException:
        _open_decoder = None
        raise
    if found is None:
        raise BadData(f"{path}: frame {position} is damaged, or built on a damaged one")
    return upright(found)


def upright(frame: Any) -> "Image":
    """RGB, rotated by the quarter turns in the file (phones film on their side)."""
    image: Image = frame.to_image().convert("RGB")
    degrees = round(frame.rotation / 90) % 4 * 90  # counter-clockwise
    return image.rotate(degrees, expand=True) if degrees else image


class _Decoder:
    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path, self.position = path, -1
        self._frames = _decoded(path)
        self._last: Any = None

    def advance(self, position: int) -> Any:
        while self.position < position:
            try:
                self._last, _ = next(self._frames)
            except StopIteration:
                raise BadData(f"{self.path}: has no frame {position}") from None
            self.position += 1
        return self._last


_open_decoder: _Decoder | None = None


def library(what: str) -> Any:
    """PyAV. Raises: Unavailable (69) if it is not installed."""
    try:
        import av
    except ImportError:
        raise Unavailable(f"{what}: reading video needs PyAV: pip install 'cdcca[video]'") from None
    return av


def stream_of(container: Any, where: str) -> Any:
    """The first video stream, set to report damage. Raises: BadData (65) if there is none."""
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        raise BadData(f"{where}: no video in it that can be decoded")
    stream.codec_context.options = {"err_detect": "explode"}
    if stream.codec_context.name == "h264":  # with threads it reports no damaged slice
        stream.thread_type = "NONE"
    return stream


class PacketDecoder:
    """The frames of the packets of a stream, with None in place of each that is damaged."""

    def __init__(self, stream: Any) -> None:
        import av

        self._stream = stream
        self._damaged = av.FFmpegError  # a name of our own: at the interpreter's end `av` is empty
        self._is_sound = True
        # A decoder may give a packet's frame later: these are time stamps of packets.
        self._cut_times: set[int | None] = set()
        self._new_keys: set[int | None] = set()  # key frames since the damage

    def restart(self) -> None:
        """Forget the packets before: some are not decoded, and the next is a key frame."""
        self._stream.codec_context.flush_buffers()
        self._is_sound = True
        self._cut_times.clear()

    def decode(self, packet: Any) -> list[Any]:
        if self._is_sound:
            self._new_keys.clear()
        elif packet.is_keyframe:
            self._new_keys.add(packet.pts)
        if packet.is_corrupt:
            self._is_sound = False
            self._cut_times.add(packet.pts)
        try:
            frames: list[Any] = packet.decode()
        except self._damaged:
            self._is_sound = False
            self._new_keys.clear()
            return [None]
        found = []
        for frame in frames:
            is_cut = packet.is_corrupt or frame.is_corrupt or frame.pts in self._cut_times
            is_new = frame.key_frame and frame.pts in self._new_keys
            self._is_sound = not is_cut and (self._is_sound or is_new)
            found.append(frame if self._is_sound else None)
        return found


def _decoded(path: Path) -> Iterator[tuple[Any, float | None]]:
    """The frames, None in place of each that is damaged, with the time that time stamps add to."""
    damaged = library(str(path)).FFmpegError
    try:
        with library(str(path)).open(str(path), metadata_errors="replace") as container:
            stream = stream_of(container, str(path))
            begun = _begun(container)
            decoder = PacketDecoder(stream)
            for packet in container.demux(stream):
                for frame in decoder.decode(packet):
                    yield frame, begun
    except damaged as error:
        raise BadData(f"{path}: damaged or not a video ({error.strerror})") from None


def _begun(container: Any) -> float | None:
    """The capture time of time stamp 0, in seconds since 1970, if the metadata has one."""
    try:
        created = datetime.fromisoformat(container.metadata.get("creation_time", ""))
        created = created if created.tzinfo else created.replace(tzinfo=UTC)
        return created.timestamp() - (container.start_time or 0) / 1e6
    except (ValueError, OverflowError):
        return None
