"""Checkpoints of four families with random weights, around a language model of real size.

`tiny` has the tower of `tests/zoo`, three blocks of 32 channels, which costs nothing. `base` has
twelve blocks of 768, as SmolVLM2-256M's, and pictures of a size that suits it. The language model
has SmolLM2-135M's shape; the rows of its embedding that are no plain words are small, so that
answers are words, and equally long. Processors and tokenizers are the zoo's.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests`

FAMILIES = {
    "llava": "LlavaForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
}
"""And their classes in transformers."""
SHAPE = {
    "vocab_size": 49152,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "initializer_range": 1 / 24,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's; its width is 576."""
_BASE = {"hidden_size": 768, "intermediate_size": 3072}
_BLOCKS = {"num_hidden_layers": 12, "num_attention_heads": 12}
_DEEP = {"depth": 12, "num_heads": 12, "deepstack_visual_indexes": [3, 6, 9]}
_SIDE, _PART = {"height": 448, "width": 448}, {"longest_edge": 512}
BASE: dict[str, tuple[dict[str, Any], ...]] = {
    "llava": (
        {**_BASE, **_BLOCKS, "image_size": 224, "patch_size": 16},
        {"image_seq_length": 196},
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
        {"patch_size": 16},
    ),
    "smolvlm": (
        {**_BASE, **_BLOCKS, "image_size": 512, "patch_size": 16},
        {"scale_factor": 4},
        {"size": _PART, "max_image_size": _PART},
        {"image_seq_len": 64},
    ),
    "qwen3_vl": (
        {**_BASE, **_DEEP, "num_position_embeddings": 2304},
        {},
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
        {},
    ),
    "gemma3": (
        {**_BASE, **_BLOCKS, "image_size": 448, "patch_size": 14},
        {"mm_tokens_per_image": 64},
        {"size": _SIDE},
        {"image_seq_length": 64},
    ),
}
"""What a tower of ViT-B's size changes in the tower's config, the model's, and the settings of the
image processor and the processor."""


def build(family: str, folder: Path, layers: int, tower: str) -> None:
    """Write the checkpoint of a family around a language model of SmolLM2's shape."""
    import torch
    import transformers

    from tests.zoo import FAMILIES as ROWS
    from tests.zoo.texts import Text
    from tests.zoo.words import tokenizer

    class Shaped(Text):
        def config(self, kind: str, **other: Any) -> dict[str, Any]:
            return super().config(kind, **other) | SHAPE

        def rotating(self, kind: str, sections: Any = (8, 12, 12), **other: Any) -> Any:
            return super().rotating(kind, sections, **other)

    row = ROWS[family]
    folder.mkdir()
    words = tokenizer(folder, row.chat, row.mark, row.words, row.special)
    architecture = getattr(transformers, row.model)
    vision, other, sizes, more = BASE[family] if tower == "base" else ({}, {}, {}, {})
    settings = row.config(Shaped(words, 576, layers)) | other | {"tie_word_embeddings": True}
    settings["vision_config"] |= vision
    torch.manual_seed(0)
    model = architecture(architecture.config_class(**settings))
    plain = [
        number
        for token, number in words.get_vocab().items()
        if (letters := token.removeprefix("Ġ")).isascii() and letters.isalpha()
    ]
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        silent = torch.ones(len(rows), dtype=torch.bool)
        silent[plain] = False
        rows[silent] *= 0.2
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.convert_tokens_to_ids(list(row.chat.eos)),
    )
    model.save_pretrained(folder)
    pictures = {"image_processor_type": row.pictures, "processor_class": row.processor}
    for name, made in (
        ("preprocessor_config.json", pictures | {**row.sizes, **sizes}),
        ("processor_config.json", {"processor_class": row.processor, **row.settings, **more}),
    ):
        (folder / name).write_text(json.dumps(made))
