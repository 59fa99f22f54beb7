"""What `cdcca apply` costs for the paper's 1,650,688 parameters, as the benchmark measures it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def measured(runs: int) -> dict[str, Any]:
    script = ROOT / "examples" / "benchmarks" / "apply.py"
    done = subprocess.run(
        [sys.executable, script, "--runs", str(runs)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_memory_size_and_time_against_importing_numpy() -> None:
    """150 MB, NF4's 4 bits and a header, and no more than a few times what numpy alone takes."""
    cost = measured(runs=2)
    assert cost["parameters"] == 1_650_688
    assert cost["apply_peak_bytes"] <= 150e6
    assert cost["bits_per_parameter"] < 4
    assert cost["times_importing_numpy"] < 6


@pytest.mark.slow
def test_time() -> None:
    """0.6 s: on a machine that does nothing else."""
    assert measured(runs=7)["apply_seconds"] <= 0.6
