"""The last stage: what the saved pair measures, in all and by domain.

A check of the recipe on itself, as `../pair/gap.py` is; `cdcca eval` is the judge.
"""

from pathlib import Path

import beside_pair  # noqa: F401
import numpy as np
import torch
from gap import difference_from_pixels
from measure import Frames, captions_exact, direct_answers, load_frames, multiple_choice
from tower import DOMAINS
from training import Log
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

REPORTED = ("source", "stream", "heldout")


def of_domain(frames: Frames, domain: str) -> Frames:
    """The prompts of one domain."""
    rows = [row for row, prompt in enumerate(frames.prompts) if prompt["domain"] == domain]
    return Frames([frames.prompts[row] for row in rows], frames.tokens[rows])


def report(world: Path, output: Path, log: Log) -> None:
    """Write the figures of the saved pair to the log."""
    models = {
        role: Blip2ForConditionalGeneration.from_pretrained(
            output / role, dtype=torch.float32
        ).eval()
        for role in ("student", "teacher")
    }
    tokenizer = AutoTokenizer.from_pretrained(output / "student")
    towers = [model.vision_model.state_dict() for model in models.values()]
    same_tower = all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])
    image = next((world / "heldout").glob("*.jpg"))
    frames = {name: load_frames(world / name, models["student"].vision_model) for name in REPORTED}
    for role, model in models.items():
        difference = difference_from_pixels(model, output / role, image)
        log.write("check", 0, role=role, same_tower=same_tower, difference_from_pixels=difference)
        for name, some in frames.items():
            parts = {domain: of_domain(some, domain) for domain in DOMAINS}
            parts = {domain: part for domain, part in parts.items() if part.questions}
            by_domain = {
                domain: direct_answers(model, tokenizer, part)[0] for domain, part in parts.items()
            }
            weights = [len(part.questions) for part in parts.values()]
            direct = float(np.average(list(by_domain.values()), weights=weights))
            log.write(
                "measured",
                0,
                role=role,
                frames=name,
                da=round(direct, 2),
                mc=round(multiple_choice(model, tokenizer, some), 2),
                captions_exact=round(captions_exact(model, tokenizer, some), 2),
                by_domain={domain: round(score, 1) for domain, score in by_domain.items()},
            )
