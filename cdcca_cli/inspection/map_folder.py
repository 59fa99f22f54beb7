"""Maps of the frames of a shards file: a folder of pictures with a page to open, or a text.

Each frame is a JPEG: its map (`maps`), or, of the payload `frame`, the original beside the picture
that the cloud sees. Names of frames are only ever text on the page; files have names of their own.

The files are written into a hidden folder beside the one that is named, which takes its place when
all are there; an error or a signal leaves everything as it was. (Only a process that is killed
outright leaves the hidden folder.) Earlier maps are replaced: a page that `write` has made, and the
pictures that it lists. A folder with any other file is refused.
"""

import html
import io
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from cdcca_cli import files, streams
from cdcca_cli.datasets import pictures, video
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, UsageError
from cdcca_cli.export.folder import exchange
from cdcca_cli.formats.kind import sniff
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.inspection import maps
from cdcca_cli.payloads.pictures import decode
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import counted, file_stem

if TYPE_CHECKING:
    from PIL.Image import Image

INDEX = "index.html"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_BLANK = 240
_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="generator" content="cdcca inspect">
"""
"""By which `write` knows a page of its own."""
_LISTED = re.compile(rb'^<figure><img src="(\d{4,}-[A-Za-z0-9._-]+\.jpg)"', re.MULTILINE)
_PAGE = """<title>Maps</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: auto; padding: 1rem }}
figure {{ margin: 2rem 0 }} img {{ max-width: 100%; height: auto }}
figcaption {{ overflow-wrap: anywhere; white-space: pre-line }}
</style>
<h1>{title}</h1>
<p>{legend}</p>
{figures}
</html>
"""
_LEGEND = (
    "Kept tokens are outlined, dropped ones are dark, what the model never saw is grey. Where "
    "scores were sent, colours go from dark (the frame's lowest score) to bright yellow (its "
    "highest). A model that sees a picture in tiles and as a whole has a map of each. Squares "
    "below a picture are tokens without a place in it."
)
_FIGURE = (
    '<figure><img src="{file}" alt="{alt}" loading="lazy"><figcaption>{text}</figcaption></figure>'
)


def shards(source: BinaryIO, name: str, skipped: Skipped) -> Iterator[Shard]:
    """The shards of a stream, without bad ones. Raises: UsageError for another kind; BadData."""
    kind, stream = sniff(source, name)
    if kind != "shards":
        raise UsageError(f"{name}: maps are of token shards, found {kind}")
    yield from read_shards(stream, where=name, refused=partial(skipped.add, "frame"))


@dataclass(frozen=True)
class Wanted:
    """Which frames of a stream are shown: at most `number`, and those of `names`, if any."""

    number: int | None = None
    names: Sequence[str] = ()

    def of(self, shards: Iterable[Shard], skipped: Skipped) -> Iterator[Shard]:
        """Args: skipped: gets the names that no frame has."""
        missing, count = set(self.names), 0
        for shard in shards:
            missing.discard(shard.frame)
            if self.names and shard.frame not in self.names:
                continue
            if self.number is not None and count >= self.number:
                break
            count += 1
            yield shard
        else:
            for name in sorted(missing):
                skipped.add("frame", MissingInput(f"{name[:80]}: no frame of the file"))


@dataclass(frozen=True)
class Originals:
    """The device's own pictures, by the names in the shards. folder: None if there are none."""

    folder: Path | None
    _sizes: dict[str, int] = field(default_factory=dict)

    def load(self, shard: Shard) -> "tuple[Image, int | None] | None":
        """A frame's pixels, and the bytes of its file unless it is of a video. CdccaError."""
        if self.folder is None:
            return None
        path = self._path(shard.image)
        position = re.fullmatch(re.escape(shard.image) + r"#(\d{1,9})", shard.frame)
        if position is not None:
            return video.load(path, int(position[1])), None
        image = pictures.load(path)
        return image, os.path.getsize(path)

    def _path(self, name: str) -> Path:
        """A file inside the folder, whatever a shard calls it. Raises: BadData."""
        assert self.folder is not None
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
            raise BadData(f"frame file {name[:80]!r}: not a name inside a folder of images")
        return self.folder / pure


# ---------------------------------------------------------------- a folder


def write(
    shards: Iterable[Shard], folder: Path, originals: Originals, skipped: Skipped, title: str
) -> None:
    """A picture of each frame and index.html. The folder is new or empty, or has earlier maps.

    Raises: CannotWrite; BadData if frames were left out and none was drawn; what `shards` raises.
    After an error the folder is as it was before.
    """
    with _replacing(folder) as fresh:
        figures = list(_pictures(shards, fresh, originals, skipped))
        skipped.refuse_if_all()
        page = _HEAD + _PAGE.format(
            title=html.escape(title), legend=html.escape(_LEGEND), figures="\n".join(figures)
        )
        _write(fresh / INDEX, page.encode())


def _pictures(
    shards: Iterable[Shard], folder: Path, originals: Originals, skipped: Skipped
) -> Iterator[str]:
    """Write each frame's picture; gives what shows it on the page."""
    for number, shard in enumerate(shards, 1):
        name = f"{number:04d}-{file_stem(_SUFFIX.sub('', shard.frame))}.jpg"
        try:
            image, lines = _drawn(shard, originals)
        except (BadData, MissingInput) as error:
            skipped.add("frame", type(error)(f"{shard.frame[:80]}: {error}"))
            continue
        skipped.num_sound += 1
        out = io.BytesIO()
        image.save(out, "JPEG", quality=88, subsampling=0, optimize=True)
        _write(folder / name, out.getvalue())
        words = html.escape("\n".join(lines))
        alt = html.escape(f"Map of {shard.frame[:80]}: {_kept(shard)}")
        yield _FIGURE.format(file=name, alt=alt, text=words)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new hidden folder beside this one, which takes its place at the end, or is removed.

    Raises: CannotWrite if the folder has other files than earlier maps, or cannot be replaced.
    """
    with _naming(folder):
        target = Path(os.path.realpath(folder))
        _earlier(folder, target)
    files.make_folder(target.parent)
    fresh = target.parent / f".cdcca-maps.{os.urandom(6).hex()}"
    try:
        with _naming(folder):
            fresh.mkdir()
        yield fresh
        with _naming(folder):
            rest = _take_place(folder, fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    for path in rest:
        _remove(path)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turn an OSError into a CannotWrite that names the folder."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CannotWrite(files.reason(folder, error)) from None


def _take_place(folder: Path, fresh: Path, target: Path) -> list[Path]:
    """Give a folder the name of another, which has earlier maps, is empty, or is not there.

    Returns: what is left to remove. Raises: OSError, CannotWrite.
    """
    earlier = _earlier(folder, target)
    if target.exists():
        fresh.chmod(stat.S_IMODE(target.stat().st_mode))
    if earlier and exchange(fresh, target):
        return [*(fresh / name for name in earlier), fresh]
    for name in earlier:
        os.unlink(target / name)
    os.rename(fresh, target)  # an empty folder may be there
    return []


def _earlier(folder: Path, target: Path) -> list[str]:
    """The names of the files of earlier maps in `target`. OSError; CannotWrite if it has others."""
    try:
        names = sorted(os.listdir(target))
    except FileNotFoundError:
        return []
    if os.path.ismount(target) or target.samefile(os.curdir):
        raise CannotWrite(f"{folder}: is the working folder or a mount point: name a folder in it")
    listed = _listed(target / INDEX)
    for name in names:
        if name not in listed or not stat.S_ISREG((target / name).lstat().st_mode):
            raise CannotWrite(
                f"{folder}: has other files than earlier maps, such as {name}: "
                "name a new or an empty folder"
            )
    return names


def _listed(page: Path) -> set[str]:
    """The files of maps whose page this is: none if it is another page, or missing. OSError."""
    try:
        if not stat.S_ISREG(page.lstat().st_mode):
            return set()
        with page.open("rb") as source:
            head = _HEAD.encode()
            text = source.read() if source.read(len(head)) == head else None
    except FileNotFoundError:
        return set()
    return set() if text is None else {INDEX, *map(bytes.decode, _LISTED.findall(text))}


def _remove(path: Path) -> None:
    """Remove a file or an empty folder, as far as that is possible."""
    with suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()


def _write(path: Path, data: bytes) -> None:
    with files.output(path) as out:
        out.write(data)


def _drawn(shard: Shard, originals: Originals) -> "tuple[Image, list[str]]":
    """A frame's picture, and the lines below it. CdccaError."""
    from PIL import Image

    found = originals.load(shard)
    if shard.picture is None:
        side = maps.BLANK_SIDE
        image = Image.new("RGB", (side, side), (_BLANK,) * 3) if found is None else found[0]
        return maps.heat_map(shard, image), _words(shard)
    sent, words = decode(shard.picture), _sent(shard.picture)
    if found is None:
        return maps.side_by_side([sent], [words]), _words(shard)
    image, num_bytes = found
    original = f"original: {_size(image)}"
    original += "" if num_bytes is None else f", {num_bytes:,} bytes"
    return maps.side_by_side([image, sent], [original, words]), _words(shard, original)


# ---------------------------------------------------------------- a text


def print_texts(shards: Iterable[Shard], skipped: Skipped, width: int = 40) -> None:
    """Each frame in words, with its map in characters if tokens were sent."""
    for shard in shards:
        skipped.num_sound += 1
        lines = map(streams.one_line, _words(shard))
        drawn = "" if shard.picture is not None else f"{maps.text_map(shard, width)}\n"
        streams.emit("\n".join([*lines, drawn]))


def _words(shard: Shard, original: str = "") -> list[str]:
    """What is known of a frame, in lines that may hold anything. Args: original: of its picture."""
    lines = [shard.frame]
    if shard.picture is not None:
        lines += [line for line in (original, _sent(shard.picture)) if line]
    else:
        lines.append(_kept(shard))
        total, kept = maps.unplaced(shard)
        if not maps.has_map(shard):
            lines.append("the file does not say where the tokens lie in the picture")
        elif total:
            lines.append(f"{counted(total, 'token')} without a place in it, {kept:,} kept")
        if shard.scores is not None:
            low, high = maps.score_range(shard)
            lines.append(f"scores from {low:.3g} to {high:.3g}")
    for question in shard.questions:
        entropy = "" if question.entropy is None else f" ({question.entropy:.2f} nats)"
        lines.append(f"{question.prompt or question.task}{entropy}")
    return lines


def _sent(picture: Picture) -> str:
    media = picture.media.removeprefix("image/").upper()
    return f"sent: {media} {_size(picture)}, {len(picture.data):,} bytes"


def _kept(shard: Shard) -> str:
    return f"{len(shard.positions):,} of {shard.num_tokens:,} tokens kept"


def _size(image: "Image | Picture") -> str:
    width, height = image.size
    return f"{width} x {height}"
