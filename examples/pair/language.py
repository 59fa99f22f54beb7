"""The world's language: the tokenizer, and sequences that pack several texts behind one prefix.

A packed sequence is a prefix (the image's query tokens, or a caption in their place) and segments
(a prompt and its answer). Every segment sees the prefix and itself, and its positions go on from
the prefix: so it reads exactly as if it stood alone, and a picture is looked at once.

Shapes: B batch, T tokens.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from world import Scene, facts, make_captions, make_questions, make_scene, plain_caption

VOCABULARY = 640
NUM_QUERY_TOKENS = 16
IGNORE = -100
VQA_PROMPT = "Question: {question} Answer:"
CAPTION_PROMPT = "a photo of"
CAPTION_WEIGHTS = [0.7, 0.1, 0.0, 0.1, 0.1]
CORPUS_SCENES = 6000


@lru_cache
def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the world's sentences; any UTF-8 text can be encoded."""
    rng = np.random.default_rng(seed)
    corpus = [sentence for sentence in facts() for _ in range(CORPUS_SCENES // 20)]
    for _ in range(CORPUS_SCENES):
        scene = make_scene("target", rng)
        corpus += [f"{CAPTION_PROMPT} {caption}" for caption in make_captions(scene, rng)[2:]]
        for prompt in make_questions(scene, "target", 4, rng):
            words = sorted({*prompt["answers"], *prompt["choices"]})
            corpus += [VQA_PROMPT.format(question=prompt["prompt"]) + f" {word}" for word in words]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=512,
    )


@dataclass(frozen=True)
class Segment:
    """A prompt, and the text to learn after it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Packed:
    """A batch of packed sequences.

    input_ids, position_ids, labels: (B, T); mask: (B, 1, T, T), True where a token may look;
    segment: (B, T), 0 in the prefix, 1.. in segments, -1 in padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    mask: Tensor
    segment: Tensor


class Packer:
    """Turns prefixes and segments into packed batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.image_prefix = [tokenizer.convert_tokens_to_ids("<image>")] * NUM_QUERY_TOKENS
        self.encode = lru_cache(maxsize=100_000)(
            lambda text: tokenizer(text, add_special_tokens=False).input_ids
        )

    def __call__(self, prefixes: list[list[int]], segments: list[list[Segment]]) -> Packed:
        """Pack each prefix with its segments; sequences are padded on the right."""
        rows = [self._row(prefix, some) for prefix, some in zip(prefixes, segments, strict=True)]
        length = max(len(row[0]) for row in rows)
        fills = (self.tokenizer.pad_token_id, 0, IGNORE, -1)
        ids, positions, labels, segment = (
            torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate(fills)
        )
        same = segment[:, :, None] == segment[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & (same | (segment[:, None, :] == 0))
        return Packed(ids, positions, labels, mask[:, None], segment)

    def _row(
        self, prefix: list[int], segments: list[Segment]
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        ids, positions = list(prefix), list(range(len(prefix)))
        labels, segment = [IGNORE] * len(prefix), [0] * len(prefix)
        for number, part in enumerate(segments, start=1):
            prompt = [self.tokenizer.bos_token_id, *self.encode(part.prompt)]
            answer = [*self.encode(part.answer), self.tokenizer.eos_token_id]
            ids += prompt + answer
            positions += range(len(prefix), len(prefix) + len(prompt) + len(answer))
            labels += [IGNORE] * len(prompt) + answer
            segment += [number] * (len(prompt) + len(answer))
        return ids, positions, labels, segment


def scene_segments(
    scene: Scene, domain: str, num_questions: int, rng: np.random.Generator
) -> list[Segment]:
    """Questions about a scene, each with one person's answer, and a caption."""
    segments = [
        Segment(VQA_PROMPT.format(question=prompt["prompt"]), f" {rng.choice(prompt['answers'])}")
        for prompt in make_questions(scene, domain, num_questions, rng)
    ]
    caption = rng.choice(make_captions(scene, rng), p=CAPTION_WEIGHTS)
    return [*segments, Segment(CAPTION_PROMPT, f" {caption}")]


def text_batch(packer: Packer, batch_size: int, rng: np.random.Generator) -> Packed:
    """Reading without pictures: a caption where the query tokens will stand, questions, a fact."""
    prefixes, segments = [], []
    known = facts()
    for _ in range(batch_size):
        domain = "source" if rng.random() < 0.3 else "target"
        scene = make_scene(domain, rng)
        order = [list(scene.items())[i] for i in rng.permutation(len(scene))]
        prefixes.append(packer.encode(f" {plain_caption(dict(order))}"))
        fact = Segment("", f" {rng.choice(known)}")
        segments.append([*scene_segments(scene, domain, 4, rng), fact])
    return packer(prefixes, segments)
