"""The benchmark of families runs to its end, and its two sides do the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen3_vl", "gemma3"])
def test_both_sides_answer_and_learn_the_same(tmp_path: Path, family: str) -> None:
    """Times are not checked. Before training both have one loss."""
    script = ROOT / "examples" / "benchmarks" / "families.py"
    few = ["--frames", "2", "--epochs", "2", "--batch-size", "2", "--layers", "3"]
    done = subprocess.run(
        [sys.executable, script, *few, "--families", family, "--json", tmp_path / "figures.json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())["families"][family]
    (runs,) = found["repeats"]
    assert {run["same"] for run in runs.values()} == {found["made"]["questions"]} == {4}
    trained = [runs["distill cdcca"], runs["distill plain"]]
    assert [run["samples"] for run in trained] == [8, 8]
    (before, after), (their_before, their_after) = (run["cross_entropy"] for run in trained)
    assert before == pytest.approx(their_before, rel=1e-3)
    assert after < before and their_after < their_before
    for name in ("infer", "distill", "memory"):
        assert f"| {family}, {name} |" in done.stdout
