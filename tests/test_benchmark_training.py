"""The benchmark of training runs to its end, and its two sides do the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "method", ["akd", pytest.param("pseudo-label", marks=pytest.mark.slow, id="pseudo-label")]
)
def test_both_sides_learn_the_same_samples(tmp_path: Path, method: str) -> None:
    """Times are not checked. Before training both have one loss."""
    script = ROOT / "examples" / "benchmarks" / "training.py"
    few = ["--frames", "4", "--epochs", "1", "--repeats", "1", "--batch-size", "4"]
    anchors = "cdcca warm, anchors"
    if method == "pseudo-label":
        few += ["--try", "anchors"]
    done = subprocess.run(
        [sys.executable, script, *few, "--methods", method, "--json", tmp_path / "figures.json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    num_questions = figures["shards"]["questions"]
    (runs,) = figures["methods"][method]
    held = {anchors} if method == "pseudo-label" else set()
    assert set(runs) == {"cdcca cold", "cdcca warm", "plain"} | held
    assert {run["samples"] for run in runs.values()} == {num_questions}
    assert {run["same_answers"] for run in runs.values()} == {num_questions}
    starts = [run["cross_entropy"][0] for run in runs.values()]
    assert starts == pytest.approx([starts[0]] * len(starts), rel=1e-3)
    for run in runs.values():
        assert run["cross_entropy"][1] < run["cross_entropy"][0]
    assert runs["cdcca cold"]["cross_entropy"] == runs["cdcca warm"]["cross_entropy"]
    for line in ("samples per CPU second, warm", "samples per CPU second, cold", "peak memory"):
        assert f"| {line}" in done.stdout
