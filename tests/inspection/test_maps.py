"""Maps: what is drawn where, by hand; safe names; one bad frame does not stop the rest."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cdcca_cli.errors import Terminated
from cdcca_cli.formats.shard import Coding, Layout, Question, Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.inspection import map_folder, maps
from cdcca_cli.main import main
from cdcca_cli.payloads import pictures
from tests.golden import make

HALVES = (0, 0, 1, 1, 0, 0, 500, 1000, 1, 1, 500, 0, 500, 1000)
"""Two tiles of one token side by side."""


def shard(
    layout: Layout,
    kept: list[int],
    num_tokens: int,
    scores: list[float] | None = None,
    **other: Any,
) -> Shard:
    made = Shard(
        frame="a.png",
        image="a.png",
        domain=None,
        tokens=np.ones((len(kept), 2), np.float32),
        positions=np.array(kept, np.int32),
        num_tokens=num_tokens,
        tower=make.TOWER,
        questions=[Question("q", "what is it?", "vqa", None, 1.25)],
        scores=None if scores is None else np.array(scores, np.float32),
        coding=Coding("float32"),
        layout=layout,
    )
    return replace(made, **other)


def sent(picture: Image.Image, **other: Any) -> Shard:
    made = shard(Layout((2, 2)), [0, 1, 2, 3], 4, coding=Coding("frame"), **other)
    coded = pictures.encode(picture, "image/jpeg", 90)
    return replace(made, tokens=np.zeros((0, 0), np.float32), picture=coded)


def stream(path: Path, *shards: Shard) -> Path:
    with path.open("wb") as out, writer(out) as write:
        for one in shards:
            write(one)
    return path


def photo(folder: Path, name: str, size: tuple[int, int] = (64, 64)) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)


def levels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(int)


# ---------------------------------------------------------------- text


def test_a_grid_as_text() -> None:
    """A class token, then 2 x 3; scores 1 to 4 in four steps of (4 - 1) / 4 = 0.75."""
    kept = shard(Layout((2, 3)), [0, 1, 2, 5, 6], 7, [9, 1, 2, 4, 3])
    assert maps.text_map(kept).splitlines() == [
        "┌──────┐",
        "│░░▒▒··│",
        "│··██▓▓│",
        "└──────┘",
        "not in the picture:",
        "█",
    ]
    assert maps.score_range(kept) == (1, 4)
    assert maps.unplaced(kept) == (1, 1)


def test_without_scores_kept_tokens_are_full_blocks() -> None:
    lines = maps.text_map(shard(Layout((2, 2)), [1, 2], 4)).splitlines()
    assert lines == ["┌────┐", "│··██│", "│██··│", "└────┘"]


def test_tiles_and_the_whole_are_two_maps() -> None:
    """Two tiles of 2 x 2 and a thumbnail of 1 x 2; the newlines between rows are not shown."""
    boxes = (0, 0, 2, 2, 0, 0, 500, 1000, 2, 2, 500, 0, 500, 1000, 1, 2, 0, 0, 1000, 1000)
    layout = Layout((), "{12}", (4, 9), boxes)
    #    tile 0: 0 1 2 3, newline 4; tile 1: 5 6 7 8, newline 9; thumbnail: 10 11
    assert maps.text_map(shard(layout, [0, 3, 4, 6, 9, 11], 12)).splitlines() == [
        "┌────────┐",
        "│██····██│",
        "│··██····│",
        "└────────┘",
        "┌────┐",
        "│··██│",
        "└────┘",
    ]


def test_a_crop_leaves_the_rest_empty() -> None:
    """2 x 2 tokens over the middle half of the width: two of four columns."""
    layout = Layout((2, 2), "", (), (0, 0, 2, 2, 250, 0, 500, 1000))
    assert maps.text_map(shard(layout, [0], 4)).splitlines()[1:3] == ["│  ██··  │", "│  ····  │"]


def test_a_wide_map_is_scaled_down() -> None:
    every = list(range(30 * 100))
    lines = maps.text_map(shard(Layout((30, 100)), every, 3000), 40).splitlines()
    assert {len(line) for line in lines} == {42} and len(lines) == 12 + 2


def test_nobody_knows_where_they_lie() -> None:
    """An older shard of tiles: all tokens in order, in lines of the width."""
    old = shard(Layout(), [0, 1, 9], 12)
    assert not maps.has_map(old)
    title, *lines = maps.text_map(old, 8).splitlines()
    assert title == "place unknown, in order:" and lines == ["██······", "·█··"]


# ---------------------------------------------------------------- pictures


def test_a_picture_by_its_pixels() -> None:
    """2 x 2 tokens over 64 pixels, drawn over 512: one kept, its outline white and then black."""
    picture = Image.new("RGB", (64, 64), (200, 100, 50))
    made = levels(maps.heat_map(shard(Layout((2, 2)), [3], 4), picture))
    assert made.shape == (512, 512, 3)
    assert made[400, 400].tolist() == [200, 100, 50]
    assert (made[100, 100] < [100, 60, 50]).all()  # dropped: dark
    assert (made[256:258, 300] == 255).all() and (made[255, 300] == 0).all()
    assert (made[300, 256:258] == 255).all() and (made[300, 255] == 0).all()


def test_scores_are_brighter_the_higher_they_are() -> None:
    picture = Image.new("RGB", (64, 64), "grey")
    kept = shard(Layout((1, 4)), [0, 1, 2, 3], 4, [1, 3, 2, 7])
    row = levels(maps.heat_map(kept, picture)).mean(2)[250, 64::128]
    assert row.argsort().tolist() == [0, 2, 1, 3]


def test_a_crop_is_grey_around() -> None:
    """What the tower never saw has no colour."""
    picture = Image.new("RGB", (128, 64), (250, 0, 0))
    layout = Layout((1, 1), "", (), (0, 0, 1, 1, 250, 0, 500, 1000))
    made = levels(maps.heat_map(shard(layout, [0], 1), picture))
    assert made.shape == (256, 512, 3)
    assert made[128, 256].tolist() == [250, 0, 0]
    for x in (20, 490):
        assert len(set(made[128, x].tolist())) == 1


def test_padding_that_tokens_were_spent_on_is_shown() -> None:
    """128 x 64 padded to a square: 64 rows of 512 above and below are 128."""
    picture = Image.new("RGB", (128, 64), (0, 0, 250))
    layout = Layout((2, 1), "", (), (0, 500, 2, 1, 0, 0, 1000, 2000))
    made = levels(maps.heat_map(shard(layout, [0, 1], 2), picture))
    assert made.shape == (512, 512, 3)
    assert made[256, 256].tolist() == [0, 0, 250]
    for y in (60, 450):
        assert len(set(made[y, 256].tolist())) == 1


def test_tiles_and_the_whole_are_two_pictures() -> None:
    """One above the other for a wide picture, and side by side for a tall one."""
    layout = Layout((), "", (), (*HALVES, 1, 1, 0, 0, 1000, 1000))
    kept = shard(layout, [0, 2], 3)
    wide = levels(maps.heat_map(kept, Image.new("RGB", (800, 400), (200, 100, 50))))
    assert wide.shape == (400 + 8 + 400, 800, 3)
    assert wide[200, 200].tolist() == wide[600, 600].tolist() == [200, 100, 50]
    assert wide[200, 600].max() < 100  # the second tile was dropped
    tall = levels(maps.heat_map(kept, Image.new("RGB", (400, 800), (200, 100, 50))))
    assert tall.shape == (800, 400 + 8 + 400, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (5000, 40), (3000, 2000)])
@pytest.mark.parametrize(
    "layout",
    [
        Layout((3, 3)),
        Layout(),
        Layout(boxes=(0, 0, 3, 3, 0, 0, 1, 1)),
        Layout(boxes=(2**31, 2**31, 3, 3, 0, 0, 1000, 1000)),
        Layout(boxes=(0, 0, 1, 1, 2**31, 2**31, 2**31, 2**31)),
        Layout(boxes=(0, 0, 3, 3, 0, 0, 0, 0)),
    ],
    ids=str,
)
def test_any_picture_and_any_numbers_are_drawn(layout: Layout, size: tuple[int, int]) -> None:
    kept = shard(layout, [0, 5], 10, [1, 1])
    made = maps.heat_map(kept, Image.new("RGB", size))
    assert made.mode == "RGB" and max(made.size) <= 1024
    assert len(maps.text_map(kept)) < 10_000


# ---------------------------------------------------------------- the command


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def inspect(*words: str | Path, code: int = 0) -> None:
    assert main(["inspect", *map(str, words)]) == code


def test_a_folder_of_maps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Hostile names are text on the page, files have safe names, and all are inside the folder."""
    names = [
        "../../etc/x",
        "/etc/passwd",
        "<script>alert(1)</script>.png",
        "a" * 3000,
        "é\n\x1b[31m",
        "…",
    ]
    grid = Layout((2, 2))
    made = [shard(grid, [1], 4, frame=name, image="a.png") for name in (*names, names[0])]
    photo(tmp_path / "images", "a.png")
    path = stream(tmp_path / "up.tokens", *made)
    inspect(path, "--images", tmp_path / "images", "-o", tmp_path / "out" / "maps")
    assert "7 maps in" in capfd.readouterr().err
    found = sorted(os.listdir(tmp_path / "out" / "maps"))
    assert len(found) == 8 and all(name.isascii() and len(name) < 80 for name in found)
    assert os.listdir(tmp_path / "out") == ["maps"]
    page = Page((tmp_path / "out" / "maps" / "index.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and tags.count("img") == 7
    assert "<script>alert(1)</script>.png" in "".join(page.words)
    for tag, attributes in page.tags:
        if tag == "img":
            source = attributes["src"]
            assert source in found and attributes["alt"]
            assert Image.open(tmp_path / "out" / "maps" / str(source)).size == (512, 512)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "a/../../secret.png", "a\0b"])
def test_no_file_outside_the_folder_is_read(
    image: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path, "secret.png")
    photo(tmp_path / "images", "a.png")
    grid = Layout((2, 2))
    path = stream(
        tmp_path / "up", shard(grid, [1], 4, frame="bad", image=image), shard(grid, [1], 4)
    )
    inspect(path, "--images", tmp_path / "images", "-o", tmp_path / "maps")
    err = capfd.readouterr().err
    assert "left out: bad: " in err and "1 map in" in err and "1 frame left out" in err
    assert len(os.listdir(tmp_path / "maps")) == 2


def test_one_bad_frame_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One that is missing, and one that is no picture; if all are bad it is an error."""
    images = tmp_path / "images"
    photo(images, "a.png")
    (images / "b.png").write_text("no picture")
    grid = Layout((2, 2))
    bad = [shard(grid, [1], 4, frame=name, image=name) for name in ("b.png", "c.png")]
    path = stream(tmp_path / "up", bad[0], shard(grid, [1], 4), bad[1])
    inspect(path, "--images", images, "-o", tmp_path / "maps")
    err = capfd.readouterr().err
    assert "b.png" in err and "c.png" in err and "2 frames left out" in err
    path = stream(tmp_path / "up", *bad)
    inspect(path, "--images", images, "-o", tmp_path / "maps", code=65)
    assert "nothing is left" in capfd.readouterr().err


def test_a_folder_with_other_files_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Earlier maps are replaced, as many as there were; anything else is not touched."""
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    twice = stream(tmp_path / "twice", *[shard(Layout((2, 2)), [1], 4)] * 2)
    out = tmp_path / "maps"
    inspect(twice, "-o", out)
    inspect(path, "-o", out)
    assert sorted(os.listdir(out)) == ["0001-a.jpg", "index.html"]
    (out / "mine.txt").write_text("mine")
    inspect(path, "-o", out, code=73)
    assert "mine.txt" in capfd.readouterr().err
    assert sorted(os.listdir(out)) == ["0001-a.jpg", "index.html", "mine.txt"]


OWN = [["2024-05-01.jpg"], ["index.html"], [".hidden"], ["index.html", "2024-05-01.jpg"]]
OWN += [["0001-a.jpg"], ["0001-a.jpg", "index.html"]]


@pytest.mark.parametrize("names", OWN, ids=str)
def test_files_of_the_user_are_never_removed(
    names: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their names say nothing: only what a page of earlier maps lists is replaced."""
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    own = tmp_path / "photos"
    own.mkdir()
    for name in names:
        (own / name).write_text('<figure><img src="0001-a.jpg" alt="mine">')
    inspect(path, "-o", own, code=73)
    assert "has other files" in capfd.readouterr().err
    assert {(own / name).read_text()[:7] for name in names} == {"<figure"}
    assert sorted(os.listdir(own)) == sorted(names)
    assert sorted(os.listdir(tmp_path)) == ["photos", "up"]


@pytest.mark.parametrize("name", ["2024-05-01.jpg", "0002-b.jpg", ".hidden", "folder"])
def test_what_is_added_to_maps_stays(name: str, tmp_path: Path) -> None:
    """A photograph, a name as maps have it that the page does not list, and a folder."""
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    out = tmp_path / "maps"
    inspect(path, "-o", out)
    if name == "folder":
        (out / name).mkdir()
    else:
        (out / name).write_text("mine")
    inspect(path, "-o", out, code=73)
    assert sorted(os.listdir(out)) == sorted(["0001-a.jpg", "index.html", name])


def test_a_link_in_the_place_of_a_map_stays(tmp_path: Path) -> None:
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    out = tmp_path / "maps"
    inspect(path, "-o", out)
    os.replace(out / "0001-a.jpg", tmp_path / "mine.jpg")
    (out / "0001-a.jpg").symlink_to(tmp_path / "mine.jpg")
    inspect(path, "-o", out, code=73)
    assert (out / "0001-a.jpg").is_symlink()


def contents(folder: Path) -> dict[str, bytes]:
    """Of all in it, hidden or not."""
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.mark.parametrize("has_earlier", [True, False])
def test_a_file_that_is_cut_short_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], has_earlier: bool
) -> None:
    out = tmp_path / "maps"
    one = shard(Layout((2, 2)), [1], 4)
    if has_earlier:
        inspect(stream(tmp_path / "up", one), "-o", out)
        before = contents(out)
    names = set(os.listdir(tmp_path)) | {"cut"}
    whole = stream(tmp_path / "cut", *[replace(one, frame=f"{n}.png") for n in range(6)])
    whole.write_bytes(whole.read_bytes()[:-40])
    inspect(whole, "-o", out, code=65)
    assert set(os.listdir(tmp_path)) == names
    assert not has_earlier or contents(out) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated(15), OSError(28, "disk full")])
def test_a_stopped_run_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any
) -> None:
    """At the second of three frames; nothing half-made stays, hidden or not."""
    path = stream(tmp_path / "up", *[shard(Layout((2, 2)), [1], 4)] * 3)
    inspect(path, "-o", tmp_path / "maps")
    before, drawn = contents(tmp_path / "maps"), maps.heat_map
    calls: list[int] = []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise stop
        return drawn(*args)

    monkeypatch.setattr(maps, "heat_map", interrupted)
    assert main(["inspect", str(path), "-o", str(tmp_path / "maps")]) in (130, 143, 73)
    assert contents(tmp_path / "maps") == before
    assert sorted(os.listdir(tmp_path)) == ["maps", "up"]


def test_all_bad_frames_leave_earlier_maps(tmp_path: Path) -> None:
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    inspect(path, "-o", tmp_path / "maps")
    before = contents(tmp_path / "maps")
    inspect(path, "-o", tmp_path / "maps", "--images", tmp_path / "none", code=65)
    inspect(path, "-o", tmp_path / "maps", "--frame", "none", code=65)
    assert contents(tmp_path / "maps") == before


@pytest.mark.parametrize("can_exchange", [True, False])
def test_maps_take_the_place_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    """With the folder's permissions, through a link; also where names cannot be exchanged."""
    if not can_exchange:
        monkeypatch.setattr(map_folder, "exchange", lambda one, other: False)
    out, link = tmp_path / "deep" / "maps", tmp_path / "link"
    one = shard(Layout((2, 2)), [1], 4)
    inspect(stream(tmp_path / "up", one, one), "-o", out)
    out.chmod(0o750)
    link.symlink_to(out)
    inspect(stream(tmp_path / "up", replace(one, frame="b.png")), "-o", link)
    assert sorted(os.listdir(out)) == ["0001-b.jpg", "index.html"]
    assert out.stat().st_mode & 0o777 == 0o750 and link.is_symlink()
    assert os.listdir(tmp_path / "deep") == ["maps"]


def test_a_folder_that_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inspect(path, "-o", ".", code=73)
    assert "working folder" in capfd.readouterr().err
    inspect(path, "-o", path, code=73)
    assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--text", "-o", "maps"], "--text"),
        (["--images", "."], "--images"),
        (["--text", "--images", "."], "--images"),
        (["--json", "--text"], "--json"),
        (["--json", "-o", "maps"], "--json"),
        (["--json", "--first", "1"], "--json"),
        (["--json", "--frame", "a.png"], "--json"),
    ],
)
def test_options_that_clash_are_refused(
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = stream(tmp_path / "up", shard(Layout((2, 2)), [1], 4))
    monkeypatch.chdir(tmp_path)
    inspect(path, *words, code=2)
    out, err = capfd.readouterr()
    assert not out and err.startswith(f"cdcca inspect: {named}: ")
    assert os.listdir(tmp_path) == ["up"]


def test_the_line_of_usage(capfd: pytest.CaptureFixture[str]) -> None:
    inspect("--help")
    assert capfd.readouterr().out.splitlines()[0] == "Usage: cdcca inspect [OPTIONS] [files]..."


def test_pictures_that_were_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Beside the original, with the bytes of both; alone without originals."""
    photo(tmp_path / "images", "a.png", (640, 480))
    picture = sent(Image.new("RGB", (96, 96), "red"))
    path = stream(tmp_path / "up", picture)
    assert picture.picture is not None
    inspect(path, "--images", tmp_path / "images", "-o", tmp_path / "maps")
    words = "".join(Page((tmp_path / "maps" / "index.html").read_text()).words)
    size = (tmp_path / "images" / "a.png").stat().st_size
    assert f"original: 640 x 480, {size:,} bytes" in words
    assert f"sent: JPEG 96 x 96, {len(picture.picture.data):,} bytes" in words
    both = Image.open(tmp_path / "maps" / "0001-a.jpg")
    assert both.size[0] <= 1024 and levels(both)[100, 900, 0] > 240 > levels(both)[100, 100, 0]
    inspect(path, "-o", tmp_path / "alone")
    assert Image.open(tmp_path / "alone" / "0001-a.jpg").width < both.width
    capfd.readouterr()
    inspect(path, "--text")
    out = capfd.readouterr().out
    assert "sent: JPEG 96 x 96" in out and "what is it? (1.25 nats)" in out


def test_which_frames(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = [shard(Layout((2, 2)), [1], 4, frame=f"{n}.png") for n in range(5)]
    path = stream(tmp_path / "up", *made)

    def shown(*words: str, code: int = 0) -> list[str]:
        capfd.readouterr()
        inspect(path, "--text", *words, code=code)
        return [line for line in capfd.readouterr().out.splitlines() if line.endswith(".png")]

    assert shown() == [f"{n}.png" for n in range(5)]
    assert shown("--first", "2") == ["0.png", "1.png"]
    assert shown("--frame", "3.png", "--frame", "1.png") == ["1.png", "3.png"]
    assert shown("--frame", "3.png", "--frame", "7.png") == ["3.png"]
    assert shown("--frame", "7.png", code=65) == []
    with (path).open("rb") as source:
        done = subprocess.run(
            [sys.executable, "-m", "cdcca_cli", "inspect", "--text", "--first", "1"],
            stdin=source,
            capture_output=True,
            check=True,
        )
    assert b"0.png" in done.stdout


def test_only_shards_have_maps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_text(json.dumps({"id": "a", "image": "a.png"}) + "\n")
    inspect(tmp_path / "p", "--text", code=2)
    assert "token shards" in capfd.readouterr().err


def test_a_damaged_record_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two parts; one byte of the first one's tokens is another."""
    first = stream(tmp_path / "a", shard(Layout((2, 2)), [1], 4, frame="a.png")).read_bytes()
    second = stream(tmp_path / "b", shard(Layout((2, 2)), [1], 4, frame="b.png")).read_bytes()
    at = first.rindex(np.ones(2, np.float32).tobytes())
    damaged = first[:at] + b"\1" + first[at + 1 :]
    (tmp_path / "both").write_bytes(damaged + second)
    inspect(tmp_path / "both", "--text")
    out, err = capfd.readouterr()
    assert "a.png" not in out and "b.png" in out and "left out" in err


def test_control_characters_never_reach_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = Question("q", "what\x1b[2J?\x07", "vqa")
    made = shard(Layout((2, 2)), [1], 4, frame="a\x1b]0;x\x07", questions=[hostile])
    inspect(stream(tmp_path / "up", made), "--text")
    out = capfd.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
