"""Videos: any order, turned as players turn them, and no damaged frame passes for a whole one."""

import os
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import load_image, read_frames
from cdcca_cli.datasets.video import PacketDecoder
from cdcca_cli.errors import BadData

av = pytest.importorskip("av", reason="PyAV is not installed")


def video(path: Path, codec: str, pictures: list[np.ndarray], pixel_format: str) -> None:
    with av.open(str(path), "w") as container:
        try:
            stream = container.add_stream(codec, rate=10)
        except Exception:
            pytest.skip(f"this PyAV does not write {codec}")
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def levels(path: Path) -> None:
    """Six frames of 32x32, frame k grey of level 40 k, as FFV1 (lossless)."""
    greys = [np.full((32, 32, 3), 40 * level, np.uint8) for level in range(6)]
    video(path, "ffv1", greys, "bgr0")


def moving(number: int = 30) -> list[np.ndarray]:
    """A texture that moves, so that each frame is built on the one before."""
    rough = np.random.default_rng(1).integers(0, 256, (25, 25, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(rough).resize((200, 200)))
    return [np.ascontiguousarray(texture[k : k + 96, 2 * k : 2 * k + 96]) for k in range(number)]


def test_video_frames_in_any_order(tmp_path: Path) -> None:
    levels(tmp_path / "clip.mkv")
    frames = list(read_frames(tmp_path / "clip.mkv", prompt="?"))
    assert [frame.id for frame in frames] == [f"clip.mkv#{position}" for position in range(6)]
    for position in (0, 1, 2, 5, 3, 3, 0, 4):
        assert load_image(frames[position]).getpixel((5, 5)) == (40 * position,) * 3


def test_a_video_is_known_by_its_content(tmp_path: Path) -> None:
    levels(tmp_path / "clip.mkv")
    (tmp_path / "clip.mkv").rename(tmp_path / "upload.bin")
    assert len(read_frames(tmp_path / "upload.bin")) == 6


@pytest.mark.parametrize("name", ["clip.mp4", "clip.3gp", "clip.mkv"])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no video at all" * 100)
    with pytest.raises(BadData, match=name):
        read_frames(tmp_path / name)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mkv")
    levels(tmp_path / "clip.mkv")
    (tmp_path / "clip.mkv").rename(path)
    with pytest.raises(BadData, match="not UTF-8"):
        read_frames(path)


@pytest.mark.parametrize(
    ("matrix", "size", "red"),
    [
        ((0, 1, -1, 0), (64, 96), (32, 3)),  # a quarter clockwise: the left side is on top
        ((-1, 0, 0, -1), (96, 64), (92, 32)),  # half a turn: on the right
        ((0, -1, 1, 0), (64, 96), (32, 92)),  # a quarter counter-clockwise: at the bottom
        ((1, 0, 0, 1), (96, 64), (3, 32)),
    ],
)
def test_a_phone_video_is_turned_as_players_turn_it(
    tmp_path: Path, matrix: tuple[int, ...], size: tuple[int, int], red: tuple[int, int]
) -> None:
    """Red on the left, blue on the right; the display matrix of the track says how to turn it."""
    wide = np.zeros((64, 96, 3), np.uint8)
    wide[:, :48], wide[:, 48:] = (255, 0, 0), (0, 0, 255)
    video(tmp_path / "a.mp4", "mpeg4", [wide] * 3, "yuv420p")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    box = data.index(b"tkhd") + 4  # version 0: 40 bytes before the matrix
    a, b, c, d = (value << 16 for value in matrix)
    data[box + 40 : box + 76] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    for frame in read_frames(tmp_path / "a.mp4"):
        image = load_image(frame)
        assert image.size == size
        r, _, b = image.getpixel(red)
        assert r > 200 and b < 50


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.ts", "libx264"), ("a.avi", "mjpeg"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")],
)
def test_a_cut_video_gives_whole_frames_or_refuses_them(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = tmp_path / name
    video(path, codec, moving(), "yuvj420p" if codec == "mjpeg" else "yuv420p")
    whole = path.read_bytes()
    expected = {load_image(frame).tobytes() for frame in read_frames(path)}
    num_refused = num_whole = 0
    for cut in range(len(whole) // 10, len(whole), len(whole) // 15):
        path.write_bytes(whole[:cut])
        try:
            frames = read_frames(path)
        except BadData:
            continue
        for frame in frames:
            try:
                image = load_image(frame)
            except BadData as error:
                assert str(path) in str(error)
                num_refused += 1
            else:
                assert image.tobytes() in expected, (cut, frame.id)
                num_whole += 1
    assert num_whole > 50
    assert num_refused > 3 or name.endswith(".mkv")  # which drops the packet that is cut


def test_frames_after_a_damaged_one_are_refused_up_to_the_next_key_frame(tmp_path: Path) -> None:
    """MJPEG has key frames alone: one damaged picture is one refused frame."""
    path = tmp_path / "a.avi"
    video(path, "mjpeg", moving(6), "yuvj420p")
    data = bytearray(path.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"][2]
    data[third + 700 : third + 1000] = bytes(300)
    path.write_bytes(data)
    found = []
    for frame in read_frames(path):
        try:
            found.append(load_image(frame).size)
        except BadData as error:
            found.append(str(error)[-60:])
    assert len(found) == 6
    assert [size for size in found if isinstance(size, tuple)] == [(96, 96)] * 5


# ---------------------------------------------------------------- by time stamps


def stamped(path: Path, milliseconds: list[int], **metadata: str) -> None:
    """A lossless video whose frame k has this time stamp and is grey of level k."""
    with av.open(str(path), "w", format="matroska") as container:
        container.metadata.update(metadata)
        stream = container.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0"
        for number, stamp in enumerate(milliseconds):
            grey = np.full((32, 32, 3), number % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def positions(path: Path, **how: float) -> list[int | None]:
    return [frame.position for frame in read_frames(path, **how)]


@pytest.mark.parametrize(
    ("milliseconds", "how", "expected"),
    [
        (range(0, 10_000, 100), {"every": 2.0}, [0, 20, 40, 60, 80]),
        (range(700, 10_700, 100), {"every": 2.0}, [0, 20, 40, 60, 80]),  # from the first frame
        (range(0, 10_000, 100), {"every": 0.05}, list(range(100))),
        (range(0, 10_000, 100), {"duration": 1.0}, list(range(10))),
        (range(0, 10_000, 100), {"every": 0.5, "duration": 2.0}, [0, 5, 10, 15]),
        ([0, 33, 67, 100, 133, 167, 200, 233], {"every": 0.1}, [0, 3, 6]),  # 30 a second
        ([0, 900, 1100, 1950, 6000, 6100, 7000], {"every": 1.0}, [0, 2, 4, 6]),  # and a gap
    ],
)
def test_every_so_many_seconds_by_time_stamps(
    tmp_path: Path, milliseconds: list[int], how: dict[str, float], expected: list[int]
) -> None:
    """Worked by hand: the first frame at or after 0, E, 2 E, ... seconds, each frame once."""
    stamped(tmp_path / "a.mkv", list(milliseconds))
    assert positions(tmp_path / "a.mkv", **how) == expected
    frames = read_frames(tmp_path / "a.mkv", **how)
    assert len(frames) == len(expected)
    for frame in frames:
        assert frame.id == f"a.mkv#{frame.position}"
        assert load_image(frame).getpixel((5, 5)) == (frame.position,) * 3


@pytest.mark.parametrize(
    ("created", "first"),
    [
        ("2026-11-27T10:00:00.000000Z", 1795773600.0),
        ("2026-11-27T12:00:00+02:00", 1795773600.0),
        ("2026-11-27T10:00:00", 1795773600.0),
        ("yesterday", None),
        ("", None),
    ],
)
def test_a_frame_of_a_video_has_its_time_where_the_file_has_one(
    tmp_path: Path, created: str, first: float | None
) -> None:
    """1795773600 is `date -u -d 2026-11-27T10:00Z +%s`; stamps count from the first frame."""
    stamped(tmp_path / "a.mkv", [500, 750, 1000], creation_time=created)
    times = [frame.time for frame in read_frames(tmp_path / "a.mkv")]
    expected = [None] * 3 if first is None else [first, first + 0.25, first + 0.5]
    assert times == [None if one is None else pytest.approx(one, abs=2e-3) for one in expected]
    (frame,) = read_frames(tmp_path / "a.mkv", every=60.0)
    assert frame.time == times[0]


def test_a_damaged_frame_is_not_taken_for_an_interval(tmp_path: Path) -> None:
    """The third of ten MJPEG pictures is damaged: every 0.2 s the fourth stands in for it."""
    path = tmp_path / "a.avi"
    video(path, "mjpeg", moving(10), "yuvj420p")
    data = bytearray(path.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"][2]
    data[third + 700 : third + 1000] = bytes(300)
    path.write_bytes(data)
    assert positions(path, every=0.2) == [0, 3, 4, 6, 8]
    assert positions(path) == list(range(10))


# ---------------------------------------------------------------- damage


class FakePacket:
    """A packet that decodes to these frames, or is damaged."""

    is_corrupt, size = False, 1

    def __init__(self, pts: int, *frames: SimpleNamespace, key: bool = False, bad: bool = False):
        self.pts, self.frames, self.is_keyframe, self.bad = pts, list(frames), key, bad

    def decode(self) -> list[SimpleNamespace]:
        if self.bad:
            raise av.error.InvalidDataError(0, "damaged")
        return self.frames


def test_a_key_frame_that_comes_out_after_later_damage_makes_nothing_sound() -> None:
    """Decoders hold frames back to reorder them: the packet of frame 2 fails before frame 0 is out.

    Frames 0 to 3 are refused, as one of them is built on frame 2; key frame 4 begins anew.
    """
    frame = [SimpleNamespace(pts=pts, key_frame=pts % 4 == 0, is_corrupt=False) for pts in range(6)]
    decoder = PacketDecoder(SimpleNamespace())
    assert decoder.decode(FakePacket(0, key=True)) == []
    assert decoder.decode(FakePacket(2, bad=True)) == [None]
    assert decoder.decode(FakePacket(1, frame[0])) == [None]
    assert decoder.decode(FakePacket(4, frame[1], key=True)) == [None]
    assert decoder.decode(FakePacket(3, frame[3])) == [None]
    assert decoder.decode(FakePacket(5, frame[4], frame[5])) == [frame[4], frame[5]]
