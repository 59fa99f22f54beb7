"""Addresses wherever a file may be named: what comes is whole, what goes is whole, or an error."""

import io
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cdcca_cli import config, remote, streams
from cdcca_cli.datasets import load_image, read_frames, read_references
from cdcca_cli.datasets.live import is_live
from cdcca_cli.downlink import keys
from cdcca_cli.errors import (
    CannotWrite,
    CdccaError,
    MissingInput,
    SettingError,
    Unavailable,
    UsageError,
)
from cdcca_cli.main import main
from cdcca_cli.settings import converted
from tests.shipped import FRAMES, few_frames

fsspec = pytest.importorskip("fsspec")
MANIFEST = FRAMES / "heldout"


@pytest.fixture
def store() -> Iterator[Any]:
    """fsspec's file system in memory."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()
    remote.remove_copies()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files in a folder that ends empty, except in a test that keeps one."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def read(name: str | Path, size: int = -1) -> bytes:
    with streams.binary_input(name) as source:
        return source.read(size)


def write(name: str | Path, data: bytes, **how: Any) -> None:
    with streams.binary_output(name, "usual", **how) as out:
        out.write(data)


# ---------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("size", [0, 1, 3, 4, 65_535, 65_536, 65_537, 300_001])
@pytest.mark.parametrize("ending", ["", ".zst"])
def test_what_is_written_is_read_back(store: Any, tmp_path: Path, size: int, ending: str) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    names = {
        f"memory://bucket/x{ending}": f"memory://bucket/x{ending}",
        f"file://{tmp_path}/x{ending}": f"pipe:cat {tmp_path}/x{ending}",
        f"pipe:cat > {tmp_path}/y{ending}": str(tmp_path / f"y{ending}"),
        str(tmp_path / f"z{ending}"): f"file://{tmp_path}/z{ending}",
    }
    for written, given in names.items():
        write(written, data)
        assert read(given) == data, (written, given)
    packed = [store.cat("/bucket/x" + ending), (tmp_path / f"x{ending}").read_bytes()]
    assert all((raw[:4] == b"\x28\xb5\x2f\xfd") == (ending == ".zst") for raw in packed)


def test_zstd_is_taken_off(store: Any) -> None:
    store.pipe("/x", zstandard.compress(b"content" * 9999))
    assert read("memory://x") == b"content" * 9999


def test_text_and_lines(store: Any) -> None:
    with streams.text_output("memory://lines.txt") as out:
        out.write("first\nsecond\n")
    with streams.text_input("memory://lines.txt") as lines:
        assert list(lines) == ["first", "second"]


def test_pieces_of_any_size(tmp_path: Path) -> None:
    command = "pipe:printf abc; sleep 0.02; printf defg; sleep 0.02; printf h"
    with streams.binary_input(command) as source:
        assert [source.read(2), source.read(3), source.read()] == [b"ab", b"cde", b"fgh"]


# ---------------------------------------------------------------- inputs that fail


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("exit 3", "exit status 3: it wrote nothing"),
        ("echo content; echo '' >&2; echo went wrong >&2; echo more >&2; exit 1", "status 1: went"),
        ("echo content; kill -9 $$", "ended by signal 9"),
        ("no-such-command-here", "exit status 127: "),
        ("printf abc; false | cat; false", "exit status 1"),
    ],
)
def test_a_failing_command_is_no_short_stream(command: str, words: str) -> None:
    with pytest.raises(MissingInput, match="pipe:") as caught:
        read(f"pipe:{command}")
    assert words in str(caught.value)
    with pytest.raises(MissingInput), streams.text_input(f"pipe:{command}") as lines:
        list(lines)


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="no bash, which has pipefail")
def test_the_first_of_two_commands_fails() -> None:
    with pytest.raises(MissingInput, match="exit status 7"):
        read("pipe:(echo content; exit 7) | cat")
    assert read("pipe:yes | head -c 4") == b"y\ny\n"  # yes is ended by head: no fault


def test_a_reader_that_stops_early_ends_the_command() -> None:
    assert read("pipe:yes", 4) == b"y\ny\n"
    with pytest.raises(MissingInput, match="status 5"):
        read("pipe:printf abcdefgh; exec >&-; exit 5", 4)
    with pytest.raises(ZeroDivisionError), streams.binary_input("pipe:sleep 60 & yes; wait"):
        raise ZeroDivisionError


def test_a_command_reads_nothing_of_ours() -> None:
    assert read("pipe:cat") == b""


def test_an_empty_command() -> None:
    with pytest.raises(UsageError, match="pipe:COMMAND"):
        read("pipe: ")


def test_what_is_not_in_a_store(store: Any) -> None:
    with pytest.raises(MissingInput, match=r"^memory://absent: no such file$"):
        read("memory://absent")
    with pytest.raises(UsageError, match="protocol not known: nosuch"):
        read("nosuch://a/b")


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "dropboxdrivefs", None)
    with pytest.raises(Unavailable, match=r"^s3://b/k: .*: pip install s3fs$") as caught:
        read("s3://b/k")
    assert caught.value.exit_code == 69
    with pytest.raises(Unavailable, match="pip install s3fs"), streams.text_output("s3://b/k"):
        pytest.fail("found before the work begins")
    with pytest.raises(Unavailable, match='requires "dropboxdrivefs"'):
        read("dropbox://b/k")
    for module in [name for name in sys.modules if name.split(".")[0] == "fsspec"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unavailable, match=r"fsspec: pip install 'cdcca\[remote\]'"):
        read("s3://b/k")


def test_a_store_that_cuts_off_or_breaks(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(io.BytesIO):
        size = 1000

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise RuntimeError("the connection\nwas reset")

    for stream, words in [
        (Cut(b"x" * 999), "999 of 1,000 bytes came: try again"),
        (Broken(), "RuntimeError: the connection was reset"),
    ]:
        monkeypatch.setattr(store, "open", lambda *_, found=stream: found)
        with pytest.raises(MissingInput, match=words):
            read("memory://x")


class _Closing(BaseHTTPRequestHandler):
    """Says that 1,000 bytes come, and closes the connection after 10."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_a_download_that_curl_calls_cut(tmp_path: Path) -> None:
    import shutil

    if shutil.which("curl") is None:
        pytest.skip("no curl")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Closing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(MissingInput, match="exit status 18: curl"):
            read(f"pipe:curl -sS http://127.0.0.1:{server.server_address[1]}/x")
        server.shutdown()


# ---------------------------------------------------------------- outputs are whole


def test_a_stage_that_fails_sends_nothing(store: Any, tmp_path: Path, own_folder: Path) -> None:
    store.pipe("/there", b"as it was")
    for name in ("memory://there", f"pipe:cat > {tmp_path}/there", f"file://{tmp_path}/here"):
        with pytest.raises(ZeroDivisionError), streams.binary_output(name, "usual") as out:
            out.write(b"half" * 99_999)
            raise ZeroDivisionError
    assert store.cat("/there") == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not any(own_folder.iterdir())


def test_an_output_that_cannot_be_sent_is_kept(
    store: Any, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(store, "put_file", refuse)
    for name, words in [
        ("memory://b/up.tokens", "PermissionError: Access Denied"),
        ("pipe:head -c 2 > /dev/null; echo no room >&2; exit 4", "exit status 4: no room"),
    ]:
        with pytest.raises(CannotWrite, match="the output is kept as") as caught:
            write(name, b"an hour of work")
        assert words in str(caught.value)
        kept = Path(str(caught.value).rpartition(" ")[2].rstrip(")"))
        assert kept.read_bytes() == b"an hour of work"
        assert kept.name in ("up.tokens", "pipe") and own_folder in kept.parents


def test_a_commands_words_are_no_data(capfd: pytest.CaptureFixture[str]) -> None:
    write("pipe:cat; echo words", b"data ")
    out, err = capfd.readouterr()
    assert out == "" and err == "data words\n"


def test_append_needs_a_file(store: Any, tmp_path: Path) -> None:
    for name in ("memory://x", "pipe:cat"):
        with pytest.raises(UsageError, match="`append` needs a file"):
            write(name, b"x", append=lambda *_: None)
    write(f"file://{tmp_path}/x", b"one ")
    write(f"file://{tmp_path}/x", b"two", append=lambda *_: None)
    assert (tmp_path / "x").read_bytes() == b"one two"


# ---------------------------------------------------------------- who may name one


def test_only_a_str_is_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name from a data file becomes a Path, also in the working folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput):
        read(Path("pipe:touch ran"))
    Path("pipe:touch ran").write_bytes(b"a file")
    assert read(Path("pipe:touch ran")) == b"a file"
    assert read("./pipe:touch ran") == b"a file"
    write(Path("pipe:touch ran"), b"other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe:touch ran", "tmp"]


@pytest.mark.parametrize("image", ["pipe:touch ran", "memory://a.png", "file:///etc/passwd"])
def test_a_manifest_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("frames.jsonl").write_text(f'{{"id": "a", "image": "{image}"}}\n')
    for source in ("frames.jsonl", ".", f"file://{tmp_path}/frames.jsonl"):
        with pytest.raises(CdccaError):
            [load_image(frame) for frame in read_frames(source)]
    assert not Path("ran").exists()


def test_a_picture_called_like_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = next(MANIFEST.glob("*.jpg")).read_bytes()
    Path("pipe:touch ran; cat.jpg").write_bytes(picture)
    (frame,) = read_frames(".")
    assert load_image(frame).size and not Path("ran").exists()


@pytest.mark.parametrize("name", ["pipe:cat", "s3://b/device", "memory://x"])
def test_what_takes_no_address_says_so(name: str) -> None:
    with pytest.raises(SettingError, match="expected a path on this machine"):
        config.device(name)
    with pytest.raises(ValueError, match="expected a path on this machine"):
        converted(Path, name)


@pytest.mark.parametrize(
    "line",
    [
        "distill x --work s3://b/w",
        "distill x --log memory://log",
        "apply memory://device x",
        "init hf://a/b",
        "infer frames --images s3://b/images",
        "keygen memory://key",
        "sample frames --state s3://b/state",
        "compress x --sign pipe:cat",
    ],
)
def test_an_option_for_a_path(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "expected a path on this machine, found an address" in capfd.readouterr().err


# ---------------------------------------------------------------- names


def test_names() -> None:
    for name in ("s3://b/k", "hf://datasets/a/b", "pipe:x", "simplecache::s3://b", "https://h/x"):
        assert remote.is_address(name) and not remote.is_address(Path(name))
    for name in ("a/b", "shipped:student", "C:/x", "./s3://b", "-", "", "a b://c", None):
        assert not remote.is_address(name)
    for name in ("rtsp://h/x", "https://h/x.m3u8", "http://h", "udp://h:1"):
        assert is_live(name) and not remote.is_file_address(name)
    for name in ("s3://b/k.mp4", "pipe:cat x", "file:///x", "gs://b", "simplecache::https://h/x"):
        assert remote.is_file_address(name) and not is_live(name)


def test_no_password_is_shown() -> None:
    assert remote.shown("https://me:pass@host/x?signature=abc") == "https://host/x?..."
    assert streams.input_name("sftp://me:pass@host/x") == "sftp://host/x"
    assert len(remote.shown(f"pipe:echo {'x' * 999}")) == 203


# ---------------------------------------------------------------- frames, labels and keys


def test_frames_and_labels_from_a_store(store: Any, capfd: pytest.CaptureFixture[str]) -> None:
    text = (MANIFEST / "frames.jsonl").read_bytes()
    store.pipe("/b/frames.jsonl", text)
    here = read_frames(MANIFEST)
    there = read_frames("memory://b/frames.jsonl", images=MANIFEST)
    assert [frame.questions for frame in here] == [frame.questions for frame in there]
    assert read_references("memory://b/frames.jsonl").keys() == read_references(MANIFEST).keys()
    with pytest.raises(SettingError, match="comes without its images"):
        read_frames("memory://b/frames.jsonl")
    store.pipe("/b/bad.jsonl", text + b"{\n")
    assert main(["infer", "memory://b/bad.jsonl", "--images", str(MANIFEST)]) == 65
    assert f"memory://b/bad.jsonl:{text.count(10) + 1}: " in capfd.readouterr().err


def test_a_picture_from_a_command() -> None:
    picture = next(MANIFEST.glob("*.jpg"))
    (frame,) = read_frames(f"pipe:cat {picture}")
    assert load_image(frame).tobytes() == load_image(next(iter(read_frames(picture)))).tobytes()
    with pytest.raises(MissingInput, match="exit status 2"):
        read_frames(f"pipe:cat {picture}; exit 2")
    remote.remove_copies()


def test_a_copy_is_made_once_and_removed(tmp_path: Path, own_folder: Path) -> None:
    command = f"pipe:echo x >> {tmp_path}/ran; echo content"
    first = remote.local(command)
    before = first.stat().st_mtime_ns
    assert remote.local(command) == first and first.read_text() == "content\n"
    assert (tmp_path / "ran").read_text() == "x\n"
    assert remote.without_copies(f"{first}:3: bad") == f"{command}:3: bad"
    remote.remove_copies()
    assert not any(own_folder.iterdir())
    assert remote.local(command).stat().st_mtime_ns == before  # the same content
    remote.remove_copies()


def test_public_keys_and_trust_lists(store: Any, tmp_path: Path) -> None:
    private = tmp_path / "k"
    assert main(["keygen", str(private), "--quiet"]) == 0
    store.pipe("/k.pub", (tmp_path / "k.pub").read_bytes())
    assert keys.read_public_key("memory://k.pub") == keys.read_public_key(tmp_path / "k.pub")
    command = ["trust", "--key", "memory://k.pub", "--sign", str(private), "-o", "memory://1.trust"]
    assert main([*command, "--quiet"]) == 0
    assert keys.first_trust(["memory://1.trust"], None) == keys.trust_of("memory://1.trust")


# ---------------------------------------------------------------- whole stages


def test_the_stages_by_address(
    store: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """infer, eval, sample and inspect give the bytes that they give with files."""
    device, frames = tmp_path / "device", str(few_frames(tmp_path / "frames", "heldout", 4))
    run = partial(_run, capfd)
    run("init", str(device))
    run("infer", frames, "-m", str(device), "-o", str(tmp_path / "p.jsonl"))
    run("infer", frames, "-m", str(device), "-o", "memory://b/p.jsonl")
    assert store.cat("/b/p.jsonl") == (tmp_path / "p.jsonl").read_bytes()
    here = run("eval", str(tmp_path / "p.jsonl"), "--references", frames)
    assert run("eval", "memory://b/p.jsonl", "--references", frames) == here
    to = f"pipe:cat > {tmp_path}/up.tokens"
    run("sample", frames, "-m", str(device), "--predictions", "memory://b/p.jsonl", "-o", to)
    run(
        "sample",
        frames,
        "-m",
        str(device),
        "--predictions",
        "memory://b/p.jsonl",
        "-o",
        "memory://up",
    )
    assert store.cat("/up") == (tmp_path / "up.tokens").read_bytes()
    shards = run("inspect", "memory://up").replace("memory://up", "up.tokens")
    found = run("inspect", f"pipe:cat {tmp_path}/up.tokens")
    assert shards.partition(",")[2] == found.partition(",")[2]


def _run(capfd: pytest.CaptureFixture[str], *line: str) -> str:
    assert main([*line, "--quiet"]) == 0, capfd.readouterr().err
    return capfd.readouterr().out


def test_a_teachers_answers_and_labels_by_address(
    store: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """label from a store to a store, and distill from there: the bytes of files."""
    run = partial(_run, capfd)
    frames, device = str(few_frames(tmp_path / "frames", "stream", 4)), str(tmp_path / "device")
    run("init", device)
    run("sample", frames, "-m", device, "--top", "100%", "-o", "memory://up")
    (tmp_path / "up").write_bytes(store.cat("/up"))
    run("label", str(tmp_path / "up"), "--student", device, "-o", str(tmp_path / "labels"))
    run("label", "memory://up", "--student", device, "-o", "memory://labels")
    assert store.cat("/labels") == (tmp_path / "labels").read_bytes()
    how = ["--student", device, "--epochs", "1", "--batch-size", "4"]
    run("distill", "memory://up", *how, "--labels", "memory://labels", "-o", "memory://a")
    run(
        "distill",
        str(tmp_path / "up"),
        *how,
        "--labels",
        str(tmp_path / "labels"),
        "-o",
        str(tmp_path / "a"),
    )
    assert store.cat("/a") == (tmp_path / "a").read_bytes()
    words = [
        "distill",
        "memory://up",
        *how,
        "--labels",
        "memory://labels",
        "--teacher",
        "shipped:teacher",
    ]
    assert main(words) == 2
    assert "--labels memory://labels: labels are added to the last" in capfd.readouterr().err
    requests = "memory://requests.jsonl"
    run(
        "sample", frames, "-m", device, "--top", "100%", "--payload", "frame", "-o", "memory://seen"
    )
    run("label", "memory://seen", "--teacher", "h#m", "--write-requests", requests)
    assert store.cat("/requests.jsonl").startswith(b"{")
    main(["label", "memory://seen", "--teacher", requests, "-o", "memory://none"])
    assert "memory://requests.jsonl: line 1: " in capfd.readouterr().err  # these are no answers
