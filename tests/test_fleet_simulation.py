"""examples/fleet/simulation: a small fleet ends whole, the same way twice, whatever was cut off."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.formats.device import Device
from tests.downlink import worlds
from tests.test_examples import real_commands  # noqa: F401

SIMULATION = Path(__file__).parent.parent / "examples" / "fleet" / "simulation"
GROUPS = ("north", "centre", "south")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def cloud(folder: Path) -> Path:
    """What rounds.sh makes, without a model: its mirrors, and three updates a group."""
    for number, group in enumerate(GROUPS):
        made = folder / group
        worlds.device(made / "factory")
        worlds.device(made / "mirror")
        (made / "updates").mkdir()
        for update in (1, 2, 3):
            mirror = Device.open(made / "mirror")
            data = worlds.file_of(worlds.next_update(mirror, seed=10 * number + update))
            (made / "updates" / f"{update}.cdcca").write_bytes(data)
            worlds.receive(mirror, data)
        (made / "done").touch()
    return folder


def simulated(work: Path, updates: Path, commands: Path, **settings: object) -> dict[str, object]:
    """Run it to its end; what is in end.json."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CDCCA_")}
    work.mkdir()
    env = kept | {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": sys.executable}
    env |= {"WORK": str(work), "UPDATES": str(updates), "FRAMES": str(updates), "GATED": "0"}
    done = subprocess.run(
        ["make", "-f", str(SIMULATION / "Makefile"), "-j", "2"],
        env=env | {name: str(value) for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads((work / "end.json").read_text())
    return found


def test_every_device_gets_to_the_digest_of_its_group_and_twice_the_same(
    tmp_path: Path,
    real_commands: Path,  # noqa: F811
) -> None:
    """Six devices, with three times as many power cuts as usual."""
    updates = cloud(tmp_path / "cloud")
    first, again = (
        simulated(tmp_path / name, updates, real_commands, DEVICES=6, SEED=3, POWER_CUT=0.3)
        for name in ("first", "again")
    )
    assert first == again
    wanted = {group: {Device.open(updates / group / "mirror").digest: 2} for group in GROUPS}
    assert (first["devices"], first["groups"]) == (6, wanted)
    for folder in (tmp_path / "first" / "fleet").glob("*/*"):
        device = Device.open(folder)
        assert device.read_overlay().keys() == worlds.SHAPES.keys()
    links = first["links"]
    assert isinstance(links, dict) and {"lost", "late", "repeated"} <= links.keys()
    assert isinstance(first["power_cuts"], int) and first["power_cuts"] >= 3
