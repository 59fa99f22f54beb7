"""`apply` cut off at every system call that writes: by kill -9, by a full disk, by another process.

Whatever happens, the folder is at the old or at the new overlay, sound, and takes the update then.
"""

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.downlink import receiver
from cdcca_cli.errors import CannotWrite
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.update import Update
from tests.downlink import worlds

WRITING = ("open", "write", "fsync", "replace", "unlink")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return worlds.device(tmp_path / "device")


def interrupted_at(number: int, what: Callable[[], None], patch: Callable[..., None]) -> list[int]:
    """From now on, call `what` in place of the `number`-th system call that writes.

    Returns: a list that grows by one number with each call.
    """
    calls: list[int] = []

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(len(calls) + 1)
            if len(calls) == number:
                what()
            return real(*arguments, **options)

        return call

    for name in WRITING:
        patch(os, name, counted(getattr(os, name)))
    return calls


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return status


def is_sound(path: Path, allowed: set[tuple[int, str]]) -> None:
    """One of the allowed states, with an overlay that verifies."""
    folder = Device.open(path)
    assert (folder.sequence, folder.digest) in allowed
    assert folder.highest_sequence == folder.sequence
    folder.read_overlay()


def applied_or_killed(device: Device, update: Update, number: int) -> int:
    """The wait status of a process that applies, killed at its `number`-th call."""

    def work() -> None:
        interrupted_at(number, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
        receiver.apply(device, update)
        os._exit(0)

    return in_a_child(work)


def test_killed_at_every_system_call(device: Device) -> None:
    update = worlds.next_update(device)
    states = {(0, device.digest), (1, update.target)}
    seen = []
    for number in range(1, 100):
        folder = worlds.device(device.path.parent / f"device-{number}")
        status = applied_or_killed(folder, update, number)
        is_sound(folder.path, states)
        seen.append(Device.open(folder.path).sequence)
        again = receiver.apply(Device.open(folder.path), update)
        assert again.status == ("already applied" if seen[-1] else "applied")
        assert Device.open(folder.path).digest == update.target
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(seen) > 8 and seen == sorted(seen) and set(seen) == {0, 1}


def test_killed_at_random_moments(device: Device) -> None:
    """A chain of updates, applied as fast as they go by a child that is killed, and then by the
    next one from wherever it was left.
    """
    mirror = worlds.device(device.path.parent / "mirror")
    updates, states = [], {(0, mirror.digest)}
    for seed in range(40):
        updates.append(worlds.next_update(mirror, seed))
        receiver.apply(mirror, updates[-1])
        states.add((mirror.sequence, mirror.digest))
    moments = random.Random(0)
    killed = 0
    for _ in range(30):
        child = os.fork()
        if child == 0:
            try:
                folder = Device.open(device.path)
                for update in updates[folder.sequence :]:
                    receiver.apply(folder, update)
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        is_sound(device.path, states)
        killed += status == signal.SIGKILL
        if Device.open(device.path).sequence == len(updates):
            break
    assert killed >= 3
    for update in updates[Device.open(device.path).sequence :]:
        receiver.apply(device, update)
    assert Device.open(device.path).digest == mirror.digest


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_full_disk_at_every_system_call(
    device: Device, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A failure to make a finished flip durable is none, nor one to delete what is not needed."""
    update = worlds.next_update(device)

    def fail() -> None:
        raise OSError(error, os.strerror(error))

    refused, number = 0, 0
    calls = [0]
    while number <= len(calls):  # until the call to fail is one too many
        number += 1
        folder = worlds.device(device.path.parent / f"device-{number}")
        before = worlds.bytes_of(folder)
        with monkeypatch.context() as patch:
            calls = interrupted_at(number, fail, patch.setattr)
            try:
                receiver.apply(folder, update)
            except (CannotWrite, OSError) as caught:
                refused += isinstance(caught, CannotWrite)
                after = worlds.bytes_of(folder)
                assert {name: after[name] for name in before} == before
                assert not [name for name in after if "/." in name]
                is_sound(folder.path, {(0, device.digest)})
            else:
                is_sound(folder.path, {(1, update.target)})
    assert refused >= 4 and number > 10


def test_of_several_processes_one_applies(device: Device) -> None:
    update = worlds.next_update(device)
    counts = []
    for _ in range(10):
        folder = worlds.device(device.path.parent / f"device-{len(counts)}")
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    own = Device.open(folder.path)
                    os._exit(10 if receiver.apply(own, update).status == "applied" else 11)
                finally:
                    os._exit(1)
            children.append(child)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        counts.append(codes)
        assert Device.open(folder.path).digest == update.target
    assert counts == [[10, 11, 11, 11]] * 10
