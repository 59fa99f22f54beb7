"""Streams as a process sees them: real descriptors, pipes, pseudo-terminals and full disks."""

import io
import os
import pty
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cdcca_cli import byte_streams, files, streams
from cdcca_cli.errors import BadData, CannotWrite, MissingInput

AS_ROOT = os.geteuid() == 0


def run_python(code: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run code in which `work()` is a command, through main with everything that it does."""
    given: dict[str, Any] = {"stderr": subprocess.PIPE, "env": ENVIRONMENT, "timeout": 60}
    command = [sys.executable, "-c", COMMAND.format(work=code)]
    return subprocess.run(command, cwd=cwd, **given | options)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
COMMAND = """
import os, sys, time
from cdcca_cli import main, streams
import cdcca_cli.commands.inspect as inspect

def command() -> None:
{work}

inspect.command = command
sys.exit(main.main(["inspect"]))
"""
WRITE = """
    with streams.binary_output({path!r}, "usual.tokens", force={force}) as out:
        for _ in range({times}):
            out.write(b"x" * 1000)
"""


def write(path: str | None = None, times: int = 3, force: bool = False) -> str:
    return WRITE.format(path=path, times=times, force=force)


class Terminal:
    """A pseudo-terminal for a child's stdin or stdout."""

    def __enter__(self) -> "Terminal":
        self.master, self.child = pty.openpty()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.master)
        os.close(self.child)

    def shown(self) -> bytes:
        """What the child has written, without the line ends that a terminal makes."""
        os.set_blocking(self.master, False)
        try:
            return os.read(self.master, 1 << 16).replace(b"\r\n", b"\n")
        except BlockingIOError:
            return b""


# ---------------------------------------------------------------- stdout


def test_a_library_that_prints_does_not_spoil_the_data(tmp_path: Path) -> None:
    code = """
    print("loading...")
    os.write(1, b"from C\\n")
    with streams.binary_output("-", "usual") as out:
        out.write(b"data")
        print("working...", flush=True)
    os.system("echo from a child")
    """
    done = run_python(code, tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"data")
    for words in (b"loading...", b"from C", b"working...", b"from a child"):
        assert words in done.stderr


def test_without_an_output_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    done = run_python(write(), tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x" * 3000, b"")
    assert os.listdir(tmp_path) == []


def test_bytes_never_go_to_a_terminal_but_to_the_usual_file(tmp_path: Path) -> None:
    with Terminal() as terminal:
        done = run_python(write(), tmp_path, stdout=terminal.child)
        assert (done.returncode, done.stderr) == (0, b"cdcca inspect: wrote usual.tokens\n")
        assert (tmp_path / "usual.tokens").read_bytes() == b"x" * 3000
        again = run_python(write(times=1), tmp_path, stdout=terminal.child)
        assert again.returncode == 73 and b"usual.tokens exists" in again.stderr
        assert (tmp_path / "usual.tokens").read_bytes() == b"x" * 3000
        forced = run_python(write(times=1, force=True), tmp_path, stdout=terminal.child)
        assert forced.returncode == 0
        assert (tmp_path / "usual.tokens").read_bytes() == b"x" * 1000
        assert terminal.shown() == b""


@pytest.mark.parametrize("path", ["-", "/dev/stdout"])
def test_a_dash_on_a_terminal_is_refused(path: str, tmp_path: Path) -> None:
    with Terminal() as terminal:
        done = run_python(write(path), tmp_path, stdout=terminal.child)
        assert done.returncode == 2 and b"not text for a terminal" in done.stderr
        assert terminal.shown() == b""
    assert os.listdir(tmp_path) == []


def test_dev_stdout_is_the_real_one(tmp_path: Path) -> None:
    done = run_python(write("/dev/stdout"), tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"x" * 3000)


def test_text_may_go_to_a_terminal(tmp_path: Path) -> None:
    code = """
    with streams.text_output(None) as out:
        out.write("caf\\u00e9\\n")
    streams.emit_json({"a": "caf\\u00e9"})
    """
    with Terminal() as terminal:
        assert run_python(code, tmp_path, stdout=terminal.child).returncode == 0
        assert terminal.shown().decode() == 'café\n{"a": "café"}\n'


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    env = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    code = "    streams.emit('caf\\u00e9'); streams.message('na\\u00efve')"
    done = run_python(code, tmp_path, stdout=subprocess.PIPE, env=env)
    assert (done.returncode, done.stdout) == (0, "café\n".encode())
    assert done.stderr == b"cdcca inspect: na\\xefve\n"


@pytest.mark.parametrize("code", [write(times=1000), "    streams.emit('x' * 1_000_000)"])
def test_a_reader_that_goes_away_ends_it_silently(code: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_python(code, tmp_path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_stdout_is_named(tmp_path: Path) -> None:
    done = run_python(write(), tmp_path, preexec_fn=lambda: os.close(1))
    assert done.returncode == 73 and b"standard output is closed" in done.stderr


def test_with_all_three_closed_a_file_is_still_written_right(tmp_path: Path) -> None:
    """Descriptors 0 to 2 are what the next open() calls would get."""
    done = run_python(
        "    print('x')\n" + write("out"), tmp_path, preexec_fn=lambda: os.closerange(0, 3)
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == b"x" * 3000


def test_a_pipe_that_was_left_non_blocking_gets_everything(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=write(times=500))],
        stdout=writer,
        env=ENVIRONMENT,
    ) as process:
        os.close(writer)
        time.sleep(0.3)
        with open(reader, "rb") as source:
            assert len(source.read()) == 500_000
    assert process.returncode == 0


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["out", "out.zst"])
def test_a_file_is_replaced_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    path.chmod(0o640)
    with streams.binary_output(path, "usual") as out:
        out.write(b"new" * 50_000)
        assert path.read_bytes() == b"old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == [name]
    with streams.binary_input(path) as source:
        assert source.read() == b"new" * 50_000
    if name.endswith(".zst"):
        assert path.stat().st_size < 1000
        assert zstandard.get_frame_parameters(path.read_bytes()).has_checksum


def test_a_new_file_has_the_mode_that_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.atomic_write_bytes(tmp_path / "out", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640
    assert (tmp_path / "out").read_bytes() == b"data"


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("name", ["out", "out.zst"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_after_a_failure_everything_is_as_it_was(
    error: type[BaseException], name: str, existing: bool, tmp_path: Path
) -> None:
    if existing:
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(error), streams.binary_output(tmp_path / name, "u") as out:
        out.write(b"data" * 100_000)
        raise error
    with pytest.raises(error), streams.text_output(tmp_path / name) as text:
        text.write("data" * 100_000)
        raise error
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == (
        {name: b"old"} if existing else {}
    )


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real/file")
    files.atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    before = os.stat("/dev/null").st_rdev
    with streams.binary_output("/dev/null", "usual") as out:
        out.write(b"data")
    assert os.stat("/dev/null").st_rdev == before


def test_a_named_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE) as reader:
        with streams.binary_output(tmp_path / "pipe", "usual") as out:
            out.write(b"data")
        assert reader.communicate()[0] == b"data"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("folder", "is a folder"),
        ("none/out", "no folder"),
        ("file/out", "not a directory"),
        ("a\0b", "null byte"),
    ],
)
def test_where_nothing_can_be_written(path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with (
        pytest.raises(CannotWrite, match=words),
        streams.binary_output(str(tmp_path) + "/" + path, "usual"),
    ):
        pytest.fail("nothing may be opened")


def test_make_folder(tmp_path: Path) -> None:
    for _ in range(2):
        files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for place in ("file", "file/inside"):
        with pytest.raises(CannotWrite, match=place):
            files.make_folder(tmp_path / place)


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_where_one_may_not_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CannotWrite, match="permission denied"):
        files.atomic_write_bytes(tmp_path / "out", b"")


def test_a_full_disk_by_dev_full(tmp_path: Path) -> None:
    for output, options in (("/dev/full", {}), (None, {"stdout": open("/dev/full", "wb")})):  # noqa: SIM115
        done = run_python(write(output), tmp_path, **options)
        assert done.returncode == 73, done.stderr
        assert b"no space left on device" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """RLIMIT_FSIZE gives EFBIG in the middle, on a real file: the hidden one must be gone."""
    (tmp_path / "out").write_bytes(b"old")
    for name in ("out", "out.zst", "new"):
        done = run_python(
            write(name)
            if name != "out.zst"
            else write(name).replace('b"x" * 1000', "os.urandom(9000)"),
            tmp_path,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        )
        assert done.returncode == 73 and b"file too large" in done.stderr
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"out": b"old"}


def test_a_full_file_system(tmp_path: Path) -> None:
    """A tmpfs of 64 KiB, where mounting is allowed."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no mounting here: {made.stderr.decode().strip()}")
    try:
        (tmp_path / "old").write_bytes(b"old")
        done = run_python(write(str(tmp_path / "out"), times=100), tmp_path.parent)
        assert done.returncode == 73 and b"no space left" in done.stderr
        assert os.listdir(tmp_path) == ["old"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_failing_fsync_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CannotWrite, match="no space left"):
        files.atomic_write_bytes(tmp_path / "out", b"data")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- signals

SLOW = """
    with streams.binary_output("out", "usual") as out:
        out.write(b"x" * 100_000)
        streams.complain("ready")
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, b"cdcca inspect: interrupted\n"),
        (signal.SIGTERM, 143, b"cdcca inspect: stopped by signal 15\n"),
        (signal.SIGHUP, 129, b"cdcca inspect: stopped by signal 1\n"),
    ],
)
def test_a_signal_leaves_nothing_half_written(
    number: int, code: int, words: bytes, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=SLOW)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"cdcca inspect: ready\n"
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(number)
        rest = process.stderr.read()
    assert (process.returncode, rest) == (code, words)
    assert os.listdir(tmp_path) == []


def test_a_signal_while_a_pipe_is_full_does_not_wait_for_its_reader(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=write(times=10_000))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # it is writing now, and soon the pipe is full
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143


# ---------------------------------------------------------------- stdin and reading


def test_a_keyboard_is_not_read(tmp_path: Path) -> None:
    for path in (None, "-", "/dev/stdin"):
        with Terminal() as terminal:
            code = f"    with streams.binary_input({path!r}) as source: source.read()"
            done = run_python(code, tmp_path, stdin=terminal.child)
            assert (done.returncode, done.stderr) == (
                2,
                b"cdcca inspect: no input: name a file, or pipe one in\n",
            )


def test_a_closed_stdin_is_named(tmp_path: Path) -> None:
    code = "    with streams.binary_input(None) as source: source.read()"
    done = run_python(code, tmp_path, preexec_fn=lambda: os.close(0))
    assert done.returncode == 2 and b"standard input is closed" in done.stderr


def test_what_is_not_there_to_be_read(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "gone", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(MissingInput, match=words), streams.binary_input(path):
            pytest.fail("nothing may be opened")


def packed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def opened(data: bytes) -> io.BufferedIOBase:
    return byte_streams.without_zstd(io.BytesIO(data), "here")  # type: ignore[return-value]


SKIPPABLE = bytes.fromhex("5f2a4d1805000000") + b"hello"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"abc", b"abc"),
        (b"\x28\xb5\x2f", b"\x28\xb5\x2f"),
        (packed(b""), b""),
        (packed(b"abc"), b"abc"),
        (packed(b"abc") + packed(b"") + packed(b"def"), b"abcdef"),
        (SKIPPABLE + packed(b"abc") + SKIPPABLE, b"abc"),
        (packed(bytes(3_000_000)) + packed(b"x"), bytes(3_000_000) + b"x"),
        (packed(os.urandom(0) + bytes(range(256)) * 99), bytes(range(256)) * 99),
    ],
)
def test_zstd_is_recognised_and_read_across_frames(data: bytes, expected: bytes) -> None:
    assert opened(data).read() == expected


@pytest.mark.parametrize("length", range(4, len(packed(b"abc" * 50))))
def test_every_cut_in_zstd_is_refused(length: int) -> None:
    with pytest.raises(BadData, match="cut short"):
        opened(packed(b"abc" * 50)[:length]).read()


def test_a_zstd_bomb_costs_no_memory() -> None:
    """A gigabyte in 32 KB, read a little at a time: at most one piece is ever expanded."""
    import tracemalloc

    compressor = zstandard.ZstdCompressor().compressobj()
    pieces = [compressor.compress(bytes(1 << 20)) for _ in range(1024)]
    bomb = b"".join(pieces) + compressor.flush()
    assert len(bomb) < 100_000
    source = opened(bomb)
    tracemalloc.start()
    for _ in range(64):
        assert source.read(4096) == bytes(4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 34 << 20


def test_a_zstd_window_is_bounded() -> None:
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    ).compressobj()
    data = compressor.compress(bytes(1 << 16)) + compressor.flush()
    with pytest.raises(BadData, match="too much memory"):
        opened(data).read()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a\nb", ["a", "b"]),
        (b"\xef\xbb\xbfa\r\n\n\xef\xbb\xbfb\n", ["a", "", "\ufeffb"]),
        ("caf\u00e9 \u2028 x\n".encode(), ["caf\u00e9 \u2028 x"]),
    ],
)
def test_lines(data: bytes, expected: list[str]) -> None:
    assert list(streams.lines(io.BytesIO(data), "here")) == expected


def test_lines_that_are_none() -> None:
    with pytest.raises(BadData, match="here: line 2 is not UTF-8"):
        list(streams.lines(io.BytesIO(b"a\n\xff\n"), "here"))
    with pytest.raises(BadData, match="line 1 is longer than"):
        list(streams.lines(io.BytesIO(bytes(1 << 25)), "here"))


def test_pushed_back_bytes_come_first() -> None:
    source = byte_streams.pushed_back(b"abc", io.BytesIO(b"def\nghi"))
    assert source.read(2) == b"ab"
    assert source.readline() == b"cdef\n"
    assert source.read() == b"ghi"


# ---------------------------------------------------------------- messages


def test_messages_are_one_line_and_hide_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    streams.message("a\nb\x1b[31m\u202e \udc80é")
    assert capfd.readouterr().err == "cdcca: a\\nb\\x1b[31m\\u202e \\udc80é\n"


def test_quiet_hides_messages_but_not_errors(capfd: pytest.CaptureFixture[str]) -> None:
    streams.set_quiet(True)
    try:
        streams.message("hello")
        streams.complain("an error")
    finally:
        streams.set_quiet(False)
    assert capfd.readouterr().err == "cdcca: an error\n"


def test_a_long_name_in_a_message_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    streams.complain("x" * 100_000)
    err = capfd.readouterr().err
    assert err.startswith("cdcca: xxx") and err.endswith("xxx...\n") and len(err) == 2004


def test_tables_and_facts(capfd: pytest.CaptureFixture[str]) -> None:
    streams.emit_table("scores", ("name", "n", "x"), [("a[b]", 12345, 0.5), ("é\n", None, 2.0)])
    streams.emit_facts([("kind", "shards"), ("bytes", 12345)])
    out = capfd.readouterr().out
    assert out.startswith("scores ")
    assert "a[b]" in out and "12,345" in out and "é\\n" in out and "\x1b" not in out
    assert out.endswith("kind   shards\nbytes  12,345\n")


def test_claiming_twice_and_releasing_gives_stdout_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    streams.claim_stdout()
    streams.claim_stdout()
    os.write(1, b"stray")
    streams.emit("data")
    streams.release_stdout()
    os.write(1, b"free")
    assert capfd.readouterr() == ("data\nfree", "stray")
