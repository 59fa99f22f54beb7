"""What the pair can do: direct answers, multiple choice, and whether the gap can be closed.

Its figures go to the recipe's log. The package's own `cdcca eval` is the judge of the system; this
is the recipe's check on itself, and shares no code with it.

Shapes: B batch, N visual tokens, L query tokens, T tokens, C channels.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import from_jpeg
from language import CAPTION_PROMPT, VQA_PROMPT, Packer, Segment
from pair import query_features, token_losses
from torch import Tensor
from train_tower import to_pixels
from transformers import Blip2ForConditionalGeneration, Blip2VisionModel, PreTrainedTokenizerFast

MAX_ANSWER_TOKENS = 8
MAX_CAPTION_TOKENS = 60


@dataclass(frozen=True)
class Frames:
    """A folder of frames: its prompts, and the visual tokens for each, (prompts, N, C)."""

    prompts: list[dict[str, Any]]
    tokens: Tensor

    @property
    def questions(self) -> list[int]:
        """The rows that are questions."""
        return [row for row, prompt in enumerate(self.prompts) if "prompt" in prompt]


@torch.no_grad()
def load_frames(folder: Path, tower: Blip2VisionModel) -> Frames:
    """Read a manifest and run its images through the tower."""
    prompts = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(prompt["image"] for prompt in prompts))
    images = np.stack([from_jpeg((folder / name).read_bytes()) for name in names])
    tokens = tower(to_pixels(images)).last_hidden_state
    return Frames(prompts, tokens[[names.index(prompt["image"]) for prompt in prompts]])


def text_of(prompt: dict[str, Any]) -> str:
    """What the language model reads after the picture."""
    return VQA_PROMPT.format(question=prompt["prompt"]) if "prompt" in prompt else CAPTION_PROMPT


@torch.no_grad()
def generate(
    model: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    frames: Frames,
    rows: list[int],
    kept: Tensor | None = None,
) -> list[str]:
    """Greedy answers to some rows; prompts of one length go together, so nothing is padded."""
    prompts = [tokenizer(text_of(frames.prompts[row])).input_ids for row in rows]
    groups = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[len(prompt)].append(index)
    answers = [""] * len(rows)
    for group in groups.values():
        which = [rows[index] for index in group]
        features = query_features(
            model, frames.tokens[which], None if kept is None else kept[which]
        )
        embed = model.language_model.get_input_embeddings()
        embeds = torch.cat(
            [features, embed(torch.tensor([prompts[index] for index in group]))], dim=1
        )
        captions = "prompt" not in frames.prompts[which[0]]
        output = model.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_CAPTION_TOKENS if captions else MAX_ANSWER_TOKENS,
        )
        for index, text in zip(
            group, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True
        ):
            answers[index] = text.strip()
    return answers


def direct_answers(
    model: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    frames: Frames,
    kept: Tensor | None = None,
) -> tuple[float, dict[str, float]]:
    """Mean of min(1, matches / 3), in percent: of all questions, and of each type."""
    rows = frames.questions
    scores = defaultdict(list)
    for row, answer in zip(rows, generate(model, tokenizer, frames, rows, kept), strict=True):
        prompt = frames.prompts[row]
        scores[prompt["kind"]].append(min(1.0, prompt["answers"].count(answer) / 3))
    everything = [score for some in scores.values() for score in some]
    return 100 * float(np.mean(everything)), {
        kind: round(100 * float(np.mean(s)), 1) for kind, s in scores.items()
    }


@torch.no_grad()
def multiple_choice(
    model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, frames: Frames
) -> float:
    """Share of questions, in percent, whose right option has the highest summed log-likelihood."""
    packer = Packer(tokenizer)
    right = []
    rows = frames.questions
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        segments = [
            [
                Segment(text_of(frames.prompts[row]), f" {choice}")
                for choice in frames.prompts[row]["choices"]
            ]
            for row in some
        ]
        packed = packer([packer.image_prefix] * len(some), segments)
        losses, batch_rows, segment = token_losses(
            model, packed, query_features(model, frames.tokens[some])
        )
        sums = torch.zeros(len(some), 4).index_put(
            (batch_rows, segment - 1), -losses, accumulate=True
        )
        truth = torch.tensor([frames.prompts[row]["correct_choice_idx"] for row in some])
        right += (sums.argmax(1) == truth).tolist()
    return 100 * float(np.mean(right))


def captions_exact(
    model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, frames: Frames
) -> float:
    """Share of captions, in percent, that are one of the references word for word."""
    rows = [row for row, prompt in enumerate(frames.prompts) if "captions" in prompt]
    written = generate(model, tokenizer, frames, rows)
    return 100 * float(
        np.mean(
            [
                text in frames.prompts[row]["captions"]
                for row, text in zip(rows, written, strict=True)
            ]
        )
    )


def first_kept(frames: Frames, share: float, seed: int) -> Tensor:
    """A random share of each row's visual tokens, (rows, N)."""
    scores = torch.rand(frames.tokens.shape[:2], generator=torch.Generator().manual_seed(seed))
    return scores.argsort(1).argsort(1) < round(share * frames.tokens.shape[1])
