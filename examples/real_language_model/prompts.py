"""Frames of a world with their questions and captions, packed as the chat template has them.

A packed row is a prefix (the system's words, the picture) and segments (a question, the end of the
user's turn, an answer). Every segment sees the prefix and itself, and its positions go on from the
prefix: so it reads exactly as if it stood alone, and a picture is read once for all its questions.

Shapes: B batch, T tokens, N visual tokens.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import beside_photographs  # noqa: F401
import numpy as np
import torch
from drawing import from_jpeg
from language import IGNORE, Packed
from scenes import CAPTION_WEIGHTS
from smollm2 import IMAGE
from torch import Tensor
from train_tower import to_pixels
from transformers import PreTrainedTokenizerFast

SHORT_ANSWER = "{}\nAnswer the question using a single word or phrase."
SHORT_CAPTION = "Describe the image in one short sentence."
"""What cdcca asks: a question with a word on the length of the answer, or for a caption."""

IMAGES = {
    "llava": IMAGE * 36,
    "smolvlm": f"<fake_token_around_image><global-img>{IMAGE * 9}<fake_token_around_image>",
}
"""What each family's processor makes of the mark of a picture."""


@dataclass(frozen=True)
class Frame:
    """A picture with all that is asked about it: lines of the manifest."""

    path: Path
    lines: list[dict[str, Any]]

    @property
    def domain(self) -> str:
        """Its domain."""
        return str(self.lines[0]["domain"])


def read_frames(folder: Path) -> list[Frame]:
    """The frames of a folder of the world, in the order of its manifest."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, (folder / "frames.jsonl").read_text().splitlines()):
        lines.setdefault(line["image"], []).append(line)
    return [Frame(folder / name, some) for name, some in lines.items()]


def pixels(frames: list[Frame]) -> Tensor:
    """(B, 3, 96, 96), as the image processor gives them."""
    return to_pixels(np.stack([from_jpeg(frame.path.read_bytes()) for frame in frames]))


def said(line: dict[str, Any], rng: np.random.Generator) -> str:
    """What one person answers to a line, or how one describes the picture."""
    if line.get("task") == "caption":
        return str(rng.choice(line["captions"], p=CAPTION_WEIGHTS))
    return str(rng.choice(line["answers"]))


class Packer:
    """Packs frames for one family."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, family: str) -> None:
        self.tokenizer = tokenizer
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self._image = IMAGES[family]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def turn(self, line: dict[str, Any]) -> tuple[str, str]:
        """The text before and with the picture, and from there to where the answer begins."""
        caption = line.get("task") == "caption"
        asked = SHORT_CAPTION if caption else SHORT_ANSWER.format(line["prompt"])
        content = [{"type": "image"}, {"type": "text", "text": asked}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        before, _, after = text.partition(IMAGE)
        return before + self._image, after

    @cached_property
    def prefix(self) -> list[int]:
        """What stands before every question: the system's words and the picture."""
        return self._encode(self.turn({"task": "caption"})[0])

    def row(self, lines: list[dict[str, Any]], answers: list[str]) -> list[tuple[list[int], int]]:
        """Each line as a segment: its tokens, and how many of them, the last ones, are answer."""
        segments = []
        for line, answer in zip(lines, answers, strict=True):
            said_ids = [*self._encode(answer), self.tokenizer.eos_token_id]
            segments.append(([*self._encode(self.turn(line)[1]), *said_ids], len(said_ids)))
        return segments

    def __call__(self, rows: list[list[tuple[list[int], int]]]) -> Packed:
        """Pack rows of segments behind the prefix; they are padded on the right."""
        length = len(self.prefix) + max(sum(len(ids) for ids, _ in row) for row in rows)
        start = len(self.prefix)
        ids_BT = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        positions_BT, segment_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -1)
        labels_BT = torch.full_like(ids_BT, IGNORE)
        ids_BT[:, :start] = torch.tensor(self.prefix)
        positions_BT[:, :start], segment_BT[:, :start] = torch.arange(start), 0
        for b, row in enumerate(rows):
            at = start
            for number, (ids, num_answer) in enumerate(row, start=1):
                end = at + len(ids)
                ids_BT[b, at:end] = torch.tensor(ids)
                positions_BT[b, at:end] = torch.arange(start, start + len(ids))
                labels_BT[b, end - num_answer : end] = torch.tensor(ids[-num_answer:])
                segment_BT[b, at:end] = number
                at = end
        same = segment_BT[:, :, None] == segment_BT[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & (same | (segment_BT[:, None, :] == 0))
        return Packed(ids_BT, positions_BT, labels_BT, mask[:, None], segment_BT)
