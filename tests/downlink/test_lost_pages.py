"""`apply` and the power: every state of the disk that a failure at any moment may leave.

`power` says what that may be. From each state the folder opens whole, in the old or in the new
state; what was answered for stays; and it goes on from there. And every fsync is needed: a program
that leaves one of them out is caught.
"""

import shutil
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from cdcca_cli.formats.device import Device
from tests.downlink import changes, power
from tests.downlink.calls import killed_at, unsynced
from tests.downlink.changes import CHANGES, Change
from tests.downlink.power import Log, Tree

ALL = {**CHANGES, "several": changes.several}


@pytest.fixture(scope="module", params=[*CHANGES, pytest.param("several", marks=pytest.mark.slow)])
def change(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Change:
    return ALL[request.param](tmp_path_factory.mktemp(request.param), request.param)


def log_of(change: Change, path: Path) -> Log:
    change.copy(path)
    return power.record(path, *(partial(changes.apply, path, file) for file in change.files))


def laid_out(tree: Tree, path: Path) -> Path:
    """A folder with these files."""
    shutil.rmtree(path, ignore_errors=True)
    (path / "overlay").mkdir(parents=True)
    for name, data in tree:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    return path


class States:
    """What folders with these files are in; each is looked at once."""

    def __init__(self, change: Change, path: Path) -> None:
        self._change, self._path = change, path
        self._found: dict[Tree, set[int]] = {}

    def sound(self, tree: Tree) -> set[int]:
        """The states of the change that it is in, whole; none if it is torn."""
        if tree not in self._found:
            folder = laid_out(tree, self._path)
            states = enumerate(self._change.states)
            self._found[tree] = {n for n, one in states if changes.is_one_of(folder, [one])}
        return self._found[tree]

    def is_sound(self, answered: int, tree: Tree) -> bool:
        """In the state after what was answered, or in the one that was on its way."""
        return not self.sound(tree).isdisjoint({answered, answered + 1})


def test_the_record_is_complete(change: Change, tmp_path: Path) -> None:
    """What the model makes of the calls is what the disk makes of them."""
    log = log_of(change, tmp_path / "folder")
    assert power.as_asked(log) == frozenset(power.files_of(tmp_path / "folder").items())
    assert len(log.syncs()) >= 2 * len(change.files)


def test_power_loss_at_every_moment(change: Change, tmp_path: Path) -> None:
    num_states = 0
    states = States(change, tmp_path / "seen")
    for answered, tree in power.after_power_loss(log_of(change, tmp_path / "folder")):
        assert states.is_sound(answered, tree), (answered, sorted(dict(tree)))
        folder = laid_out(tree, tmp_path / "after")
        with unsynced():
            for file in change.files[change.states.index(changes.state_of(folder)) :]:
                changes.apply(folder, file)
            assert changes.state_of(folder) == change.states[-1]
            assert changes.apply(folder, change.next) == "applied"
        assert changes.leftovers(folder) == set()
        highest = change.states[-1][0]["highest_sequence"]
        assert Device.open(folder).highest_sequence == highest + 1
        num_states += 1
    assert num_states > 10


QUICK = ("trust_list", "first_codebook", "repair")
LONG = [pytest.param(name, marks=pytest.mark.slow) for name in CHANGES if name not in QUICK]


@pytest.mark.parametrize("change", [*QUICK, *LONG], indirect=True, scope="module")
def test_killed_and_then_without_power(change: Change, tmp_path: Path) -> None:
    """What the next process answers for stays as well, "already applied" included, though the first
    was killed before it had asked the disk for anything.
    """
    states = States(change, tmp_path / "seen")
    file = change.files[0]
    for number in count(1):
        folder = change.copy(tmp_path / str(number))
        killed = partial(killed_at, number, partial(changes.apply, folder, file))
        log = power.record(folder, killed)
        if any(made.kind == "done" for made in log.operations):
            break
        if file == changes.ROLLBACK and changes.state_of(folder) == change.states[1]:
            continue  # once more would be a second rollback
        shutil.rmtree(folder)
        log = power.record(change.copy(folder), killed, partial(changes.apply, folder, file))
        for found in power.after_power_loss(log):
            assert states.is_sound(*found), (number, log.operations)
    assert number > 7


def test_every_fsync_is_needed(change: Change, tmp_path: Path) -> None:
    """Left out, any one of them lets the power tear the folder or take back what was answered."""
    log = log_of(change, tmp_path / "folder")
    states = States(change, tmp_path / "after")
    for number in log.syncs():
        left_out = log.operations[number]
        if change.name == "repair" and left_out.name == ".":
            continue  # device.json was replaced by the same bytes: that need not be durable
        if change.name == "codebook" and number == log.syncs()[0]:
            continue  # of the folder of codebooks, which is there; `first_codebook` needs it
        mutant = power.after_power_loss(log.without(number))
        assert any(not states.is_sound(*found) for found in mutant), left_out
