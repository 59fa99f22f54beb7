"""examples/device: every script runs, with stand-ins for what is not here; the rest is linted."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import packages
from cdcca_cli.errors import exit_codes
from cdcca_cli.formats.device import Device
from tests.downlink import worlds

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "device"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), EXAMPLES / "mender" / "cdcca-update"])
TAKE = EXAMPLES / "take-update.sh"
KILLED = 137  # by a shell's count: SIGKILL, which no process can turn into a code of its own
Done = subprocess.CompletedProcess[str]
LIGHT_LINE = {"typer", *packages.LIGHT}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


class Place:
    """A device folder, an update for it, and programs that come first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        source = f"PYTHONPATH='{ROOT}' exec '{sys.executable}' -m cdcca_cli \"$@\""
        self.program("cdcca", source)
        self.device = worlds.device(folder / "device").path
        self.update = folder / "update.cdcca"
        self.update.write_bytes(worlds.file_of(worlds.next_update(Device.open(self.device))))

    def program(self, name: str, source: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{source}\n")
        path.chmod(0o755)

    def run(
        self, *words: object, code: int = 0, **more: object
    ) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CDCCA_")}
        env = kept | {"PATH": f"{self.bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=env | {name: str(value) for name, value in more.items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done

    @property
    def sequence(self) -> int:
        return Device.open(self.device).sequence

    def said(self) -> list[str]:
        return (self.folder / "said").read_text().split()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder `web`."""
    (tmp_path / "web").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    serve = partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


# ---------------------------------------------------------------- exit codes


def rows() -> dict[int, str]:
    """The README's verdict on each exit code."""
    found = {}
    for codes, verdict in re.findall(r"^\| ([\d, ]+) \| [^|]+ \| (\w+) \|", README, re.MULTILINE):
        found |= dict.fromkeys(map(int, codes.split(",")), verdict)
    return found


def test_every_exit_code_has_a_verdict_and_the_script_is_the_table(place: Place) -> None:
    table = rows()
    assert {code for code, _ in exit_codes()} <= table.keys()
    assert KILLED in table
    for code, verdict in table.items():
        done = place.run(TAKE, "--verdict", code)
        assert done.stdout == f"{verdict}\n", code


def test_the_cron_job_keeps_what_is_not_the_files_fault() -> None:
    """It has no settings that could be wrong, and moves aside what kills `apply` each time."""
    script = (ROOT / "examples" / "cron-device.sh").read_text()
    kept = {code for code, verdict in rows().items() if verdict == "later"} - {2, 137, 141}
    named = re.findall(r"^ +([\d| ]+)\) exit", script, re.MULTILINE)
    assert {int(code) for line in named for code in line.split("|")} == kept


# ---------------------------------------------------------------- scripts


def test_take_update(place: Place) -> None:
    notify = 'echo "$CDCCA_SEQUENCE" >> said; [ "$CDCCA_SEQUENCE" != 1 ] || [ -e ready ]'
    done = place.run(TAKE, place.device, place.update, code=81, NOTIFY=notify)
    assert (done.stdout, place.sequence, place.said()) == ("later\n", 0, ["1", "0"])
    (place.folder / "ready").touch()
    log = place.device / "log.jsonl"
    for _ in range(2):
        done = place.run(TAKE, place.device, place.update, NOTIFY=notify, LOG=log)
        assert done.stdout == "done\n"
    statuses = [json.loads(line)["status"] for line in log.read_text().splitlines()]
    assert statuses == ["applied", "already applied"]
    assert (place.sequence, place.said()) == (1, ["1", "0", "1"])
    place.update.write_bytes(b"noise")
    assert place.run(TAKE, place.device, place.update, code=65).stdout == "refuse\n"
    assert place.run(TAKE, place.folder / "none", place.update, code=69).stdout == "later\n"
    none = place.folder / "none"
    done = place.run(TAKE, place.device, place.update, code=69, IF_BETTER=none)
    assert done.stdout == "later\n"
    wrong = {"NOTIFY": "true", "NOTIFY_TIMEOUT": "5m"}
    assert place.run(TAKE, place.device, place.update, code=2, **wrong).stdout == "later\n"


@needs_curl
def test_reload_goes_back_if_the_runtime_does_not_come_up(place: Place, web: str) -> None:
    """The runtime here answers only with the overlay that the device had before."""
    health = place.folder / "web" / "health"
    health.touch()
    old = Device.open(place.device).digest
    settings: dict[str, object] = {
        "NOTIFY": EXAMPLES / "reload.sh",
        "RELOAD": f'echo "$CDCCA_SEQUENCE" >> said; rm -f {health}; '
        f'[ "$CDCCA_DIGEST" != {old} ] || touch {health}',
        "HEALTH": f"{web}health",
        "SECONDS_UP": 1,
    }
    done = place.run(TAKE, place.device, place.update, code=81, **settings)
    assert "does not answer" in done.stderr
    assert (place.sequence, place.said(), health.exists()) == (0, ["1", "0"], True)
    settings["RELOAD"] = "true"
    place.run(TAKE, place.device, place.update, **settings)
    assert place.sequence == 1


def test_reload_exports_what_the_device_has(place: Place) -> None:
    """With a `cdcca` that writes down how it is called."""
    place.program("cdcca", "printf '%s ' \"$@\" >> called")
    device = {"CDCCA_DEVICE": place.device, "BASE": "b.gguf", "MMPROJ": "m.gguf", "EXPORT": "out"}
    place.run(EXAMPLES / "reload.sh", **device)
    words = ["--to", "gguf", "--base", "b.gguf", "-o", "out", "--mmproj", "m.gguf", "--quiet"]
    assert (place.folder / "called").read_text().split()[2:] == words
    place.program("cdcca", "exit 78")
    place.run(EXAMPLES / "reload.sh", code=78, RELOAD="touch reloaded", **device)
    assert not (place.folder / "reloaded").exists()


def test_oras_carries_an_update(place: Place) -> None:
    """A registry is a folder here, and oras copies."""
    place.program(
        "oras",
        'case "$1 $2" in\n'
        '  "push --artifact-type") cp "${5%%:*}" "$REGISTRY/$(basename "$4")" ;;\n'
        '  "pull --output") cp "$REGISTRY/$(basename "$4")" "$3/update.cdcca" ;;\n'
        "  *) exit 9 ;;\nesac",
    )
    registry = place.folder / "registry"
    registry.mkdir()
    oras = EXAMPLES / "oras.sh"
    place.run(oras, "push", "r.example/updates:7", place.update, REGISTRY=registry)
    done = place.run(oras, "pull", "r.example/updates:7", place.device, REGISTRY=registry)
    assert (place.sequence, done.stderr.splitlines()[-1]) == (1, "done: update.cdcca")
    place.run(oras, "pull", "r.example/updates:8", place.device, REGISTRY=registry, code=69)
    (registry / "updates:9").write_bytes(b"noise")
    done = place.run(oras, "pull", "r.example/updates:9", place.device, REGISTRY=registry, code=65)
    assert "refuse: update.cdcca" in done.stderr


@needs_curl
@pytest.mark.parametrize("kind", ["folder", "folder/", "address", "address/"])
def test_updates_are_fetched_once_and_whole(place: Place, web: str, kind: str) -> None:
    source, inbox = place.folder / "web", place.folder / "inbox"
    inbox.mkdir()
    sources = {"folder": f"{source}", "folder/": f"{source}/", "address": web[:-1], "address/": web}
    fetch = [EXAMPLES / "fetch-updates.sh", sources[kind], inbox]
    for number in (1, 2):
        (source / f"{number}.cdcca").write_bytes(bytes([number]) * 9)
    (source / "index").write_text("1.cdcca\n../evil.cdcca\n.hidden.cdcca\nother.txt\n2.cdcca\n")
    names = {"1.cdcca", "2.cdcca"}
    if kind.startswith("folder"):
        (source / "a * b.cdcca").write_bytes(b"x")
        names.add("a * b.cdcca")
    place.run(*fetch)
    assert {path.name for path in inbox.iterdir()} == {*names, ".fetched"}
    assert (inbox / "2.cdcca").read_bytes() == b"\2" * 9
    (inbox / "1.cdcca").unlink()
    place.run(*fetch)
    assert not (inbox / "1.cdcca").exists()
    if kind.startswith("address"):
        with (source / "index").open("a") as index:
            index.write("3.cdcca\n")
        place.run(*fetch, code=69)
        assert not (inbox / "3.cdcca").exists()


# ---------------------------------------------------------------- Mender


class Deployment:
    """What Mender's client does with the module: its states, in a folder as it makes it."""

    def __init__(self, place: Place, *files: Path, **settings: object) -> None:
        self.place, self.tree = place, place.folder / "tree"
        shutil.rmtree(self.tree, ignore_errors=True)
        for name in ("files", "tmp", "header"):
            (self.tree / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, self.tree / "files")
        env = {"DEVICE": place.device, "NOTIFY": "true"} | settings
        lines = [f"{name}='{value}'\n" for name, value in env.items()]
        (place.folder / "device.env").write_text("".join(lines))

    def state(self, name: str, *, fails: bool = False) -> str:
        module = EXAMPLES / "mender" / "cdcca-update"
        env = {"CDCCA_SETTINGS": self.place.folder / "device.env", "CDCCA_TAKE": TAKE}
        words = ["sh", "-c", f"{module} {name} {self.tree} || echo failed", "-"]
        done = self.place.run(*words, **env)
        assert ("failed" in done.stdout) == fails, done.stderr
        return done.stdout


def test_mender_installs_and_commits(place: Place) -> None:
    deployment = Deployment(place, place.update)
    assert deployment.state("SupportsRollback") == "Yes\n"
    for state in ("Download", "ArtifactInstall"):
        assert deployment.state(state) == ""
    assert place.sequence == 1
    assert deployment.state("NeedsArtifactReboot") == "No\n"
    for state in ("ArtifactCommit", "Cleanup", "AStateOfProtocol4"):
        assert deployment.state(state) == ""


def test_mender_goes_back_after_a_later_failure(place: Place) -> None:
    """Another payload of the deployment failed; the runtime is told, too."""
    notify = 'echo "$CDCCA_SEQUENCE" >> said'
    deployment = Deployment(place, place.update, NOTIFY=notify.replace("'", '"'))
    deployment.state("ArtifactInstall")
    for _ in range(2):  # as after a power failure in the middle of it
        deployment.state("ArtifactRollback")
    deployment.state("ArtifactFailure")
    assert (place.sequence, place.said()) == (0, ["1", "0"])


def test_mender_takes_back_nothing_that_was_not_installed(place: Place) -> None:
    """The runtime refused it (81); the overlay from before stays, though another is kept."""
    place.run("cdcca", "apply", place.device, place.update)
    place.update.write_bytes(worlds.file_of(worlds.next_update(Device.open(place.device))))
    deployment = Deployment(place, place.update, NOTIFY="[ $CDCCA_SEQUENCE = 1 ]")
    deployment.state("ArtifactInstall", fails=True)
    for state in ("ArtifactRollback", "ArtifactFailure", "Cleanup"):
        deployment.state(state)
    assert place.sequence == 1


def test_mender_commits_nothing_else(place: Place) -> None:
    deployment = Deployment(place, place.update)
    deployment.state("ArtifactInstall")
    place.run("cdcca", "apply", place.device, "--rollback")
    deployment.state("ArtifactCommit", fails=True)


def test_mender_takes_one_file(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other.cdcca"
    other.write_bytes(b"")
    Deployment(place, place.update, other).state("ArtifactInstall", fails=True)
    Deployment(place).state("ArtifactInstall", fails=True)
    Deployment(place).state("ArtifactRollback")
    assert place.sequence == 0


# ---------------------------------------------------------------- Greengrass

# The keys of AWS's component recipe reference, format 2020-01-25, that are used.
RECIPE_KEYS = {
    "": {"RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentDescription"}
    | {"ComponentPublisher", "ComponentConfiguration", "ComponentDependencies", "ComponentType"}
    | {"Manifests", "Lifecycle"},
    "Manifests": {"Name", "Platform", "Lifecycle", "Artifacts", "Selections"},
    "Platform": {"os", "architecture", "runtime"},
    "Lifecycle": {"Setenv", "Bootstrap", "Install", "Run", "Startup", "Shutdown", "Recover"},
    "Install": {"Script", "RequiresPrivilege", "SkipIf", "Timeout", "Setenv"},
    "Artifacts": {"URI", "Unarchive", "Permission", "Digest", "Algorithm"},
    "Permission": {"Read", "Execute"},
    "ComponentConfiguration": {"DefaultConfiguration"},
}


def unknown_keys(value: object, name: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from unknown_keys(item, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if name in RECIPE_KEYS and key not in RECIPE_KEYS[name]:
                yield f"{name}: {key}"
            yield from unknown_keys(inner, key)


def recipe() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "greengrass" / "recipe.yaml").read_text())
    return found


def test_the_recipe_is_one() -> None:
    found = recipe()
    assert list(unknown_keys(found)) == []
    assert found["RecipeFormatVersion"] == "2020-01-25"
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["ComponentVersion"])
    assert re.fullmatch(r"[\w.-]{1,128}", found["ComponentName"])
    (manifest,) = found["Manifests"]
    assert all(one["URI"].startswith("s3://") for one in manifest["Artifacts"])
    used = re.findall(r"\{configuration:/(\w+)\}", json.dumps(manifest))
    assert set(used) == found["ComponentConfiguration"]["DefaultConfiguration"].keys()


@pytest.mark.parametrize(("notify", "code", "sequence"), [("true", 0, 1), ("[ 1 = 2 ]", 81, 0)])
def test_the_recipes_script(place: Place, notify: str, code: int, sequence: int) -> None:
    (manifest,) = recipe()["Manifests"]
    install = manifest["Lifecycle"]["Install"]
    artifacts = place.folder / "artifacts"
    artifacts.mkdir()
    for one in manifest["Artifacts"]:
        name = one["URI"].rpartition("/")[2]
        shutil.copy(place.update if name == "update.cdcca" else EXAMPLES / name, artifacts / name)
    values = {"artifacts:path": str(artifacts), "configuration:/device": str(place.device)}
    values["configuration:/notify"] = notify

    def filled(text: str) -> str:
        return re.sub(r"\{((?:artifacts|configuration):[^}]+)\}", lambda it: values[it[1]], text)

    env = {name: filled(value) for name, value in install["Setenv"].items()}
    place.run("sh", "-c", filled(install["Script"]), code=code, **env)
    assert place.sequence == sequence


# ---------------------------------------------------------------- linted


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_units_are_sound(tmp_path: Path) -> None:
    """With the scripts at a place that there is."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    units = []
    for unit in (EXAMPLES / "systemd").glob("cdcca-*"):
        text = unit.read_text().replace("/usr/lib/cdcca/cron-device.sh", f"{EXAMPLES.parent}/c.sh")
        text = text.replace(f"{EXAMPLES.parent}/c.sh", str(EXAMPLES.parent / "cron-device.sh"))
        units.append(tmp_path / unit.name)
        units[-1].write_text(text.replace("/usr/lib/cdcca", str(EXAMPLES)))
    assert len(units) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if "cdcca-" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_settings_are_shell_and_what_the_units_read() -> None:
    text = (EXAMPLES / "systemd" / "device.env").read_text()
    set_there = set(re.findall(r"^([A-Z]+)=", text, re.MULTILINE))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    for unit in (EXAMPLES / "systemd").glob("*.service"):
        assert set(re.findall(r"\$\{?([A-Z]+)\b", unit.read_text())) <= set_there, unit.name


def test_the_container_file_copies_what_there_is() -> None:
    lines = (EXAMPLES / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {step[0] for step in steps} <= known
    for name, rest in steps:
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
        elif name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)


@pytest.mark.parametrize(
    "file", ["examples/device/README.md", "examples/device/Containerfile", ".ci/run"]
)
def test_a_light_installation_is_the_same_everywhere(file: str) -> None:
    text = re.sub(r"\\\n\s*", " ", (ROOT / file).read_text())
    commands = [part.strip() for line in text.splitlines() for part in line.split("&&")]
    found = [part for part in commands if "--no-compile" in part and "numpy" in part]
    assert found
    for command in found:
        assert set(command.rpartition("--no-compile")[2].split()) == LIGHT_LINE
