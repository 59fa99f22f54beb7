"""What a device remembers between two runs of cron."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdcca_cli.datasets import Frame, LiveFrames, read_frames
from cdcca_cli.errors import BadData, CannotWrite, CdccaError, NewerFormat
from cdcca_cli.uplink.seen import Seen
from tests import tiny
from tests.uplink.test_near import shard_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "frames"
    made.mkdir()
    for number, image in enumerate(tiny.images(3)):
        image.save(made / f"{number}.png")
    return made


def look(folder: Path, state: Path | None, prompt: str | None = None) -> list[str]:
    """One run: the ids that are new; then they are remembered."""
    seen = Seen(read_frames(folder, prompt=prompt), state)
    names = [frame.id for frame in seen]
    assert len(seen) == len(names)
    assert [frame.id for frame in seen] == names  # gone through twice
    seen.save()
    return names


def test_each_frame_once(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert look(folder, state) == ["0.png", "1.png", "2.png"]
    assert look(folder, state) == []
    tiny.images(1, seed=9)[0].save(folder / "3.png")
    assert look(folder, state) == ["3.png"]


def test_a_changed_file_is_new(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    look(folder, state)
    os.utime(folder / "1.png", ns=(1, 1))
    (folder / "2.png").write_bytes((folder / "0.png").read_bytes() + b"\0")
    assert look(folder, state) == ["1.png", "2.png"]


def test_another_question_is_new(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert len(look(folder, state)) == 3
    assert len(look(folder, state, prompt="how many?")) == 3
    assert look(folder, state, prompt="how many?") == []


def test_without_save_nothing_is_remembered(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert len(list(Seen(read_frames(folder), state))) == 3
    assert not state.exists()
    assert len(look(folder, state)) == 3


def test_frames_that_are_gone_are_forgotten(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    look(folder, state)
    (folder / "1.png").unlink()
    look(folder, state)
    assert set(json.loads(state.read_text())["frames"]) == {"0.png", "2.png"}


def test_no_state_file_sees_all_and_writes_none(folder: Path, tmp_path: Path) -> None:
    assert look(folder, None) == look(folder, None) == ["0.png", "1.png", "2.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", BadData),
        (b"[]", BadData),
        (b"\xff\xfe", BadData),
        (b"[" * 100_000, BadData),
        (b'{"frames": {}}', BadData),
        (b'{"kind": "seen", "version": 1, "frames": []}', BadData),
        (b'{"kind": "seen", "version": "1", "frames": {}}', BadData),
        (b'{"kind": "seen", "version": 2, "frames": {}}', BadData),
        (b'{"kind": "seen", "version": 0, "frames": {}}', BadData),
        (b'{"kind": "seen", "version": 3, "frames": {}}', NewerFormat),
    ],
)
def test_what_is_no_state_file_is_refused_and_kept(
    folder: Path, tmp_path: Path, content: bytes, error: type[CdccaError]
) -> None:
    state = tmp_path / "state.json"
    state.write_bytes(content)
    with pytest.raises(error, match=r"state\.json"):
        look(folder, state)
    assert state.read_bytes() == content


def test_a_state_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite):
        look(folder, tmp_path / "missing" / "state.json")


def test_a_link_to_nothing_and_a_name_that_is_not_utf8_are_remembered(
    folder: Path, tmp_path: Path
) -> None:
    """They are left out when they are read; until they change, once is enough."""
    state = tmp_path / "state.json"
    bad = os.fsdecode(b"caf\xe9.png")
    (folder / bad).write_bytes((folder / "0.png").read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert set(look(folder, state)) == {"0.png", "1.png", "2.png", "link.png", bad}
    assert look(folder, state) == []
    (tmp_path / "nowhere.png").write_bytes((folder / "0.png").read_bytes())
    assert look(folder, state) == ["link.png"]


def test_version_1_is_read(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    look(folder, state)
    marks = json.loads(state.read_text())["frames"]
    state.write_text(json.dumps({"kind": "seen", "version": 1, "frames": marks}))
    assert look(folder, state) == []
    assert json.loads(state.read_text())["version"] == 2


def test_a_run_goes_on_where_the_last_one_ended(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    seen = Seen(read_frames(folder), state)
    seen.running.begin("entropy mean")
    seen.running.takes("vqa", 0.1, 0.5, 0.5)
    (frame, *_) = seen
    assert seen.sent.new(frame, [0]) == [0]
    seen.sent.add(shard_of(frame))
    seen.save()
    again = Seen(read_frames(folder), state)
    assert again.running.to_json() == seen.running.to_json()
    assert again.sent.new(frame, [0]) == []


@pytest.mark.parametrize("part", ["running", "sent"])
def test_a_damaged_part_is_refused(folder: Path, tmp_path: Path, part: str) -> None:
    state = tmp_path / "state.json"
    look(folder, state)
    whole = json.loads(state.read_text())
    for value in (None, 1, [[]], {"rule": 0}):
        state.write_text(json.dumps({**whole, part: value}))
        with pytest.raises(BadData, match="damaged state file"):
            look(folder, state)


def test_a_live_source_does_not_make_the_file_grow(tmp_path: Path) -> None:
    """Its frames come once, so they are not gone through before they are sampled."""

    class Live(LiveFrames):
        num_frames = None

        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[Frame]:
            yield from (Frame(f"cam@{number}", Path("cam")) for number in range(1000))

    state = tmp_path / "state.json"
    for _ in range(2):
        seen = Seen(Live(), state)
        assert sum(1 for _ in seen.frames) == 1000
        seen.save()
    assert json.loads(state.read_text())["frames"] == {}
    assert state.stat().st_size < 200
