"""The benchmarks of labels run to their ends and print their tables. Times are not checked."""

import os
import subprocess
import sys
from pathlib import Path

from cdcca_cli.main import main
from tests.shipped import few_frames

ROOT = Path(__file__).parents[1]


def table(script: str, *options: object) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "benchmarks" / script, *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_of_labels() -> None:
    few = ("--count", 400, "--files", 10, "--reads", 50, "--kills", 2, "--killed-count", 200)
    assert "the same bytes" in table("labels.py", *few)


def test_labelling_by_address() -> None:
    few = ("--questions", 24, "--concurrency", "4", "--latency", "0.02", "--runs", 1)
    assert '"concurrency": 4' in table("labelling.py", *few)


def test_labelling_here() -> None:
    assert '"ratio"' in table("labelling.py", "--local", "--questions", 12, "--runs", 1)


def test_what_the_likeliest_tokens_keep(tmp_path: Path) -> None:
    frames, mirror = few_frames(tmp_path, "stream", 3), tmp_path / "mirror"
    assert main(["init", str(mirror), "--quiet"]) == 0
    shards = str(tmp_path / "up.tokens")
    sample = ["sample", str(frames), "-m", str(mirror), "--top", "100%", "-o", shards, "--quiet"]
    assert main(sample) == 0
    teacher = ROOT / "cdcca_cli" / "assets" / "teacher"
    made = table("top.py", shards, "--teacher", teacher, "--student", mirror, "--questions", 2)
    rows = [line.split("|") for line in made.splitlines() if "%" in line]
    shares = [float(row[3].strip().rstrip("%")) for row in rows]
    assert shares == sorted(shares) and 99 < shares[-1] < 100.1
