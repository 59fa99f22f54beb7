"""Every family of tests/zoo in turn: its tiny checkpoint, loaded by cdcca and by transformers.

One test's families run one after another, so that a process holds one model at a time.
"""

import fcntl
import gc
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cdcca_cli import models
from cdcca_cli.models import LoadedModel, Picture, Seen
from cdcca_cli.models.prompts import Prompt
from tests import zoo
from tests.zoo import read

NAMES = (*zoo.QFORMERS, *zoo.FAMILIES)
WIDTH_IN_TOWER = ("glm4v", "got_ocr2")
"""Families whose vision tower has the language model's width: no wider one can share it."""
QUESTIONS = (
    "what colour is the square?",
    "how many?",
    "is the circle left of the triangle, or is it the other way round?",
)
ANSWERS = ("red", "yes no", "two")
TOLERANCE = 1e-5
ROUNDING = {
    "qwen3_5": 20,  # the delta rule solves for 64 tokens at once in float32: in float64, 5e-14
    "minicpmv4_6": 20,
    "granite4_vision": 4,  # six layers that features are added to
}
"""Families whose arithmetic rounds more, as a multiple of TOLERANCE."""
HYBRID = dict.fromkeys(
    ("qwen3_5", "minicpmv4_6", "lfm2_vl"),
    "its convolutions or recurrences see the neighbours of a dropped token close up",
)
"""Families in which dropping a token is not masking it, and why."""


@dataclass(frozen=True)
class Case:
    """A family's checkpoint, three pictures of different shapes and three questions."""

    name: str
    folder: Path
    model: LoadedModel
    images: list[Image.Image]
    prompts: list[str]
    pictures: list[Picture]
    seen: list[Seen]
    _found: dict[str, Any] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """Of logits."""
        return TOLERANCE * ROUNDING.get(self.name, 1)

    @property
    def tokens_tolerance(self) -> float:
        """Of visual tokens, which are large in a tower of convolutions."""
        return TOLERANCE * max(1.0, *(float(one.tokens.abs().max()) for one in self.seen))

    @property
    def theirs(self) -> Any:
        """The checkpoint as transformers loads it, with its own processor."""
        if not self._found:
            self._found["theirs"] = Theirs(self)
        return self._found["theirs"]


class Theirs:
    """A family by transformers alone: its classes read the pixels and write the picture's text."""

    def __init__(self, case: Case) -> None:
        from transformers import AutoModelForImageTextToText

        self._case, self._row = case, zoo.FAMILIES[case.name]
        self.model: Any = AutoModelForImageTextToText.from_pretrained(case.folder).eval()
        self._processor = read.processor(self._row, case.folder)
        if case.name == "idefics2":  # cdcca has no splitting of it
            self._processor.image_processor.do_image_splitting = False

    def inputs(self, image: Image.Image, prompt: str) -> dict[str, Any]:
        """What the model's forward takes for a prompt and its picture."""
        made, text = read.prepared(self._row, self._processor, image)
        assert isinstance(prompt, Prompt)
        whole = str(prompt).replace(self._case.model.preparer.mark, text, 1)
        if self._case.name == "idefics2":
            whole = whole.replace(text, f"{text} ")  # as its processor, before a word
        words = self._processor.tokenizer
        begins = words.bos_token is not None and words.bos_token in whole
        ids = words(whole, add_special_tokens=not begins, return_tensors="pt")["input_ids"]
        return read.arguments(self._row, self.model, self._processor, made, ids)

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], answer_A: Tensor) -> Tensor:
        """(S + A, V): after each token of a prompt (`inputs`) and of the answer behind it."""
        longer = dict(inputs)
        for name, behind in (
            ("input_ids", answer_A),
            ("attention_mask", torch.ones_like(answer_A)),
            ("mm_token_type_ids", torch.zeros_like(answer_A)),
            # PaliGemma's answers are of another type than its prompts.
            ("token_type_ids", torch.full_like(answer_A, self._case.name == "paligemma")),
        ):
            if name in longer:
                longer[name] = torch.cat([longer[name], behind[None]], dim=1)
        logits: Tensor = self.model(**longer).logits[0]
        return logits


def _checkpoint(name: str, part: str, factory: pytest.TempPathFactory, **options: Any) -> Path:
    """A checkpoint, made once for all workers of a run."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zoo" / part
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = root / f"{name}.done"
        if not done.exists():
            zoo.checkpoint(name, root / name, **options)
            done.touch()
    return root / name


@pytest.fixture(scope="session", params=NAMES)
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of each family; one that cannot be read here is skipped with the reason."""
    name = request.param
    if name in zoo.FAMILIES and (why := zoo.missing(name)):
        pytest.skip(why)
    return _checkpoint(name, "students", tmp_path_factory)


@pytest.fixture(scope="session")
def teacher(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger model of the same family, with the same vision tower."""
    layers = 2 * (zoo.FAMILIES[student.name].layers if student.name in zoo.FAMILIES else 2)
    width = 64 if student.name in WIDTH_IN_TOWER else 128
    larger = {"width": width, "text_layers": layers, "tower_seed": 0, "seed": 1}
    return _checkpoint(student.name, "teachers", tmp_path_factory, **larger)


@pytest.fixture(scope="session")
def case(student: Path) -> Any:
    """Loaded once for all tests of a family, which must leave the model as it was."""
    model = models.load(student, compute="cpu")
    images = list(zoo.images().values())
    pictures = model.prepare(images)
    with torch.no_grad():
        seen = model.see(pictures)
    prompts = [model.format_prompt(question, "vqa") for question in QUESTIONS]
    yield Case(student.name, student, model, images, prompts, pictures, seen)
    del model, seen
    gc.collect()
