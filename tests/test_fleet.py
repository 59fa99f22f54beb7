"""examples/fleet: each way gives the labels that `cdcca label` gives, also after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdcca_cli.formats.label_stream import Labels
from tests.shipped import FRAMES, few_frames
from tests.test_examples import commands, environment  # noqa: F401

FLEET = Path(__file__).parent.parent / "examples" / "fleet"
NAMES = ("camera-1", "camera-2")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, commands: Path) -> Path:  # noqa: F811
    """A mirror, two files of shards in uplinks/, and in wanted/ the labels of `cdcca label`."""
    folder = tmp_path_factory.mktemp("fleet")
    for name in ("uplinks", "wanted"):
        (folder / name).mkdir()
    env = environment(commands)

    def run(*words: str | Path) -> None:
        command = ["cdcca", *map(str, words), "--quiet"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("init", "mirror")
    for name, source in zip(NAMES, ("stream", "heldout"), strict=True):
        frames = few_frames(folder / name, source, 4)
        shards = Path("uplinks", f"{name}.shards")
        run("sample", frames, "-m", "mirror", "--top", "100%", "-o", shards)
        run("label", shards, "--student", "mirror", "-o", f"wanted/{name}.labels")
    return folder


@pytest.fixture
def here(fleet: Path, tmp_path: Path) -> Path:
    """A folder of its own with the uplinks and the mirror."""
    for name in ("uplinks", "mirror"):
        shutil.copytree(fleet / name, tmp_path / name)
    return tmp_path


def wanted(fleet: Path, name: str) -> bytes:
    return (fleet / "wanted" / f"{name}.labels").read_bytes()


def num_labels(path: Path) -> int:
    with path.open("rb") as file:
        return len(Labels([(file, path.name)]))


def check(fleet: Path, here: Path) -> None:
    """labels/ has the labels of all files, byte for byte, and nothing else."""
    found = {path.name: path.read_bytes() for path in (here / "labels").iterdir() if path.is_file()}
    assert found == {f"{name}.labels": wanted(fleet, name) for name in NAMES}


# ---------------------------------------------------------------- make


class Make:
    def __init__(self, folder: Path, commands: Path) -> None:  # noqa: F811
        self.folder, self.env = folder, environment(commands)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-f", str(FLEET / "Makefile"), "STUDENT=mirror", *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300
        )


@pytest.fixture
def make(here: Path, commands: Path) -> Make:  # noqa: F811
    if shutil.which("make") is None:
        pytest.skip("needs make")
    return Make(here, commands)


def test_make_labels_each_file_once(fleet: Path, here: Path, make: Make) -> None:
    done = make("-j", "2")
    assert done.returncode == 0, done.stderr
    check(fleet, here)
    assert "Nothing to be done" in make("-j", "2").stdout


def test_make_goes_on_after_a_kill(fleet: Path, here: Path, make: Make) -> None:
    """A run that was killed has left whole records and a piece of one."""
    (here / "labels").mkdir()
    for name in NAMES:
        whole = wanted(fleet, name)
        (here / "labels" / f"{name}.labels.part").write_bytes(whole[: 2 * len(whole) // 3])
    done = make()
    assert done.returncode == 0, done.stderr
    check(fleet, here)


def test_make_asks_only_for_what_is_new(fleet: Path, here: Path, make: Make) -> None:
    """A file of shards that has grown keeps its labels; the new ones stand behind them."""
    assert make().returncode == 0
    first, second = ((here / "uplinks" / f"{name}.shards") for name in NAMES)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    os.utime(first, (time.time() + 5, time.time() + 5))
    done = make()
    assert done.returncode == 0, done.stderr
    labels = (here / "labels" / f"{NAMES[0]}.labels").read_bytes()
    assert labels[: len(wanted(fleet, NAMES[0]))] == wanted(fleet, NAMES[0])
    assert len(labels) > len(wanted(fleet, NAMES[0]))
    assert done.stdout.count("cdcca label") == 1, "the other file has not changed"


def test_make_goes_past_a_damaged_file(fleet: Path, here: Path, make: Make) -> None:
    bad = here / "uplinks" / f"{NAMES[0]}.shards"
    sound = bad.read_bytes()
    bad.write_bytes(b"noise")
    done = make("-k")
    assert done.returncode != 0 and str(Path("uplinks") / bad.name) in done.stderr
    assert not (here / "labels" / f"{NAMES[0]}.labels").exists()
    assert (here / "labels" / f"{NAMES[1]}.labels").read_bytes() == wanted(fleet, NAMES[1])
    bad.write_bytes(sound)
    assert make().returncode == 0
    check(fleet, here)


# ---------------------------------------------------------------- Slurm


def test_a_slurm_array(fleet: Path, here: Path, commands: Path) -> None:  # noqa: F811
    """Its tasks one after the other, as Slurm runs them: by bash, with the number of the task."""
    (here / "uplinks.txt").write_text("".join(f"uplinks/{name}.shards\n" for name in NAMES))

    def task(number: int, **more: str) -> subprocess.CompletedProcess[str]:
        known = {"TEACHER": "shipped:teacher", "STUDENT": "mirror"}
        known |= {"SLURM_ARRAY_TASK_ID": str(number), **more}
        return subprocess.run(
            ["bash", str(FLEET / "label.sbatch"), "uplinks.txt"],
            cwd=here,
            env=environment(commands, **known),
            capture_output=True,
            text=True,
            timeout=300,
        )

    (here / "labels").mkdir()
    whole = wanted(fleet, NAMES[1])
    (here / "labels" / f"{NAMES[1]}.labels.part").write_bytes(whole[: len(whole) // 2])
    for number in (1, 0):
        done = task(number)
        assert done.returncode == 0, done.stderr
    check(fleet, here)
    again = task(0, TEACHER="no such teacher")
    assert (again.returncode, again.stderr) == (0, ""), "its labels are there"
    assert task(2).returncode == 66
    assert task(0, TEACHER="").returncode != 0


# ---------------------------------------------------------------- Ray Data

needs_ray = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import ray.data"], capture_output=True).returncode != 0,
    reason="needs Ray Data: pip install 'ray[data]'",
)


class Ray:
    """label_ray.py with two actors on this machine."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        root = str(Path(__file__).parent.parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CDCCA")}
        self.env = kept | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(scratch)}
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}

    def start(self, *files: Path) -> subprocess.Popen[str]:
        script = [sys.executable, str(FLEET / "label_ray.py"), *map(str, files)]
        how = ["--teacher", "shipped:teacher", "--student", "mirror", "-o", "labels"]
        return subprocess.Popen(
            [*script, *how, "--actors", "2", "--threads", "1"],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *files: Path) -> tuple[int, str]:
        running = self.start(*files)
        output, _ = running.communicate(timeout=900)
        return running.returncode, output


@pytest.fixture
def ray(here: Path) -> Iterator[Ray]:
    scratch = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a socket's name is short
    yield Ray(here, scratch)
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.slow
@needs_ray
def test_ray_is_killed_and_continued(fleet: Path, here: Path, ray: Ray) -> None:
    """The whole stream and a small file, by two actors; what is labelled is not asked again."""
    stream = here / "uplinks" / "stream.shards"
    run = [sys.executable, "-m", "cdcca_cli"]
    for line in (
        ["sample", FRAMES / "stream", "-m", "mirror", "--top", "100%", "-o", stream],
        ["label", stream, "--student", "mirror", "-o", "stream.labels"],
    ):
        subprocess.run([*run, *map(str, line), "--threads", "1"], cwd=here, env=ray.env, check=True)
    files = sorted((here / "uplinks").iterdir())
    parts = here / "labels" / ".parts" / "stream"
    running = ray.start(*files)
    deadline = time.monotonic() + 900
    while len(list(parts.glob("0*.labels"))) < 3:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    time.sleep(1)
    kept = sum(map(num_labels, parts.glob("0*.labels")))
    assert not (here / "labels" / "stream.labels").exists()
    code, output = ray(*files)
    assert code == 0, output
    total = sum(num_labels(path) for path in (here / "labels").glob("*.labels"))
    assert 0 < kept < total and f"{total - kept:,} labels written" in output
    stream = here / "labels" / "stream.labels"
    assert stream.read_bytes() == (here / "stream.labels").read_bytes()
    stream.unlink()
    check(fleet, here)


@pytest.mark.slow
@needs_ray
def test_ray_goes_past_what_is_bad(fleet: Path, here: Path, ray: Ray) -> None:
    """Beside two sound files: one of noise, and one that was cut; both are mended then.

    And one with a record whose sum is wrong, which is left out.
    """
    sound = (here / "uplinks" / f"{NAMES[0]}.shards").read_bytes()
    (here / "uplinks" / "noise.shards").write_bytes(b"noise")
    (here / "uplinks" / "cut.shards").write_bytes(sound[:-20])
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    other = (here / "uplinks" / f"{NAMES[1]}.shards").read_bytes()
    (here / "uplinks" / "flipped.shards").write_bytes(flipped + other)
    files = sorted((here / "uplinks").iterdir())
    code, output = ray(*files)
    assert code == 65 and "2 of 5 files failed" in output
    assert (here / "labels" / "flipped.labels").read_bytes() == wanted(fleet, NAMES[1])
    (here / "labels" / "flipped.labels").unlink()
    files.remove(here / "uplinks" / "flipped.shards")
    assert "noise.shards" in output and "cut.shards" in output
    check(fleet, here)
    for name in ("noise.shards", "cut.shards"):
        (here / "uplinks" / name).write_bytes(sound)
    code, output = ray(*files)
    assert code == 0 and "2 files to label, 2 have labels" in output
    for name in ("noise", "cut"):
        assert (here / "labels" / f"{name}.labels").read_bytes() == wanted(fleet, NAMES[0])
