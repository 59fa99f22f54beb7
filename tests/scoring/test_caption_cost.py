"""What scoring 25,014 captions costs beside pycocoevalcap with Java, as the benchmark measures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_half_the_time_and_a_gibibyte_for_the_same_scores(coco: Path) -> None:
    """Paired runs, so a busy machine slows both sides; the median of three pairs."""
    if shutil.which("java") is None:
        pytest.skip("no Java here to compare with")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/benchmarks/captions.py", coco, "--runs", "3"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)
    assert cost["largest_difference"] < 1e-6
    assert cost["cdcca_peak_bytes"] <= 1 << 30
    assert cost["ratio"] <= 0.5
