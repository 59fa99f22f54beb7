"""Frames of a video file, through PyAV, an optional package (`pip install 'cdcca[video]'`).

Every frame of the first video stream, in order of presentation. Their number is found by decoding
the file once, since containers are often wrong about it. Frames loaded in order are decoded once;
going back starts the file again. Sound, rotation tags and variable frame rates are not looked at.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli.datasets.frames import Frame, LabelledAsk, require_file
from cdcca_cli.errors import BadData, Unavailable

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
)


class Video:
    """The frames of a video file, each with the same ask; its id is `clip.mp4#<position>`.

    Raises: MissingInput (66), BadData (65) if it cannot be decoded, Unavailable (69) without PyAV.
    """

    def __init__(self, path: Path, *, prompt: str | None, task: Any) -> None:
        require_file(path)
        self._path, self._prompt, self._task = path, prompt, task
        self._length = sum(1 for _ in _decoded(path))
        if not self._length:
            raise BadData(f"{path}: a video without frames")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Frame]:
        for position in range(self._length):
            name = f"{self._path.name}#{position}"
            ask = LabelledAsk(name, self._prompt, self._task)
            yield Frame(name, self._path, [ask], position=position)


def load(path: Path, position: int) -> "Image":
    """The frame at `position` as RGB. The decoder stays open for the next one."""
    global _open_decoder
    if _open_decoder is None or _open_decoder.path != path or _open_decoder.position > position:
        _open_decoder = _Decoder(path)
    try:
        return _open_decoder.advance(position)
    except BaseException:
        _open_decoder = None
        raise


class _Decoder:
    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path, self.position = path, -1
        self._frames = _decoded(path)
        self._last: Any = None

    def advance(self, position: int) -> "Image":
        while self.position < position:
            self._last = next(self._frames, None)
            self.position += 1
            if self._last is None:
                raise BadData(f"{self.path}: has no frame {position}")
        image: Image = self._last.to_image()
        return image.convert("RGB")


_open_decoder: _Decoder | None = None


def _decoded(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise Unavailable(
            f"{path}: reading video needs PyAV: pip install 'cdcca[video]', "
            "or make a folder of images of it"
        ) from None
    damaged = av.FFmpegError  # by a name of our own: at the interpreter's end `av` is empty
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise BadData(f"{path}: no video in it")
            yield from container.decode(container.streams.video[0])
    except damaged as error:
        raise BadData(f"{path}: damaged or not a video ({error.strerror})") from None
