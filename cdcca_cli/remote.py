"""Names of inputs and outputs that are no path: `s3://bucket/up.tokens`, `pipe:COMMAND`.

- `PROTOCOL://...` is read and written by fsspec (`pip install 'cdcca[remote]'`), which needs one
  more package for most protocols, such as s3fs.
- `pipe:COMMAND` runs the command in a shell (bash with pipefail where there is one) in the working
  folder. An input is what it prints, an output is its standard input. It reads nothing else.
- `file://PATH` is PATH.

Only a `str` can be such a name, because it comes from the command line or cdcca.toml. A `Path` is
always a file here, and names in data files, headers and device folders become `Path`s: nothing that
was received can run a command or open a connection.

An input that fails is an error at the place where it would end, never a short stream. An output is
written to a temporary file, and is sent when it is whole; if that fails, the file is kept and
named. What needs a file (pictures, videos, manifests) is copied to a temporary one by `local`.
"""

import atexit
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from cdcca_cli import files
from cdcca_cli.errors import CannotWrite, CdccaError, MissingInput, Unavailable, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

NOT_HERE = "expected a path on this machine, found an address"
_PIPE = "pipe:"
_FILE = "file://"
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)(?:::.*)?://", re.I | re.S)
_STORES = {"abfs", "abfss", "az", "dbfs", "dropbox", "file", "gcs", "gdrive", "gs", "hdfs", "hf"}
_STORES |= {"lakefs", "local", "memory", "oci", "oss", "s3", "s3a", "tos", "webdav", "webhdfs"}
"""The protocols of files. The others can also be streams of a camera, such as https."""
_PACKAGES = {"az": "adlfs", "gcs": "gcsfs", "gs": "gcsfs", "hf": "huggingface_hub", "s3": "s3fs"}
_PACKAGES |= {"abfs": "adlfs", "http": "aiohttp", "https": "aiohttp", "s3a": "s3fs"}
_CUT = frozenset((-signal.SIGPIPE, 128 + signal.SIGPIPE))  # a reader that has had enough
_BUFFER_BYTES = 1 << 16
_SHOWN_CHARS = 200


def is_address(name: object) -> bool:
    """Whether this is a name for `reading` and `writing`, rather than a path."""
    return isinstance(name, str) and (name.startswith(_PIPE) or bool(_ADDRESS.match(name)))


def is_file_address(name: object) -> bool:
    """Whether this is an address that can only be a file, and no camera or stream."""
    if not (isinstance(name, str) and is_address(name)):
        return False
    protocol = _protocol(name)
    return name.startswith(_PIPE) or "::" in name or protocol in _STORES


def _protocol(name: str) -> str:
    found = _ADDRESS.match(name)
    return found[1].lower() if found else ""


def path_of(name: str | Path) -> str | Path:
    """PATH for `file://PATH`; other names as they are."""
    if isinstance(name, str) and name.startswith(_FILE):
        return name.removeprefix(_FILE) or name
    return name


def shown(name: str) -> str:
    """An address for messages: no password, no parameters (they may sign a request), not long."""
    if not name.startswith(_PIPE):
        name = re.sub(r"//[^/]*@", "//", name)
        name = re.sub(r"\?.*", "?...", name, flags=re.S)
    return name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}..."


class _Checked(io.RawIOBase):
    """A stream whose faults name it.

    at_end: called with the number of bytes where it ends, to raise if that is too early.
    """

    def __init__(self, stream: Any, name: str, at_end: Callable[[int], None]) -> None:
        self._stream, self._name, self._at_end = stream, name, at_end
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        with _faults(self._name, MissingInput):
            piece = self._stream.read(len(view))
        if not piece:
            self._at_end(self.num_bytes)
            return 0
        view[: len(piece)] = piece
        self.num_bytes += len(piece)
        return len(piece)


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """The bytes of an address. Raises: MissingInput, also where it is cut short; Unavailable."""
    opened = _from_command(name) if name.startswith(_PIPE) else _from_store(name)
    with opened as raw, io.BufferedReader(raw, _BUFFER_BYTES) as source:
        yield source


@contextmanager
def _from_command(name: str) -> Iterator[io.RawIOBase]:
    with tempfile.TemporaryFile(prefix="cdcca-") as said:
        running = _start(name, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)

        def at_end(_: int = 0) -> None:
            if running.wait() not in (0, *_CUT):
                raise MissingInput(_ending(name, running.returncode, said))

        try:
            yield _Checked(running.stdout, name, at_end)
            cast(BinaryIO, running.stdout).close()
            at_end()
        finally:
            cast(BinaryIO, running.stdout).close()
            running.kill()
            running.wait()


def _start(name: str, **streams: Any) -> subprocess.Popen[bytes]:
    command = name.removeprefix(_PIPE)
    if not command.strip():
        raise UsageError(f"{name}: expected {_PIPE}COMMAND")
    try:
        return subprocess.Popen(in_shell(command), bufsize=0, **streams)
    except (OSError, ValueError) as error:
        raise Unavailable(files.reason(shown(name), error)) from None


def in_shell(command: str) -> list[str]:
    """The command line that runs a command in a shell: bash with pipefail where there is one."""
    bash = shutil.which("bash")
    return [*([bash, "-o", "pipefail"] if bash else ["/bin/sh"]), "-c", command]


def _ending(name: str, status: int, said: BinaryIO) -> str:
    """How a command ended, and the first line that it wrote to stderr."""
    said.seek(0)
    lines = [line.strip() for line in said.read(4096).decode("utf-8", "replace").splitlines()]
    first = next(filter(None, lines), "it wrote nothing to stderr")
    how = f"exit status {status}" if status >= 0 else f"ended by signal {-status}"
    return f"{shown(name)}: {how}: {first[:300]}"


@contextmanager
def _from_store(name: str) -> Iterator[io.RawIOBase]:
    system, path = _store(name)
    with _faults(name, MissingInput):
        stream = system.open(path, "rb")
    size = getattr(stream, "size", None)

    def at_end(num_bytes: int) -> None:
        if isinstance(size, int) and num_bytes < size:
            raise MissingInput(f"{shown(name)}: {num_bytes:,} of {size:,} bytes came: try again")

    try:
        yield _Checked(stream, name, at_end)
    finally:
        stream.close()


def _store(name: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises: Unavailable, UsageError, MissingInput."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        cure = "pip install 'cdcca[remote]'"
        raise Unavailable(f"{shown(name)}: needs the package fsspec: {cure}") from None
    with _faults(name, MissingInput):
        system, path = url_to_fs(name)
    return system, path


@contextmanager
def _faults(name: str, error_class: type[CdccaError]) -> Iterator[None]:
    """Name any exception of fsspec and the packages below it, which have classes of their own."""
    try:
        yield
    except (CdccaError, MemoryError):
        raise
    except FileNotFoundError:
        raise error_class(f"{shown(name)}: no such file") from None
    except ImportError as error:
        package = _PACKAGES.get(_protocol(name))
        cure = f"pip install {package}" if package else str(error)
        raise Unavailable(f"{shown(name)}: needs a package that is not here: {cure}") from None
    except Exception as error:
        words = " ".join((getattr(error, "strerror", None) or str(error)).split())
        if isinstance(error, ValueError) and words.startswith("Protocol not known"):
            raise UsageError(f"{shown(name)}: {words.lower()}") from None
        kind = type(error).__name__
        raise error_class(f"{shown(name)}: {kind}: {words[:300] or 'no reason given'}") from None


@contextmanager
def writing(name: str) -> Iterator[BinaryIO]:
    """Where an address is written as a whole, at the end. Raises: CannotWrite, Unavailable."""
    send = _to_command if name.startswith(_PIPE) else _to_store(name)
    folder = Path(tempfile.mkdtemp(prefix="cdcca-"))
    copy = folder / _basename(name)
    is_kept = False
    try:
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with files.buffered(descriptor, f"{copy}, to be sent to {shown(name)}") as out:
            yield out
        try:
            send(name, copy)
        except CdccaError as error:
            is_kept = True
            raise CannotWrite(f"{error} (the output is kept as {copy})") from None
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def _to_command(name: str, copy: Path) -> None:
    with open(copy, "rb") as source, tempfile.TemporaryFile(prefix="cdcca-") as said:
        running = _start(name, stdin=source, stdout=2, stderr=said)  # stdout is data's
        try:
            status = running.wait()
        finally:
            running.kill()
            running.wait()
        if status:
            raise CannotWrite(_ending(name, status, said))


def _to_store(name: str) -> Callable[[str, Path], None]:
    system, path = _store(name)  # before the work, so that a missing package is found at once

    def send(name: str, copy: Path) -> None:
        with _faults(name, CannotWrite):
            system.put_file(str(copy), path)

    return send


def _basename(name: str) -> str:
    """What a file from here is called: the last part of an address."""
    if name.startswith(_PIPE):
        return "pipe"
    last = re.split(r"[?#]", name)[0].rstrip("/").rpartition("/")[2]
    return last[-100:] if last.strip(".") else "file"


_copies: dict[str, Path] = {}


def local(name: str | Path) -> Path:
    """The path itself, or a copy of what an address holds: made once, removed by `remove_copies`.

    The copy has the address's last part as its name. Its time of change is a digest of its content,
    by which `sample --state` knows it again. Raises: as `reading`; CannotWrite.
    """
    plain = path_of(name)
    if not isinstance(plain, str) or not is_address(plain):
        return Path(plain)
    if plain not in _copies:
        folder = Path(tempfile.mkdtemp(prefix="cdcca-"))
        copy = folder / _basename(plain)
        try:
            _copy(plain, copy)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _copies[plain] = copy
    return _copies[plain]


def _copy(name: str, copy: Path) -> None:
    digest = hashlib.sha256()
    descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with reading(name) as source, files.buffered(descriptor, f"{copy}, of {shown(name)}") as out:
        while piece := source.read(1 << 20):
            digest.update(piece)
            out.write(piece)
    os.utime(copy, ns=(0, int.from_bytes(digest.digest()[:7], "big")))


def is_copy(path: Path) -> bool:
    """Whether `local` has made this file: what lay beside it is not here."""
    return path in _copies.values()


def without_copies(text: str) -> str:
    """A message with the addresses in place of their copies."""
    for name, copy in _copies.items():
        text = text.replace(str(copy), shown(name))
    return text


def remove_copies() -> None:
    """Remove what `local` has made; at the end of `main`."""
    while _copies:
        _, copy = _copies.popitem()
        shutil.rmtree(copy.parent, ignore_errors=True)


atexit.register(remove_copies)
