"""What a disk may hold after the power failed: a record of a program's calls, and every state.

The model, harsher than any file system in use:

- Nothing is on the disk before an fsync asks for it, and anything may be.
- Data of a file: after an fsync of the file, all that was written before is there. What was written
  since may be missing, write by write in any combination, with zeros or garbage in its place, or
  cut off half-way; or the file is empty.
- Names in a folder: after an fsync of the folder, each name is as it was then. Every change since
  (a file made, renamed, deleted) may have come or not, in any combination, those of one rename
  among them: the new name may be there with the old one gone or not, or the old one gone without
  the new. One name goes from what it was to what it becomes in one step: after a rename it stands
  for the old file or for the new one, never for none. An fsync of a file is none of its name.
- Both hold after every single call: the power may fail between any two.

The bytes that are on the disk at the beginning stay. The model knows folders of one level each,
and no permissions. A folder that is made is a name in the folder above it: without that name, all
that is in it is lost.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tests.downlink.calls import Killed, Real, between

Tree = frozenset[tuple[str, bytes]]
"""Every file of a folder by its path, and what is in it."""
_FOLDER = 1 << 60  # in place of a file's number


@dataclass(frozen=True)
class Operation:
    """One call: "make" (name, file), "write" (file, data), "sync" (file), "rename" (from, to),
    "delete" (name), "make folder" (name), "sync folder" (folder), or "done", which is no call: the
    program has answered.

    Names are relative to the folder that is watched; files are numbered in the order of appearance.
    """

    kind: str
    name: str = ""
    file: int = -1
    to: str = ""
    data: bytes = b""


@dataclass
class Log:
    """What a program did to a folder, from where."""

    before: dict[str, bytes]
    operations: list[Operation] = field(default_factory=list)

    def syncs(self) -> list[int]:
        """Where it asked the disk for anything."""
        return [n for n, made in enumerate(self.operations) if made.kind.startswith("sync")]

    def without(self, number: int) -> "Log":
        """The log of a program that leaves this call out."""
        return Log(self.before, self.operations[:number] + self.operations[number + 1 :])


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def record(folder: Path, *work: Callable[[], object]) -> Log:
    """Do the work, and note what it does to the folder; "done" after each piece of it that was not
    Killed.
    """
    log = Log(files_of(folder))
    files: dict[int, int] = {}  # numbers of those that are open for writing, by descriptor
    folders: dict[int, str] = {}
    count = 0

    def name(path: Any) -> str:
        return os.path.relpath(path, folder)

    def note(call: str, real: Real, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        nonlocal count
        first = arguments[0]
        was_there = call == "open" and os.path.lexists(first)
        done = real(*arguments, **options)
        if call == "open":
            files.pop(done, None)
            folders.pop(done, None)
            if arguments[1] & os.O_DIRECTORY:
                folders[done] = name(first)
            elif arguments[1] & (os.O_WRONLY | os.O_RDWR):
                assert not arguments[1] & (os.O_TRUNC | os.O_APPEND)
                files[done], count = count, count + 1
                if not was_there:
                    log.operations.append(Operation("make", name(first), files[done]))
        elif call == "write":
            data = bytes(memoryview(arguments[1])[:done])
            log.operations.append(Operation("write", file=files[first], data=data))
        elif call == "fsync" and first in folders:
            log.operations.append(Operation("sync folder", folders[first]))
        elif call == "fsync":
            log.operations.append(Operation("sync", file=files[first]))
        elif call == "replace":
            log.operations.append(Operation("rename", name(first), to=name(arguments[1])))
        elif call == "mkdir":
            log.operations.append(Operation("make folder", name(first)))
        else:
            log.operations.append(Operation("delete", name(first)))
        return done

    for piece in work:
        with suppress(Killed), between(note):
            piece()
            log.operations.append(Operation("done"))
    return log


class _Disk:
    """What is known of the disk after some calls."""

    def __init__(self, before: dict[str, bytes]) -> None:
        self._synced: dict[int, bytes] = {-1 - n: data for n, data in enumerate(before.values())}
        self._synced[_FOLDER] = b""
        self._written: dict[int, list[bytes]] = {}
        now = {name: -1 - n for n, name in enumerate(before)}
        self._names: dict[str, list[int | None]] = {name: [file] for name, file in now.items()}

    def do(self, made: Operation) -> None:
        if made.kind == "make":
            self._synced[made.file] = b""
            self._becomes(made.name, made.file)
        elif made.kind == "write":
            self._written.setdefault(made.file, []).append(made.data)
        elif made.kind == "sync":
            data = b"".join(self._written.pop(made.file, []))
            self._synced[made.file] += data
        elif made.kind == "rename":
            self._becomes(made.to, self._names[made.name][-1])
            self._becomes(made.name, None)
        elif made.kind == "make folder":
            self._becomes(made.name, _FOLDER)
        elif made.kind == "delete":
            self._becomes(made.name, None)
        elif made.kind == "sync folder":
            for name, values in self._names.items():
                if (os.path.dirname(name) or ".") == made.name:
                    del values[:-1]

    def _becomes(self, name: str, file: int | None) -> None:
        self._names.setdefault(name, [None]).append(file)

    def as_asked(self) -> Tree:
        """What is there if everything has reached the disk."""
        return frozenset(
            (name, self._synced[file] + b"".join(self._written.get(file, [])))
            for name, values in self._names.items()
            if (file := values[-1]) not in (None, _FOLDER)
        )

    def after_power_loss(self) -> Iterator[Tree]:
        """Every state that may be found; some more than once."""
        names = sorted(self._names)
        for chosen in product(*(dict.fromkeys(self._names[name]) for name in names)):
            files = dict(zip(names, chosen, strict=True))
            lost = {n for n in names if _FOLDER in self._names[n] and files[n] is None}
            there = {
                n: file
                for n, file in files.items()
                if file not in (None, _FOLDER) and os.path.dirname(n) not in lost
            }
            numbers = sorted(set(there.values()))
            for contents in product(*(self._contents(file) for file in numbers)):
                data = dict(zip(numbers, contents, strict=True))
                yield frozenset((name, data[file]) for name, file in there.items())

    def _contents(self, file: int) -> list[bytes]:
        synced, written = self._synced[file], self._written.get(file, [])
        if not written:
            return [synced]
        found = [synced]
        for lost in product((None, b"\0", b"\xa5"), repeat=len(written)):
            pieces = [
                data if mark is None else mark * len(data)
                for data, mark in zip(written, lost, strict=True)
            ]
            whole = synced + b"".join(pieces)
            found += [whole, whole[: len(synced) + (len(whole) - len(synced)) // 2]]
            found.append(synced + b"".join(pieces[:-1]))
        return list(dict.fromkeys(found))


def as_asked(log: Log) -> Tree:
    """What is there in the end if the power stays."""
    disk = _Disk(log.before)
    for made in log.operations:
        disk.do(made)
    return disk.as_asked()


def after_power_loss(log: Log) -> Iterator[tuple[int, Tree]]:
    """Every state after every call, and how often the program had answered by then; each once."""
    disk, answered = _Disk(log.before), 0
    seen: set[tuple[int, Tree]] = set()
    for made in [None, *log.operations]:
        if made is not None:
            disk.do(made)
            answered += made.kind == "done"
        for tree in disk.after_power_loss():
            if (answered, tree) not in seen:
                seen.add((answered, tree))
                yield answered, tree
