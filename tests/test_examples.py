"""Every script in examples/ runs unchanged, in a folder of its own, with `cdcca` on the PATH."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cdcca_cli import streams
from cdcca_cli.formats.adaptation import read_adaptation
from cdcca_cli.formats.codebook import read_codebook, write_codebook
from cdcca_cli.formats.shard_stream import read_shards
from cdcca_cli.inspection.fleet import read_fleet
from cdcca_cli.reporting.gather import gather
from cdcca_cli.reporting.settings import ReportSettings
from tests import fork_server
from tests.shipped import few_frames

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
NUM_FRAMES = 6


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first few shipped frames, as a folder with a manifest."""
    return few_frames(tmp_path_factory.mktemp("frames"), "stream", NUM_FRAMES)


@pytest.fixture(scope="module")
def real_commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cdcca` in it: this checkout under this interpreter, a process each."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "cdcca"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -m cdcca_cli \"$@\"\n"
    )
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same by forks of one process, which has imported everything already."""
    folder = tmp_path_factory.mktemp("forks")
    address = folder / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server", address],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 240
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline, "no server"
            time.sleep(0.05)
        fork_server.client(folder / "cdcca", address)
        yield folder
    finally:
        server.terminate()
        server.wait(timeout=20)


def environment(commands: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CDCCA_")}
    return kept | {"PATH": f"{commands}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | more


def run(script: str, *arguments: str | Path, cwd: Path, env: dict[str, str]) -> str:
    """Run an example to its end; returns what it wrote to stderr."""
    done = subprocess.run(
        ["bash", str(EXAMPLES / script), *map(str, arguments)],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def current(folder: Path) -> tuple[int, str]:
    """Sequence and digest of a device folder."""
    state = json.loads((folder / "device.json").read_text())["current"]
    return state["sequence"], state["digest"]


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory, frames: Path, real_commands: Path) -> Path:
    """A folder in which pipe.sh has run, each stage a process of its own."""
    folder = tmp_path_factory.mktemp("pipe")
    run("pipe.sh", frames, cwd=folder, env=environment(real_commands))
    return folder


def test_signed_updates_and_the_change_of_the_key(
    tmp_path: Path, frames: Path, commands: Path
) -> None:
    """Afterwards the old key's update is refused, on a device that has not had it yet too."""
    run("signed.sh", frames, cwd=tmp_path, env=environment(commands))
    assert current(tmp_path / "device") == current(tmp_path / "mirror")
    assert current(tmp_path / "device")[0] == 1
    later = Path(shutil.copytree(tmp_path / "device", tmp_path / "later"))
    done = subprocess.run(
        ["cdcca", "apply", later, tmp_path / "update.cdcca", "--dry-run"],
        env=environment(commands),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (77, 1), done.stderr


def test_pipe_ends_with_device_and_mirror_at_one_digest(piped: Path) -> None:
    assert current(piped / "device") == current(piped / "mirror")
    assert current(piped / "device")[0] == 1


def test_files_give_the_update_of_the_pipe_byte_for_byte(
    tmp_path: Path, piped: Path, frames: Path, commands: Path
) -> None:
    run("files.sh", frames, cwd=tmp_path, env=environment(commands))
    assert (tmp_path / "update.cdcca").read_bytes() == (piped / "update.cdcca").read_bytes()
    assert current(tmp_path / "device") == current(piped / "device")


def test_ssh_through_a_real_sshd(tmp_path: Path, piped: Path, frames: Path, commands: Path) -> None:
    if not Path(SSHD).exists() or os.geteuid() != 0 or not shutil.which("ssh-keygen"):
        pytest.skip("needs root and an sshd (openssh-server) to start on loopback")
    env = environment(commands)
    for side in ("device", "cloud/mirror"):
        folder = tmp_path / side
        folder.parent.mkdir(exist_ok=True)
        subprocess.run(["cdcca", "init", str(folder), "--quiet"], env=env, check=True)
    with _sshd(tmp_path, commands) as ssh:
        run(
            "ssh.sh",
            frames,
            "127.0.0.1",
            cwd=tmp_path,
            env=env | {"SSH": ssh, "MIRROR": str(tmp_path / "cloud" / "mirror")},
        )
    assert current(tmp_path / "device") == current(tmp_path / "cloud" / "mirror")
    assert current(tmp_path / "device") == current(piped / "device")


class _sshd:  # reads as the server it starts
    """An sshd of our own on loopback, with one key; gives the ssh command that reaches it."""

    def __init__(self, folder: Path, commands: Path) -> None:
        self.folder, self.commands = folder, commands

    def __enter__(self) -> str:
        folder = self.folder
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
            )
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            f'SetEnv "PATH={self.commands}:{os.environ["PATH"]}" OMP_NUM_THREADS=1\n'
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        self.server = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL
        )
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        options = (
            "-o BatchMode=yes -o StrictHostKeyChecking=no -o LogLevel=ERROR "
            f"-o UserKnownHostsFile={folder}/known -i {folder}/user -p {port}"
        )
        return f"ssh {options}"

    def __exit__(self, *_: object) -> None:
        self.server.terminate()
        self.server.wait(timeout=10)


@pytest.fixture
def field(tmp_path: Path, frames: Path, commands: Path) -> "Field":
    """A device in the field, with its boxes and frames of its own."""
    env = environment(commands)
    subprocess.run(["cdcca", "init", "device", "--quiet"], cwd=tmp_path, env=env, check=True)
    shutil.copytree(frames, tmp_path / "frames")
    (tmp_path / "frames" / "frames.jsonl").unlink()
    for name in ("out", "in"):
        (tmp_path / name).mkdir()
    return Field(tmp_path, env)


class Field:
    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.frames, self.outbox, self.inbox = (folder / name for name in ("frames", "out", "in"))

    def tick(self, env: dict[str, str] | None = None) -> str:
        """One run of the cron job: what cron would mail."""
        boxes = (self.frames, self.outbox, self.inbox)
        return run("cron-device.sh", *boxes, cwd=self.folder, env=env or self.env)

    def sent(self) -> list[str]:
        """The frames in the outbox, which is emptied."""
        ids = []
        for path in sorted(self.outbox.iterdir()):
            with streams.binary_input(path) as file:
                ids += [shard.frame for shard in read_shards(file)]
            path.unlink()
        return ids


def test_cron_sends_what_is_new_once_and_applies_what_came(field: Field, piped: Path) -> None:
    shutil.copy(piped / "update.cdcca", field.inbox / "1.cdcca")
    (field.inbox / "2.cdcca").write_bytes(b"noise")
    mail = field.tick()
    assert mail.count("\n") == 1 and "2.cdcca" in mail, "only trouble is worth a mail"
    assert current(field.folder / "device") == current(piped / "device")
    assert [path.name for path in field.inbox.iterdir()] == ["refused"]
    assert [path.name for path in (field.inbox / "refused").iterdir()] == ["2.cdcca"]
    (row,) = read_fleet([field.folder / "device"]).devices
    assert (row.sequence, [one["exit_code"] for one in row.refusals]) == (1, [65])
    assert row.uplink_bytes == sum(path.stat().st_size for path in field.outbox.iterdir())
    assert row.downlink_bytes == (piped / "update.cdcca").stat().st_size + len(b"noise")
    assert len(field.sent()) == 1
    assert field.tick() == ""
    assert list(field.outbox.iterdir()) == [], "nothing new is no shard"


def test_cron_applies_the_codebooks_that_came(field: Field) -> None:
    """A later one than the device has, the same again, and one that is damaged."""
    source = ROOT / "cdcca_cli" / "assets" / "student" / "codebook.safetensors"
    with source.open("rb") as file:
        later = replace(read_codebook(file), sequence=7)
    with (field.inbox / "7.codebook").open("wb") as out:
        write_codebook(out, later)
    (field.inbox / "8.codebook").write_bytes(source.read_bytes()[:-9])
    mail = field.tick()
    assert mail.count("\n") == 1 and "8.codebook" in mail
    assert later.digest in (field.folder / "device" / "device.json").read_text()
    assert [path.name for path in field.inbox.iterdir()] == ["refused"]
    with (field.inbox / "7.codebook").open("wb") as out:
        write_codebook(out, later)
    assert field.tick() == ""
    assert [path.name for path in field.inbox.iterdir()] == ["refused"]


def test_cron_goes_on_after_a_damaged_frame_and_names_it_once(field: Field) -> None:
    (field.frames / "0-bad.jpg").write_bytes(b"")
    mail = field.tick()
    assert mail.count("\n") == 1 and "0-bad.jpg" in mail
    assert len(field.sent()) == 1
    assert (field.tick(), field.sent()) == ("", [])
    (field.frames / "1-bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert "1-bad.jpg" in field.tick(), "no other frame is new"
    assert (field.sent(), field.tick()) == ([], "")
    sound = next((ROOT / "cdcca_cli/assets/frames/heldout").glob("[!01]*.*g"))
    shutil.copy(sound, field.frames / "0-bad.jpg")
    assert (field.tick(), field.sent()) == ("", ["0-bad.jpg"])


@pytest.mark.parametrize("code", [1, 2, 65, 66, 76, 77, 80, 137])
def test_cron_moves_aside_an_update_that_ends_with_any_odd_code(field: Field, code: int) -> None:
    """A `cdcca` whose `apply` ends with this code, as a hostile update might make it."""
    stub = field.folder / "bin" / "cdcca"
    stub.parent.mkdir()
    real = shutil.which("cdcca", path=field.env["PATH"])
    stub.write_text(
        f'#!/bin/sh\n[ "$1" != apply ] || {{ echo odd >&2; exit {code}; }}\nexec {real} "$@"\n'
    )
    stub.chmod(0o755)
    (field.inbox / "1.cdcca").write_bytes(b"hostile")
    env = field.env | {"PATH": f"{stub.parent}:{field.env['PATH']}"}
    assert field.tick(env) == "odd\n"
    assert [path.name for path in (field.inbox / "refused").iterdir()] == ["1.cdcca"]
    assert len(field.sent()) == 1
    assert field.tick(env) == ""


def test_cron_sends_pictures_where_a_server_answers(field: Field) -> None:
    """A `cdcca` whose `infer --server` is its own model's, and whose `sample` finds no torch."""
    stub = field.folder / "bin" / "cdcca"
    stub.parent.mkdir()
    real = shutil.which("cdcca", path=field.env["PATH"])
    stub.write_text(
        "#!/bin/bash\n"
        '[ "$1 $3 $4" != "infer --server http://here" ] || set -- "${@:1:2}" "${@:5}"\n'
        f'echo "$*" >>"$0.log"\nexec {real} "$@"\n'
    )
    stub.chmod(0o755)
    env = field.env | {"PATH": f"{stub.parent}:{field.env['PATH']}", "SERVER": "http://here"}
    assert field.tick(env) == ""
    log = Path(f"{stub}.log").read_text()
    assert "--predictions" in log and "--payload frame" in log
    (sent,) = field.outbox.iterdir()
    with streams.binary_input(sent) as source:
        assert {shard.coding.codec for shard in read_shards(source)} == {"frame"}
    assert field.tick(env) == "" and len(list(field.outbox.iterdir())) == 1


def test_cron_sets_a_damaged_state_file_aside(field: Field) -> None:
    field.tick()
    before = field.sent()
    state = field.folder / "device" / ".seen.json"
    state.write_bytes(state.read_bytes()[:-20])
    assert ".seen.json" in field.tick()
    assert field.sent() == before, "every frame is new again"
    assert field.tick() == ""


def test_cron_sends_what_a_stopped_run_left(field: Field) -> None:
    field.tick()
    (name,) = field.outbox.iterdir()
    name.rename(field.folder / "device" / ".outgoing.tokens.zst")
    assert field.tick() == ""
    assert len(field.sent()) == 1


def test_loop_in_plain_shell(tmp_path: Path, frames: Path, commands: Path) -> None:
    """With anchors and a probe; the same frames, as if they were of the source domain."""
    relative = os.path.relpath(frames, tmp_path)
    env = environment(commands, ANCHORS=relative, PROBE=relative)
    run("loop.sh", relative, "2", cwd=tmp_path, env=env)
    assert current(tmp_path / "device") == current(tmp_path / "mirror")
    adaptation = tmp_path / "round-2" / "adaptation.safetensors"
    with adaptation.open("rb") as file:
        assert read_adaptation(file, where=str(adaptation)).report["anchors"] is not None
    assert current(tmp_path / "device")[0] == 2
    (tmp_path / "notes.txt").write_text("Another file beside the rounds is no harm.")
    found, bad = gather([tmp_path], ReportSettings((f"probe={frames}",)))
    (shown,) = found["runs"]
    assert not bad.files and [one["status"] for one in shown["gate"]] == ["applied"] * 2
    assert [len(shown[part]) for part in ("rounds", "training", "teaching")] == [2, 2, 2]
    (probe,) = [one for one in shown["scores"] if one["name"] == "probe"]
    assert [point["round"] for point in probe["metrics"][0]["points"]] == [0, 1, 2]


def test_instructblip_commands_on_a_tiny_pair_of_that_family(
    tmp_path: Path, commands: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests import tiny

    teacher = tiny.q_checkpoint(
        tmp_path_factory.mktemp("teacher"), instruct=True, qformer_layers=4, width=128, seed=7
    )
    student = tiny.q_checkpoint(
        tmp_path_factory.mktemp("student"), instruct=True, seed=8, tower=tiny.tower_of(teacher)
    )
    images = tmp_path / "images"
    images.mkdir()
    questions = []
    for number, image in enumerate(tiny.images(10)):
        image.save(images / f"{number:012}.jpg")
        questions.append(
            {
                "question_id": f"q{number}",
                "image_id": number,
                "split": "val",
                "question": "What colour is the square?",
                "choices": ["red", "green", "blue", "yellow"],
                "correct_choice_idx": number % 4,
                "direct_answers": ["red"] * 10,
                "difficult_direct_answer": False,
            }
        )
    annotations = tmp_path / "aokvqa.json"
    annotations.write_text(json.dumps(questions))
    run(
        "instructblip.sh",
        annotations,
        images,
        cwd=tmp_path,
        env=environment(
            commands, TEACHER=str(teacher), STUDENT=str(student), COMPUTE="cpu", DTYPE="float32"
        ),
    )
    assert current(tmp_path / "device") == current(tmp_path / "mirror")
    assert (tmp_path / "update.cdcca").stat().st_size <= 800_000


def test_a_run_kept_in_one_toml_file_and_a_makefile(
    tmp_path: Path, frames: Path, commands: Path
) -> None:
    """A second `make` has nothing to do, and a mistake in the file is refused with its line."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    folder = Path(shutil.copytree(EXAMPLES / "toml", tmp_path / "run"))
    (folder / "frames").mkdir()
    make = ["make", f"FRAMES={frames}", f"HELD_OUT={frames}"]

    def made() -> subprocess.CompletedProcess[str]:
        env = environment(commands)
        return subprocess.run(make, cwd=folder, env=env, capture_output=True, text=True)

    done = made()
    assert done.returncode == 0, done.stderr[-2000:]
    assert current(folder / "device") == current(folder / "mirror")
    assert current(folder / "device")[0] == 1
    assert (folder / "update.cdcca").stat().st_size <= 65536
    assert json.loads((folder / "scores.json").read_text())["scores"]
    assert made().stdout == "make: 'scores.json' is up to date.\n"
    settings = folder / "cdcca.toml"
    settings.write_text(settings.read_text().replace("epochs = 2", "epochs = 'two'"))
    (folder / "adaptation.safetensors").unlink()
    done = made()
    number = settings.read_text().split("epochs =")[0].count("\n") + 1
    assert f"cdcca.toml:{number}: [distill] epochs: expected a whole number" in done.stderr
    assert done.returncode != 0 and not (folder / "adaptation.safetensors").exists()


def test_every_script_is_executed_here() -> None:
    files = (Path(__file__), ROOT / "tests/export/test_example.py")
    text = "".join(file.read_text() for file in files)
    for script in EXAMPLES.glob("*.sh"):
        assert f'"{script.name}"' in text, f"{script.name} has no test"
