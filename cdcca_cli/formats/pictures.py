"""A picture in a shard: one still picture of 8-bit RGB or grey, in a file of nothing else.

    image/jpeg  baseline, extended or progressive, 1 or 3 components of 8 bits; at most 100 scans;
                segments APP0 (JFIF without thumbnail), APP14, DQT, DHT, DRI, SOF, SOS
    image/png   IHDR, PLTE, IDAT, IEND; at most 8 bits a sample, no transparency
    image/webp  one VP8 or VP8L chunk, no transparency
    image/avif  ftyp, meta, mdat; one item, av01, that is all of mdat; in it one AV1 sequence header
                of a still picture (reduced) with the size of the item, and one frame

At most 4,096 pixels a side, 2^23 in all, and 4 MiB: no decoder takes 256 MiB for that. `bare` makes
such a file of a larger family of files by leaving out metadata (EXIF, XMP, ICC, comments,
thumbnails, what is behind the end) and decodes nothing. `opened` has the pixels of any picture
file, and refuses one that was cut short, or whose end is zeros because a camera lost power, if the
format shows it: PNG by its checksums, JPEG by its end marker, WebP, GIF and AVIF because their
coded data never ends in zeros.
"""

import io
import re
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdcca_cli.errors import BadData

if TYPE_CHECKING:
    from PIL.Image import Image

MEDIA = ("image/avif", "image/webp", "image/jpeg", "image/png")
LONGEST_SIDE, MOST_PIXELS, MOST_BYTES = 4096, 1 << 23, 1 << 22
MOST_SCANS, _MOST_PARTS = 100, 5000
_HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.S)
_ZEROS = bytes(16)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # no stuffed byte, no restart
_EOI, _SOS, _APP0, _APP14 = 0xD9, 0xDA, 0xE0, 0xEE
_SOFS = (0xC0, 0xC1, 0xC2)
_TABLES = (0xC4, 0xDB, 0xDD)  # DHT, DQT, DRI
_LEFT_OUT = (*range(0xE0, 0xF0), 0xFE)  # APPn, COM
_BRANDS = (b"avif", b"mif1", b"miaf", b"MA1A", b"MA1B", b"\0\0\0\0")
_JFIF = b"\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"


@dataclass(frozen=True)
class Picture:
    """A picture file. media: its type, as "image/avif"; size: width and height in pixels."""

    data: bytes
    media: str
    size: tuple[int, int]


# ---------------------------------------------------------------- any picture file


@contextmanager
def opened(data: bytes, formats: Sequence[str], name: str) -> "Iterator[Image]":
    """The first picture of a file, by Pillow, loaded and whole.

    Args: formats: by Pillow's names. name: the beginning of a message.
    Raises: BadData, also for what goes wrong inside the `with`.
    """
    from PIL import Image, ImageFile

    Image.init()
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on
            known = [each for each in formats if each in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=known) as image:
                width, height = image.size
                if limit is not None and width * height > limit:
                    raise Image.DecompressionBombError
                image.load()
                if (check := _CHECKS.get(image.format or "")) is not None:
                    check(data)
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadData(
            f"{name}: refused, more than {limit:,} pixels: make the image smaller"
        ) from None
    except Image.UnidentifiedImageError:
        raise BadData(f"{name}: not an image ({looks_like(data[:64])})") from None
    except (BadData, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadData(f"{name}: damaged or truncated image ({words})") from None


def looks_like(head: bytes) -> str:
    """What a file with these first bytes is, in words, if it is not a picture."""
    if not head:
        return "the file is empty"
    if is_heic(head):
        return "it is HEIC, which cannot be read here: convert it to JPEG or PNG"
    shown = head[:16].decode("latin-1").encode("unicode_escape").decode()
    return f"it begins with '{shown}'"


def is_heic(head: bytes) -> bool:
    """Whether a file with these first bytes is a HEIC picture."""
    return _HEIC.match(head) is not None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk's kind, and the whole chunk.

    Raises: ValueError for a wrong checksum, or without the last chunk.
    """
    at = 8
    while True:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + size
        if end + 4 > len(data):
            raise ValueError("cut short")
        checksum = int.from_bytes(data[end : end + 4], "big")
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[at + 4 : end]) != checksum:
            raise ValueError("wrong checksum")
        yield kind, data[at : end + 4]
        if kind == b"IEND":
            return
        at = end + 4


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Each marker, its segment from the length on, and what lies before it: coded data of a scan.

    Raises: ValueError without an end marker.
    """
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, begin = found[1][0], found.end()
        gap, at = data[at : found.start()].rstrip(b"\xff"), begin  # FF may fill up to a marker
        if marker != _EOI:
            at += int.from_bytes(data[begin : begin + 2], "big")
        yield marker, data[begin:at], gap
        if marker == _EOI:
            return
    raise ValueError("no end marker")


def _coded(data: bytes) -> None:
    if data.endswith(_ZEROS):
        raise ValueError("it ends in zeros")


_CHECKS: dict[str, Callable[[bytes], object]] = {
    "PNG": lambda data: deque(_png_chunks(data), 0),
    "JPEG": lambda data: deque(_jpeg_segments(data), 0),
    "MPO": lambda data: deque(_jpeg_segments(data), 0),
    "WEBP": _coded,
    "GIF": _coded,
    "AVIF": _coded,
}


# ---------------------------------------------------------------- a picture in a shard


def bare(data: bytes) -> Picture:
    """The picture in a file without anything else; its pixels are as they were, not decoded.

    Raises: BadData if no such file can be made of it: another format, animated, transparent, too
        large, damaged, or not understood.
    """
    try:
        media, read = next(
            (media, read) for magic, media, read in _MEDIA if re.match(magic, data, re.S)
        )
    except StopIteration:
        raise BadData(f"not a JPEG, PNG, WebP or AVIF picture ({looks_like(data[:64])})") from None
    try:
        size, made = read(data)
        _require(min(size) >= 1, "it has no pixels")
        require_size(size)
        _require(len(made) <= MOST_BYTES, f"{len(made):,} bytes, expected at most {MOST_BYTES:,}")
    except (ValueError, struct.error, IndexError) as error:
        raise BadData(f"{media} that cannot be used: {error}") from None
    return Picture(made, media, size)


def require_size(size: tuple[int, int]) -> None:
    """ValueError for a picture of more pixels (width, height) than may be sent."""
    _require(
        max(size) <= LONGEST_SIDE and size[0] * size[1] <= MOST_PIXELS,
        f"{size[0]} x {size[1]} pixels, expected at most {LONGEST_SIDE} a side and "
        f"{MOST_PIXELS:,} in all",
    )


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise ValueError(words)


Bare = tuple[tuple[int, int], bytes]  # width and height; the file


def _bare_jpeg(data: bytes) -> Bare:
    kept, sizes, scans, last = [data[:2]], [], 0, 0
    for number, (marker, segment, gap) in enumerate(_jpeg_segments(data)):
        _require(number < _MOST_PARTS, f"more than {_MOST_PARTS:,} segments")
        _require(not gap or last == _SOS, "bytes between its segments")
        kept.append(gap)
        last = marker
        if marker == _EOI:
            break
        _require(len(segment) >= 2, "a segment without its length")
        scans += marker == _SOS
        if marker in _SOFS:
            bits, height, width, components = struct.unpack(">2xBHHB", segment[:8])
            _require(bits == 8 and components in (1, 3), "not 8-bit grey or colour")
            sizes.append((width, height))
        elif marker == _APP0 and segment[2:7] == b"JFIF\0":
            segment = _JFIF
        elif marker in _LEFT_OUT and not (marker == _APP14 and segment[:7] == b"\0\x0eAdobe"):
            continue
        else:
            _require(marker in (*_TABLES, _SOS, _APP14), f"a marker {marker:#x}")
        kept += [bytes((0xFF, marker)), segment]
    _require(len(sizes) == 1 and 1 <= scans <= MOST_SCANS, f"{len(sizes)} frames, {scans} scans")
    return sizes[0], b"".join([*kept, b"\xff\xd9"])


def _bare_png(data: bytes) -> Bare:
    kept: list[bytes] = []
    for number, (kind, chunk) in enumerate(_png_chunks(data)):
        _require(number < _MOST_PARTS, f"more than {_MOST_PARTS:,} chunks")
        _require(kind != b"tRNS", "transparency")
        if kind[:1].isupper():
            _require(kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"), f"a chunk {kind!r}")
            _require((kind == b"IHDR") == (not kept), "its header is not first")
            kept.append(chunk)
    width, height, bits, colour = struct.unpack(">8xIIBB3x4x", kept[0])
    _require(bits <= 8 and colour in (0, 2, 3), "not 8-bit grey or colour")
    return (width, height), b"".join([data[:8], *kept])


def _bare_webp(data: bytes) -> Bare:
    at, end, found = 12, 8 + int.from_bytes(data[4:8], "little"), []
    _require(end <= len(data), "cut short")
    for _ in range(_MOST_PARTS):
        kind, size = struct.unpack_from("<4sI", data, at)
        body, at = data[at + 8 : at + 8 + size], at + 8 + size + size % 2
        _require(len(body) == size and at <= end, "cut short")
        _require(kind not in (b"ALPH", b"ANIM", b"ANMF"), "transparent or animated")
        if kind in (b"VP8 ", b"VP8L"):
            found.append((kind, body))
        if at == end:
            break
    _require(at == end and len(found) == 1, f"{len(found)} pictures")
    kind, body = found[0]
    if kind == b"VP8 ":
        tag, start, width, height = struct.unpack("<B2x3sHH", body[:10])
        _require(tag & 1 == 0 and start == b"\x9d\x01\x2a", "not a key frame")
    else:
        mark, bits = struct.unpack("<BI", body[:5])
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        _require(mark == 0x2F and bits >> 28 == 0, "transparency")
    body += bytes(len(body) % 2)
    chunk = kind + len(found[0][1]).to_bytes(4, "little") + body
    return (width, height), b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Each box: its kind, where its content begins, and where it ends."""
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        _require(8 <= size <= end - at, "a box with a wrong size")
        yield kind, at + 8, at + size
        at += size


def _only(
    data: bytes, at: int, end: int, needed: Sequence[bytes], allowed: Sequence[bytes] = ()
) -> dict[bytes, tuple[int, int]]:
    """The boxes by kind. Raises: ValueError for another kind, two of one, or a missing one."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, begin, stop in _boxes(data, at, end):
        _require(kind in (*needed, *allowed) and kind not in found, f"a box {kind!r}")
        found[kind] = begin, stop
    for kind in needed:
        _require(kind in found, f"no box {kind!r}")
    return found


def _bare_avif(data: bytes) -> Bare:
    """Boxes: ISO/IEC 14496-12, 23008-12 and AV1-AVIF; exactly what libavif writes of a still."""
    top = _only(data, 0, len(data), (b"ftyp", b"meta", b"mdat"))
    begin, end = top[b"ftyp"]
    _require({data[at : at + 4] for at in range(begin, end, 4)} <= {*_BRANDS}, "another brand")
    begin, end = top[b"meta"]
    _require(data[begin : begin + 4] == bytes(4), "a newer meta box")
    kinds = (b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp")
    inner = {kind: data[slice(*at)] for kind, at in _only(data, begin + 4, end, kinds).items()}
    item = inner[b"pitm"][4:]
    coded = data[slice(*top[b"mdat"])]
    extent = struct.pack(">II", top[b"mdat"][0], len(coded))
    expected = {
        b"hdlr": [bytes(8) + b"pict" + bytes(12) + name for name in (b"\0", b"libavif\0")],
        b"pitm": [bytes(4) + item],
        b"iloc": [b"\0\0\0\0\x44\0\0\1" + item + b"\0\0\0\1" + extent],
        b"iinf": [
            b"\0\0\0\0\0\1" + struct.pack(">I", 20 + len(name)) + b"infe\2\0\0\0" + item
            + b"\0\0av01" + name for name in (b"\0", b"Color\0")
        ],
    }  # fmt: skip
    for kind, forms in expected.items():
        _require(inner[kind] in forms, f"a box {kind!r} with more than one still picture needs")
    about = inner[b"iprp"]
    parts = _only(about, 0, len(about), (b"ipco", b"ipma"))
    properties = _only(about, *parts[b"ipco"], (b"ispe", b"av1C"), (b"pixi", b"colr"))
    lengths = {kind: stop - start for kind, (start, stop) in properties.items()}
    _require(
        lengths.get(b"av1C") == 4 and lengths.get(b"pixi", 5) <= 8
        and lengths.get(b"colr", 11) == 11 and parts[b"ipma"][1] - parts[b"ipma"][0] <= 15,
        "properties with more than one still picture needs",
    )  # fmt: skip
    width, height = struct.unpack_from(">4xII", about, properties[b"ispe"][0])
    _require(_av1_size(coded) == (width, height), "its two headers differ in their size")
    return (width, height), data


def _av1_size(coded: bytes) -> tuple[int, int]:
    """Width and height in the sequence header of one still AV1 frame (section 5.5.1).

    Raises: ValueError if there is anything but a temporal delimiter, that header and the frame.
    """
    at = 2 * coded.startswith(b"\x12\0")  # the delimiter
    headers = []
    for unit in (b"\x0a", b"\x32"):  # sequence header and frame, each with its length
        _require(coded[at : at + 1] == unit, "not one AV1 frame")
        size = 0
        for shift in range(0, 28, 7):
            at += 1
            size |= (coded[at] & 0x7F) << shift
            if coded[at] < 0x80:
                break
        headers.append(coded[at + 1 : at + 1 + size][:12])
        at += 1 + size
    _require(at == len(coded), "not one AV1 frame")
    header = headers[0]
    bits = f"{int.from_bytes(header, 'big'):0{8 * len(header)}b}"
    _require(bits[3:5] == "11" and len(bits) >= 50, "AV1 that is not of one still picture")
    wide, high = int(bits[10:14], 2) + 1, int(bits[14:18], 2) + 1
    middle = 18 + wide
    return int(bits[18:middle], 2) + 1, int(bits[middle : middle + high], 2) + 1


_MEDIA: list[tuple[bytes, str, Callable[[bytes], Bare]]] = [
    (rb"\xff\xd8\xff", "image/jpeg", _bare_jpeg),
    (rb"\x89PNG\r\n\x1a\n", "image/png", _bare_png),
    (rb"RIFF....WEBP", "image/webp", _bare_webp),
    (rb"....ftypavif", "image/avif", _bare_avif),
]
