"""The table of families: one row has what makes a checkpoint of its kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.zoo.texts import Text, clip, siglip, tower, visual
from tests.zoo.words import CHATML, GEMMA, SMOL, VICUNA, Chat


@dataclass(frozen=True)
class Row:
    """One family.

    model, processor, pictures: the classes of transformers; `pictures` as preprocessor_config.json
        names it, so without `Pil` or `Fast`.
    config: the arguments of the model's config.
    chat: the language model's tokens and turns.
    image: the token that stands for one feature. mark: the picture in the chat template; None if
        the family has no template.
    words: tokens that the processor reads as attributes of its tokenizer. special: other tokens.
    sizes: settings of the image processor. settings: arguments of the processor.
    tower: prefix of the vision tower's parameters. connector: prefixes inside it that are no part
        of the tower.
    layers: blocks of the language model, unless told otherwise.
    home: folder of transformers/models/ that has the processor; `name` if empty.
    needs: packages that are not installed with cdcca, without which it cannot be built or read.
    """

    name: str
    model: str
    processor: str
    pictures: str
    config: Callable[[Text], dict[str, Any]]
    chat: Chat
    image: str
    mark: str | None
    words: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tower: str = "model.vision_tower."
    connector: tuple[str, ...] = ()
    layers: int = 2
    home: str = ""
    needs: tuple[str, ...] = ()


SQUARE = {"height": 48, "width": 48}
TILE_MARKS = tuple(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5))
QWEN = {
    "chat": CHATML,
    "image": "<|image_pad|>",
    "mark": "<|vision_start|><|image_pad|><|vision_end|>",
    "special": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "tower": "model.visual.",
}


def _qwen_ids(text: Text) -> dict[str, int]:
    return {
        "image_token_id": text.id("<|image_pad|>"),
        "video_token_id": text.id("<|video_pad|>"),
        "vision_start_token_id": text.id("<|vision_start|>"),
        "vision_end_token_id": text.id("<|vision_end|>"),
    }


ROWS = (
    Row(
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaProcessor",
        "CLIPImageProcessor",
        lambda text: {
            "vision_config": clip(),
            "text_config": text.config("llama"),
            "image_token_index": text.id("<image>"),
            "image_seq_length": 36,
        },
        chat=VICUNA,
        image="<image>",
        mark="<image>\n",
        words={"image_token": "<image>"},
        sizes={"size": {"shortest_edge": 48}, "crop_size": SQUARE},
        settings={
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    Row(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        "SmolVLMProcessor",
        "SmolVLMImageProcessor",
        lambda text: {
            "vision_config": tower(),
            "text_config": text.config("llama"),
            "image_token_id": text.id("<image>"),
            "scale_factor": 2,
        },
        chat=SMOL,
        image="<image>",
        mark="<image>",
        words={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        special=TILE_MARKS,
        sizes={"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}},
        settings={"image_seq_len": 9},
        tower="model.vision_model.",
    ),
    Row(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        lambda text: dict(
            vision_config=visual(
                depth=4,
                out_hidden_size=text.width,
                num_position_embeddings=64,
                deepstack_visual_indexes=[0, 1],
            ),
            text_config=text.rotating("qwen3_vl_text"),
            **_qwen_ids(text),
        ),
        sizes={
            "patch_size": 16,
            "merge_size": 2,
            "size": {"shortest_edge": 32 * 32, "longest_edge": 96 * 96},
        },
        connector=("model.visual.merger.", "model.visual.deepstack_merger_list."),
        layers=3,
        **QWEN,
    ),
    Row(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "Gemma3Processor",
        "Gemma3ImageProcessor",
        lambda text: {
            "vision_config": siglip(),
            "text_config": text.gemma("gemma3_text"),
            "mm_tokens_per_image": 9,
            "image_token_index": text.id("<image_soft_token>"),
            "boi_token_index": text.id("<start_of_image>"),
            "eoi_token_index": text.id("<end_of_image>"),
        },
        chat=GEMMA,
        image="<image_soft_token>",
        mark="<start_of_image>",
        words={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        sizes={"size": SQUARE},
        settings={"image_seq_length": 9},
    ),
    Row(
        "internvl",
        "InternVLForConditionalGeneration",
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        lambda text: {
            "vision_config": tower(image_size=[48, 48], patch_size=[8, 8]),
            "text_config": text.config("qwen2"),
            "image_token_id": text.id("<IMG_CONTEXT>"),
            "image_seq_length": 9,
        },
        chat=CHATML,
        image="<IMG_CONTEXT>",
        mark="<IMG_CONTEXT>\n",
        words={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        sizes={"size": SQUARE, "min_patches": 1, "max_patches": 4, "crop_to_patches": True},
        settings={"image_seq_length": 9},
    ),
)
