"""Frames of a camera or stream as they are captured: an address that FFmpeg opens, or /dev/video0.

A thread reads packets and drops them unless a frame is asked for, so nothing queues: whoever asks
gets the newest frame, however late. Only the packets since the last key frame are kept, which that
frame is decoded from. After a drop the thread connects again, after a pause that doubles from one
second to a minute. Damage gives one frame that cannot be loaded, and then nothing up to the next
key frame.

A live source ends after `duration`, or at Ctrl-C, SIGTERM or SIGHUP: the stage then ends as at the
end of a file, so what was captured is kept. The next signal interrupts the stage as usual.

A picture stays in memory for a few frames. If the frame is in use for longer, the picture waits in
a temporary file, without loss: in TMPDIR, 6 MB for each 1920x1080 frame that may yet be sent.

Addresses may hold passwords: messages and ids have host and path only (`name_of`).
"""

import math
import os
import queue
import re
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import remote, streams
from cdcca_cli.datasets import video
from cdcca_cli.datasets.frames import Frame, Frames, LabelledQuestion
from cdcca_cli.errors import BadData, CdccaError, MissingInput, Unavailable
from cdcca_cli.text import is_text

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT_SECONDS = 10.0  # without data, of a connection that is made or read
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # before a source is opened again
_MOST_WAITING_BYTES = 1 << 25  # of packets, where key frames are rare
_NUM_IN_MEMORY = 4  # frames of a stage's window, and those its variables still hold
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.I)
_DEVICE = re.compile(r"/dev/(video\d|v4l/)")


def is_live(source: str | Path) -> bool:
    """Whether a source is a stream's address or a video device, rather than a file."""
    if remote.is_file_address(source):
        return False
    return bool(_ADDRESS.match(str(source)) or _DEVICE.match(str(source)))


def name_of(source: str) -> str:
    """Host and path of an address, without user, password and parameters; a device's own name."""
    _, is_address, rest = source.partition("://")
    if not is_address:
        return os.path.basename(source)
    # A password may hold any of /?#, and some cameras want it in the path: user=admin&password=
    place = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    return re.sub(r"[^/]*=.*", "...", place).strip("/") or "stream"


class Capture:
    """The picture of a live frame: in memory, or set aside in a file."""

    def __init__(self, image: "Image | None") -> None:
        self._image = image
        self._aside: tuple[_Aside, int] | None = None

    def load(self, where: str) -> "Image":
        """The picture in RGB. Raises: BadData (65) if the frame was damaged."""
        if self._aside is not None:
            return self._aside[0].get(self._aside[1])
        if self._image is None:
            raise BadData(f"{where}: damaged in the stream; continued at the next key frame")
        return self._image

    def set_aside(self, asides: "dict[tuple[int, int], _Aside]") -> None:
        """Move the picture to the file for its size, until this capture is no longer in use."""
        if self._image is not None:
            size = self._image.size
            aside = asides[size] = asides.get(size) or _Aside(size)
            slot = aside.put(self._image)
            self._aside, self._image = (aside, slot), None
            weakref.finalize(self, aside.free.append, slot)


class _Aside:
    """Pictures of one size in a temporary file without a name, in slots that are used again."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.free: list[int] = []
        self._num_slots = 0
        self._file = tempfile.TemporaryFile(prefix="cdcca-")  # noqa: SIM115 (closed with the last)

    def put(self, image: "Image") -> int:
        if not self.free:
            self.free.append(self._num_slots)
            self._num_slots += 1
        slot = self.free.pop()
        data = image.tobytes()
        self._file.seek(slot * len(data))
        self._file.write(data)
        return slot

    def get(self, slot: int) -> "Image":
        from PIL import Image

        num_bytes = 3 * self.size[0] * self.size[1]
        self._file.seek(slot * num_bytes)
        return Image.frombytes("RGB", self.size, self._file.read(num_bytes))


class LiveFrames:
    """The frames of a live source, each with the same question. Iterated once, with no length.

    num_frames: how many there were; None until the end.

    Args:
        every: seconds between frames; None: the next frame whenever one is asked for.
        duration: seconds until the end, from the first frame asked for; None: until a signal.
    Raises: MissingInput (66) if it cannot be opened; BadData (65) if there is no live video in it;
    Unavailable (69) without PyAV, or if this one cannot read such a source.
    """

    def __init__(
        self,
        source: str,
        question: LabelledQuestion,
        every: float | None = None,
        duration: float | None = None,
    ) -> None:
        self.name, self.every, self.duration = name_of(source), every, duration
        if not is_text(source):
            raise BadData(f"{self.name}: its address is not UTF-8")
        self.num_frames: int | None = None
        self._num_taken = 0
        self._question = question
        self._stopped_by: int | None = None
        self._last_stamp = 0
        self._asides: dict[tuple[int, int], _Aside] = {}
        # Each frame asked for, with its time; None once connected and after a signal; an error.
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        where = source if _DEVICE.match(source) else self.name
        self._reader = _Reader(source, where, self._answers)
        self._reader.start()
        try:
            _raised(self._answers.get())
        except BaseException:
            self._reader.is_ended.set()
            raise

    @property
    def most_frames(self) -> int:
        """The number of frames that this source cannot exceed."""
        if self.every is None or self.duration is None:
            return sys.maxsize
        return math.ceil(self.duration / self.every) + 1

    def __iter__(self) -> Iterator[Frame]:
        if self.num_frames is not None:
            raise RuntimeError("a live source is read once")
        recent: deque[weakref.ref[Capture]] = deque()
        start = due = time.monotonic()
        end = math.inf if self.duration is None else start + self.duration
        try:
            with self._ended_by_signals():
                while (found := self._next(due, end)) is not None:
                    now = time.monotonic()
                    if self.every is not None:
                        due = start + ((now - start) // self.every + 1) * self.every
                    if len(recent) == _NUM_IN_MEMORY and (old := recent.popleft()()):
                        old.set_aside(self._asides)
                    yield self._frame(*found, recent)
        finally:
            self.num_frames = self._num_taken
            self._reader.is_ended.set()
            self._reader.join(1.0)  # closes the connection, unless nothing comes

    def _next(self, due: float, end: float) -> tuple[Any, float] | None:
        """The next frame after `due`, None if damaged, with its time; None at the end."""
        while self._stopped_by is None:
            wait = (due if due < end else end) - time.monotonic()
            if wait <= 0:
                if due >= end:
                    return None
                self._reader.is_asked.set()
                wait = end - time.monotonic()
            with suppress(queue.Empty):
                found = _raised(self._answers.get(timeout=min(max(wait, 0.0), 3600.0)))
                if found is not None:
                    return found
            if time.monotonic() >= end:
                return None
        name = signal.Signals(self._stopped_by).name
        streams.message(f"{self.name}: stopped by {name}: what was captured is kept")
        return None

    def _frame(self, picture: Any, at: float, recent: "deque[weakref.ref[Capture]]") -> Frame:
        stamp = int(at * 1000)  # the clock may be set back; an id must not come twice
        stamp += stamp == self._last_stamp
        self._last_stamp = stamp
        moment = datetime.fromtimestamp(stamp / 1000, UTC)
        name = f"{self.name}@{moment:%Y-%m-%dT%H:%M:%S}.{stamp % 1000:03}Z"
        capture = Capture(None if picture is None else video.upright(picture))
        recent.append(weakref.ref(capture))
        self._num_taken += 1
        return Frame(
            name, Path(name), [replace(self._question, id=name)], time=stamp / 1000, capture=capture
        )

    @contextmanager
    def _ended_by_signals(self) -> Iterator[None]:
        before: dict[int, Any] = {}

        def restore() -> None:
            while before:
                signal.signal(*before.popitem())

        def end(number: int, _: object) -> None:
            self._stopped_by = number
            self._answers.put(None)
            restore()

        with suppress(ValueError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
                    before[number] = signal.signal(number, end)
        try:
            yield
        finally:
            restore()


def num_frames(frames: Frames | LiveFrames) -> int | None:
    """The number of frames; None of a live source that has not ended."""
    return frames.num_frames if isinstance(frames, LiveFrames) else len(frames)


def _raised(found: Any) -> Any:
    if isinstance(found, BaseException):
        raise found
    return found


class _Reader(threading.Thread):
    """Reads a source until `is_ended`; answers `is_asked` with a frame and its time.

    A daemon: FFmpeg can wait TIMEOUT_SECONDS for data, and a stage that ends does not wait.
    """

    def __init__(self, source: str, name: str, answers: "queue.SimpleQueue[Any]") -> None:
        super().__init__(name=f"reads {name}", daemon=True)
        self.is_asked, self.is_ended = threading.Event(), threading.Event()
        self._source, self._where, self._answers = source, name, answers

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._answers.put(error)

    def _run(self) -> None:
        self._av = video.library(self._where)
        pause, is_first, is_connected = FIRST_PAUSE_SECONDS, True, False
        while not self.is_ended.is_set():
            start = time.monotonic()
            try:
                with self._opened() as container:
                    stream = video.stream_of(container, self._where)
                    if container.duration is not None:
                        seconds = container.duration / 1e6
                        raise BadData(
                            f"{self._where}: a recording of {seconds:.0f} s, not a live stream: "
                            "fetch it, and name the file"
                        )
                    is_connected = True
                    if is_first:
                        is_first = False
                        self._answers.put(None)
                    self._read(container, stream)
                reason = "the stream has ended"
            except (self._av.FFmpegError, OSError, ValueError, BadData) as error:
                if is_first:
                    raise self._refusal(error) from None
                reason = _reason(error, self._av)
            if self.is_ended.is_set():
                return
            if is_connected:
                streams.complain(f"{self._where}: {reason}: connecting again until it is back")
                is_connected = False
            if time.monotonic() - start > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self.is_ended.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _opened(self) -> Any:
        kind, options = None, {"fflags": "nobuffer"}  # no frame from before the connection
        if _DEVICE.match(self._source):
            os.stat(self._source)
            kind = _device_format(self._av)
        elif self._source.lower().startswith("rtsp"):
            options["rtsp_flags"] = "prefer_tcp"  # over UDP cameras lose packets
        how = {"options": options, "timeout": TIMEOUT_SECONDS, "metadata_errors": "replace"}
        return self._av.open(self._source, format=kind, **how)

    def _read(self, container: Any, stream: Any) -> None:
        """Answer from one connection, until it ends or `is_ended`.

        With `is_lazy` no packet is decoded before a frame is asked for. Some streams refer to what
        is before a key frame, which is damage then: after the second damage all are decoded.
        """
        decoder = video.PacketDecoder(stream)
        waiting: list[Any] = []  # packets since the key frame, not decoded yet
        num_bytes, num_bad, is_lazy, is_broken, first = 0, 0, True, True, None
        for packet in container.demux(stream):
            if self.is_ended.is_set():
                return
            if packet.is_keyframe and is_lazy:
                first = None
                if waiting or is_broken:
                    decoder.restart()
                    first = packet.pts
                waiting, num_bytes, is_broken = [], 0, False
            is_leading = first is not None and packet.pts is not None and packet.pts < first
            if (is_broken and is_lazy) or is_leading or not packet.size:
                continue
            waiting.append(packet)
            num_bytes += packet.size
            if is_lazy and not self.is_asked.is_set() and num_bytes <= _MOST_WAITING_BYTES:
                continue
            at = time.time()
            frames = [frame for one in waiting for frame in decoder.decode(one)]
            waiting, num_bytes = [], 0
            if not frames:
                continue
            is_known, is_broken = is_broken, frames[-1] is None or (is_lazy and None in frames)
            if self.is_asked.is_set() and not (is_broken and is_known):
                self.is_asked.clear()
                self._answers.put((None if is_broken else frames[-1], at))
            num_bad += is_broken and not packet.is_keyframe
            if num_bad == 2:
                is_lazy, first = False, None

    def _refusal(self, error: Exception) -> CdccaError:
        """Why the first connection failed."""
        if isinstance(error, CdccaError):
            return error
        words = f"{self._where}: {_reason(error, self._av)}"
        known = self._av.error
        if isinstance(error, (known.ProtocolNotFoundError, known.DemuxerNotFoundError)):
            return Unavailable(f"{words} in this PyAV")
        if isinstance(error, self._av.InvalidDataError):
            return BadData(f"{words}: no video")
        return MissingInput(words)


def _device_format(av: Any) -> str:
    for name in av.formats_available:
        if "v4l2" in name.split(","):
            return "v4l2"
    raise Unavailable("this PyAV reads no video devices (v4l2): stream the camera, and name that")


def _reason(error: Exception, av: Any) -> str:
    """The system's reason alone: FFmpeg's message has the address with its password."""
    if isinstance(error, CdccaError):
        return str(error).partition(": ")[2]
    if isinstance(error, av.error.ExitError):
        return f"no data for {TIMEOUT_SECONDS:g} s"
    return (getattr(error, "strerror", None) or "cannot be opened").lower()
