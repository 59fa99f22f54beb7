"""What frames cost as pictures and video: measured elsewhere, by hand, and by a second way."""

import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import read_frames
from cdcca_cli.errors import Unavailable
from cdcca_cli.payloads.pictures import can_encode
from cdcca_cli.scoring.link import frames as link_frames
from cdcca_cli.scoring.link.frames import AVIF, H264, measure_frames
from cdcca_cli.scoring.settings import parse_size

DATA = Path(__file__).parents[3] / "shared" / "data" / "sequences"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no frames in ../shared/data/sequences")
MEASURED = DATA / "uplink_measure.json"


def published(name: str) -> dict[str, Any]:
    every = json.loads(MEASURED.read_text())
    return next(figures for title, figures in every.items() if title.startswith(name))


@pytest.fixture
def without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pillow that cannot write AVIF, which takes a second for 1920 x 1080."""
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF", raising=False)


def photos(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Smooth pictures, so that video coding has something to predict."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([x + 3 * number, y + x, 255 - y], axis=2) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


# ---------------------------------------------------------------- measured by others


@needs_data
def test_a_walk_as_measured_elsewhere(without_avif: None) -> None:
    """13 photographs of 1920x1080, and five of them at 224x224 (bicubic), as published with them.

    Their H.264 was coded at 3 frames a second (at this rate all their 1080p figures come out to
    0.9 %, and 25 or 30 give half). JPEG may differ by what another libjpeg does.
    """
    pytest.importorskip("av", reason="PyAV is not installed")
    folder = DATA / "cut3r_001_1920x1080"
    figures = published("cut3r_001")
    found = measure_frames(read_frames(folder), images_per_second=Fraction(3)).every
    assert found["raw_rgb"] == 13 * figures["raw_rgb"]
    assert found["jpeg_q75"] / 13 == pytest.approx(figures["jpeg_q75"], rel=1e-3)
    per_frame = figures["libx264_crf23_medium_all"]["bytes_per_frame"]
    assert found[H264] / 13 == pytest.approx(per_frame, rel=0.015)


@needs_data
def test_five_frames_at_the_encoders_size_as_measured_elsewhere(without_avif: None) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    figures = published("five frames")["cut3r_001 resized to 224x224"]
    five = list(read_frames(DATA / "cut3r_001_1920x1080"))[:5]
    found = measure_frames(five, encoder_size=(224, 224), images_per_second=Fraction(3)).seen_every
    assert found["raw_rgb"] == figures["raw5"]
    assert found["jpeg_q75"] == pytest.approx(figures["jpeg_q75_5frames"], rel=1e-3)
    assert found["webp_q75"] == pytest.approx(figures["webp_q75_5frames"], rel=5e-3)
    assert found[H264] == pytest.approx(figures["x264_crf23_5frames"], rel=0.01)


@needs_data
@pytest.mark.parametrize(
    ("name", "title", "num_frames", "rate"),
    [
        ("mmtracking_mot17_1920x1080_8f.mp4", "mmtracking", 8, 3),
        pytest.param(
            *("udacity_dashcam_960x540_221f.mp4", "udacity", 100, 25), marks=pytest.mark.slow
        ),
        pytest.param(
            *("sam2_bedroom_960x540_200f.mp4", "sam2 bedroom", 100, 30), marks=pytest.mark.slow
        ),
    ],
)
def test_videos_as_measured_elsewhere(
    name: str, title: str, num_frames: int, rate: int, without_avif: None
) -> None:
    """At their own rate: 3, 25 and 30 frames a second."""
    pytest.importorskip("av", reason="PyAV is not installed")
    figures = published(title)
    frames = list(read_frames(DATA / name))[:num_frames]
    found = measure_frames(frames)
    assert found.frames_per_second == rate
    assert found.every["raw_rgb"] == num_frames * figures["raw_rgb"]
    assert found.every["original"] == (DATA / name).stat().st_size
    per_frame = figures["libx264_crf23_medium_all"]["bytes_per_frame"]
    assert found.every[H264] / num_frames == pytest.approx(per_frame, rel=0.015)
    if num_frames == 8:  # of longer ones the published JPEG and WebP are of some frames only
        assert found.every["jpeg_q75"] / 8 == pytest.approx(figures["jpeg_q75"], rel=1e-3)
        assert found.every["webp_q75"] / 8 == pytest.approx(figures["webp_q75"], rel=5e-3)


# ---------------------------------------------------------------- H.264 by a second way


def coded_to_a_file(names: list[Path], rate: int) -> int:
    """The length of an Annex B file that PyAV's muxer writes of the same frames."""
    import av

    coded = io.BytesIO()
    with av.open(coded, "w", format="h264") as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        first = Image.open(names[0])
        stream.width, stream.height = first.size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "23", "preset": "medium"}
        stream.codec_context.thread_count = 1
        for name in names:
            frame = av.VideoFrame.from_image(Image.open(name).convert("RGB"))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return len(coded.getvalue())


def test_one_stream_for_each_size_in_order(tmp_path: Path) -> None:
    """Sizes come mixed; each stream is what a file of its frames is. `sent` is coded alone.

    The file is coded three times: once in a whole run of the tests one was 4 bytes longer than the
    others ever were, for a reason that 6,000 codings on their own did not show.
    """
    pytest.importorskip("av", reason="PyAV is not installed")
    large, small = (96, 64), (48, 80)
    folder = photos(tmp_path / "frames", [large, small, large, small, large])
    names = sorted(folder.iterdir())
    found = measure_frames(read_frames(folder), {"00.png", "03.png", "04.png"})
    assert found.left_out == {} and found.sizes == 2 and found.frames_per_second == 25
    every = [(names[0::2], names[1::2])] * 3
    sent = [([names[0], names[4]], [names[3]])] * 3
    for coded, files in ((found.every, every), (found.sent, sent)):
        assert coded[H264] in [sum(coded_to_a_file(one, 25) for one in two) for two in files]


def test_all_sent_is_all(tmp_path: Path) -> None:
    folder = photos(tmp_path / "frames", [(40, 24), (24, 40), (40, 24)])
    found = measure_frames(read_frames(folder), {"00.png", "01.png", "02.png"}, encoder_size=(8, 8))
    assert found.sent == found.every and found.seen_sent == found.seen_every
    none = measure_frames(read_frames(folder), (), encoder_size=(8, 8))
    assert none.every == found.every and none.sent.total() == none.seen_sent.total() == 0


def test_odd_sides_and_small_frames_can_be_coded(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    folder = photos(tmp_path / "frames", [(31, 17), (1, 1), (33, 2)])
    found = measure_frames(read_frames(folder))
    assert found.left_out == {} and found.every[H264] > 0 and found.sizes == 3
    assert found.every["raw_rgb"] == 3 * (31 * 17 + 1 + 66)


def test_no_frames() -> None:
    found = measure_frames([])
    assert found.every.total() == 0 and found.sizes == 0


# ---------------------------------------------------------------- without PyAV


def test_left_out_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    found = measure_frames(read_frames(photos(tmp_path / "frames", [(8, 8)])), encoder_size=(4, 4))
    assert "cdcca[video]" in found.left_out[H264]
    assert "cdcca[video]" in found.seen_left_out[H264]
    assert H264 not in found.every and H264 not in found.seen_every
    assert found.every["jpeg_q75"] > 0


@pytest.mark.parametrize("at", ["add", "finish"])
def test_coding_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")

    def fail(*_: object) -> None:
        raise Unavailable("libx264 does not take frames of 8 x 8 (no memory)")

    monkeypatch.setattr(link_frames._Encoder, at, fail)
    found = measure_frames(read_frames(photos(tmp_path / "frames", [(8, 8)] * 3)), {"00.png"})
    assert found.left_out == {H264: "libx264 does not take frames of 8 x 8 (no memory)"}
    assert H264 not in found.every and found.every["frames"] == 3


def test_what_fails_at_one_size_is_measured_at_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size that libx264 refuses once left out the encoder's size too."""
    pytest.importorskip("av", reason="PyAV is not installed")
    coded = link_frames._Encoder.add

    def fail_at_eight(encoder: Any, image: Image.Image) -> None:
        if image.size == (8, 8):
            raise Unavailable("libx264 does not take frames of 8 x 8 (no memory)")
        coded(encoder, image)

    monkeypatch.setattr(link_frames._Encoder, "add", fail_at_eight)
    frames = read_frames(photos(tmp_path / "frames", [(8, 8), (32, 16), (8, 8)]))
    found = measure_frames(frames, {"00.png"}, encoder_size=(24, 24))
    assert found.left_out.keys() == {H264} and found.seen_left_out == {}
    assert H264 not in found.every and found.seen_every[H264] > found.seen_sent[H264] > 0
    found = measure_frames([list(frames)[1]], encoder_size=(8, 8))
    assert found.seen_left_out.keys() == {H264} and found.left_out == {}
    assert H264 not in found.seen_every and found.every[H264] > 0


def test_without_an_avif_encoder(tmp_path: Path, without_avif: None) -> None:
    found = measure_frames(read_frames(photos(tmp_path / "frames", [(8, 8)])), encoder_size=(4, 4))
    assert "pillow>=11.3" in found.left_out[AVIF] and "pillow>=11.3" in found.seen_left_out[AVIF]
    assert AVIF not in found.every and AVIF not in found.seen_every
    assert found.every["webp_q75"] > 0


# ---------------------------------------------------------------- as pictures


@pytest.mark.skipif(not can_encode("image/avif"), reason="this Pillow has no AVIF")
def test_avif_is_what_pillow_writes(tmp_path: Path) -> None:
    """At both sizes, one thread or more."""
    folder = photos(tmp_path / "frames", [(64, 48), (30, 20)])
    found = measure_frames(read_frames(folder), {"01.png"}, encoder_size=(16, 16))
    images = [Image.open(name) for name in sorted(folder.iterdir())]
    for every, sent, pictures in (
        (found.every, found.sent, images),
        (found.seen_every, found.seen_sent, [image.resize((16, 16), 3) for image in images]),
    ):
        sizes = []
        for image in pictures:
            coded = io.BytesIO()
            image.save(coded, "avif", quality=50, max_threads=2)
            sizes.append(len(coded.getvalue()))
        assert (every[AVIF], sent[AVIF]) == (sum(sizes), sizes[1])


# ---------------------------------------------------------------- the encoder's size


def test_sizes() -> None:
    assert parse_size("224") == (224, 224)
    assert parse_size("448X336") == (448, 336)
    for text in ("", "0", "224x", "x3", "-1", "2.5", "999999", "10x0"):
        with pytest.raises(ValueError, match="expected pixels like 224 or 448x336"):
            parse_size(text)
