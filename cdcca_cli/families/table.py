"""The table of families: one row each (`family` says what its columns are)."""

from dataclasses import dataclass, replace
from typing import Any

from cdcca_cli.families.family import Family


@dataclass(frozen=True)
class TextModel:
    """How a kind of language model names its parts.

    attention: ending of the names of the self-attentions that read the prompt.
    """

    attention: str = ".self_attn"


_BLIP2 = Family(
    name="blip_2",
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
    vqa_template="{prompt} Short answer:",
    caption_prompt="A short image description.",
    instruction_tokenizer="qformer_tokenizer",
)
_PROJECTOR = "model.multi_modal_projector"
_LLAVA = Family(
    name="llava",
    tower_path="model.vision_tower",
    language_path="model.language_model",
    connector_paths=(_PROJECTOR,),
    entries=(_PROJECTOR,),
)
_LLAVA_PIXTRAL = replace(
    _LLAVA,
    blocks="transformer.layers",
    sizes="image_sizes",
    is_packed=True,
    processor="pixtral",
)
_LLAVA_NEXT = replace(
    _LLAVA,
    name="llava_next",
    newline="model.image_newline",
)
_AYA_VISION = replace(
    _LLAVA,
    name="aya_vision",
    cell="square",
    side="downsample_factor",
    is_stacked=True,
)
_DEEPSEEK_VL = replace(
    _LLAVA,
    name="deepseek_vl",
    tower_path="model.vision_model",
    connector_paths=("model.aligner",),
    entries=("model.aligner",),
    is_stacked=True,
)
_GOT_OCR2 = (
    "<|im_start|>system\nYou should follow the instructions carefully and explain your answers in "
    "detail.<|im_end|><|im_start|>user\n<img><image></img>\n{prompt}<|im_end|>"
    "<|im_start|>assistant\n"
)
"""As GotOcr2Processor writes it; the checkpoint has no chat template."""
_CONNECTOR = "model.connector"
_IDEFICS3 = Family(
    name="idefics3",
    tower_path="model.vision_model",
    language_path="model.text_model",
    connector_paths=(_CONNECTOR,),
    entries=(f"{_CONNECTOR}.modality_projection",),
)
_QWEN2_VL = Family(
    name="qwen2_vl",
    tower_path="model.visual",
    blocks="blocks",
    language_path="model.language_model",
    connector_paths=("model.visual.merger",),
    entries=("model.visual.merger",),
    cell="adjacent",
    side="vision_config.spatial_merge_size",
    is_mrope=True,
)
_GEMMA4 = Family(
    name="gemma4",
    tower_path="model.vision_tower",
    language_path="model.language_model",
    connector_paths=("model.embed_vision",),
    entries=("model.embed_vision",),
    types=("mm_token_type_ids", 1, 0),
)
_GRANITE4 = ("model.layerwise_projectors.*.out_linear", "model.spatial_projectors.*.out_linear")
_ROWS = (
    _BLIP2,
    _INSTRUCTBLIP,
    _LLAVA,
    _IDEFICS3,
    replace(
        _IDEFICS3,
        name="smolvlm",
        processor="Idefics3Processor",
    ),
    replace(
        _LLAVA,
        name="internvl",
        is_stacked=True,
        blocks="encoder.layer",
    ),
    replace(
        _LLAVA,
        name="gemma3",
        is_stacked=True,
        entries=(f"{_PROJECTOR}.mm_soft_emb_norm",),
        exits=(_PROJECTOR,),
        connect="gemma3",
        types=("token_type_ids", 1, 0),
    ),
    replace(
        _LLAVA,
        name="vipllava",
        is_stacked=True,
    ),
    _LLAVA_NEXT,
    replace(
        _LLAVA_NEXT,
        name="llava_onevision",
        adjust="llava_onevision",
    ),
    replace(
        _LLAVA_PIXTRAL,
        name="mistral3",
        entries=(f"{_PROJECTOR}.norm",),
        exits=(_PROJECTOR,),
        cell="square",
        side="spatial_merge_size",
        connect="mistral3",
    ),
    _AYA_VISION,
    replace(
        _AYA_VISION,
        name="cohere2_vision",
        needs=("torchvision",),
        backend="torchvision",
    ),
    replace(
        _AYA_VISION,
        name="perception_lm",
        blocks="timm_model.blocks",
        side="projector_pooling_ratio",
        needs=("timm", "torchvision"),
        backend="torchvision",
    ),
    replace(
        _LLAVA,
        name="fast_vlm",
        blocks="timm_model.stages",
        is_stacked=True,
        processor="LlavaProcessor",
        needs=("timm", "torchvision"),
    ),
    _DEEPSEEK_VL,
    replace(
        _DEEPSEEK_VL,
        name="janus",
    ),
    replace(
        _LLAVA,
        name="got_ocr2",
        blocks="layers",
        more_of_tower=(f"{_PROJECTOR}.conv_upsampler1", f"{_PROJECTOR}.conv_upsampler2"),
        connector_paths=(f"{_PROJECTOR}.multimodal_projector",),
        entries=(f"{_PROJECTOR}.multimodal_projector",),
        is_stacked=True,
        processor=None,
        plain_templates=(_GOT_OCR2, _GOT_OCR2),
        caption_prompt=" OCR: ",
    ),
    replace(
        _LLAVA,
        name="ovis2",
        blocks="transformer.encoder.layers",
        connector_paths=("model.vision_tower.head_linear", "model.vision_tower.head_norm"),
        entries=("model.vision_tower.head_linear",),
        exits=("model.visual_embeddings_table",),
        connect="ovis2",
        features="BaseModelOutputWithVisualIndicatorFeatures",
        extra="ovis2_indicators",
        is_stacked=True,
    ),
    replace(
        _IDEFICS3,
        name="idefics2",
        kind="perceiver",
        entries=(_CONNECTOR,),
        query_names=(f"{_CONNECTOR}.perceiver_resampler.latents",),
        adjust="idefics2",
        processor="idefics2",
    ),
    _QWEN2_VL,
    replace(
        _QWEN2_VL,
        name="qwen3_vl",
        connector_paths=("model.visual.merger", "model.visual.deepstack_merger_list"),
        entries=("model.visual.merger", "model.visual.deepstack_merger_list.*"),
        features="BaseModelOutputWithDeepstackFeatures",
        deep="beside",
    ),
    replace(
        _QWEN2_VL,
        name="qwen2_5_vl",
    ),
    replace(
        _QWEN2_VL,
        name="qwen3_5",
    ),
    replace(
        _QWEN2_VL,
        name="glm4v",
        connector_paths=("model.visual.downsample", "model.visual.merger"),
        entries=("model.visual.downsample",),
        exits=("model.visual.merger",),
        cell="map",
        connect="glm4v",
    ),
    replace(
        _LLAVA,
        name="video_llama_3",
        tower_path="model.vision_model",
        connector_paths=("model.projector",),
        entries=("model.projector",),
    ),
    replace(
        _LLAVA,
        name="paligemma",
        is_stacked=True,
        types=("token_type_ids", 0, 1),
        plain_templates=("<image><bos>answer en {prompt}\n", "<image><bos>{prompt}\n"),
        caption_prompt="caption en",
    ),
    replace(
        _GEMMA4,
        name="gemma3n",
        blocks="timm_model.blocks",
        is_stacked=True,
        connect="gemma3n",
        types=None,
        needs=("timm", "torchvision"),
    ),
    _GEMMA4,
    replace(
        _GEMMA4,
        name="gemma4_unified",
        tower_path="model.embed_vision",
        blocks="",
        connector_paths=("model.embed_vision.multimodal_embedder",),
        entries=("model.embed_vision.multimodal_embedder",),
        needs=("torchvision",),
        backend="torchvision",
    ),
    replace(
        _LLAVA,
        name="lfm2_vl",
        cell="square",
        side="downsample_factor",
        connect="lfm2_vl",
        processor="lfm2_vl",
        needs=("torchvision",),
        backend="torchvision",
    ),
    replace(
        _LLAVA,
        name="minicpmv4_6",
        connector_paths=("model.merger",),
        entries=("model.merger.mlp.0",),
        pixel_axis=3,
        processor="minicpmv",
    ),
    replace(
        _LLAVA,
        name="granite4_vision",
        more_of_tower=("model.layerwise_projectors", "model.spatial_projectors"),
        connector_paths=_GRANITE4,
        entries=_GRANITE4,
        newline="model.image_newline",
        features="Granite4VisionImageFeaturesOutput",
        deep="alone",
    ),
)

FAMILIES = {row.model_type: row for row in _ROWS}
_OTHER_TOWERS = {("llava", "pixtral"): _LLAVA_PIXTRAL}
"""Rows of checkpoints whose tower is not their family's usual one, by both model types."""


def family_named(name: str) -> Family | None:
    """The row of a device's family: its name, or the model type. None for one that is not here."""
    return next((row for row in _ROWS if name in (row.name, row.model_type)), None)


def family_of(config: Any) -> Family:
    """The row of a checkpoint's config, whose model type is one of FAMILIES."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    return _OTHER_TOWERS.get((config.model_type, tower)) or FAMILIES[config.model_type]


_TEXT_MODELS = {"t5": TextModel(attention=".SelfAttention")}


def text_model(model_type: str) -> TextModel:
    """How a language model names its parts; without a row, as most do."""
    return _TEXT_MODELS.get(model_type, TextModel())
