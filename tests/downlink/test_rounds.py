"""Many rounds of compress and apply on device and mirror: error feedback, sequences, rollback."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.downlink import receiver, sender
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import MissingInput, StaleUpdate, WrongBase
from tests.downlink import worlds


def distance(left: worlds.Overlay, right: worlds.Overlay) -> float:
    return float(sum(np.square(left[name] - right[name]).sum() for name in left) ** 0.5)


@pytest.mark.parametrize(
    ("how", "shrinks_by"),
    [
        (CompressSettings(), 3),  # without a loss, an error of 0.25
        (CompressSettings(codec="nf4"), 8),  # NF4 leaves 0.093 of a Gaussian change
        (CompressSettings(budget_bytes=900), 2.5),
        (CompressSettings(max_error=0.4), 2.5),
        (CompressSettings(codec="exact"), 1e9),
    ],
)
def test_what_one_round_rounds_off_the_next_one_sends(
    tmp_path: Path, how: CompressSettings, shrinks_by: float
) -> None:
    """Four rounds of training, then four in which nothing more is learnt: the device goes on
    towards what was learnt, by the quantiser's own factor a round, and both sides are always equal.
    """
    device, mirror = worlds.device(tmp_path / "device"), worlds.device(tmp_path / "mirror")
    learnt = mirror.read_overlay()
    distances = []
    for number in range(1, 9):
        if number <= 4:
            learnt = worlds.learnt(learnt, seed=number)
        update = sender.compress(worlds.adaptation(learnt, mirror), mirror, how).update
        data = worlds.file_of(update)
        assert worlds.receive(device, data).status == "applied"
        assert worlds.receive(mirror, data).status == "applied"
        assert device.digest == mirror.digest == update.target
        assert device.sequence == mirror.sequence == number
        distances.append(distance(device.read_overlay(), learnt))
    for before, after in pairwise(distances[3:]):
        # float32 parameters of size 1 cannot come nearer than about 1e-7 each
        assert after < max(before / shrinks_by, 1e-5)


def test_an_unchanged_round_counts(tmp_path: Path) -> None:
    device = worlds.device(tmp_path / "device")
    digest = device.digest
    for number in (1, 2):
        update = sender.compress(worlds.adaptation(device.read_overlay(), device), device).update
        assert receiver.apply(device, update).status == "applied"
        assert (device.sequence, device.digest) == (number, digest)
        assert receiver.apply(device, update).status == "already applied"


def test_the_same_update_again_changes_nothing(tmp_path: Path) -> None:
    device = worlds.device(tmp_path / "device")
    data = worlds.file_of(worlds.next_update(device))
    worlds.receive(device, data)
    before = worlds.bytes_of(device)
    assert worlds.receive(device, data).status == "already applied"
    assert worlds.bytes_of(device) == before


def test_a_missing_update_is_named(tmp_path: Path) -> None:
    device, mirror = worlds.device(tmp_path / "device"), worlds.device(tmp_path / "mirror")
    files = []
    for seed in range(4):
        files.append(worlds.file_of(worlds.next_update(mirror, seed)))
        worlds.receive(mirror, files[-1])
    for data, cure in (
        (files[1], "fetch update 1 first"),
        (files[2], "fetch updates 1 to 2 first"),
        (files[3], "fetch updates 1 to 3 first"),
    ):
        with pytest.raises(WrongBase, match=cure):
            worlds.receive(device, data)
    for data in files:
        worlds.receive(device, data)
    assert device.digest == mirror.digest


def test_an_old_update_is_refused(tmp_path: Path) -> None:
    device = worlds.device(tmp_path / "device")
    files = []
    for seed in range(3):
        files.append(worlds.file_of(worlds.next_update(device, seed)))
        worlds.receive(device, files[-1])
    before = worlds.bytes_of(device)
    for data in files[:2]:
        with pytest.raises(StaleUpdate, match="not newer than 3"):
            worlds.receive(device, data)
    assert worlds.bytes_of(device) == before


def test_rollback_and_the_way_on(tmp_path: Path) -> None:
    """What `receiver` says of a rollback, step by step."""
    device, mirror = worlds.device(tmp_path / "device"), worlds.device(tmp_path / "mirror")
    files, digests = [], [device.digest]
    for seed in range(2):
        files.append(worlds.file_of(worlds.next_update(mirror, seed)))
        for folder in (device, mirror):
            worlds.receive(folder, files[-1])
        digests.append(device.digest)

    back = receiver.rollback(device)
    assert (back.status, back.sequence, back.digest) == ("rolled back", 1, digests[1])
    assert device.highest_sequence == 2
    with pytest.raises(StaleUpdate, match="roll the mirror back too"):
        worlds.receive(device, files[1])
    with pytest.raises(WrongBase, match="roll the mirror back too"):
        worlds.receive(device, worlds.file_of(worlds.next_update(mirror, 7)))

    receiver.rollback(mirror)
    update = worlds.next_update(mirror, 8)
    assert update.sequence == 3
    for folder in (device, mirror):
        assert receiver.apply(folder, update).status == "applied"
    assert device.digest == mirror.digest and device.highest_sequence == 3


def test_there_may_be_nothing_to_roll_back_to(tmp_path: Path) -> None:
    device = worlds.device(tmp_path / "device")
    with pytest.raises(MissingInput):
        receiver.rollback(device)
