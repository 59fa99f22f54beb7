"""The table of families: rows of names and templates. A path is as in `get_submodule`."""

from dataclasses import dataclass, replace
from typing import Literal

IMAGE_MARK = "<image>"
"""The mark of the picture in a prompt with one position for each visual token."""


@dataclass(frozen=True)
class Family:
    """One family.

    name: in device.json. model_type: in the checkpoint's config.json.
    architecture: the class in transformers.
    connector_paths: modules whose linears get LoRA.
    full_precision: modules that are never quantised.
    vqa_template, caption_template: the text around a question or a caption's prompt.
    caption_prompt: the prompt of a caption that has none of its own.
    marks: the special tokens in the templates; in a question the same words are text.
    query_names: the parameters of the group `query`.
    instruction_tokenizer: folder in the checkpoint with the tokenizer of a Q-Former that reads the
        prompt; None if it sees the picture alone.
    """

    name: str
    model_type: str
    architecture: str
    connector: Literal["qformer", "token_per_patch"]
    tower_path: str
    language_path: str
    connector_paths: tuple[str, ...]
    full_precision: tuple[str, ...]
    vqa_template: str
    caption_prompt: str
    caption_template: str = "{prompt}"
    marks: tuple[str, ...] = ()
    query_names: tuple[str, ...] = ()
    instruction_tokenizer: str | None = None


@dataclass(frozen=True)
class TextModel:
    """How a kind of language model names its parts.

    attention: ending of the names of the self-attentions that read the prompt.
    """

    attention: str = ".self_attn"


_BLIP2 = Family(
    name="blip_2",
    model_type="blip-2",
    architecture="Blip2ForConditionalGeneration",
    connector="qformer",
    tower_path="vision_model",
    language_path="language_model",
    connector_paths=("qformer.encoder",),
    query_names=("query_tokens",),
    full_precision=("vision_model", "qformer", "language_projection", "lm_head"),
    vqa_template="Question: {prompt} Answer:",
    caption_prompt="a photo of",
)
_INSTRUCTBLIP = replace(
    _BLIP2,
    name="instructblip",
    model_type="instructblip",
    architecture="InstructBlipForConditionalGeneration",
    vqa_template="{prompt} Short answer:",
    caption_prompt="A short image description.",
    instruction_tokenizer="qformer_tokenizer",
)
_LLAVA = Family(
    name="llava",
    model_type="llava",
    architecture="LlavaForConditionalGeneration",
    connector="token_per_patch",
    tower_path="model.vision_tower",
    language_path="model.language_model",
    connector_paths=("model.multi_modal_projector",),
    full_precision=("model.vision_tower", "model.multi_modal_projector", "lm_head"),
    vqa_template=(
        "USER: <image>\n{prompt}\nAnswer the question using a single word or phrase. ASSISTANT:"
    ),
    caption_prompt="Describe the image in one short sentence.",
    caption_template="USER: <image>\n{prompt} ASSISTANT:",
    marks=(IMAGE_MARK,),
)

FAMILIES = {row.model_type: row for row in (_BLIP2, _INSTRUCTBLIP, _LLAVA)}

_TEXT_MODELS = {"t5": TextModel(attention=".SelfAttention")}


def text_model(model_type: str) -> TextModel:
    """How a language model names its parts; without a row, as most do."""
    return _TEXT_MODELS.get(model_type, TextModel())
