"""The folder of a run: an earlier run is kept, or replaced as a whole."""

from pathlib import Path

import pytest

from cdcca_cli.errors import CannotWrite
from cdcca_cli.loop.rounds import Work
from tests.downlink import worlds


def test_an_earlier_run_is_kept_unless_force_replaces_its_rounds_and_its_mirror(
    tmp_path: Path,
) -> None:
    device = worlds.device(tmp_path / "device")
    path = tmp_path / "rounds"
    first = Work(path)
    first.round(1)
    mirror = first.mirror(device)
    (mirror.path / "old").touch()
    with pytest.raises(CannotWrite, match="belongs to an earlier run"):
        Work(path)
    assert (mirror.path / "old").exists()
    again = Work(path, force=True)
    again.clear()
    assert again.mirror(device).digest == device.digest
    assert not (path / "round-1").exists() and not (mirror.path / "old").exists()


def test_a_mirror_that_is_of_no_earlier_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "rounds" / "mirror").mkdir(parents=True)
    with pytest.raises(CannotWrite, match="exists already"):
        Work(tmp_path / "rounds", force=True).mirror(worlds.device(tmp_path / "device"))


def test_a_file_is_no_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "rounds").touch()
    with pytest.raises(CannotWrite, match="is a file: name a folder"):
        Work(tmp_path / "rounds")
