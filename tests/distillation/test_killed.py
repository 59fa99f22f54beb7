"""Killed at ten moments, whatever it is doing, and started again each time: the same file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.shard_stream import writer

ROOT = Path(__file__).parents[2]
KILLS = 10
SCRIPT = """
import sys, time
from cdcca_cli.distillation import checkpoint, trainer
from cdcca_cli.main import main
from cdcca_cli.teachers import local

local.MAX_NEW_TOKENS = {"vqa": 3, "caption": 5}
ticks, pace = open(sys.argv[1], "wb", buffering=0), float(sys.argv[2])
def ticking(place, name):
    inner = getattr(place, name)
    def call(*arguments, **options):
        ticks.write(b".")
        time.sleep(pace)
        made = inner(*arguments, **options)
        ticks.write(b".")
        time.sleep(pace)
        return made
    setattr(place, name, call)
ticking(local.LocalTeacher, "_answer")
ticking(trainer.Trainer, "backward")
ticking(checkpoint.Checkpoint, "save")
sys.exit(main(sys.argv[3:]))
"""
"""A tick before and after each chunk of labels, each batch, and each state that is written."""


def begin(folder: Path, pace: float, arguments: list[str]) -> subprocess.Popen[str]:
    (folder / "ticks").write_bytes(b"")
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, folder / "ticks", str(pace), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def killed(process: subprocess.Popen[str], ticks: Path, count: int, delay: float) -> str:
    """After so many ticks and a moment more; returns what it said."""
    deadline = time.monotonic() + 200
    try:
        while ticks.stat().st_size < count:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[1]
    return said


@pytest.mark.slow
def test_killed_at_ten_moments(
    tiny_pair: tuple[Path, Path], mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """While the teacher is asked, in a step, while a state is written; every state is kept."""
    with (tmp_path / "up.tokens").open("wb") as out, writer(out) as write:
        for shard in shards:
            write(shard)
    models = ["--teacher", str(tiny_pair[0]), "--student", str(mirror.path)]
    how = "--epochs 15 --batch-size 4 --holdout 25% --lr 1e-4 --set ema=0.5 --rate-aware 10"
    common = ["distill", "up.tokens", *models, *how.split(), "--compute", "cpu", "--threads", "1"]
    unbroken = begin(tmp_path, 0, [*common, "-o", "unbroken", "--work", "other"])
    assert unbroken.communicate()[1].count("\n") == 2, "its curves and its summary"
    assert unbroken.returncode == 0

    source = np.random.default_rng(11)
    arguments = [*common, "-o", "broken", "--work", "work"]
    said = []
    for number in range(KILLS):
        # At first there are labels, two ticks for each of two chunks; then twelve for an epoch.
        count = int(source.integers(1, 5 if number < 2 else 30))
        process = begin(tmp_path, 0.01, arguments)
        said.append(killed(process, tmp_path / "ticks", count, source.uniform(0, 0.03)))
        assert not (tmp_path / "broken").exists()
    assert sum("resumed after epoch" in words for words in said) >= 4
    last = begin(tmp_path, 0, arguments)
    words = last.communicate()[1]
    assert last.returncode == 0, words
    assert "resumed after epoch" in words
    assert (tmp_path / "broken").read_bytes() == (tmp_path / "unbroken").read_bytes()
