"""examples/llama-server.sh with llama.cpp's own server: an update arrives, or all goes back."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cdcca_cli.downlink import sender
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.export import probe as probes
from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from tests.downlink import worlds
from tests.export import tiny
from tests.export.conftest import Made

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "examples" / "llama-server.sh"


class Place:
    """A working folder with a device, an update for it, and the commands of the script."""

    def __init__(self, folder: Path, made: Made) -> None:
        self.folder, self.made = folder, made
        self.device = Device.open(shutil.copytree(made.device, folder / "device"))
        after = tiny.loud(self.device.read_overlay(), seed=7)
        learnt = worlds.adaptation(after, self.device)
        made_update = sender.compress(learnt, self.device, CompressSettings(codec="exact"))
        (folder / "update.cdcca").write_bytes(worlds.file_of(made_update.update))
        mirror = Device.open(shutil.copytree(made.device, folder / "mirror"))
        (folder / "served.probes").mkdir()
        for sequence in (1, 2):
            overlay = mirror.read_overlay()
            found = json.dumps(probes.make(mirror, overlay, set(overlay)).as_json())
            (folder / f"served.probes/{sequence}.json").write_text(found)
            if sequence == 1:
                mirror.install(after, 2)
        for name, module in (("cdcca", "cdcca_cli"), ("llama-server", "tests.export.llama_server")):
            script = folder / "bin" / name
            script.parent.mkdir(exist_ok=True)
            run = f"exec '{sys.executable}' -m {module} \"$@\""
            script.write_text(f"#!/bin/sh\nexport PYTHONPATH='{ROOT}'\n{run}\n")
            script.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])

    def run(self, *more: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        files = [str(self.made.base), str(self.made.mmproj), "served"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CDCCA_")}
        return subprocess.run(
            ["bash", str(SCRIPT), "device", *files, *more],
            cwd=self.folder,
            env={
                **kept,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "LLAMA_PORT": str(self.port),
                "OMP_NUM_THREADS": "1",
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def sequence(self) -> int:
        return int(
            json.loads((self.folder / "served/export.json").read_text())["device"]["sequence"]
        )

    def end(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / "served.pid").read_text()), signal.SIGTERM)


@pytest.fixture
def place(tmp_path: Path, made: Made) -> Iterator[Place]:
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    if shutil.which("setsid") is None:
        pytest.skip("setsid is not here")
    found = Place(tmp_path, made)
    try:
        yield found
    finally:
        found.end()


def test_an_update_reaches_the_server(place: Place) -> None:
    """Start, update, check; then an adapter of the server that does not act, and the way back."""
    first = place.run()
    assert first.returncode == 0, first.stderr[-2000:]
    assert "the export acts as trained" in first.stderr and place.sequence() == 1
    done = place.run("update.cdcca")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the export acts as trained" in done.stderr
    assert place.sequence() == Device.open(place.folder / "device").sequence == 2
    url = f"http://127.0.0.1:{place.port}"
    device = str(place.folder / "device")
    assert main(["doctor", device, url, "--probe", str(place.folder / "served"), "--quiet"]) == 0


def test_a_server_that_does_not_act_takes_the_update_back(place: Place) -> None:
    """It ignores --lora: the check fails, the device and the server's files are those of before."""
    deaf = place.folder / "bin/deaf"
    deaf.write_text(
        '#!/bin/bash\nwhile [ $# -gt 0 ]; do case $1 in --lora) shift 2 ;; *) a+=("$1"); shift ;; '
        'esac; done\nexec llama-server "${a[@]}"\n'
    )
    deaf.chmod(0o755)
    done = place.run("update.cdcca", LLAMA_SERVER="deaf")
    assert done.returncode == 81 and "has no effect" in done.stderr
    assert place.sequence() == Device.open(place.folder / "device").sequence == 1


def test_a_number_that_is_another_process_by_now(place: Place) -> None:
    """As after a reboot: it is not ended; nor is one that does not end by itself waited for."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        (place.folder / "served.pid").write_text(str(other.pid))
        assert place.run().returncode == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    stubborn = place.folder / "bin/stubborn"
    stubborn.write_text("#!/bin/bash\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    stubborn.chmod(0o755)
    place.end()
    with subprocess.Popen([stubborn, "--port", "1"], start_new_session=True) as deaf:
        (place.folder / "served.pid").write_text(str(deaf.pid))
        assert place.run().returncode == 0
        assert deaf.wait(5) == -signal.SIGKILL


def test_without_a_probe_it_is_served_and_not_checked(place: Place) -> None:
    device = place.folder / "device/device.json"
    text = device.read_text().replace(str(place.made.checkpoint), "/not/here")
    device.write_text(text)
    shutil.rmtree(place.folder / "served.probes")
    done = place.run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the server was not checked" in done.stderr


def test_a_stale_number_ends_no_other_process(place: Place) -> None:
    """After a reboot the number in SERVED.pid may be that of anything."""
    with subprocess.Popen(["sleep", "60"]) as other:
        (place.folder / "served.pid").write_text(f"{other.pid}\n")
        done = place.run()
        assert done.returncode == 0, done.stderr[-2000:]
        assert other.poll() is None
        other.kill()
