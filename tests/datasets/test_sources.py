"""read_frames finds the reader; bare folders and images; what is none of these is refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cdcca_cli.datasets import LabelledQuestion, load_image, read_frames, read_references
from cdcca_cli.errors import BadData, MissingInput, SettingError, Unavailable, UsageError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "png")


def test_a_folder_is_all_its_images_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.jpeg", ".hidden.png", ".git/d.png", "notes.txt"):
        picture(tmp_path / name)
    frames = read_frames(tmp_path)
    for _ in range(2):
        assert [frame.id for frame in frames] == ["a.png", "b.JPG", "sub/c.jpeg"]
    assert len(frames) == 3
    assert [load_image(frame).size for frame in frames] == [(4, 4)] * 3
    assert next(iter(frames)).questions == [LabelledQuestion("a.png", None, "caption")]


def test_prompt_and_task_of_bare_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (frame,) = read_frames(tmp_path / "a.png", prompt="What is it?")
    assert frame.questions == [LabelledQuestion("a.png", "What is it?", "vqa")]
    (frame,) = read_frames(tmp_path, prompt="a photo of", task="caption")
    assert frame.questions == [LabelledQuestion("a.png", "a photo of", "caption")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "vqa"}, "`prompt`"),
        ({"task": "ocr"}, "`task`"),
        ({"prompt": "  "}, "`prompt`"),
        ({"images": "."}, "`images`"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, str], message: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match=message):
        read_frames(tmp_path, **options)


def test_empty_folder_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no images"):
        read_frames(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadData, match="no images"):
        read_frames(tmp_path)
    for missing in (tmp_path / "nothing", Path("a\0b")):
        with pytest.raises(MissingInput):
            read_frames(missing)


@pytest.mark.parametrize("content", [b"", b"some text", b"\x00" * 100, b"   \n\n", b'"text"', b"7"])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(BadData, match="source"):
        read_frames(tmp_path / "source")
    with pytest.raises(BadData, match="source"):
        read_references(tmp_path / "source")


def test_an_image_is_known_without_its_suffix(tmp_path: Path) -> None:
    picture(tmp_path / "upload")
    assert [frame.id for frame in read_frames(tmp_path / "upload")] == ["upload"]


def test_a_manifest_needs_no_suffix_and_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    line = json.dumps({"id": "x", "image": "a.png", "prompt": "?", "answers": ["a"]})
    (tmp_path / "m").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert [frame.questions[0].id for frame in read_frames(tmp_path / "m")] == ["x"]
    assert set(read_references(tmp_path / "m")) == {"x"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
def test_the_name_decides_nothing(tmp_path: Path, name: str) -> None:
    """A damaged first line is complained about as what it seems to be."""
    (tmp_path / name).write_text('{"id": "x", "image": "a.png", "prompt"}\n')
    with pytest.raises(BadData, match=f"{name}:1: not JSON"):
        read_frames(tmp_path / name)
    (tmp_path / name).write_text('{"info": {}, "images": [{"id": 1, "file_name": "a.png"}')
    with pytest.raises(BadData, match=f"{name}: not JSON"):
        read_frames(tmp_path / name)


def test_manifests_further_down_are_not_lost(tmp_path: Path) -> None:
    """Read as bare images, the frames would be captioned instead of asked their questions."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "night/b.png")
    (tmp_path / "night/frames.jsonl").write_text('{"id": "x", "image": "b.png", "prompt": "?"}\n')
    with pytest.raises(BadData, match=r"night/frames\.jsonl is under it: name that folder"):
        read_frames(tmp_path)
    with pytest.raises(BadData, match=r"night/frames\.jsonl is under it"):
        read_references(tmp_path)
    frames = read_frames(tmp_path, prompt="Day or night?")
    assert [frame.id for frame in frames] == ["a.png", "night/b.png"]
    (tmp_path / "frames.jsonl").write_text('{"id": "y", "image": "a.png"}\n')
    assert [frame.questions[0].id for frame in read_frames(tmp_path)] == ["y"]


def test_a_question_from_the_command_line_is_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are lone surrogates there, which no tokenizer and no JSON takes."""
    picture(tmp_path / "a.png")
    with pytest.raises(SettingError, match="`prompt`: is not UTF-8"):
        read_frames(tmp_path, prompt="what is \udcff?")


def test_bare_images_have_no_references(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(BadData, match="no labels"):
        read_references(tmp_path)


HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


def test_what_else_lies_in_a_folder_is_counted_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    for name in ("a.jpg", "b.jfif", "c.jpe", "d.pbm"):
        picture(folder / name)
    for name in ("e.HEIC", "f.heic", "g.mp4", "notes.txt", "Makefile", ".hidden.heic"):
        (folder / name).write_bytes(HEIC)
    (tmp_path / "far").mkdir()
    (folder / "link").symlink_to(tmp_path / "far")
    assert [frame.id for frame in read_frames(folder)] == ["a.jpg", "b.jfif", "c.jpe", "d.pbm"]
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "4 images; left out: 2 .heic (HEIC cannot be read here: convert" in line
    assert "1 .mp4 (a video is a source of its own: name the file), 1 .txt" in line
    assert "1 linked folder (not followed), 1 without an ending" in line


def test_a_folder_without_images_names_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(BadData, match=r"no images.*found only 1 \.mp4 \(a video"):
        read_frames(tmp_path)


def test_heic_is_named(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    with pytest.raises(BadData, match=r"IMG_1\.HEIC: it is HEIC"):
        read_frames(tmp_path / "IMG_1.HEIC")


@pytest.mark.parametrize("name", ["", Path("a") / ""])
def test_an_empty_name_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | Path
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for read in (read_frames, read_references):
        with pytest.raises(MissingInput):
            read(name)


def test_video_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(Unavailable, match="PyAV"):
        read_frames(tmp_path / "clip.mp4")
