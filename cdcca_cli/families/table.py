"""The table of families: one row each. Paths are as in `get_submodule`."""

from dataclasses import dataclass, replace
from typing import Literal

SHORT_ANSWER = "{prompt}\nAnswer the question using a single word or phrase."
SHORT_CAPTION = "Describe the image in one short sentence."


@dataclass(frozen=True)
class Family:
    """One family.

    name: in device.json. model_type: in the checkpoint's config.json.
    architecture: the class in transformers.
    kind: how pictures come into the prompt (`models`): `cells`, or a `qformer`.
    tower_path: the vision tower. blocks: path of its list of blocks, from the tower; "" if none.
    language_path: the language model. connector_paths: modules whose linears get LoRA.
    entries, exits: of kind `cells`: the modules that the tokens of the places enter, and those
        that give the language model's features (usually the same); the first for the features in
        the prompt, more for deepstack layers. `.*` at the end: each child.
    cell: how the tokens of one place lie in what an entry reads: `one` token a place, `adjacent`
        ones, or a `square` of the picture, at sides `side`, a setting in the config.
    connect: from a place's tokens to its feature, where that is not a call of the exit; a function
        of `families.connectors`.
    types: the argument by which token types are given, and the types of pictures and of answers.
    is_mrope: whether positions have three axes (`get_rope_index`).
    features: the class of the outputs that the language model takes features in.
    is_deep: whether they have deepstack layers beside those in the prompt.
    newline: the parameter that is the feature of places without content.
    is_stacked: whether it takes them as one tensor, not as a list.
    processor: the class that knows a picture's text in a prompt, if not the one of this type.
    vqa_template, caption_template: the text around a question or a caption's prompt; what a user
        says, if the tokenizer has a chat template.
    chat: whether the tokenizer's chat template is used. plain_templates: the whole text of both
        where a checkpoint has none.
    caption_prompt: the prompt of a caption that has none of its own.
    query_names: the parameters of the group `query`.
    instruction_tokenizer: folder in the checkpoint with the tokenizer of a Q-Former that reads the
        prompt; None if it sees the picture alone.
    """

    name: str
    model_type: str
    architecture: str
    tower_path: str
    language_path: str
    connector_paths: tuple[str, ...]
    kind: Literal["cells", "qformer"] = "cells"
    blocks: str = "encoder.layers"
    entries: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    cell: Literal["one", "adjacent", "square"] = "one"
    side: str = ""
    connect: str = ""
    types: tuple[str, int, int] | None = None
    is_mrope: bool = False
    features: str = "BaseModelOutputWithPooling"
    is_deep: bool = False
    newline: str = ""
    is_stacked: bool = False
    processor: str = ""
    vqa_template: str = SHORT_ANSWER
    caption_template: str = "{prompt}"
    caption_prompt: str = SHORT_CAPTION
    chat: bool = True
    plain_templates: tuple[str, str] = (
        "USER: <image>\n{prompt}\nAnswer the question using a single word or phrase. ASSISTANT:",
        "USER: <image>\n{prompt} ASSISTANT:",
    )
    query_names: tuple[str, ...] = ()
    instruction_tokenizer: str | None = None

    @property
    def full_precision(self) -> tuple[str, ...]:
        """The modules that are never quantised: all but the language model."""
        first = {path.split(".*")[0] for path in (self.tower_path, *self.connector_paths)}
        first |= {"qformer", "language_projection"} if self.kind == "qformer" else set()
        return (*sorted(first), "lm_head")


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
    kind="qformer",
    tower_path="vision_model",
    language_path="language_model",
    connector_paths=("qformer.encoder",),
    query_names=("query_tokens",),
    chat=False,
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
_PROJECTOR = "model.multi_modal_projector"
_LLAVA = Family(
    name="llava",
    model_type="llava",
    architecture="LlavaForConditionalGeneration",
    tower_path="model.vision_tower",
    language_path="model.language_model",
    connector_paths=(_PROJECTOR,),
    entries=(_PROJECTOR,),
)
_CONNECTOR = "model.connector"
_IDEFICS3 = Family(
    name="idefics3",
    model_type="idefics3",
    architecture="Idefics3ForConditionalGeneration",
    tower_path="model.vision_model",
    language_path="model.text_model",
    connector_paths=(_CONNECTOR,),
    entries=(f"{_CONNECTOR}.modality_projection",),
)
_QWEN2_VL = Family(
    name="qwen2_vl",
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    tower_path="model.visual",
    blocks="blocks",
    language_path="model.language_model",
    connector_paths=("model.visual.merger",),
    entries=("model.visual.merger",),
    cell="adjacent",
    side="vision_config.spatial_merge_size",
    is_mrope=True,
)
_ROWS = (
    _BLIP2,
    _INSTRUCTBLIP,
    _LLAVA,
    _IDEFICS3,
    replace(
        _IDEFICS3,
        name="smolvlm",
        model_type="smolvlm",
        architecture="SmolVLMForConditionalGeneration",
        processor="Idefics3Processor",
    ),
    replace(
        _LLAVA,
        name="internvl",
        model_type="internvl",
        architecture="InternVLForConditionalGeneration",
        is_stacked=True,
        blocks="encoder.layer",
    ),
    replace(
        _LLAVA,
        name="gemma3",
        model_type="gemma3",
        architecture="Gemma3ForConditionalGeneration",
        is_stacked=True,
        entries=(f"{_PROJECTOR}.mm_soft_emb_norm",),
        exits=(_PROJECTOR,),
        connect="gemma3",
        types=("token_type_ids", 1, 0),
    ),
    _QWEN2_VL,
    replace(
        _QWEN2_VL,
        name="qwen3_vl",
        model_type="qwen3_vl",
        architecture="Qwen3VLForConditionalGeneration",
        connector_paths=("model.visual.merger", "model.visual.deepstack_merger_list"),
        entries=("model.visual.merger", "model.visual.deepstack_merger_list.*"),
        features="BaseModelOutputWithDeepstackFeatures",
        is_deep=True,
    ),
)

FAMILIES = {row.model_type: row for row in _ROWS}

_TEXT_MODELS = {"t5": TextModel(attention=".SelfAttention")}


def text_model(model_type: str) -> TextModel:
    """How a language model names its parts; without a row, as most do."""
    return _TEXT_MODELS.get(model_type, TextModel())
