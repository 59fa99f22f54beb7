"""Tiny models and frames for the uplink's tests."""

from pathlib import Path

import pytest

from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.models import LoadedModel, load
from tests import tiny

QUESTIONS = (
    "what colour is the square?",
    "what is left of the green triangle, above the blue circle?",
    "how many?",
)
CHOICES = ["red", "a blue circle", "two"]


@pytest.fixture(scope="session")
def model(blip2_llama: Path) -> LoadedModel:
    return load(blip2_llama, compute="cpu")


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """12 frames of 1 to 4 questions: a caption each, questions with and without choices, labels."""
    folder = tmp_path_factory.mktemp("frames")
    made = []
    for number, image in enumerate(tiny.images(12, seed=5)):
        path = folder / f"{number:02}.png"
        image.save(path)
        questions = [LabelledQuestion(f"{number}-c", captions=["a secret label"])]
        for place in range(number % 4):
            questions.append(
                LabelledQuestion(
                    f"{number}-{place}",
                    QUESTIONS[place],
                    "vqa",
                    choices=CHOICES if place != 1 else None,
                    correct_choice_idx=1 if place != 1 else None,
                    answers=["a secret label"] * 10,
                )
            )
        made.append(Frame(path.name, path, questions, domain="night" if number % 2 else None))
    return made
