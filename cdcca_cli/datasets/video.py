"""Pictures of a video file, through PyAV, an optional package (`pip install 'cdcca[video]'`).

Every frame of the first video stream, in order of presentation, rotated as the file asks. The file
is decoded once to count them, because containers are often wrong about it. Frames loaded in order
are decoded once; going back starts the file again.

A damaged frame keeps its position and is refused when it is loaded; so are the frames after it, up
to the next key frame. (No decoder reports a damaged last picture of a cut HEVC or MPEG-2 stream.)
"""

import re
from collections.abc import Iterator
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


def num_frames(path: Path) -> int:
    """The number of frames. MissingInput (66), BadData (65), Unavailable (69) without PyAV."""
    require_file(path)
    count = num_good = 0
    for frame in _decoded(path):
        count += 1
        num_good += frame is not None
    if not num_good:
        raise BadData(f"{path}: a video without a frame that can be decoded")
    return count


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
    return _upright(found)


def _upright(frame: Any) -> "Image":
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
                self._last = next(self._frames)
            except StopIteration:
                raise BadData(f"{self.path}: has no frame {position}") from None
            self.position += 1
        return self._last


_open_decoder: _Decoder | None = None


def _decoded(path: Path) -> Iterator[Any]:
    """The frames, with None in place of each that is damaged."""
    try:
        import av
    except ImportError:
        raise Unavailable(
            f"{path}: reading video needs PyAV: pip install 'cdcca[video]', "
            "or make a folder of images of it"
        ) from None
    damaged = av.FFmpegError  # a name of our own: at the interpreter's end `av` is empty
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise BadData(f"{path}: no video in it that can be decoded")
            stream.codec_context.options = {"err_detect": "explode"}
            if stream.codec_context.name == "h264":  # with threads it reports no damaged slice
                stream.thread_type = "NONE"
            is_sound = True
            cut_times = set()  # a decoder may give the frame of a packet later
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    is_sound = False
                    cut_times.add(packet.pts)
                try:
                    frames: list[Any] = packet.decode()
                except damaged:
                    is_sound = False
                    yield None
                    continue
                for frame in frames:
                    is_cut = packet.is_corrupt or frame.is_corrupt or frame.pts in cut_times
                    is_sound = not is_cut and (is_sound or frame.key_frame)
                    yield frame if is_sound else None
    except damaged as error:
        raise BadData(f"{path}: damaged or not a video ({error.strerror})") from None
