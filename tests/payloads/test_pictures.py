"""The payload `frame`: the picture alone is sent, and only what was declared is opened."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.formats.pictures import MOST_SCANS, Picture, bare
from cdcca_cli.payloads.pictures import AVIF, CODED, JPEG, PNG, WEBP, decode, encode, original
from tests.fuzz.readers import Kind
from tests.fuzz.structure import run

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
MARK = b"51.4779N-secret-place"
LATER = 1 << 30


def photo(width: int = 120, height: int = 80) -> Image.Image:
    """Smooth, with noise: no two of its eight turns and mirrors are alike."""
    y, x = np.mgrid[:height, :width]
    levels = np.stack([x * 2, y * 3, 128 + (x - y)], 2) + np.random.default_rng(1).integers(
        0, 20, (height, width, 3)
    )
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def saved(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (image or photo()).save(out, form, **options)
    return out.getvalue()


def loaded(folder: Path, data: bytes) -> Image.Image:
    path = folder / "a.img"
    path.write_bytes(data)
    return load_image(Frame("a", path))


# ---------------------------------------------------------------- coding


@pytest.mark.parametrize("media", CODED)
def test_what_is_coded_comes_back(media: str) -> None:
    """Better quality takes more bytes and is nearer; the same call gives the same bytes."""
    image, before = photo(), (0, 1e9)
    for quality in (10, 50, 90):
        picture = encode(image, media, quality)
        assert picture == encode(image, media, quality)
        assert (picture.media, picture.size) == (media, image.size)
        back = decode(picture)
        assert (back.mode, back.size) == ("RGB", image.size)
        error = float(np.abs(np.asarray(back, np.float32) - np.asarray(image)).mean())
        assert len(picture.data) > before[0] and error < before[1]
        before = len(picture.data), error
    assert before[1] < 5


@pytest.mark.parametrize("media", CODED)
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (8, 3), (4096, 2), (224, 224)])
def test_every_size_can_be_coded(media: str, size: tuple[int, int]) -> None:
    picture = encode(photo(*size), media)
    assert decode(picture).size == size


@pytest.mark.parametrize("media", CODED)
def test_no_metadata_of_the_image_is_coded(media: str) -> None:
    image = photo()
    exif = Image.Exif()
    exif[0x010E] = MARK.decode()
    image.info = {"icc_profile": MARK, "exif": exif.tobytes(), "xmp": MARK, "comment": MARK}
    assert encode(image, media) == encode(photo(), media)
    assert image.info["comment"] == MARK  # the caller's image is as it was


@pytest.mark.parametrize("media", [JPEG, WEBP, AVIF])
def test_too_large_to_be_coded(media: str) -> None:
    """Also beyond an encoder's own limits: WebP's are 16,383 a side, JPEG's and AVIF's 65,535."""
    for size in ((4097, 1), (4096, 2049), (16_384, 1), (70_000, 2)):
        with pytest.raises(BadData, match="pixels, expected at most 4096 a side"):
            encode(Image.new("RGB", size), media)


def test_without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = encode(photo())
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(Unavailable, match="cannot write image/avif: pip install"):
        encode(photo())
    monkeypatch.delitem(Image.OPEN, "AVIF")
    with pytest.raises(Unavailable, match="cannot read image/avif: pip install"):
        decode(picture)


def test_the_defaults() -> None:
    assert encode(photo()) == encode(photo(), AVIF, 50)
    assert encode(photo(), WEBP) == encode(photo(), WEBP, 75)


# ---------------------------------------------------------------- opening


def every_kind() -> list[Picture]:
    return [
        *(encode(photo(), media) for media in CODED),
        bare(saved("png")),
        bare(saved("webp", lossless=True)),
        bare(saved("jpeg", progressive=True)),
    ]


def test_what_is_declared_wrong_is_refused() -> None:
    for picture in every_kind():
        for media in ({AVIF, WEBP, JPEG, PNG} - {picture.media}) | {"image/gif", "", "x" * 999}:
            with pytest.raises(BadData, match=r"declared as .* is image/"):
                decode(replace(picture, media=media))
        for size in ((80, 120), (121, 80), (0, 0), (-1, 80)):
            with pytest.raises(BadData, match="is 120 x 80 pixels"):
                decode(replace(picture, size=size))


def test_every_cut_is_refused() -> None:
    for picture in every_kind():
        for cut in range(0, len(picture.data), max(1, len(picture.data) // 50)):
            with pytest.raises(BadData):
                decode(replace(picture, data=picture.data[:cut]))


def test_an_end_that_was_never_written_is_refused() -> None:
    for picture in every_kind():
        for cut in range(0, len(picture.data) - 64, max(1, len(picture.data) // 20)):
            with pytest.raises(BadData):
                zeros = bytes(len(picture.data) - cut)
                decode(replace(picture, data=picture.data[:cut] + zeros))


def test_bytes_behind_the_end_are_refused() -> None:
    for picture in every_kind():
        with pytest.raises(BadData):
            decode(replace(picture, data=picture.data + b"\0\0"))


ANIMATED = {"save_all": True, "append_images": [photo().rotate(180)]}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    end = chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end


def with_av1_size(width: int) -> bytes:
    """An AVIF of 120 x 80 whose AV1 sequence header declares another width."""
    data = bytearray(encode(photo(), AVIF).data)
    at = data.index(b"mdat") + 4 + 2 + 2  # behind the delimiter, and this unit's head and length
    bits = f"{int.from_bytes(data[at : at + 10], 'big'):080b}"
    wide = int(bits[10:14], 2) + 1
    bits = bits[:18] + f"{width - 1:0{wide}b}" + bits[18 + wide :]
    data[at : at + 10] = int(bits, 2).to_bytes(10, "big")
    return bytes(data)


REFUSED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"just some text\n",
    "gif": lambda: saved("gif"),
    "bmp": lambda: saved("bmp"),
    "tiff": lambda: saved("tiff"),
    "jpeg 2000": lambda: saved("jpeg2000"),
    "jpeg cmyk": lambda: saved("jpeg", photo().convert("CMYK")),
    "png transparent": lambda: saved("png", photo().convert("RGBA")),
    "png one colour transparent": lambda: saved("png", transparency=(0, 0, 0)),
    "png 16 bits": lambda: saved("png", Image.fromarray(np.zeros((8, 8), np.uint16))),
    "png giant": lambda: png(60_000, 60_000),
    "png without pixels": lambda: png(0, 8),
    "png of no data": lambda: png(8, 8),
    "webp transparent": lambda: saved("webp", photo().convert("RGBA").rotate(30)),
    "webp lossless transparent": lambda: saved(
        "webp", photo().convert("RGBA").rotate(30), lossless=True
    ),
    "webp animated": lambda: saved("webp", **ANIMATED),
    "webp giant": lambda: saved("webp", Image.new("RGB", (5000, 9)), lossless=True),
    "avif transparent": lambda: saved("avif", photo().convert("RGBA").rotate(30)),
    "avif animated": lambda: saved("avif", **ANIMATED),
    "avif turned": lambda: saved("avif", exif=turned()),
    "avif of two sizes": lambda: with_av1_size(121),
    "avif bomb": lambda: with_av1_size(128),
    "avif of no box": lambda: encode(photo(), AVIF).data[:32],
    "avif without its item": lambda: without_meta(encode(photo(), AVIF).data),
    "mpo's length": lambda: saved("jpeg")[:20],
    "jpeg of many scans": lambda: many_scans(MOST_SCANS + 1),
    "jpeg of many segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 6000 + saved("jpeg")[2:],
}


def without_meta(data: bytes) -> bytes:
    return data[:32] + data[32 + int.from_bytes(data[32:36], "big") :]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times."""
    data = saved("jpeg", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_bare_is_refused(name: str) -> None:
    data = REFUSED[name]()
    media = {"png": PNG, "webp": WEBP, "avif": AVIF, "jpeg": JPEG}.get(name.split()[0], JPEG)
    with pytest.raises(BadData) as caught:
        decode(Picture(data, media, (120, 80)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_an_apng_is_one_picture_or_none() -> None:
    data = saved("png", **ANIMATED)
    with pytest.raises(BadData, match="more than its picture"):
        decode(Picture(data, PNG, (120, 80)))
    assert decode(bare(data)).tobytes() == photo().tobytes()


def test_the_largest_pictures_take_less_than_256_mib_and_2_seconds() -> None:
    """4096 x 2048 is all that is allowed: the fuzz's own limits are held to."""
    flat = Image.new("RGB", (4096, 2048), (9, 90, 200))
    jpeg = saved("jpeg", flat, progressive=True, subsampling=0)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    files = [
        saved("webp", flat, lossless=True, method=0),
        saved("avif", flat, speed=10, subsampling="4:4:4"),
        saved("png", flat),
        jpeg[:-2] + last * (MOST_SCANS - 10) + b"\xff\xd9",
    ]
    cases = iter(files)
    kind = Kind("it", lambda rng: next(cases), lambda data, folder: decode(bare(data)))
    outcome = run(kind, 0, range(len(files)))
    assert outcome.faults == [] and outcome.classes["read"] == len(files)


def test_filling_up_to_a_marker_takes_no_time() -> None:
    """FF may be repeated before a marker: to look for its end anew at each took minutes."""
    began = time.process_time()
    for data in (
        b"\xff\xd8" + b"\xff" * 4_000_000,
        b"\xff\xd8\xff\xe0\0\2" + b"\xff\0" * 2_000_000,
    ):
        with pytest.raises(BadData, match="no end marker"):
            bare(data)
    assert time.process_time() - began < 2
    filled = saved("jpeg").replace(b"\xff\xda", b"\xff\xff\xff\xff\xda")
    assert bare(filled) == bare(saved("jpeg"))


# ---------------------------------------------------------------- the file itself


def exif_with_mark() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = MARK.decode()
    exif.get_ifd(0x8825)[0x1D] = MARK.decode()  # GPS
    return exif


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_with_everything(image: Image.Image, **options: Any) -> bytes:
    """Metadata in every place that a JPEG has: before, between and behind its tables and scans."""
    plain = saved("jpeg", image, quality=40, **options)
    extra = b"".join(
        segment(marker, head + MARK)
        for marker, head in [
            (0xE0, b"JFXX\0\x10"),
            (0xE1, b"Exif\0\0"),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
            (0xE2, b"ICC_PROFILE\0\1\1"),
            (0xE2, b"MPF\0"),
            (0xED, b"Photoshop 3.0\0"),
            (0xEE, b"not Adobe"),
            (0xEF, b""),
            (0xFE, b""),
        ]
    )
    thumbnail = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\1\7" + MARK)
    frame = plain.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    begin = plain.rindex(b"\xff\xda")
    return (
        plain[:2] + thumbnail + extra + plain[20:frame] + extra + plain[frame:begin] + extra
        + plain[begin:] + MARK + saved("jpeg", image.resize((16, 16))) + MARK
    )  # fmt: skip


def png_with_everything(image: Image.Image) -> bytes:
    words = PngInfo()
    words.add_text("Comment", MARK.decode())
    words.add_itxt("XML:com.adobe.xmp", MARK.decode())
    words.add(b"tIME", MARK[:7])
    words.add(b"gAMA", struct.pack(">I", 45455))
    words.add(b"prVt", MARK)
    data = saved("png", image, pnginfo=words, exif=exif_with_mark(), icc_profile=MARK * 10)
    return data + MARK


def webp_with_everything(image: Image.Image, **options: Any) -> bytes:
    data = saved("webp", image, exif=exif_with_mark(), xmp=MARK, icc_profile=MARK * 9, **options)
    own = b"abcd" + struct.pack("<I", len(MARK)) + MARK + bytes(len(MARK) % 2)
    size = struct.pack("<I", len(data) + len(own) - 8)
    return data[:4] + size + data[8:] + own + MARK


STRIPPED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: jpeg_with_everything(photo()),
    "jpeg progressive": lambda: jpeg_with_everything(photo(), progressive=True),
    "jpeg restarts": lambda: jpeg_with_everything(photo(), restart_marker_rows=1),
    "jpeg grey": lambda: jpeg_with_everything(photo().convert("L")),
    "png": lambda: png_with_everything(photo()),
    "png palette": lambda: png_with_everything(photo().convert("P")),
    "png one bit": lambda: png_with_everything(photo().convert("1")),
    "webp": lambda: webp_with_everything(photo()),
    "webp lossless": lambda: webp_with_everything(photo(), lossless=True),
}


@pytest.mark.parametrize("name", STRIPPED)
def test_metadata_never_goes_up_and_no_pixel_changes(tmp_path: Path, name: str) -> None:
    data = STRIPPED[name]()
    image = loaded(tmp_path, data)
    assert MARK in data
    picture = original(data, image, LATER)
    assert picture is not None and picture.size == image.size
    for width in range(4, len(MARK)):  # not even a part of it
        assert MARK[-width:] not in picture.data and MARK[:width] not in picture.data
    assert decode(picture).tobytes() == image.tobytes()
    assert loaded(tmp_path, picture.data).tobytes() == image.tobytes()
    assert original(picture.data, image, LATER) == picture
    with Image.open(io.BytesIO(picture.data)) as opened:
        assert not opened.getexif() and set(opened.info) <= {
            *("jfif", "jfif_version", "jfif_density", "jfif_unit", "dpi"),
            *("progressive", "progression", "loop", "background", "timestamp", "duration"),
        }


@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_avif_with_metadata_stays_here(tmp_path: Path, kind: str) -> None:
    """Its boxes are not rewritten: a file that has any is left to be coded again."""
    value = exif_with_mark() if kind == "exif" else MARK
    for data in (saved("avif", **{kind: value}), saved("avif", icc_profile=MARK * 9)):
        assert original(data, loaded(tmp_path, data), LATER) is None
    plain = saved("avif")
    assert original(plain, loaded(tmp_path, plain), LATER) == Picture(plain, AVIF, (120, 80))


@pytest.mark.parametrize("name", ["libavif\0", "secret place\0"])
def test_a_name_inside_an_avif_stays_here(tmp_path: Path, name: str) -> None:
    data = encode(photo(), AVIF).data
    assert data.count(b"Color\0") == 1
    for old, new in ((b"Color\0", b"Where\0"), (b"miaf", b"Home")):
        assert original(data.replace(old, new), photo(), LATER) is None
    free = data + struct.pack(">I4s", 8 + len(name), b"free") + name.encode()
    assert original(free, photo(), LATER) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_file_stays_here(tmp_path: Path, orientation: int) -> None:
    """Without its EXIF the picture would lie on its side in the cloud."""
    exif = exif_with_mark()
    exif[0x0112] = orientation
    for size in ((120, 80), (80, 80)):
        for form in ("jpeg", "png", "webp"):
            data = saved(form, photo(*size), exif=exif)
            found = original(data, loaded(tmp_path, data), LATER)
            assert (found is not None) == (orientation == 1)


def test_only_a_smaller_file(tmp_path: Path) -> None:
    data = jpeg_with_everything(photo())
    image = loaded(tmp_path, data)
    picture = original(data, image, LATER)
    assert picture is not None and len(picture.data) < len(data) - 500
    assert original(data, image, len(picture.data)) is None
    assert original(data, image, len(picture.data) + 1) == picture


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_understood_stays_here(name: str) -> None:
    assert original(REFUSED[name](), photo(), LATER) is None
