"""load_image: sound pictures come out as RGB and upright, everything else is refused by name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import BadData, MissingInput


def frame(path: Path) -> Frame:
    return Frame(path.name, path)


def gradient(width: int = 16, height: int = 8) -> Image.Image:
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(pixels)


def test_png_comes_back_bit_for_bit(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(frame(tmp_path / "a.png"))), np.asarray(gradient()))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "a.tif" if mode == "CMYK" else "a.png"
    gradient().convert(mode).save(tmp_path / name)
    image = load_image(frame(tmp_path / name))
    assert (image.mode, image.size) == ("RGB", (16, 8))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    """0, 32768 and 65535 of 65535 are 0, 127 and 255 of 255 (65535 = 257 x 255)."""
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(frame(tmp_path / "a.png")))[0, :, 0].tolist() == [0, 127, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """Orientation 6: the stored image is to be turned a quarter clockwise, so 16x8 becomes 8x16."""
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "a.jpg", exif=exif)
    assert load_image(frame(tmp_path / "a.jpg")).size == (8, 16)


def test_broken_exif_beside_sound_pixels_is_no_fault(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_image(frame(tmp_path / "a.jpg")).size == (16, 8)


def bomb() -> bytes:
    """A PNG of 58 bytes that says it is 60,000 x 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def large() -> bytes:
    """The same with 10,000 x 10,000: PIL itself would only warn."""
    data = bytearray(bomb())
    struct.pack_into(">II", data, 16, 10_000, 10_000)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"just some text\n", "not an image"),
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0", "a.jpg"),
        (b"\x89PNG\r\n\x1a\n", "a.jpg"),
        (bomb(), "pixels"),
        (large(), "pixels"),
    ],
)
def test_what_is_no_image_is_refused_with_its_name(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadData, match=r"a\.jpg") as caught:
        load_image(frame(tmp_path / "a.jpg"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "gif", "bmp"])
def test_every_cut_of_an_image_is_refused_or_whole(tmp_path: Path, form: str) -> None:
    """Never a picture with a grey lower half: what opens at all has every pixel."""
    path = tmp_path / "a.img"
    gradient(64, 64).save(path, form)
    whole = path.read_bytes()
    expected = np.asarray(load_image(frame(path)))
    refused = 0
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        try:
            image = load_image(frame(path))
        except BadData:
            refused += 1
        else:
            assert np.array_equal(np.asarray(image), expected), cut
    assert refused > 20


def test_missing_and_unfit_paths(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nothing"):
        load_image(frame(tmp_path / "nothing.jpg"))
    with pytest.raises(BadData, match="folder"):
        load_image(frame(tmp_path))
    with pytest.raises(BadData):
        load_image(frame(Path("a\0b.jpg")))
