"""The families, a row each, by their `model_type` in config.json."""

from dataclasses import replace

from cdcca_cli.families.family import IMAGE_MARK, Family, TextModel

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

_TEXT_MODELS = {
    "llama": TextModel(bias_settings=("attention_bias", "mlp_bias")),
    "t5": TextModel(attention=".SelfAttention"),
}


def text_model(model_type: str) -> TextModel:
    """What is particular to a language model; one without a row is named as LLaMA and OPT are."""
    return _TEXT_MODELS.get(model_type, TextModel())
