"""The pair that ships with the package, loaded as any other checkpoint is."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import cdcca_cli
from cdcca_cli import models
from cdcca_cli.models import initial
from cdcca_cli.models.settings import InitSettings
from tests.models.reference import Reference, generate_with_logits

ASSETS = Path(cdcca_cli.__file__).parent / "assets"
pytestmark = pytest.mark.skipif(
    not (ASSETS / "student" / "model.safetensors").exists()
    or not (ASSETS / "teacher" / "model.safetensors").exists(),
    reason="the shipped pair is not in cdcca_cli/assets",
)
TOLERANCE = 1e-5


def some_frames(count: int) -> tuple[list[Image.Image], list[str], list[list[str]]]:
    """Pictures, questions and choices of the shipped frames."""
    manifest = sorted(ASSETS.glob("frames/*/frames.jsonl"))[0]
    images, questions, choices = [], [], []
    for line in manifest.read_text().splitlines():
        table = json.loads(line)
        found = table.get("asks", table.get("prompts", [table]))
        one = next((a for a in found if a.get("choices") and a.get("prompt")), None)
        if one is None:
            continue
        images.append(Image.open(manifest.parent / table["image"]).convert("RGB"))
        questions.append(one["prompt"])
        choices.append(one["choices"])
        if len(images) == count:
            break
    return images, questions, choices


def test_the_pair_shares_one_tower() -> None:
    teacher = models.load("shipped:teacher", compute="cpu")
    student = models.load("shipped:student", compute="cpu")
    assert teacher.tower_digest == student.tower_digest
    assert teacher.digest != student.digest
    (seen,) = student.see(student.prepare(some_frames(1)[0]))
    assert seen.num_tokens >= 36
    former = [len(model.module.qformer.encoder.layer) for model in (teacher, student)]
    assert former[0] == 2 * former[1]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_tokens_give_what_pixels_give(role: str) -> None:
    """To 1e-5 against transformers; one at a time as all at once; no answer differs."""
    model = models.load(f"shipped:{role}", compute="cpu")
    reference = Reference(ASSETS / role, dtype=torch.float32)
    images, questions, choices = some_frames(6)
    prompts = [model.format_prompt(question, "vqa") for question in questions]
    seen = model.see(model.prepare(images))
    spliced = model.read(seen, prompts)
    made, made_logits = generate_with_logits(model, spliced, 6)
    scores = model.score_choices(spliced, choices)
    for row, image in enumerate(images):
        ids, logits = reference.greedy(image, prompts[row], 6)
        assert made.ids[row] == ids
        for step in range(len(ids)):
            assert (made_logits[step][row] - logits[step]).abs().max() <= 5 * TOLERANCE
        alone = model.score_choices(model.read([seen[row]], [prompts[row]]), [choices[row]])
        assert alone[0] == pytest.approx(scores[row], abs=5 * TOLERANCE)


def test_a_device_of_the_shipped_student(tmp_path: Path) -> None:
    """init, then NF4 on a CPU: its linears have shapes that 4 bits can hold."""
    device = initial.create_device(tmp_path / "d", "shipped:student", InitSettings(quantize="nf4"))
    assert device.settings.checkpoint == "shipped:student"
    model = models.load_device(device, compute="cpu")
    images, questions, _ = some_frames(2)
    prompts = [model.format_prompt(question, "vqa") for question in questions]
    spliced = model.read(model.see(model.prepare(images)), prompts)
    assert all(model.decode(ids) for ids in model.generate(spliced, 6).ids)
