"""load_image: sound pictures come out as RGB and upright, everything else is refused by name."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, load_image, pictures
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
    ("content", "message"),
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
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadData, match=r"a\.jpg") as caught:
        load_image(frame(tmp_path / "a.jpg"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def textured(width: int = 96, height: int = 64) -> Image.Image:
    """Noise in the upper half, flat colour below: both kinds of data in one file."""
    pixels = np.full((height, width, 3), (40, 90, 200), np.uint8)
    upper = (height // 2, width, 3)
    pixels[: height // 2] = np.random.default_rng(7).integers(0, 256, upper, dtype=np.uint8)
    return Image.fromarray(pixels)


def run_length_bmp() -> bytes:
    """A BMP with 8-bit run-length coding, which Pillow reads and does not write."""
    levels = np.asarray(textured().convert("L"))
    data = b"".join(b"".join(bytes((1, level)) for level in row) + b"\0\0" for row in levels[::-1])
    data += b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 96, 64, 1, 8, 1, len(data), 0, 0, 256, 0)
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + head + palette + data


def encoded(form: str) -> bytes:
    if form == "bmp rle":
        return run_length_bmp()
    kind, _, variant = form.partition(" ")
    image = textured().convert("1") if variant in ("group3", "group4") else textured()
    options: dict[str, object] = {
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_rows": 1},
        "lossless": {"lossless": True},
        "interlaced": {"interlace": 1},
        "animated": {"save_all": True, "append_images": [image.rotate(180)]},
    }.get(variant, {"compression": variant} if variant else {})
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


FORMS = [
    *("jpeg", "jpeg progressive", "jpeg restarts", "mpo animated"),
    *("png", "png animated", "webp", "webp lossless", "webp animated"),
    *("gif", "gif interlaced", "gif animated", "bmp", "bmp rle", "ppm", "jpeg2000", "avif"),
    *("tiff", "tiff tiff_lzw", "tiff tiff_adobe_deflate", "tiff jpeg", "tiff packbits"),
    *("tiff group3", "tiff group4"),
]
SHOWS_ITS_END = ("jpeg", "mpo", "png", "webp", "gif", "avif", "jpeg2000")


def without_avif(form: str) -> None:
    if form == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_of_an_image_is_refused_or_whole(tmp_path: Path, form: str) -> None:
    """Never a picture with a grey lower half: what opens at all has every pixel."""
    without_avif(form)
    path = tmp_path / "a.img"
    whole = encoded(form)
    path.write_bytes(whole)
    expected = np.asarray(load_image(frame(path)))
    cuts = {*range(0, len(whole), max(1, len(whole) // 40)), *range(len(whole) - 20, len(whole))}
    refused = 0
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        try:
            image = load_image(frame(path))
        except BadData:
            refused += 1
        else:
            assert np.array_equal(np.asarray(image), expected), cut
    assert refused > 18


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith(SHOWS_ITS_END)])
def test_an_end_that_was_never_written_is_refused(tmp_path: Path, form: str) -> None:
    """Lost power leaves the length of a file and zeros for its data; here 64 bytes at the least."""
    without_avif(form)
    path = tmp_path / "a.img"
    whole = encoded(form)
    path.write_bytes(whole)
    expected = np.asarray(load_image(frame(path)))
    for cut in range(0, len(whole) - 64, max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut] + bytes(len(whole) - cut))
        try:
            image = load_image(frame(path))
        except BadData:
            continue
        assert np.array_equal(np.asarray(image), expected), cut


def test_padding_after_the_end_is_no_fault(tmp_path: Path) -> None:
    """Some cameras pad JPEG files to whole blocks."""
    for form in ("jpeg", "png"):
        (tmp_path / "a.img").write_bytes(encoded(form) + bytes(512))
        assert load_image(frame(tmp_path / "a.img")).size == (96, 64)


def test_one_wrong_bit_of_a_png_is_refused(tmp_path: Path) -> None:
    whole = bytearray(encoded("png"))
    whole[len(whole) // 2] ^= 16
    (tmp_path / "a.png").write_bytes(whole)
    with pytest.raises(BadData, match=r"a\.png"):
        load_image(frame(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    """A black drawing on nothing: black on white, and half of black on white is 255 - 128 = 127."""
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 255 if mode == "P" else 128))
    image.convert(mode).save(tmp_path / "a.png")
    levels = np.asarray(load_image(frame(tmp_path / "a.png")))[0, :, 0].tolist()
    assert levels == [255, 0, 0 if mode == "P" else 127]


@pytest.mark.parametrize("high", [1.0, 255.0])
def test_floating_point_is_refused(tmp_path: Path, high: float) -> None:
    Image.fromarray(np.array([[0, high]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadData, match=r"a\.tif: floating-point.*save it with 8 or 16 bits"):
        load_image(frame(tmp_path / "a.tif"))


def test_grey_of_more_than_16_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(BadData, match=r"a\.tif: 32-bit grey of 0 to 70,000"):
        load_image(frame(tmp_path / "a.tif"))


def test_ten_bit_pgm_is_scaled(tmp_path: Path) -> None:
    """512 of 1023 is 32,800 of 65,535, and 127 of 255."""
    levels = np.array([[0, 512, 1023]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1023\n" + levels.tobytes())
    assert np.asarray(load_image(frame(tmp_path / "a.pgm")))[0, :, 0].tolist() == [0, 127, 255]


def test_twelve_bits_in_sixteen_are_mentioned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(streams, "message", lines.append)
    pictures._mention_dim_levels.cache_clear()
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    for _ in range(2):
        assert np.asarray(load_image(frame(tmp_path / "a.png"))).max() == 15
    assert len(lines) == 1 and "12 bits" in lines[0]


def test_no_other_program_is_started_for_a_picture(tmp_path: Path) -> None:
    """Pillow would hand EPS to Ghostscript, under any name."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(BadData, match="not an image"):
        load_image(frame(tmp_path / "a.jpg"))


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_named(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    with pytest.raises(BadData, match=r"a\.jpg: not an image \(it is HEIC.*convert"):
        load_image(frame(tmp_path / "a.jpg"))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    gradient().save(tmp_path / name)
    with pytest.raises(BadData, match="name is not UTF-8"):
        load_image(Frame(name, tmp_path / name))


def test_missing_and_unfit_paths(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nothing"):
        load_image(frame(tmp_path / "nothing.jpg"))
    with pytest.raises(BadData, match="folder"):
        load_image(frame(tmp_path))
    with pytest.raises(BadData):
        load_image(frame(Path("a\0b.jpg")))
