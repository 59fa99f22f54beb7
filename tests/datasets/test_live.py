"""Live sources: the newest frame and no queue, across drops, with no password in any word."""

import contextlib
import gc
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import Frame, LiveFrames, live, load_image, open_frames
from cdcca_cli.errors import BadData, CdccaError, MissingInput, SettingError, Unavailable
from tests.datasets import served

av = pytest.importorskip("av", reason="PyAV is not installed")
RATE = 25


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_PAUSE_SECONDS", 0.2)


def opened(source: str, **how: Any) -> LiveFrames:
    frames = open_frames(source, **how)
    assert isinstance(frames, LiveFrames)
    return frames


def camera(sink: Any, _: str) -> None:
    served.mpeg_ts(sink, RATE, 60, key_interval=5)


def number_of(frame: Frame) -> int:
    """The number of a frame of `camera`, from its grey level; levels are a little off in H.264.

    A frame of number k has the mean k + 19.5 in RGB; limited range and rounding cost up to 2.
    """
    return round(float(np.asarray(load_image(frame), np.float64).mean()) - 19.5)


def jpeg(level: int, size: tuple[int, int] = served.SIZE) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(out, "JPEG")
    return out.getvalue()


def mjpeg(pictures: Iterator[bytes]) -> Callable[[Any, str], None]:
    """What a camera's web page shows: JPEG files, one after another."""

    def write(sink: Any, _: str) -> None:
        for data in pictures:
            head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            sink.write(head.encode() + data + b"\r\n")

    return write


def paced(pictures: Iterator[bytes], rate: int = RATE) -> Iterator[bytes]:
    for data in pictures:
        yield data
        time.sleep(1 / rate)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://10.0.0.5:554/stream1", "10.0.0.5:554/stream1"),
        ("rtsp://me:SECRET@cam.local/1/", "cam.local/1"),
        ("rtsp://me:SEC@RET@cam.local/1", "cam.local/1"),
        ("rtsp://me:SEC/RET@cam.local/1", "cam.local/1"),
        ("rtsp://me:SEC?#RET@cam.local/1", "cam.local/1"),
        ("http://cam.local/video.cgi?user=me&pwd=SECRET", "cam.local/video.cgi"),
        ("http://cam.local/video#SECRET", "cam.local/video"),
        ("rtsp://cam.local/live/user=me_password=SECRET_channel=1.sdp", "cam.local/live/..."),
        ("rtsp://cam.local/user=me&password=SEC/RET", "cam.local/..."),
        ("udp://@239.0.0.1:1234", "239.0.0.1:1234"),
        ("udp://", "stream"),
        ("rtsp:///etc/x", "etc/x"),
        ("/dev/video0", "video0"),
    ],
)
def test_a_name_has_host_and_path_only(address: str, name: str) -> None:
    assert live.is_live(address)
    assert live.name_of(address) == name


@pytest.mark.parametrize("source", ["frames", "clip.mp4", "/dev/null", "file:///x.mp4"])
def test_files_are_not_live(source: str) -> None:
    assert not live.is_live(source)


# ---------------------------------------------------------------- frames


def test_frames_have_the_time_of_their_capture_and_ids_of_their_own() -> None:
    with served.serving(camera) as server:
        begun = time.time()
        address = server.url("cam/1?pwd=SECRET").replace("//", "//me:SECRET@")
        frames = list(opened(address, prompt="What is there?", every=0.2, duration=1.5))
    assert 5 <= len(frames) <= 8
    assert len({frame.id for frame in frames}) == len(frames)
    times = [frame.time for frame in frames]
    assert times == sorted(times)
    assert all(begun <= when <= time.time() for when in times)
    for frame in frames:
        stamp = r"127\.0\.0\.1:\d+/cam/1@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
        assert re.fullmatch(stamp, frame.id)
        assert str(frame.image) == frame.id
        (question,) = frame.questions
        assert (question.id, question.prompt, question.task) == (frame.id, "What is there?", "vqa")
        assert load_image(frame).size == served.SIZE


def test_a_slow_reader_gets_the_newest_frame() -> None:
    """After a second asleep the next frame is 25 later, and its time says so: none waited."""
    with served.serving(camera) as server:
        frames = iter(opened(server.url(), duration=20))
        next(frames)
        before = next(frames)
        time.sleep(1)
        after = next(frames)
        moved = number_of(after) - number_of(before)
        assert abs(moved - (after.time - before.time) * RATE) < 8
        assert moved > 0.9 * RATE
        assert time.time() - after.time < 0.5
        frames.close()  # type: ignore[attr-defined]


def test_packets_of_rare_key_frames_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are decoded when they are too many; the newest frame is the same."""
    monkeypatch.setattr(live, "_MOST_WAITING_BYTES", 5000)
    with served.serving(lambda sink, _: served.mpeg_ts(sink, 100, 60, 100)) as server:
        frames = iter(opened(server.url(), duration=20))
        before = next(frames)
        time.sleep(0.6)
        after = next(frames)
        frames.close()  # type: ignore[attr-defined]
    assert 40 < number_of(after) - number_of(before) < 120


def test_every_frame_that_is_not_late_without_an_interval() -> None:
    with served.serving(camera) as server:
        numbers = [number_of(frame) for frame in opened(server.url(), duration=1.0)]
    assert len(numbers) > 10
    assert all(1 <= step <= 6 for step in np.diff(numbers))


def test_a_source_that_is_iterated_counts_its_frames() -> None:
    with served.serving(camera) as server:
        source = opened(server.url(), every=0.1, duration=0.5)
        assert live.num_frames(source) is None
        count = sum(1 for _ in source)
    assert live.num_frames(source) == count > 0
    assert source.most_frames >= count


def test_a_damaged_frame_is_refused_and_the_next_is_whole() -> None:
    """MJPEG: each picture is a key frame, so one damaged picture is one frame."""
    whole, cut = jpeg(90, (256, 256)), jpeg(90, (256, 256))
    cut = cut[: len(cut) - 300] + bytes(298) + b"\xff\xd9"

    def pictures() -> Iterator[bytes]:
        number = 0
        while True:
            yield cut if number % 10 >= 5 else whole
            number += 1

    with served.serving(mjpeg(paced(pictures()))) as server:
        found = []
        for frame in opened(server.url("mjpeg"), duration=2.0):
            try:
                found.append(load_image(frame).getpixel((9, 9)))
            except BadData as error:
                assert str(error).startswith(f"{frame.id}: damaged")
                found.append(None)
    assert found.count(None) > 2
    assert found.count((90, 90, 90)) > 2
    assert set(found) == {None, (90, 90, 90)}


class Pieces:
    """A file whose writes can be counted."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.written.append(bytes(data))
        return len(data)


def encoded(codec: str, num_frames: int, **options: str) -> list[bytes]:
    """A transport stream of a texture that moves, with two B-frames in a row, by packet."""
    texture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(texture).resize((400, 400)))
    out, packets, end = Pieces(), [], 0
    with av.open(out, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = 96
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = "yuv420p", 12, 2
        stream.options = options
        for number in range(num_frames + 1):
            picture = np.ascontiguousarray(wide[number : number + 96, 2 * number : 2 * number + 96])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            for packet in stream.encode(frame if number < num_frames else None):
                container.mux(packet)
                packets.append(b"".join(out.written[end:]))
                end = len(out.written)
    return packets


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:bframes=2"}),
        ("libx264", {}),
        ("mpeg2video", {}),
    ],
)
def test_no_frame_is_built_on_what_was_not_decoded(codec: str, options: dict[str, str]) -> None:
    """B-frames after a key frame may refer to frames before it, which are seldom decoded.

    Each frame that comes is one of those that the whole stream decodes to, to the last bit.
    """
    packets = encoded(codec, 130, **options)
    with av.open(io.BytesIO(b"".join(packets)), format="mpegts") as container:
        whole = {live.video.upright(frame).tobytes() for frame in container.decode(video=0)}

    def write(sink: Any, _: str) -> None:
        for packet in packets:
            sink.write(packet)
            time.sleep(1 / 50)

    num_whole = num_refused = 0
    with served.serving(write) as server:
        for frame in opened(server.url(), duration=2):
            try:
                assert load_image(frame).tobytes() in whole
                num_whole += 1
            except BadData:  # where key frames are not the start of all that follows
                num_refused += 1
            time.sleep(0.3 if num_whole % 4 == 0 else 0)
    assert num_whole > 6 and num_refused <= 2


def test_rtsp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[str] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                play = lambda sink: served.mpeg_ts(sink, RATE, 20)  # noqa: E731
                asked.extend(served.rtsp(connection, play))

        threading.Thread(target=serve, daemon=True).start()
        address = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/cam/1"
        frames = list(opened(address, every=0.2, duration=1.0))
    assert len(frames) >= 3
    assert [number_of(frame) for frame in frames] == sorted(number_of(frame) for frame in frames)


# ---------------------------------------------------------------- drops


def test_a_drop_is_one_line_and_the_source_is_read_again(
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = served.Server(camera)
    frames = iter(opened(server.url("cam?pwd=SECRET"), every=0.1, duration=30))
    for _ in range(3):
        next(frames)
    server.stop()
    later: list[Frame] = []
    taken = threading.Thread(target=lambda: later.extend(next(frames) for _ in range(8)))
    taken.start()
    time.sleep(0.5)  # the first try again finds nobody
    with served.serving(camera, server.port):
        taken.join(20)
        frames.close()  # type: ignore[attr-defined]
    assert len(later) == 8
    stderr = capfd.readouterr().err
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(f"cdcca: 127.0.0.1:{server.port}/cam: ")
    assert stderr.endswith(": connecting again until it is back\n")


def test_pauses_grow_where_each_connection_drops_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Pauses of 0.2, 0.4, 0.8, 1.6 s: five connections at most within 3 s, not hundreds."""
    short = lambda sink, _: served.mpeg_ts(sink, 200, 0.2)  # noqa: E731
    with served.serving(short) as server:
        start = time.monotonic()
        list(opened(server.url(), duration=3))
        assert time.monotonic() - start < 9
        assert 2 <= server.num_asked <= 5
    assert len(capfd.readouterr().err.splitlines()) <= server.num_asked


def test_a_stalled_stream_is_a_drop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 1.0)

    def stalls(sink: Any, _: str) -> None:
        served.mpeg_ts(sink, 100, 0.5)
        time.sleep(3)

    with served.serving(stalls) as server:
        list(opened(server.url(), every=0.5, duration=2.5))
        assert server.num_asked >= 2
    assert ": no data for 1 s: connecting again" in capfd.readouterr().err


# ---------------------------------------------------------------- refusals


def refused(source: str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as found:
        opened(source)
    assert "SECRET" not in str(found.value)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_source_that_is_not_there() -> None:
    address = f"http://me:SECRET@127.0.0.1:{served.free_port()}/cam?pwd=SECRET"
    assert refused(address, MissingInput).endswith("/cam: connection refused")
    address = f"rtsp://me:SECRET@127.0.0.1:{served.free_port()}/cam"
    assert refused(address, MissingInput).endswith("/cam: connection refused")


def test_a_source_that_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 0.5)
    with served.serving(lambda *_: time.sleep(5)) as server:
        assert refused(server.url("cam"), MissingInput).endswith("/cam: no data for 0.5 s")


def test_a_source_that_is_no_video() -> None:
    """FFmpeg calls the end of a page without a length an input error."""
    with served.serving(lambda sink, _: sink.write(b"<html>log in first</html>" * 99)) as server:
        refused(server.url("cam?pwd=SECRET"), CdccaError)


def test_an_address_of_an_unknown_kind() -> None:
    assert "protocol not found" in refused("gopher2://me:SECRET@host/x", Unavailable)


def test_a_recording_behind_an_address_is_no_live_stream(tmp_path: Path) -> None:
    """Its frames come faster than the clock, and from the start again after each end."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = *served.SIZE, "yuvj420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(served.grey(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = (tmp_path / "a.mkv").read_bytes()
    with served.serving(lambda sink, _: sink.write(data)) as server:
        assert "a recording of 3 s" in refused(server.url("a.mkv"), BadData)


def test_a_device_that_is_not_there() -> None:
    assert refused("/dev/video97", MissingInput) == "/dev/video97: no such file or directory"


class FakeAv:
    """PyAV that records how it is asked to open, and can."""

    FFmpegError = av.FFmpegError
    InvalidDataError = av.error.InvalidDataError
    error = av.error

    def __init__(self, *formats: str) -> None:
        self.formats_available = set(formats)
        self.asked: dict[str, Any] = {}

    def open(self, source: str, **how: Any) -> Any:
        self.asked = {"source": source, **how}
        raise av.error.InvalidDataError(0, "stop here")


@pytest.mark.parametrize(
    ("source", "kind", "flags"),
    [
        ("/dev/video0", "v4l2", None),
        ("/dev/v4l/by-id/usb-cam-index0", "v4l2", None),
        ("rtsp://h/1", None, "prefer_tcp"),
        ("http://h/1", None, None),
    ],
)
def test_how_a_source_is_opened(
    source: str, kind: str | None, flags: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeAv("mpegts", "video4linux2,v4l2")
    monkeypatch.setattr(live.video, "library", lambda _: fake)
    monkeypatch.setattr(live.os, "stat", lambda _: SimpleNamespace())
    refused(source, BadData)
    assert fake.asked["source"] == source
    assert fake.asked["format"] == kind
    assert fake.asked["options"].get("rtsp_flags") == flags


def test_a_pyav_without_devices_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.video, "library", lambda _: FakeAv("mpegts"))
    monkeypatch.setattr(live.os, "stat", lambda _: SimpleNamespace())
    assert "reads no video devices" in refused("/dev/video0", Unavailable)


def test_this_pyav_knows_video_devices() -> None:
    assert sys.platform != "linux" or live._device_format(av) == "v4l2"


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"images": "."}, "images"),
        ({"task": "vqa"}, "task"),
        ({"task": "x"}, "task"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_settings_that_do_not_fit(how: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingError) as found:
        opened("rtsp://me:SECRET@127.0.0.1:9/x", **how)
    assert found.value.name == name and "SECRET" not in str(found.value)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_source_and_the_next_one_is_as_before(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        with served.serving(camera) as server:
            count = 0
            source = opened(server.url(), every=0.1)
            for _ in source:
                count += 1
                if count == 3:
                    os.kill(os.getpid(), number)
                    assert heard == []  # the frame at hand is worked on to its end
                    os.kill(os.getpid(), number)
                    assert heard == [number]
        assert count == 3
        with pytest.raises(RuntimeError, match="read once"):
            next(iter(source))
        assert signal.getsignal(number) not in (before, signal.SIG_DFL)
        assert capfd.readouterr().err.endswith(
            f"/cam: stopped by {signal.Signals(number).name}: what was captured is kept\n"
        )
    finally:
        signal.signal(number, before)


def test_a_signal_ends_the_wait_for_a_frame() -> None:
    with served.serving(camera) as server:
        frames = iter(opened(server.url(), every=60))
        next(frames)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        assert next(frames, None) is None
        assert time.monotonic() - start < 5


# ---------------------------------------------------------------- memory


def test_pictures_in_use_for_long_wait_on_disk_without_loss() -> None:
    def pictures() -> Iterator[bytes]:
        level = 0
        while True:
            yield jpeg(level % 200)
            level += 1

    with served.serving(mjpeg(paced(pictures(), 100))) as server:
        source = opened(server.url("mjpeg"), duration=20)
        frames, before = [], []
        for frame in source:
            frames.append(frame)
            before.append(load_image(frame).tobytes())
            if len(frames) == 20:
                break
        in_memory = [frame.capture._image is not None for frame in frames]  # type: ignore[union-attr]
        assert in_memory == [False] * 16 + [True] * 4
        assert [load_image(frame).tobytes() for frame in frames] == before
        (aside,) = source._asides.values()
        del frames[:10], frame
        gc.collect()
        assert sorted(aside.free) == list(range(10))
        kept = Image.new("RGB", aside.size)
        assert aside.put(kept) < 10  # a slot that is used again


def resident_bytes() -> int:
    statm = Path("/proc/self/statm").read_text(encoding="ascii")
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [600, pytest.param(30_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_slow", [False, True])
def test_flat(number: int, is_slow: bool) -> None:
    """Were they kept, 600 pictures of 320x240 were 138 MB, and those between them more."""
    data = jpeg(120, (320, 240)) + bytes(3000)

    def pictures() -> Iterator[bytes]:
        while True:
            yield data

    with served.serving(mjpeg(pictures())) as server:
        frames = iter(opened(server.url("mjpeg"), duration=1000))
        before = 0
        for count, _ in enumerate(frames):
            if is_slow:
                time.sleep(0.002)
            if count == 200:
                before = resident_bytes()
            if count == number + 200:
                break
        assert resident_bytes() - before < 4e6
        frames.close()  # type: ignore[attr-defined]
