"""The folder of an export: put in place as a whole, or left as it was. POSIX only.

Its files are written into a hidden folder beside it, and synced; then the two exchange their names
in one step (Linux's renameat2), so that a reader finds all files of the old export or all of the
new one, even after the power failed. Where the file system cannot exchange, the old folder is
renamed first; if a process dies between the two renames, the next export puts it back.

export.json, version 1: JSON in UTF-8, one object, all keys always present.

    kind "export", version 1
    to          the target
    device      {"model", "overlay": digests, "sequence", "groups", "alpha", "rank"}
    files       {name: {"bytes", "sha256"}} of all other files in the folder
    inputs      {name: {"path", "sha256"}} of the runtime's files that it was made from
    placed      {group: number of the overlay's tensors that arrive}
    dropped     {group: {"tensors": names, "share": of the change's norm, or null if unknown}}
    unchecked   list of what the preflight could not compare, in words
    probe       null, or what the effect check compares with (`probe`)
    command     how the runtime is started in this folder, as a list of words, or null
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import EXPORT_FILE as FILE_NAME
from cdcca_cli.text import read_json

VERSION = 1
_MOST_BYTES = 1 << 24
_PIECE = 1 << 20
_HIDDEN = re.compile(r"\.[0-9a-f]{12}")
_OLD = ".before-export"
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


class Fresh:
    """An empty folder beside the export's; `finish` puts it in its place."""

    def __init__(self, path: Path, target: Path, named: Path) -> None:
        self.path, self._target, self._named = path, target, named

    def finish(self, record: Mapping[str, Any]) -> None:
        """Add export.json, sync all, and take the place of the export before. CannotWrite."""
        text = records.dump_json(record)
        files.atomic_write_bytes(self.path / FILE_NAME, f"{text}\n".encode())
        try:
            for each in self.path.rglob("*"):
                _sync_file(each)
            files.sync_folder(self.path)
            if self._target.exists():
                os.chmod(self.path, stat.S_IMODE(self._target.stat().st_mode))
            _put(self.path, self._target)
            files.sync_folder(self._target.parent)
        except OSError as error:
            raise CannotWrite(files.reason(self._named, error)) from None


@contextmanager
def fresh(out: Path) -> Iterator[Fresh]:
    """A new hidden folder beside `out`, removed in the end unless it has taken its place.

    `out` may be missing, empty, or an earlier export with nothing else in it. Raises: CannotWrite.
    """
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise CannotWrite(f"{out}: there is no folder {target.parent}: make it first")
    recover(target)
    _refuse_taken(out, target)
    hidden = f".{target.name[:100]}"
    _remove_leftovers(target.parent, hidden)
    path, descriptor = _hidden_folder(out, target.parent / hidden)
    try:
        yield Fresh(path, target, out)
    finally:
        try:
            _remove(path)  # after an exchange this is the old export
        finally:
            os.close(descriptor)


def recover(target: Path) -> None:
    """Put an old export back whose place was left empty between two renames."""
    old = _beside(target)
    with suppress(OSError):
        if not os.path.lexists(target):
            os.replace(old, target)
        else:
            _remove(old)


def record(path: Path, to: str, device: Device, part: Mapping[str, Any]) -> dict[str, Any]:
    """What export.json holds. Args: part: what the target's `write` gave."""
    names = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
    names = [name for name in names if name != FILE_NAME]
    described = {
        "model": device.model,
        "overlay": device.digest,
        "sequence": device.sequence,
        "groups": list(device.settings.groups),
        "alpha": device.lora.alpha,
        "rank": device.lora.rank,
    }
    usual: dict[str, Any] = {"inputs": {}, "placed": {}, "dropped": {}, "unchecked": []}
    return {
        "kind": "export",
        "version": VERSION,
        "to": to,
        "device": described,
        "files": {
            name: {"bytes": (path / name).stat().st_size, "sha256": file_digest(path / name)}
            for name in names
        },
        **usual,
        "probe": None,
        "command": None,
        **part,
    }


_HINTS = records.HEAD | {"to": str, "device": dict, "files": dict, "inputs": dict}
_HINTS |= {"placed": dict, "dropped": dict, "unchecked": list[str]}
_HINTS |= {"probe": dict | None, "command": list[str] | None}
_DEVICE: dict[str, Any] = {
    "model": str | None,
    "overlay": str,
    "sequence": int,
    "groups": list[str],
}
_DEVICE |= {"alpha": float, "rank": int}
_FILE, _INPUT = {"bytes": int, "sha256": str}, {"path": str, "sha256": str}


def read_record(path: Path) -> dict[str, Any]:
    """What an export's folder says of itself. MissingInput, BadData, NewerFormat."""
    where = str(path / FILE_NAME)
    value = read_json(path / FILE_NAME, _MOST_BYTES)
    if not isinstance(value, dict) or value.get("kind") != "export":
        raise BadData(f"{where}: is no export of cdcca")
    version = records.field(value, "version", int, where)
    records.check_version(version, VERSION, "export format", where)
    found = records.fields(value, _HINTS, where)
    records.fields(found["device"], _DEVICE, f"{where}: device")
    for name, hints in (("files", _FILE), ("inputs", _INPUT)):
        for one in found[name].values():
            records.fields(one, hints, f"{where}: {name}")
    return found


def is_whole(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether the files of an export, and those that it was made from, are as they were."""
    paths = {out / name: one for name, one in record["files"].items()}
    paths |= {Path(one["path"]): one for one in record["inputs"].values()}
    try:
        return all(file_digest(path) == one["sha256"] for path, one in paths.items())
    except MissingInput:
        return False


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, "sha256:<64 hex digits>". Raises: MissingInput."""
    sha = hashlib.sha256()
    try:
        with open(path, "rb") as source:
            while piece := source.read(_PIECE):
                sha.update(piece)
    except OSError as error:
        raise MissingInput(files.reason(path, error)) from None
    return f"sha256:{sha.hexdigest()}"


def _refuse_taken(out: Path, target: Path) -> None:
    try:
        names = _names(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWrite(files.reason(out, error)) from None
    if target.samefile(os.curdir):  # whoever is in it would be left in the old one
        raise CannotWrite(f"{out}: is the working folder: export from outside of it")
    if not names:
        return
    try:
        listed = read_record(target)["files"]
    except NewerFormat:
        raise
    except (BadData, MissingInput):
        raise CannotWrite(
            f"{out}: has other things in it than an export of cdcca: name a new folder"
        ) from None
    if others := sorted(set(names) - {FILE_NAME, *listed}):
        raise CannotWrite(f"{out}: has files that are not of an export, as {others[0]}: move them")


def _names(folder: Path) -> list[str]:
    """All in a folder but folders with something in them. Raises: OSError."""
    found = []
    for each in folder.iterdir():
        inner = _names(each) if each.is_dir() and not each.is_symlink() else []
        found += [f"{each.name}/{name}" for name in inner] or [each.name]
    return found


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(path: Path, target: Path) -> None:
    """Give a folder the name of another, or of none. Raises: OSError."""
    if not target.exists():
        os.replace(path, target)
    elif not exchange(path, target):
        old = _beside(target)
        os.replace(target, old)
        try:
            os.replace(path, target)
        except BaseException:
            os.replace(old, target)
            raise
        os.replace(old, path)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders exchange their names in one step; False where that cannot be done.

    Raises: OSError for another reason.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = (_HERE, os.fsencode(one), _HERE, os.fsencode(other))
    if call(*names, ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _beside(target: Path) -> Path:
    return target.parent / f".{target.name[:100]}{_OLD}"


def _hidden_folder(named: Path, prefix: Path) -> tuple[Path, int]:
    """A new locked folder whose name begins with `prefix`, and its descriptor. CannotWrite."""
    while True:
        path = Path(f"{prefix}.{os.urandom(6).hex()}")
        try:
            os.mkdir(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            _remove(path)
            raise CannotWrite(files.reason(named, error)) from None
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():  # else another export has taken it for a leftover
            return path, descriptor
        os.close(descriptor)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove the unlocked hidden folders of exports that were killed."""
    with suppress(OSError):
        for path in folder.iterdir():
            rest = path.name.removeprefix(prefix)
            if rest != path.name and _HIDDEN.fullmatch(rest) and path.is_dir():
                with suppress(OSError):
                    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _remove(path)
                    finally:
                        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a folder, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)
