"""What the tests of the families share: one checkpoint of every kind, loaded both ways."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from cdcca_cli import models
from cdcca_cli.models import LoadedModel
from tests import tiny
from tests.models.reference import Reference

EVERY = ("blip2_llama", "blip2_opt", "blip2_t5", "instructblip", "instructblip_t5", "llava")
QUESTIONS = (
    "what colour is the square?",
    "how many?",
    "is the circle left of the triangle, or is it the other way round?",
)


@dataclass(frozen=True)
class Case:
    """A checkpoint, loaded by cdcca and by transformers, with some pictures and prompts."""

    name: str
    folder: Path
    model: LoadedModel
    reference: Reference
    images: list[Image.Image]
    prompts: list[str]


_cases: dict[str, Case] = {}


@pytest.fixture(params=EVERY)
def case(request: pytest.FixtureRequest) -> Case:
    """Every family in turn; loaded once a session, so a test must leave the model as it was."""
    name = request.param
    if name not in _cases:
        folder = request.getfixturevalue(name)
        model = models.load(folder, compute="cpu")
        prompts = [model.format_prompt(question, "vqa") for question in QUESTIONS]
        _cases[name] = Case(name, folder, model, Reference(folder), tiny.images(3), prompts)
    return _cases[name]
