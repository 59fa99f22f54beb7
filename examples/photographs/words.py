"""The world's language: its tokenizer, and what there is to read and to say of a scene.

Packed sequences, prompts' templates and the number of query tokens are those of `../pair`.
"""

from dataclasses import dataclass

import beside_pair  # noqa: F401
import numpy as np
from kinds import Kind
from language import CAPTION_PROMPT, VOCABULARY, VQA_PROMPT, Packed, Packer, Segment
from pictures import UNSEEN
from scenes import (
    CAPTION_WEIGHTS,
    CORNERS,
    WHOLE,
    Scene,
    facts,
    make_captions,
    make_questions,
    names_asked,
    plain_caption,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS_SCENES = 3000
QUESTIONS_PER_PICTURE = 4


@dataclass(frozen=True)
class Vocabulary:
    """The kinds that a world speaks of: those of its source, and those of its target alone."""

    known: list[Kind]
    unseen: list[Kind]

    @property
    def kinds(self) -> dict[str, Kind]:
        """All kinds by name, known ones first."""
        return {kind.name: kind for kind in [*self.known, *self.unseen]}

    def asked(self, domain: str) -> list[str]:
        """The names that a domain's questions are about."""
        known, unseen = ([kind.name for kind in some] for some in (self.known, self.unseen))
        return names_asked(known, unseen, domain)

    def imagine(self, rng: np.random.Generator) -> Scene:
        """A scene of any kinds, without a picture."""
        names = [str(name) for name in rng.permutation(list(self.kinds))]
        number = 1 if rng.random() < 0.4 else int(rng.integers(2, 5))
        if number == 1:
            return {WHOLE: names[0]}
        cells = sorted(int(cell) for cell in rng.permutation(len(CORNERS))[:number])
        return dict(zip(cells, names, strict=False))


def make_tokenizer(vocabulary: Vocabulary, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the world's sentences; any UTF-8 text can be encoded."""
    rng = np.random.default_rng(seed)
    corpus = facts(vocabulary.kinds) * (CORPUS_SCENES // 20)
    for _ in range(CORPUS_SCENES):
        for part in scene_segments(vocabulary.imagine(rng), vocabulary, UNSEEN, rng):
            corpus.append(part.prompt + part.answer)
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


def scene_segments(
    scene: Scene, vocabulary: Vocabulary, domain: str, rng: np.random.Generator
) -> list[Segment]:
    """Questions about a scene, each with one person's answer, and a caption."""
    asked = vocabulary.asked(domain)
    prompts = make_questions(scene, vocabulary.kinds, asked, domain, QUESTIONS_PER_PICTURE, rng)
    segments = [
        Segment(VQA_PROMPT.format(question=prompt["prompt"]), f" {rng.choice(prompt['answers'])}")
        for prompt in prompts
    ]
    caption = rng.choice(make_captions(scene, vocabulary.kinds, rng), p=CAPTION_WEIGHTS)
    return [*segments, Segment(CAPTION_PROMPT, f" {caption}")]


def text_batch(
    packer: Packer, vocabulary: Vocabulary, batch_size: int, rng: np.random.Generator
) -> Packed:
    """Reading without pictures: a caption where the query tokens will stand, questions, a fact."""
    prefixes, segments = [], []
    known = facts(vocabulary.kinds)
    for _ in range(batch_size):
        scene = vocabulary.imagine(rng)
        prefixes.append(packer.encode(f" {plain_caption(scene)}"))
        some = scene_segments(scene, vocabulary, UNSEEN, rng)
        segments.append([*some, Segment("", f" {rng.choice(known)}")])
    return packer(prefixes, segments)
