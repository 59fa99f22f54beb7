"""Atomic, durable writing of files, with errors that name the file. POSIX only.

A file is written beside its target under a hidden name, fsynced, then renamed; an error leaves the
target unchanged. The hidden file is locked (flock) while it is written, so the next write of the
same target can remove the leftovers of a killed process. Devices (/dev/null), pipes and sockets are
written directly, because a rename would replace them.
"""

import errno
import fcntl
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cdcca_cli.errors import CannotWrite

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES})
"""An OSError with one of these, without a file name, concerns the output."""
_HIDDEN = re.compile(r"[0-9a-f]{12}")


class Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


def reason(path: str | Path, error: OSError | ValueError) -> str:
    """The file's name and the system's reason."""
    words = error.strerror if isinstance(error, OSError) else str(error)
    return f"{path}: {(words or 'cannot be opened').lower()}"


class _Sink(io.RawIOBase):
    """A file descriptor whose errors name the file.

    Once abandoned it writes nothing, so closing a buffer after an error neither blocks nor fails.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self.is_abandoned = False

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        if self.is_abandoned:
            return len(memoryview(data))
        try:
            return os.write(self._descriptor, data)
        except BrokenPipeError:  # the reader went away: no fault of the output
            raise
        except OSError as error:
            raise CannotWrite(reason(self._name, error)) from None


@contextmanager
def output(
    path: str | Path,
    *,
    must_sync_folder: bool = False,
    append: Callable[[BinaryIO], object] | None = None,
) -> Iterator[BinaryIO]:
    """Write a file as a whole: beside the target, fsync, rename. Raises: CannotWrite.

    Args:
        must_sync_folder: fail if the rename cannot be made durable.
        append: keep what is in the file and write behind it. Called first with the open file,
            unless it is missing or empty, to refuse it. A second process that appends to the same
            file meanwhile is refused: CannotWrite.
    """
    target, status = _target(path)
    folder = os.path.dirname(target)
    if status is not None and not stat.S_ISREG(status.st_mode):
        with buffered(_opened(path, target, os.O_WRONLY), str(path)) as out:
            yield out
        return
    hidden = os.path.join(folder, f".{os.path.basename(target)[:100]}.")
    _remove_leftovers(hidden)
    descriptor, beside = _hidden_file(path, hidden)
    try:
        with buffered(descriptor, str(path)) as out, ExitStack() as held:
            if append is not None and status is not None:
                existing = held.enter_context(_locked(path, target))
                if os.fstat(existing.fileno()).st_size:
                    append(existing)
                    _copy(existing, out, path)
            yield out
            out.flush()
            if status is not None:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            try:
                os.fsync(descriptor)
                os.replace(beside, target)
            except OSError as error:
                raise CannotWrite(reason(path, error)) from None
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    try:
        sync_folder(folder)
    except OSError as error:
        if must_sync_folder:
            raise CannotWrite(reason(path, error)) from None


def check_output(path: str | Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it will hold. CannotWrite.

    Nothing is written: `output` may still fail.
    """
    target, status = _target(path)
    is_file = status is None or stat.S_ISREG(status.st_mode)
    if not os.access(os.path.dirname(target) if is_file else target, os.W_OK):
        raise CannotWrite(f"{path}: permission denied")


def _target(path: str | Path) -> tuple[str, os.stat_result | None]:
    """The file that a path leads to, and its status if it exists. Raises: CannotWrite."""
    try:
        target = os.path.realpath(path)
        status = os.stat(target)
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:
        raise CannotWrite(reason(path, error)) from None
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise CannotWrite(f"{path}: is a folder: give the name of a file")
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise CannotWrite(f"{path}: there is no folder {folder}: make it first")
    return target, status


@contextmanager
def _locked(named: str | Path, path: str) -> Iterator[BinaryIO]:
    """An open file that no other process appends to. Raises: CannotWrite."""
    while True:
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise CannotWrite(reason(named, error)) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotWrite(f"{named}: another process is adding to it") from None
            except OSError:  # a file system without locks
                pass
            if _is_named(file.fileno(), path):  # else another has replaced it since it was opened
                yield file
                return


def _copy(source: BinaryIO, out: BinaryIO, named: str | Path) -> None:
    source.seek(0)
    while True:
        try:
            piece = source.read(1 << 20)
        except OSError as error:
            raise CannotWrite(reason(named, error)) from None
        if not piece:
            return
        out.write(piece)


def _hidden_file(named: str | Path, prefix: str) -> tuple[int, str]:
    """A new locked file whose name begins with `prefix`: descriptor and name. Raises: CannotWrite.

    Another process may remove it as a leftover before it is locked; then it makes another.
    """
    while True:
        beside = prefix + os.urandom(6).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = _opened(named, beside, flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nothing is removed there
            return descriptor, beside
        if _is_named(descriptor, beside):
            return descriptor, beside
        os.close(descriptor)


def _remove_leftovers(prefix: str) -> None:
    """Remove unlocked hidden files whose names begin with `prefix`: killed processes left them."""
    folder, start = os.path.split(prefix)
    with suppress(OSError):
        names = [name for name in os.listdir(folder) if name.startswith(start)]
        for name in names:
            if _HIDDEN.fullmatch(name, len(start)):
                with suppress(OSError):
                    _remove_unlocked(os.path.join(folder, name))


def _remove_unlocked(path: str) -> None:
    """Remove a hidden file unless a process is writing it. Raises: OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(descriptor, path):  # a writer may have renamed it before the lock
            os.unlink(path)
    finally:
        os.close(descriptor)


def _is_named(descriptor: int, path: str) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _opened(named: str | Path, path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        raise CannotWrite(reason(named, error)) from None


@contextmanager
def buffered(descriptor: int, name: str) -> Iterator[BinaryIO]:
    """A buffered writer that owns the descriptor; after an error its buffer is dropped."""
    raw = _Sink(descriptor, name)
    out = io.BufferedWriter(raw, 1 << 16)
    try:
        yield out
        out.flush()
    finally:
        raw.is_abandoned = True
        out.close()
        os.close(descriptor)


def size_of(path: str | Path) -> int:
    """Bytes of a file; 0 if there is none of this name."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def sync_folder(folder: str | Path) -> None:
    """Make a rename durable, where the file system supports it; OSError if that fails."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace a file as a whole; on return it is on the disk under its name. CannotWrite."""
    with output(path, must_sync_folder=True) as out:
        out.write(data)


def create_file(path: Path, data: bytes, mode: int) -> None:
    """Make a new file, durably and with these permissions. Raises: CannotWrite."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except (OSError, ValueError) as error:
        raise CannotWrite(reason(path, error)) from None
    try:
        with buffered(descriptor, str(path)) as out:
            out.write(data)
            out.flush()
            os.fsync(descriptor)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise CannotWrite(reason(path, error)) from None
        raise


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they do not exist. Raises: CannotWrite."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise CannotWrite(reason(path, error)) from None
