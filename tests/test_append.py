"""Adding to a token stream file: whole or not at all, in its own form, one process at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli import byte_streams, streams
from cdcca_cli.errors import BadData, CannotWrite
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.shard import Shard
from tests.golden import make

ROOT = Path(__file__).parents[1]


def shard(frame: str) -> Shard:
    return Shard(
        frame=frame,
        image=frame,
        domain=None,
        tokens=np.ones((2, 3), np.float32),
        positions=np.arange(2, dtype=np.int32),
        num_tokens=2,
        tower=make.TOWER,
    )


def add(path: Path, *frames: str) -> None:
    with (
        streams.binary_output(path, "uplink.tokens", append=shard_stream.expect_whole) as out,
        shard_stream.writer(out) as write,
    ):
        for frame in frames:
            write(shard(frame))


def frames_in(path: Path) -> list[str]:
    with streams.binary_input(path) as source:
        return [one.frame for one in shard_stream.read_shards(source)]


@pytest.mark.parametrize("name", ["up.tokens", "up.tokens.zst"])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_is_added_stands_behind_what_was_there(
    tmp_path: Path, name: str, is_there: bool
) -> None:
    path = tmp_path / name
    if is_there:
        path.touch()
    add(path, "a", "b")
    before = path.read_bytes()
    add(path, "c")
    add(path)
    assert path.read_bytes().startswith(before)
    assert (before[:4] == byte_streams.ZSTD_MAGIC) == name.endswith(".zst")
    assert frames_in(path) == ["a", "b", "c"]
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["up.tokens", "up.tokens.zst"])
def test_the_form_is_that_of_the_file_whatever_its_name(tmp_path: Path, name: str) -> None:
    """Else zstd would follow plain bytes, which nothing reads."""
    add(tmp_path / "up.zst", "a")
    add(tmp_path / "up", "a")
    packed = name == "up.tokens"
    path = (tmp_path / ("up.zst" if packed else "up")).rename(tmp_path / name)
    add(path, "b")
    assert frames_in(path) == ["a", "b"]
    assert (path.read_bytes()[:4] == byte_streams.ZSTD_MAGIC) == packed


def test_streams_of_version_1_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "up.tokens"
    path.write_bytes(make.shard() + make.end(1))
    add(path, "new")
    assert frames_in(path) == ["f1", "new"]


def test_its_mode_stays_and_a_link_is_followed(tmp_path: Path) -> None:
    path, link = tmp_path / "up.tokens", tmp_path / "link"
    add(path, "a")
    path.chmod(0o640)
    link.symlink_to(path)
    add(link, "b")
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert frames_in(path) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        make.part_2(make.frames())[:-1],
        make.part_2(make.frames()) + b"\n",
        make.shard(),
        make.update(),
        b"hello",
        bytes(5000),
        make.ZSTD[:-1],
        make.ZSTD + b"junk",
    ],
    ids=["cut", "newline", "without end", "update", "text", "zeros", "zstd cut", "zstd and junk"],
)
def test_a_file_that_is_no_whole_stream_is_refused_and_stays(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "up.tokens"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"up\.tokens"):
        add(path, "a")
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["up.tokens"]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "up.tokens"
    add(path, "a")
    before = path.read_bytes()
    with pytest.raises(BadData, match="empty"):
        add(path, "b", "")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["up.tokens"]


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    """The second is refused at once, before it has done any work."""
    path = tmp_path / "up.tokens"
    add(path, "a")
    with streams.binary_output(path, "x", append=shard_stream.expect_whole) as out:
        with pytest.raises(CannotWrite, match="another process"):
            add(path, "c")
        with shard_stream.writer(out) as write:
            write(shard("b"))
    add(path, "c")
    assert frames_in(path) == ["a", "b", "c"]


KILLED = """
import sys, time
from pathlib import Path
from cdcca_cli import streams
from cdcca_cli.formats import shard_stream
from tests.test_append import shard
with streams.binary_output(sys.argv[1], "x", append=shard_stream.expect_whole) as out:
    with shard_stream.writer(out) as write:
        for number in range(600):
            write(shard(str(number)))
        out.flush()
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_killed_process_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "up.tokens"
    add(path, "a")
    before = path.read_bytes()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before and len(os.listdir(tmp_path)) == 2
    add(path, "b")
    assert frames_in(path) == ["a", "b"] and os.listdir(tmp_path) == ["up.tokens"]


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    add(path, "a")
    data = os.read(reader, 1 << 16)
    os.close(reader)
    (tmp_path / "copy").write_bytes(data)
    assert frames_in(tmp_path / "copy") == ["a"]


def test_a_shell_can_append_too(tmp_path: Path) -> None:
    """`cdcca sample ... >> up.tokens`: streams end to end are a stream."""
    path = tmp_path / "up.tokens"
    for frame in "abc":
        with path.open("ab") as out, shard_stream.writer(out) as write:
            write(shard(frame))
    assert frames_in(path) == ["a", "b", "c"]
