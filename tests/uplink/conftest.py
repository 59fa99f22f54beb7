"""Tiny models and frames for the uplink's tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.distillation import transform
from cdcca_cli.formats.codebook import Codebook, Curve, PicturePoint, TokenPoint
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


@pytest.fixture(scope="session")
def codebook(model: LoadedModel) -> Codebook:
    """Of the tiny tower, all directions alike, with a curve by hand (`test_coding`)."""
    with torch.no_grad():
        seen = model.see(model.prepare(tiny.images(16, seed=6)))
    tokens_FNC = torch.stack([one.tokens for one in seen]).numpy()
    arrays: dict[str, Any] = transform.fit(tokens_FNC, np.eye(tokens_FNC.shape[2]), 12).arrays()
    tokens = (
        TokenPoint(0.25, 3.0, 120, 0.001, 1.0),
        TokenPoint(0.5, 2.0, 80, 0.005, 1.0),
        TokenPoint(1.0, 1.0, 40, 0.02, 0.9),
        TokenPoint(2.0, 0.5, 20, 0.08, 0.8),
    )
    frames = tuple(
        PicturePoint("image/avif", quality, 9.0 * quality, loss, 1.0)
        for quality, loss in ((30, 0.03), (50, 0.01), (80, 0.002))
    )
    curve = Curve(tokens, frames)
    return Codebook(model.tower_digest, model.digest, 16, **arrays, curve=curve)
