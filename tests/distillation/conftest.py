"""Shards of random pictures, made by the tower that a tiny teacher and student share."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.distillation.dataset import build_dataset
from cdcca_cli.distillation.epochs import Epochs
from cdcca_cli.distillation.methods import tent
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel, load, load_device
from cdcca_cli.models.initial import create_device, start_of
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.teachers import local
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.settings import LabelSettings
from tests import tiny

QUESTIONS = ("what colour is the square?", "how many?", "is it a circle or is it a triangle?")
MOST = {"vqa": 3, "caption": 5}
CHOICES = ["red", "a blue circle", "two"]


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    """Random models never end an answer of their own accord: end it for them, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (local, tent):
            patch.setattr(module, "MAX_NEW_TOKENS", MOST)
        yield


def make_shards(model: LoadedModel, count: int, *, keep: Sequence[int] = (6,)) -> list[Shard]:
    """Frames of two questions each (one with choices), and for every third a caption.

    Args: keep: how many tokens frame 0, 1, ... keeps, again from the front when it is at its end.
    """
    generator = np.random.default_rng(3)
    with torch.no_grad():
        seen = model.see(model.prepare(tiny.images(count, seed=9)))
    shards = []
    for number, one in enumerate(seen):
        tokens_NC = one.tokens.numpy()
        kept = keep[number % len(keep)]
        positions = np.sort(generator.permutation(len(tokens_NC))[:kept]).astype(np.int32)
        questions = [
            Question(f"{number}-0", QUESTIONS[number % 3], "vqa"),
            Question(f"{number}-1", QUESTIONS[(number + 1) % 3], "vqa", choices=CHOICES),
        ]
        if number % 3 == 0:
            questions.append(Question(f"{number}-c", None, "caption"))
        shards.append(
            Shard(
                frame=f"frame {number}",
                image=f"{number}.png",
                domain=None,
                tokens=tokens_NC[positions],
                positions=positions,
                scores=np.zeros(kept, np.float32),
                num_tokens=one.num_tokens,
                layout=one.layout,
                tower=model.tower_digest,
                questions=questions,
            )
        )
    return shards


def a_trainer(
    shards: list[Shard],
    teacher: LoadedModel | None,
    mirror: Device,
    settings: DistillSettings,
    start: dict[str, np.ndarray] | None = None,
    asking: LabelSettings | None = None,
) -> Trainer:
    """One that has done no step yet, on a student of its own.

    Args: start: where the overlay begins; None: the mirror's.
    """
    student = load_device(mirror, compute="cpu")
    asked = None if teacher is None else LocalTeacher(teacher, asking)
    dataset = build_dataset(shards, asked, student, settings, asking=asking)
    start = mirror.read_overlay() if start is None else start
    with student.training_mode():
        return Trainer(student, mirror, start, dataset, settings, source=lambda: start_of(mirror))


def train_epochs(trainer: Trainer, mirror: Device) -> Epochs:
    """All epochs of a trainer that has done no step yet."""
    with trainer.student.training_mode():
        epochs = Epochs(trainer, trainer.overlay.arrays(trainer.overlay.values), mirror)
        epochs.train()
    return epochs


def assert_near(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], lr: float
) -> None:
    """Two trainings whose sums were rounded otherwise: to 1e-5, but for one value in a thousand.

    Adam's first step has the length `lr` whatever the gradient, and the sign of one that is next to
    nothing is left to the rounding.
    """
    assert set(found) == set(expected)
    gaps = np.concatenate([np.abs(found[name] - expected[name]).ravel() for name in expected])
    assert np.quantile(gaps, 0.999) <= 1e-5
    assert gaps.max() <= lr


class Stopped(Exception):
    """As Ctrl-C would, in the middle of an epoch."""


@contextmanager
def stopped_at_step(number: int) -> Iterator[list[int]]:
    """Inside, training breaks off as it begins step `number`, counted from 1; gives the count."""
    inner, taken = Trainer.step, [0]

    def step(this: Trainer, *rest: Any) -> Any:
        taken[0] += 1
        if taken[0] == number:
            raise Stopped
        return inner(this, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        yield taken


@pytest.fixture(scope="session")
def teacher(tiny_pair: tuple[Path, Path]) -> LoadedModel:
    return load(tiny_pair[0], compute="cpu")


@pytest.fixture(scope="session")
def shards(teacher: LoadedModel) -> list[Shard]:
    """12 frames, 28 questions, of 9 + 1 tokens now 6 and now 3 kept."""
    return make_shards(teacher, 12, keep=(6, 3))


@pytest.fixture(scope="session")
def mirror(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Device:
    """The tiny student's device folder; distillation never changes it."""
    return create_device(
        tmp_path_factory.mktemp("mirror") / "device", str(tiny_pair[1]), InitSettings(lora_rank=4)
    )


@pytest.fixture(scope="session")
def foreign(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny teacher with two words of its vocabulary exchanged."""
    folder = shutil.copytree(tiny_pair[0], tmp_path_factory.mktemp("foreign") / "teacher")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    one, other = list(words)[-2:]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(tokenizer))
    return load(folder, compute="cpu")


@pytest.fixture
def student(mirror: Device) -> LoadedModel:
    return load_device(mirror, compute="cpu")


@pytest.fixture
def never() -> Callable[..., None]:
    """A function that must not be called."""

    def call(*_arguments: object, **_options: object) -> None:
        raise AssertionError("this was to be read from disk, not computed")

    return call
