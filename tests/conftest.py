"""Fixtures for every folder of tests: tiny random checkpoints, made once a session."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure is of the change that it came with.
# `--hypothesis-profile default` draws others: that is how new faults are looked for.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# No test may look anything up: a checkpoint is a folder made on the spot.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Several workers (pytest -n) share the cores: a thread each, and one for each process they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# In the background of a shell and under nohup these are ignored, and the processes that tests start
# would inherit that.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)


@pytest.fixture(scope="session")
def blip2_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2 with a LLaMA language model that has biases on every linear."""
    from tests import tiny

    return tiny.q_checkpoint(tmp_path_factory.mktemp("blip2-llama"), text="llama", seed=1)


@pytest.fixture(scope="session")
def blip2_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2 with an OPT language model."""
    from tests import tiny

    return tiny.q_checkpoint(tmp_path_factory.mktemp("blip2-opt"), text="opt", seed=2)


@pytest.fixture(scope="session")
def blip2_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2 with a T5 language model (encoder and decoder)."""
    from tests import tiny

    return tiny.q_checkpoint(tmp_path_factory.mktemp("blip2-t5"), text="t5", seed=3)


@pytest.fixture(scope="session")
def instructblip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InstructBLIP with a LLaMA language model, as Vicuna is one."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("instructblip")
    return tiny.q_checkpoint(folder, instruct=True, text="llama", seed=4)


@pytest.fixture(scope="session")
def instructblip_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InstructBLIP with a T5 language model."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("instructblip-t5")
    return tiny.q_checkpoint(folder, instruct=True, text="t5", seed=5)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA with a CLIP tower and a LLaMA language model."""
    from tests import tiny

    return tiny.llava_checkpoint(tmp_path_factory.mktemp("llava"), seed=6)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Teacher and student, BLIP-2 with LLaMA, that share one vision tower.

    The teacher is wider (128 for 64 channels) and has 4 Q-Former layers for the student's 2.
    """
    from tests import tiny

    teacher = tiny.q_checkpoint(
        tmp_path_factory.mktemp("teacher"), qformer_layers=4, text_layers=3, width=128, seed=7
    )
    student = tiny.q_checkpoint(
        tmp_path_factory.mktemp("student"), seed=8, tower=tiny.tower_of(teacher)
    )
    return teacher, student
