"""Several `cdcca apply` on one folder at one moment: exactly one installs, and all end well."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdcca_cli.errors import StaleUpdate
from cdcca_cli.formats.device import Device
from tests.downlink import changes, worlds
from tests.downlink.processes import Ended, forked

CI, SLOW = 20, 200
STALE = StaleUpdate.exit_code


@pytest.fixture(params=[CI, pytest.param(SLOW, marks=pytest.mark.slow)])
def num_rounds(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def at_once(commands: Sequence[list[str]], folder: Path) -> list[Ended]:
    """Runs the command lines in processes that begin at one moment."""
    held, release = os.pipe()

    def wait() -> None:
        os.close(release)
        os.read(held, 1)  # the end of the pipe, when the parent closes it

    processes = [
        forked(command, folder / f"output-{number}", wait)
        for number, command in enumerate(commands)
    ]
    os.close(held)
    os.close(release)
    return [process.wait() for process in processes]


def new_device(path: Path) -> Device:
    return Device.create(path, worlds.SETTINGS, worlds.overlay(), trust=changes.trust(0))


def test_the_same_update(tmp_path: Path, num_rounds: int) -> None:
    """One applies it, the others find it there; all exit 0."""
    folder, update = tmp_path / "device", tmp_path / "update"
    new_device(folder)
    for number in range(num_rounds):
        count = 2 + number % 3
        update.write_bytes(changes.next_file(Device.open(folder)))
        command = ["apply", str(folder), str(update), "--json"]
        ended = at_once(count * [command], tmp_path)
        assert [one.code for one in ended] == count * [0]
        statuses = sorted(one.status for one in ended)
        assert statuses == (count - 1) * ["already applied"] + ["applied"]
        assert Device.open(folder).sequence == number + 1
        assert changes.state_of(folder)[1] == (True, True)
        assert changes.leftovers(folder) == set()


def test_different_updates_of_one_base(tmp_path: Path, num_rounds: int) -> None:
    """One wins; the others are not newer than it."""
    folder = tmp_path / "device"
    new_device(folder)
    for number in range(num_rounds):
        count = 2 + number % 3
        commands, targets = [], []
        for rival in range(count):
            update = tmp_path / f"update-{rival}"
            update.write_bytes(changes.next_file(Device.open(folder), seed=rival))
            commands.append(["apply", str(folder), str(update), "--json"])
            targets.append(changes.update_of(Device.open(folder), seed=rival).target)
        ended = at_once(commands, tmp_path)
        codes = [one.code for one in ended]
        assert sorted(codes) == [0] + (count - 1) * [STALE]
        winner = codes.index(0)
        assert ended[winner].status == "applied"
        device = Device.open(folder)
        assert (device.sequence, device.digest) == (number + 1, targets[winner])
        assert changes.state_of(folder)[1] == (True, True)
        assert changes.leftovers(folder) == set()


def test_an_update_against_a_rollback(tmp_path: Path, num_rounds: int) -> None:
    """Either may come first. Both orders are sound, and the counter knows the update or does not:
    rolled back first, the update's base is not there any more.
    """
    before, folder, update = (tmp_path / name for name in ("before", "device", "update"))
    device = new_device(before)
    changes.apply(before, changes.next_file(device))
    update.write_bytes(changes.next_file(Device.open(before)))
    outcomes = set()
    for _ in range(num_rounds):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        commands = [["apply", str(folder), str(update)], ["apply", str(folder), "--rollback"]]
        codes = tuple(one.code for one in at_once(commands, tmp_path))
        found = Device.open(folder)
        outcomes.add((codes, found.sequence, found.highest_sequence))
        assert all(changes.state_of(folder)[1])
        assert changes.leftovers(folder) == set()
    assert outcomes <= {((0, 0), 1, 2), ((78, 0), 0, 1)}
