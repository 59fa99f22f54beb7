"""A long run: the page stays small, and memory does not grow with the number of frames."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reporting import runs

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
MOST_BYTES = 5_000_000
PROGRAM = """
import sys
from pathlib import Path
from tests.reporting import conftest
from cdcca_cli.reporting import gather, page
from cdcca_cli.reporting.settings import ReportSettings
found, _ = gather.gather([Path(sys.argv[1])], ReportSettings((f"stream={sys.argv[2]}",)))
page.write(found, sys.argv[3])
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1000
print(len(found["runs"][0]["rounds"]), peak)
"""


def long_run(folder: Path, rounds: int, frames: int) -> tuple[Path, Path]:
    """A run whose rounds share their files, and its stream. A tenth of the frames goes up."""
    one = runs.run(folder / "one", count=10, rounds=1, has_history=False)
    first = one / "round-1"
    runs.answers(first / "predictions.jsonl", frames, frames // 2)
    runs.answers(first / "stream.jsonl", frames, frames // 2 + 7)
    runs.shards(first / "uplink.tokens", frames // 10, begin=1_700_000_000.0)
    runs.steps(first / "steps.jsonl", 500)
    shutil.rmtree(one / "start")
    for number in range(2, rounds + 1):
        here = one / f"round-{number}"
        here.mkdir()
        for file in first.iterdir():
            os.link(file, here / file.name)
    runs.write_history(one, runs.history(frames, rounds))
    return one, runs.frames(folder / "stream", frames)


@pytest.mark.parametrize(
    ("frames", "most_seconds"), [(300, 60), pytest.param(10_000, 1200, marks=pytest.mark.slow)]
)
def test_fifty_rounds(frames: int, most_seconds: int, tmp_path: Path) -> None:
    run, stream = long_run(tmp_path, 50, frames)
    page = tmp_path / "report.html"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), str(stream), str(page)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=most_seconds,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rounds, peak = json.loads(f"[{done.stdout.replace(' ', ',')}]")
    assert rounds == 50
    assert page.stat().st_size <= MOST_BYTES
    assert peak < 600
