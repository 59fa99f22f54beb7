"""`cdcca apply` gives the same bits on 64-bit ARM: the whole command, run by qemu-user.

Needs qemu-aarch64 and a folder made by tests/aarch64_root.sh, named in CDCCA_AARCH64_ROOT.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import cdcca_cli
from cdcca_cli.downlink.settings import CODECS, CompressSettings
from cdcca_cli.formats.device import Device
from tests.downlink import worlds

QEMU = "qemu-aarch64"
ROOT = os.environ.get("CDCCA_AARCH64_ROOT")
PACKAGE = Path(cdcca_cli.__file__).parent


@pytest.fixture
def root() -> Path:
    if shutil.which(QEMU) is None:
        pytest.skip(f"no {QEMU} here (Debian's package qemu-user)")
    if ROOT is None:
        pytest.skip("CDCCA_AARCH64_ROOT is not set: tests/aarch64_root.sh makes such a folder")
    return Path(ROOT)


def on_arm(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of that machine with these arguments."""
    variables = {
        "PYTHONPATH": f"{PACKAGE.parent}:{root / 'site'}",
        "PYTHONHOME": str(root / "usr"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    named = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
    python = str(root / "usr/bin/python3.11")
    return subprocess.run(
        [QEMU, "-L", str(root), *named, python, *arguments], capture_output=True, text=True
    )


def test_it_is_another_machine(root: Path) -> None:
    found = on_arm(root, "-c", "import platform; print(platform.machine())")
    assert (found.stdout, found.returncode) == ("aarch64\n", 0), found.stderr


def test_the_folders_are_the_same_byte_for_byte(tmp_path: Path, root: Path) -> None:
    """An update of every codec, applied here and there; one start of that Python for all."""
    updates = {}
    for codec in CODECS:
        here = worlds.device(tmp_path / "here" / codec)
        updates[codec] = worlds.next_update(here, settings=CompressSettings(codec=codec))
        data = worlds.file_of(updates[codec])
        (tmp_path / f"{codec}.update").write_bytes(data)
        shutil.copytree(here.path, tmp_path / "there" / codec)
        worlds.receive(here, data)
    commands = [
        ["apply", f"{tmp_path}/there/{codec}", f"{tmp_path}/{codec}.update"] for codec in updates
    ]
    called = f"from cdcca_cli.main import main; print([main(words) for words in {commands}])"
    done = on_arm(root, "-c", called)
    assert done.stdout == f"{[0] * len(updates)}\n", done.stderr
    for codec, update in updates.items():
        here, there = (Device.open(tmp_path / side / codec) for side in ("here", "there"))
        assert there.digest == here.digest == update.target
        assert worlds.bytes_of(there) == worlds.bytes_of(here)
