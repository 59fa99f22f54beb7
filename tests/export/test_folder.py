"""The folder of an export is the old one or the new one, whatever happens in between.

Exhaustive: every system call of an export is made to fail, or is the last before the process is
killed, with the exchange of names and where the file system has none.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cdcca_cli.errors import BadData, CannotWrite, CdccaError
from cdcca_cli.export import folder
from cdcca_cli.formats.device import Device
from tests.downlink.calls import Killed

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir", "chmod")
GOLDEN = Path(__file__).parents[1] / "golden" / "devices" / "llama"
OLD = {"a.gguf": b"old adapter", "b.gguf": b"old model"}
NEW = {"a.gguf": b"new adapter", "c.gguf": b"new mmproj"}
Fault = Callable[[], None]


def export(out: Path, data: dict[str, bytes]) -> None:
    with folder.fresh(out) as made:
        for name, content in data.items():
            with open(made.path / name, "wb", buffering=0) as file:
                os.write(file.fileno(), content)
        made.finish(folder.record(made.path, "gguf", Device.open(GOLDEN), {}))


def state(out: Path) -> dict[str, bytes] | None:
    """The files of an export, which its export.json lists; None if there is none."""
    if not out.exists():
        return None
    found = {file.name: file.read_bytes() for file in out.iterdir()}
    if not found:
        return {}
    listed = folder.read_record(out)["files"]
    assert found.keys() - {"export.json"} == listed.keys()
    for name, one in listed.items():
        assert one == {"bytes": len(found[name]), "sha256": folder.file_digest(out / name)}
    return {name: data for name, data in found.items() if name != "export.json"}


@contextmanager
def between(what: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `what(name, arguments)` before every system call that changes files."""

    def through(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            what(name, arguments)
            return real(*arguments, **options)

        return call

    with (
        mock.patch.multiple(os, **{name: through(name, getattr(os, name)) for name in CALLS}),
        mock.patch.object(folder, "exchange", through("exchange", folder.exchange)),
    ):
        yield


def fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill() -> None:
    raise Killed


@contextmanager
def faulty(number: int, fault: Fault, forever: bool) -> Iterator[list[str]]:
    """Faults at the call of this number, 1 being the first, and at all later ones if `forever`."""
    made: list[str] = []

    def count(name: str, arguments: tuple[Any, ...]) -> None:
        made.append(name)
        if len(made) == number or (forever and len(made) > number):
            fault()

    with between(count):
        yield made


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "exchange":
        yield request.param
        return
    with mock.patch.object(folder, "exchange", lambda one, other: False):
        yield request.param


@pytest.mark.parametrize("before", ["none", "empty", "old"])
@pytest.mark.parametrize(
    ("fault", "forever"),
    [(fail, False), (fail, True), (kill, True)],
    ids=["once", "full", "killed"],
)
def test_a_fault_at_every_call(
    tmp_path: Path, way: str, before: str, fault: Fault, forever: bool
) -> None:
    number, calls = 0, 1
    while number <= calls:
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        if before == "empty":
            out.mkdir()
        elif before == "old":
            export(out, OLD)
        first = state(out)
        outcome: object = "done"
        with faulty(number or 1 << 30, fault, forever) as made:
            try:
                export(out, NEW)
            except (CdccaError, OSError, Killed) as error:
                outcome = error
        calls = max(calls, len(made))
        if out.exists() or before == "none":
            assert state(out) in (first, NEW), number
        else:
            # Between two renames; the next export begins with this.
            assert way == "two renames" and forever
            folder.recover(out)
            assert state(out) == first
        if outcome == "done":
            assert state(out) == NEW
        export(out, NEW)
        assert state(out) == NEW
        assert sorted(each.name for each in out.parent.iterdir()) == ["out"], number
        number += 1
    assert calls > 12


def test_nothing_is_put_in_place_before_it_is_on_the_disk(tmp_path: Path) -> None:
    """A power failure may lose what was not synced: data before the names, names before the end."""
    out = tmp_path / "out"
    export(out, OLD)
    log: list[tuple[str, str]] = []

    def note(name: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0])
        if name in ("write", "fsync"):
            path = os.readlink(f"/proc/self/fd/{arguments[0]}")
        log.append((name, path))

    with between(note):
        export(out, NEW)
    (swap,) = [place for place, (name, _) in enumerate(log) if name == "exchange"]
    hidden = log[swap][1]
    synced = [path for name, path in log[:swap] if name == "fsync"]
    for name in NEW:
        assert f"{hidden}/{name}" in synced
    assert any(path.startswith(f"{hidden}/.export.json") for path in synced)
    last_name = max(
        place
        for place, (name, path) in enumerate(log[:swap])
        if name == "replace" and hidden in path
    )
    assert hidden in [path for name, path in log[last_name:swap] if name == "fsync"]
    last_write = max(place for place, (name, _) in enumerate(log[:swap]) if name == "write")
    assert last_write < last_name
    after = [path for name, path in log[swap:] if name in ("fsync", "unlink")]
    assert after[0] == str(tmp_path), "the names are durable before the old files go"


def test_two_folders_exchange_their_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "a").touch()
    if not folder.exchange(one, other):
        pytest.skip("this file system cannot exchange names")
    assert (other / "a").exists() and not (one / "a").exists()
    with pytest.raises(OSError):
        folder.exchange(one, tmp_path / "none")


def test_other_folders_are_not_touched(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("dear")
    file = tmp_path / "file"
    file.write_text("x")
    for out in (taken, file, tmp_path / "none" / "out"):
        with pytest.raises(CannotWrite):
            export(out, NEW)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "taken"]
    assert [each.name for each in taken.iterdir()] == ["letter.txt"]


def test_what_somebody_put_into_an_export_is_not_removed(tmp_path: Path) -> None:
    """Such as the base: the folder that is exchanged is removed with all that is in it."""
    out = tmp_path / "out"
    export(out, OLD)
    base = out / "sub" / "base.gguf"
    base.parent.mkdir()
    base.write_bytes(b"base")
    with pytest.raises(CannotWrite, match=r"sub/base\.gguf"):
        export(out, NEW)
    assert base.read_bytes() == b"base" and (out / "a.gguf").read_bytes() == OLD["a.gguf"]
    base.unlink()
    with pytest.raises(CannotWrite, match="sub"):
        export(out, NEW)
    base.parent.rmdir()
    export(out, NEW)
    assert state(out) == NEW


def test_the_working_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in it would be left in the folder that is removed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotWrite, match="working folder"):
        export(Path(), NEW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"a.gguf": 3}},
        {"files": {"a.gguf": {"bytes": "1", "sha256": ""}}},
        {"inputs": {"base": None}},
        {"device": {}},
        {"probe": []},
        {"command": [1]},
    ],
)
def test_a_record_that_lies_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    export(tmp_path / "out", OLD)
    path = tmp_path / "out" / folder.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadData):
        folder.read_record(tmp_path / "out")


def test_a_link_to_an_export_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    export(real, OLD)
    real.chmod(0o750)
    link.symlink_to(real)
    export(link, NEW)
    assert link.is_symlink() and state(real) == NEW
    assert real.stat().st_mode & 0o777 == 0o750


def test_an_export_at_work_is_no_leftover(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder.fresh(out) as one:
        export(out, OLD)
        assert one.path.exists()
        (one.path / "a.gguf").write_bytes(NEW["a.gguf"])
        one.finish(folder.record(one.path, "gguf", Device.open(GOLDEN), {}))
    assert state(out) == {"a.gguf": NEW["a.gguf"]}
