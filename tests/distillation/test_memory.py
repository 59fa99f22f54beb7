"""Memory does not grow with the number of frames."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests import tiny

ROOT = Path(__file__).parents[2]
EDGE = 112
"""Patches by side: (112 x 112 + 1) tokens of 32 channels are 1.6 MB a frame."""
FEW, MANY = 8, 40
SCRIPT = """
import resource, sys
import numpy as np
import torch
torch.set_num_threads(1)
from cdcca_cli.distillation import token_file
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import load, load_device
from cdcca_cli.teachers import local

checkpoint, mirror, few, many, num_tokens = *sys.argv[1:3], *map(int, sys.argv[3:])
local.MAX_NEW_TOKENS = {"vqa": 1}
token_file.IN_MEMORY_BYTES = 1
teacher, mirror = load(checkpoint, compute="cpu"), Device.open(mirror)
student = load_device(mirror, compute="cpu")
source = np.random.default_rng(0)
def shards(count):
    for number in range(count):
        yield Shard(
            frame=f"{number}", image="a.png", domain=None, tower=student.tower_digest,
            tokens=source.standard_normal((num_tokens, 32), np.float32), num_tokens=num_tokens,
            positions=np.arange(num_tokens, dtype=np.int32),
            questions=[Question(f"{number}", "how many?", "vqa")],
        )
settings = DistillSettings(epochs=1, batch_size=1, holdout=0.5)
def peak(count):
    made = distill(shards(count), teacher, mirror, settings, student=student)
    assert made.report["num_frames"] == count and made.held_out is not None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(few)
print((peak(many) - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelling, training, evaluating and the held-out part of an adaptation, frames kept on disk.

    The peak of a process in bytes: the tokens of the 32 further frames would take 51 MB.
    """
    monkeypatch.setattr(tiny, "IMAGE_SIZE", EDGE * tiny.PATCH_SIZE)
    checkpoint = tiny.q_checkpoint(tmp_path / "checkpoint")
    create_device(tmp_path / "mirror", str(checkpoint), InitSettings(lora_rank=2))
    num_tokens = EDGE**2 + 1
    arguments = [checkpoint, tmp_path / "mirror", FEW, MANY, num_tokens]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    kept = (MANY - FEW) * num_tokens * 32 * 4
    assert float(found.stdout) < kept / 3
