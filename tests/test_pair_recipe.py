"""The recipe that made the shipped pair runs through, with two steps a stage and few pictures."""

import subprocess
import sys
from pathlib import Path

from tests.shipped import FRAMES

ROOT = Path(__file__).parent.parent
SMALL = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gap, make_pair, train_tower
from training import Plan

make_pair.PLANS = {stage: Plan(2, 8, 1e-3, make_pair.SEED) for stage in make_pair.PLANS}
make_pair.PICTURES = {domain: (60, seed) for domain, (_, seed) in make_pair.PICTURES.items()}
make_pair.FRAMES = {
    name: (prefix, domain, 4, seed) for name, (prefix, domain, _, seed) in make_pair.FRAMES.items()
}
train_tower.STORED_PICTURES = 20
train_tower.HELD_OUT_PICTURES = 40
gap.GAP_STEPS = 2
make_pair.main()
"""


def test_every_stage_runs_and_leaves_a_pair_that_loads(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "out"
    options = ["--work", str(work), "--output", str(output), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(ROOT / "examples" / "pair"), *options],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]

    from cdcca_cli.models import load

    student, teacher = load(output / "student"), load(output / "teacher")
    assert student.tower_digest == teacher.tower_digest
    assert student.places == teacher.places and student.family == teacher.family
    assert student.can_read(37, 128) and teacher.can_read(37, 128)
    # The world is drawn from its seed alone: these are the shipped frames' first.
    for name in ("stream", "heldout", "source", "anchors"):
        made = (output / "frames" / name / "frames.jsonl").read_text().splitlines()
        shipped = (FRAMES / name / "frames.jsonl").read_text().splitlines()
        assert made == shipped[: len(made)]


def test_new_frames_of_the_world_are_drawn_from_a_seed(tmp_path: Path) -> None:
    """With the seed of the shipped held-out frames, those; with another one, others."""
    for seed in (32_000_000, 42_000_000):
        subprocess.run(
            [
                *(sys.executable, ROOT / "examples" / "pair" / "world.py", tmp_path / str(seed)),
                *("--prefix", "h", "--frames", "3", "--seed", str(seed)),
            ],
            check=True,
            timeout=600,
        )
    shipped = (FRAMES / "heldout" / "frames.jsonl").read_text().splitlines()
    made = (tmp_path / "32000000" / "frames.jsonl").read_text().splitlines()
    assert made == shipped[: len(made)]
    others = (tmp_path / "42000000" / "frames.jsonl").read_text().splitlines()
    assert not set(others) & set(shipped)
    assert len(list((tmp_path / "42000000").glob("*.jpg"))) == 3
