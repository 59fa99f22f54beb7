"""The last stage: what the saved pair measures, and whether the student's gap can be learnt.

`report` loads the files as anyone would. `learn_from_teacher` trains the student for a few
hundred steps on the teacher's own greedy answers to the stream, nothing else: a check on the frames
and the pair, not the system.
"""

import copy
import time
from pathlib import Path

import numpy as np
import torch
from language import NUM_QUERY_TOKENS, Packer, Segment
from measure import (
    Frames,
    captions_exact,
    direct_answers,
    first_kept,
    generate,
    load_frames,
    multiple_choice,
    text_of,
)
from pair import packed_hidden, query_features, token_losses
from PIL import Image
from training import Log, make_optimizer
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

GAP_STEPS = 300
GAP_RATE = 5e-4
GAP_BATCH = 32


@torch.no_grad()
def difference_from_pixels(
    model: Blip2ForConditionalGeneration, folder: Path, image: Path
) -> float:
    """Greatest difference in logits between the whole model and the recipe's packed way."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(image), return_tensors="pt")[
        "pixel_values"
    ]
    text = Segment("Question: what is at the top? Answer:", " ball")
    packer = Packer(tokenizer)
    packed = packer([packer.image_prefix], [[Segment("a photo of", " a red ball"), text]])
    features = query_features(model, model.vision_model(pixels).last_hidden_state)
    logits = model.language_model.lm_head(packed_hidden(model, packed, features))[0]
    second = packed.segment[0] == 2
    ids = torch.cat([packed.input_ids[:, :NUM_QUERY_TOKENS], packed.input_ids[:, second]], dim=1)
    whole = model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return (torch.cat([logits[:NUM_QUERY_TOKENS], logits[second]]) - whole).abs().max().item()


def learn_from_teacher(
    student: Blip2ForConditionalGeneration,
    teacher: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    stream: Frames,
    steps: int,
    seed: int,
) -> Blip2ForConditionalGeneration:
    """A copy of the student, trained on the teacher's greedy answers to the whole stream."""
    learner = copy.deepcopy(student)
    learner.vision_model.requires_grad_(False)
    answers = generate(teacher, tokenizer, stream, list(range(len(stream.prompts))))
    optimizer = make_optimizer(learner, GAP_RATE)
    packer = Packer(tokenizer)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(answers), GAP_BATCH).tolist()
        segments = [[Segment(text_of(stream.prompts[row]), f" {answers[row]}")] for row in rows]
        packed = packer([packer.image_prefix] * len(rows), segments)
        losses, _, _ = token_losses(learner, packed, query_features(learner, stream.tokens[rows]))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return learner


def report(output: Path, log: Log, seed: int) -> None:
    """Write the figures of the saved pair to the log."""
    models = {
        role: Blip2ForConditionalGeneration.from_pretrained(
            output / role, dtype=torch.float32
        ).eval()
        for role in ("student", "teacher")
    }
    tokenizer = AutoTokenizer.from_pretrained(output / "student")
    frames = {
        name: load_frames(output / "frames" / name, models["student"].vision_model)
        for name in ("source", "stream", "heldout")
    }
    image = output / "frames" / "heldout" / "h00000.jpg"
    towers = [model.vision_model.state_dict() for model in models.values()]
    same_tower = all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])
    for role, model in models.items():
        log.write(
            "check",
            0,
            role=role,
            same_tower=same_tower,
            difference_from_pixels=difference_from_pixels(model, output / role, image),
        )
        for name, some in frames.items():
            direct, by_type = direct_answers(model, tokenizer, some)
            half, _ = direct_answers(model, tokenizer, some, first_kept(some, 0.5, seed))
            log.write(
                "measured",
                0,
                role=role,
                frames=name,
                da=round(direct, 2),
                by_type=by_type,
                mc=round(multiple_choice(model, tokenizer, some), 2),
                da_half_tokens=round(half, 2),
                captions_exact=round(captions_exact(model, tokenizer, some), 2),
            )
    start = time.monotonic()
    learner = learn_from_teacher(
        models["student"], models["teacher"], tokenizer, frames["stream"], GAP_STEPS, seed
    )
    seconds = round(time.monotonic() - start)
    after = {
        name: round(direct_answers(learner, tokenizer, some)[0], 2) for name, some in frames.items()
    }
    log.write("learnt from teacher", GAP_STEPS, training_seconds=seconds, da=after)
