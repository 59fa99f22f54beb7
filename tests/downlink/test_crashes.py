"""`apply` cut off at each of its system calls: an error, a full disk, a signal, a kill.

Exhaustive: every call of every kind of change, every fault. Whatever happens, the folder is whole
and in the old state or in the new one, highest_sequence with it; what was cut off can be done
again, and the next change leaves nothing behind. What a power failure adds is `test_lost_pages`'s.
"""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.errors import CannotWrite
from cdcca_cli.formats.device import Device
from tests.downlink import changes, worlds
from tests.downlink.calls import Killed, Real, between, not_synced, unsynced
from tests.downlink.changes import CHANGES, Change

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


@pytest.fixture(scope="module", params=CHANGES)
def change(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Change:
    return CHANGES[request.param](tmp_path_factory.mktemp(request.param), request.param)


Call = tuple[str, Real, tuple[Any, ...], dict[str, Any]]
Fault = Callable[..., Any]


def applied(change: Change, folder: Path, number: int, fault: Fault) -> tuple[int, object]:
    """Apply, with `fault(number of the call - number, *call)` in place of the calls from `number`
    on, 1 being the first.

    Returns: how many calls there were, and the status, or what was raised.
    """
    count = 0

    def counted(*call: Any) -> Any:
        nonlocal count
        count += 1
        if count >= number:
            return fault(count - number, *call)
        return not_synced(*call)

    try:
        with between(counted):
            outcome: object = changes.apply(folder, change.files[0])
    except (CannotWrite, OSError, KeyboardInterrupt, Killed) as error:
        outcome = error
    return count, outcome


def num_calls(change: Change, path: Path) -> int:
    number, _ = applied(change, change.copy(path), 1 << 30, not_synced)
    return number


def at_every_call(change: Change, tmp_path: Path, fault: Fault, *, clean: bool) -> list[object]:
    """What comes of the fault at each call; the folder is held to what the module says.

    Args: clean: whether the process lives to take away what it has half written.
    """
    old, new = change.states
    outcomes = []
    for number in range(1, num_calls(change, tmp_path / "counted") + 1):
        folder = change.copy(tmp_path / str(number))
        _, outcome = applied(change, folder, number, fault)
        outcomes.append(outcome)
        found = changes.state_of(folder)
        assert changes.is_among(found, [old, new]), (number, outcome)
        is_new = found == new
        if outcome == "applied" or outcome == "rolled back":
            assert is_new, number
        elif isinstance(outcome, CannotWrite):
            assert not is_new or old[0] == new[0], number  # a repair has no flip
        if clean:
            assert not [name for name in worlds.bytes_of(Device.open(folder)) if "/." in name]
        with unsynced():
            if not is_new:
                changes.apply(folder, change.files[0])
                assert changes.state_of(folder) == new
            assert changes.apply(folder, change.next) == "applied"
        assert Device.open(folder).highest_sequence == new[0]["highest_sequence"] + 1
        assert changes.leftovers(folder) == set()
    assert len(outcomes) >= 7  # open, write, fsync, replace, and the folder's open and fsync
    return outcomes


@pytest.mark.parametrize("error", ERRORS)
def test_a_call_fails(change: Change, tmp_path: Path, error: int) -> None:
    """A failure to make a finished flip durable is told and is none; nor is one to delete."""

    def fail(place: int, *call: Any) -> Any:
        if place == 0:
            raise OSError(error, os.strerror(error))
        return not_synced(*call)

    outcomes = at_every_call(change, tmp_path, fail, clean=True)
    refused = [one for one in outcomes if not isinstance(one, str)]
    assert len(refused) >= 4
    assert all(isinstance(one, CannotWrite) for one in refused)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_all_calls_from_one_on_fail(change: Change, tmp_path: Path, error: int) -> None:
    """A disk that is full stays full; so nothing can be taken away either."""

    def fail(place: int, *call: Any) -> Any:
        raise OSError(error, os.strerror(error))

    outcomes = at_every_call(change, tmp_path, fail, clean=False)
    assert all(isinstance(one, CannotWrite | str) for one in outcomes)


def test_a_call_is_done_and_fails_nevertheless(change: Change, tmp_path: Path) -> None:
    """As over a network: the answer is lost, not the deed."""

    def do_and_fail(place: int, *call: Any) -> Any:
        done = not_synced(*call)
        if place == 0:
            if call[0] == "open":
                os.close(done)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return done

    at_every_call(change, tmp_path, do_and_fail, clean=False)


def half_written(name: str, real: Real, arguments: tuple[Any, ...], options: Any) -> int:
    descriptor, data = arguments
    return int(real(descriptor, memoryview(data)[: len(data) // 2]))


def test_short_writes(change: Change, tmp_path: Path) -> None:
    """A write that takes half of what it is given is no fault: the rest follows."""

    def short(place: int, *call: Any) -> Any:
        return half_written(*call) if call[0] == "write" and place == 0 else not_synced(*call)

    outcomes = at_every_call(change, tmp_path, short, clean=True)
    assert set(outcomes) <= {"applied", "rolled back"}


def test_a_disk_that_fills_up_inside_a_write(change: Change, tmp_path: Path) -> None:
    def fill(place: int, *call: Any) -> Any:
        if call[0] == "write":
            if place == 0:
                return half_written(*call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return not_synced(*call)

    outcomes = at_every_call(change, tmp_path, fill, clean=True)
    assert any(isinstance(one, CannotWrite) for one in outcomes)


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_killed_at_every_call(change: Change, tmp_path: Path, when: str) -> None:
    def kill(place: int, *call: Any) -> Any:
        if place == 0 and when == "inside" and call[0] == "write":
            half_written(*call)
        elif place == 0 and when == "after":
            done = not_synced(*call)
            if call[0] == "open":
                os.close(done)
        raise Killed

    outcomes = at_every_call(change, tmp_path, kill, clean=False)
    assert all(isinstance(one, Killed) for one in outcomes)


def test_interrupted_at_every_call(change: Change, tmp_path: Path) -> None:
    """Ctrl-C: the process takes away what it has half written."""

    def interrupt(place: int, *call: Any) -> Any:
        if place == 0:
            raise KeyboardInterrupt
        return not_synced(*call)

    outcomes = at_every_call(change, tmp_path, interrupt, clean=True)
    assert all(isinstance(one, KeyboardInterrupt) for one in outcomes)


def test_killed_for_good_at_every_call(tmp_path: Path) -> None:
    """With a real kill -9 of a real process, for once: `Killed` is no easier."""
    change = changes.later(tmp_path, "before")
    old, new = change.states
    last = num_calls(change, tmp_path / "counted")
    seen = []
    for number in range(1, last + 2):
        folder = change.copy(tmp_path / str(number))
        child = os.fork()
        if child == 0:
            try:
                applied(change, folder, number, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if number <= last else 0)
        assert changes.is_one_of(folder, [old, new])
        seen.append(changes.state_of(folder)[0]["highest_sequence"])
        changes.apply(folder, change.files[0])
        assert changes.state_of(folder) == new
    assert seen == sorted(seen) and set(seen) == {3, 4}
