"""kill -9 at random moments of `cdcca apply`, and inside a write.

Not one state may be torn, highest_sequence may not fall, and what was killed can be done again:
every round goes on from what the last one left. Files that a killed process left behind are gone
after the next change. A kill does not lose what the operating system holds: see `test_lost_pages`.
"""

import os
import random
import select
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.formats.device import Device
from tests.downlink import changes, worlds
from tests.downlink.calls import between
from tests.downlink.processes import Process, forked, started

SHAPES = {f"lm.layers.{n}.attn.q_proj.lora_B": (1024, 64) for n in range(2)}
STALL = 600.0  # seconds; a process that is to be killed lives no longer
_FOR_GOOD = ExitStack()


def stalled_in_a_write(number: int, share: float, tell: int) -> None:
    """From now on: write a share of the `number`-th piece, say so, and wait to be killed."""
    count = 0

    def stall(name: str, real: Any, arguments: Any, options: Any) -> Any:
        nonlocal count
        count += name == "write"
        if name != "write" or count != number:
            return real(*arguments, **options)
        descriptor, data = arguments
        real(descriptor, memoryview(data)[: int(share * len(data))])
        real(tell, b"x")
        time.sleep(STALL)

    _FOR_GOOD.enter_context(between(stall))


def kill_inside_a_write(arguments: list[str], output: Path, number: int, share: float) -> int:
    """The exit code of a process that is killed with its `number`-th write half done."""
    heard, tell = os.pipe()
    process = forked(arguments, output, lambda: stalled_in_a_write(number, share, tell))
    os.close(tell)
    assert select.select([heard], [], [], STALL)[0] and os.read(heard, 1) == b"x"
    os.close(heard)
    process.kill(signal.SIGKILL)
    return process.wait().code


def kill_after(process: Process, seconds: float) -> int:
    """The exit code of a process that is killed after a while, if it is still there."""
    time.sleep(seconds)
    process.kill(signal.SIGKILL)
    return process.wait().code


def what_kills_leave(path: Path, num_kills: int, num_started: int) -> Counter[str]:
    """Updates, trust lists, codebooks and rollbacks until so many were killed; what became of them.

    Of every five two are killed inside a write, and of the others the first `num_started` are
    interpreters of their own.
    """
    chance = random.Random(num_kills)
    folder = path / "device"
    overlay = worlds.overlay(shapes=SHAPES)
    Device.create(folder, worlds.SETTINGS, overlay, trust=changes.trust(0))
    update, output = path / "file", path / "output"
    seen: Counter[str] = Counter()
    usual = min(_seconds(folder, update, output) for _ in range(3))
    while seen["killed"] < num_kills:
        number = seen["rounds"]
        seen["rounds"] += 1
        device = Device.open(folder)
        old = changes.state_of(folder)
        arguments, num_writes = ["apply", "--quiet", str(folder), str(update)], 1
        if number % 7 == 6 and device.kept:
            arguments = ["apply", "--quiet", str(folder), "--rollback"]
        elif number % 7 == 3:
            assert device.trust is not None
            version = device.trust.version + 1
            update.write_bytes(changes.trust_file(changes.trust(0, version=version), 0))
        elif number % 7 == 5:
            sequence = 1 if device.codebook_slot is None else device.codebook_slot.sequence + 1
            update.write_bytes(changes.codebook_file(sequence, 0))
            num_writes = 2
        else:
            update.write_bytes(changes.next_file(device, seed=number))
            num_writes = 2  # the overlay, and device.json
        inside = number % 5 < 2
        if inside:
            writing = chance.randint(1, num_writes)
            code = kill_inside_a_write(arguments, output, writing, chance.random())
        elif seen["started"] < num_started:
            seen["started"] += 1
            code = kill_after(started(arguments, output), chance.uniform(0.0, 1.5))
        else:
            code = kill_after(forked(arguments, output), chance.uniform(0.0, 1.2 * usual))
        assert code in (0, -signal.SIGKILL)
        seen["killed"] += code != 0
        seen["killed inside a write"] += inside and code != 0
        found = changes.state_of(folder)
        assert all(found[1]), "torn"
        assert found[0]["highest_sequence"] - old[0]["highest_sequence"] in (0, 1)
        if code == 0:
            assert found != old and changes.leftovers(folder) == set()
        if found != old:
            seen["new"] += 1
            _expect_what_was_sent(old[0], found[0], arguments, update)
        else:
            seen["old"] += 1
            if number % 4 < 2:
                assert forked(arguments, output).wait().code == 0
                assert changes.state_of(folder) != old
                assert changes.leftovers(folder) == set()
    return seen


def _seconds(folder: Path, update: Path, output: Path) -> float:
    """How long an update takes here and now, with nobody to kill it."""
    update.write_bytes(changes.next_file(Device.open(folder)))
    before = time.monotonic()
    assert forked(["apply", str(folder), str(update)], output).wait().code == 0
    return time.monotonic() - before


def _expect_what_was_sent(
    old: dict[str, Any], new: dict[str, Any], arguments: list[str], file: Path
) -> None:
    """The change that was asked for and nothing else; the overlay itself has been verified."""
    same = {"trust", "current", "kept", "highest_sequence"}
    if "--rollback" in arguments:
        assert new["current"] == old["kept"][0]
        same = {"current", "kept"}
    elif new["trust"] != old["trust"]:
        assert new["trust"]["version"] == old["trust"]["version"] + 1
        same = {"trust"}
    elif new["codebook"] != old["codebook"]:
        before = 0 if old["codebook"] is None else old["codebook"]["sequence"]
        assert new["codebook"]["sequence"] == before + 1
        same = {"codebook"}
    else:
        assert new["highest_sequence"] == old["highest_sequence"] + 1 == new["current"]["sequence"]
        assert new["kept"][0] == old["current"]
        same = {"current", "kept", "highest_sequence"}
    assert {k: v for k, v in new.items() if k not in same} == {
        k: v for k, v in old.items() if k not in same
    }


def expect_enough(seen: Counter[str]) -> None:
    assert seen["killed inside a write"] >= 0.4 * seen["killed"]
    assert seen["killed"] > seen["killed inside a write"] + seen["killed"] // 10
    assert seen["new"] > seen["killed"] // 10 and seen["old"] > seen["killed"] // 10


def test_a_hundred_kills(tmp_path: Path) -> None:
    expect_enough(what_kills_leave(tmp_path, 100, num_started=3))


@pytest.mark.slow
def test_a_thousand_kills(tmp_path: Path) -> None:
    expect_enough(what_kills_leave(tmp_path, 1000, num_started=60))


def test_the_shapes_need_more_than_one_page() -> None:
    assert sum(int(np.prod(shape)) for shape in SHAPES.values()) * 4 > 1 << 18
