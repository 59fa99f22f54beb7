"""Two processes of one `accelerate launch` against one process alone."""

import fcntl
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import distributed
from cdcca_cli.errors import Unavailable, UsageError
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.shard_stream import writer
from cdcca_cli.main import main
from cdcca_cli.teachers.labelling import open_labels
from tests.distillation.conftest import assert_near

ROOT = Path(__file__).parents[2]
RUNS = {
    "akd": "--batch-size 8 --method akd --set query_weight=1 --set repr_weight=1",
    "akd-parts": "--batch-size 8 --method akd --set query_weight=1 --set repr_weight=1 "
    "--set micro_batch_size=4",
    "cotta-parts": "--batch-size 8 --method cotta --set micro_batch_size=4 --set cotta_threshold=1 "
    "--set cotta_views=1 --set cotta_restore=0.1 --set cotta_ema=0.5",
    "last-parts": "--batch-size 8 --method pseudo-label --set micro_batch_size=4 --set ema=0.5 "
    "--rate-aware 4 --work last-parts.work",
    "anchors": "--batch-size 8 --method pseudo-label --set micro_batch_size=4 "
    "--anchors ../anchors.tokens --set anchor_questions=8",
    "usual": "",
    "pkd": "--batch-size 8 --method pkd",
    "cotta": "--batch-size 8 --method cotta --set cotta_threshold=1 "
    "--set cotta_views=1 --set cotta_ema=0.5",
    "pseudo-label": "--batch-size 2 --method pseudo-label --labels many.labels "
    "--set teacher_batch_size=2",
}
"""Two epochs each. With micro-batches of half a batch both ways add up the same two parts."""
LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
LAUNCH += "--mixed_precision no --dynamo_backend no --main_process_port 0"
"""--multi_gpu, though it is on a CPU: with --cpu accelerate starts one process alone."""
SCRIPT = """
import os, sys
import torch
torch.set_num_threads(1)
from cdcca_cli.teachers import local
from cdcca_cli.distillation.methods import tent
tent.MAX_NEW_TOKENS = local.MAX_NEW_TOKENS = {"vqa": 3, "caption": 5}
from cdcca_cli.distillation.methods import taught
if os.environ["RANK"] == "1":  # as another card would, but by far more
    phi, first_ones = taught.initial_phi, taught.Taught._of_first
    def other_phi(*rows):
        made = phi(*rows)
        made.weight.data.add_(0.5)
        return made
    def other_values(self, values):
        return first_ones(self, [2 * value + 1 for value in values])
    taught.initial_phi, taught.Taught._of_first = other_phi, other_values
from cdcca_cli.main import main
for line in open(sys.argv[1]):
    if main(line.split()):
        sys.exit(1)
"""


@dataclass
class Both:
    """What one process wrote and what two wrote, by run; and what the two said."""

    one: dict[str, Path]
    two: dict[str, Path]
    said: str

    def adaptations(self, run: str) -> tuple[Adaptation, Adaptation]:
        made = []
        for side in (self.one, self.two):
            with side[run].open("rb") as source:
                made.append(read_adaptation(source))
        return made[0], made[1]


def arguments(run: str, tokens: Path, teacher: Path, mirror: Path) -> list[str]:
    common = f"--epochs 2 --holdout 25% --compute cpu --dtype float32 -o {run}.out"
    if "--labels" not in RUNS[run]:
        common += " --labels labels --set teacher_batch_size=8"
    models = ["--teacher", str(teacher), "--student", str(mirror), "--log", f"{run}.log"]
    return ["distill", str(tokens), *models, *common.split(), *RUNS[run].split()]


@pytest.fixture(scope="module")
def both(
    tiny_pair: tuple[Path, Path],
    mirror: Device,
    shards: list[Shard],
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    """Made by the first worker that needs it, for all of them (pytest -n)."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "processes"
    with (base / "processes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "stderr").exists():
            (folder / "stderr").write_text(train_both(folder, tiny_pair[0], mirror, shards))
    made = [{run: folder / side / f"{run}.out" for run in RUNS} for side in ("one", "two")]
    return Both(made[0], made[1], (folder / "stderr").read_text())


def train_both(folder: Path, teacher: Path, mirror: Device, shards: list[Shard]) -> str:
    """All runs by one process and by two; returns what the two wrote on stderr."""
    folder.mkdir()
    tokens = folder / "up.tokens"
    for path, frames in ((tokens, shards), (folder / "anchors.tokens", shards[:4])):
        with path.open("wb") as out, writer(out) as write:
            for shard in frames:
                write(shard)
    lines = [arguments(run, tokens, teacher, mirror.path) for run in RUNS]
    (folder / "script.py").write_text(SCRIPT)
    (folder / "lines").write_text("".join(" ".join(line) + "\n" for line in lines))
    (folder / "one").mkdir()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "one")
        torch.set_num_threads(1)
        try:
            assert [main(line) for line in lines] == [0] * len(lines)
        finally:
            torch.set_num_threads(threads)
    (folder / "two").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCH.split(), folder / "script.py", folder / "lines"],
        cwd=folder / "two",
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


@pytest.mark.parametrize("run", ["akd", "pseudo-label"])
def test_the_adaptation_is_the_same_to_rounding(run: str, both: Both, mirror: Device) -> None:
    """Parameters to 1e-5; they moved a hundred times as far."""
    one, two = both.adaptations(run)
    assert_near(two.overlay, one.overlay, one.report["lr"])
    base = mirror.read_overlay()
    assert max(np.abs(one.overlay[name] - base[name]).max() for name in base) > 1e-3
    curves = [np.concatenate([*made.report["curves"].values()]) for made in (one, two)]
    np.testing.assert_allclose(*curves, rtol=1e-4)


@pytest.mark.parametrize("run", sorted(RUNS.keys() - {"akd", "pseudo-label"}))
def test_the_same_parts_give_the_same_bytes(run: str, both: Both) -> None:
    """One process adds the gradients of its two parts, two processes add theirs: the same sums.

    So do batches of 16 as they are. PKD and CoTTA, with terms of a whole batch, are not divided.
    The second process computes another phi and other scales and gradients: the first one's count.
    """
    assert both.two[run].read_bytes() == both.one[run].read_bytes()


def test_the_work_is_divided(both: Both) -> None:
    """Two processes that each did all of it would have the bits of one process without parts."""
    one, two = both.adaptations("akd")
    assert overlay_digest(one.overlay) != overlay_digest(two.overlay)
    parts, _ = both.adaptations("akd-parts")
    assert overlay_digest(parts.overlay) != overlay_digest(one.overlay)


def test_the_first_speaks_and_writes_for_both(both: Both) -> None:
    """Nothing beside what one process leaves, of logs and states too, and each line once."""
    one, two = (both_side["akd"].parent for both_side in (both.one, both.two))
    names = [
        sorted(str(p.relative_to(s)) for s in [side] for p in s.rglob("*")) for side in (one, two)
    ]
    assert names[0] == names[1]
    assert len([name for name in names[0] if name.startswith("last-parts.work/training-")]) == 2
    assert len(re.findall("questions trained on", both.said)) == len(RUNS)
    for run in RUNS:
        logs = [(side / f"{run}.log").read_text().count("\n") for side in (one, two)]
        assert logs[0] == logs[1] > 6


@pytest.mark.parametrize("name", ["labels", "many.labels"])
def test_the_labels_are_the_same(name: str, both: Both) -> None:
    """Chunks that two processes computed in turns, and the first wrote in their order."""
    one, two = (side["akd"].parent / name for side in (both.one, both.two))
    assert len(open_labels([one])) == 28  # and those of the anchors, which are no teacher's
    assert one.read_bytes() == two.read_bytes()


# ---- without, and where it fails


def test_alone_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start("cpu")
    values = torch.arange(3.0)
    distributed.add_up(values)
    distributed.broadcast(values)
    distributed.wait()
    assert values.tolist() == [0, 1, 2]
    assert (distributed.announced(), distributed.count(), distributed.rank()) == (1, 1, 0)
    assert distributed.is_first()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK"),
    ],
)
def test_variables_that_are_no_numbers_are_refused(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, value in variables.items():
        monkeypatch.setenv(each, value)
    with pytest.raises(UsageError, match=f"environment variable {name} is '") as caught:
        distributed.announced_rank()
    assert len(str(caught.value)) < 250


def test_a_rank_without_other_processes_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RANK that something else has left in the environment makes nobody write nothing."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert (distributed.announced(), distributed.announced_rank()) == (1, 0)


def test_processes_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, exit code 69."""
    import accelerate

    def fail(**_: object) -> None:
        raise RuntimeError("connection refused\nby 10.0.0.1")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", fail)
    with pytest.raises(Unavailable, match=r"cannot be joined: connection refused$") as caught:
        distributed.start("cpu")
    assert caught.value.exit_code == 69
    assert distributed.count() == 1
