"""Rows of families that see a picture at its own size, as a grid of patches."""

from dataclasses import replace
from typing import Any

from tests.zoo.row import Row
from tests.zoo.texts import Text, visual
from tests.zoo.words import CHATML, GEMMA4, GLM, LFM, MISTRAL, VOCABULARY

HELPFUL = replace(CHATML, opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
"""Qwen2-VL and Qwen2.5-VL: a system turn stands before every chat."""
SILENT = replace(CHATML, answer="<|im_start|>assistant\n<think>\n\n</think>\n\n")
"""Qwen3.5 when it does not think aloud."""
QWEN: dict[str, Any] = {
    "image": "<|image_pad|>",
    "mark": "<|vision_start|><|image_pad|><|vision_end|>",
    "special": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "tower": "model.visual.",
    "connector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
}


def _patches(size: int, frames: int = 1) -> dict[str, Any]:
    """Settings of an image processor that makes 12 to 20 cells of 2 x 2 patches."""
    cell = frames * (2 * size) ** 2
    return {
        "patch_size": size,
        "merge_size": 2,
        "size": {"shortest_edge": 12 * cell, "longest_edge": 20 * cell},
    }


def _qwen(text: Text, vision: dict[str, Any], language: Any) -> dict[str, Any]:
    return {
        "vision_config": vision,
        "text_config": language,
        "image_token_id": text.id("<|image_pad|>"),
        "video_token_id": text.id("<|video_pad|>"),
        "vision_start_token_id": text.id("<|vision_start|>"),
        "vision_end_token_id": text.id("<|vision_end|>"),
    }


def _delta(text: Text, kind: str, **other: Any) -> dict[str, Any]:
    """A hybrid: three layers of linear attention, then one of full attention."""
    heads = {
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    return text.rotating(kind, (1, 1, 0), rope={"partial_rotary_factor": 0.25}, **heads, **other)


def _gemma4(text: Text, per_layer: bool) -> dict[str, Any]:
    """E2B-like: embeddings for each layer, shared keys. 31B-like: bidirectional pictures."""
    shared = {"num_kv_shared_layers": 2 * per_layer, "global_head_dim": 16}
    layers = {
        "hidden_size_per_layer_input": 16 * per_layer,
        "vocab_size_per_layer_input": VOCABULARY,
        "use_bidirectional_attention": None if per_layer else "vision",
    }
    language = text.gemma("gemma4_text", **shared, **layers)
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": 4,
        "position_embedding_size": 64,
    }
    return {"vision_config": vision, "text_config": language, **_gemma4_ids(text)}


def _gemma4_ids(text: Text) -> dict[str, Any]:
    return {
        "audio_config": None,
        "tie_word_embeddings": False,  # else noise echoes the prompt's last word, a newline
        "image_token_id": text.id("<|image|>"),
        "video_token_id": text.id("<|video|>"),
        "audio_token_id": text.id("<|audio|>"),
        "boi_token_id": text.id("<|image>"),
        "eoi_token_id": text.id("<image|>"),
        "boa_token_id": text.id("<|audio>"),
        "eoa_token_id": text.id("<audio|>"),
    }


GEMMA4_WORDS: dict[str, Any] = {
    "chat": GEMMA4,
    "image": "<|image|>",
    "mark": "<|image|>",
    "words": {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    "special": ("<|video|>",),
    "layers": 4,
}
GEMMA4_PICTURES: dict[str, Any] = {
    "sizes": {"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 70},
    "settings": {"image_seq_length": 70},
    "home": "gemma4",
}
PIXTRAL: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "image_size": 96,
    "patch_size": 8,
}
PIXTRAL_WORDS: dict[str, Any] = {
    "chat": MISTRAL,
    "image": "[IMG]",
    "mark": "[IMG]",
    "special": ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    "sizes": {"patch_size": 8, "size": {"longest_edge": 96}},
    "home": "pixtral",
}

ROWS = (
    Row(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLProcessor",
        "Qwen2VLImageProcessor",
        lambda text: _qwen(
            text,
            {"depth": 3, "embed_dim": 32, "hidden_size": text.width, "num_heads": 4}
            | {"mlp_ratio": 2},
            text.rotating("qwen2_vl_text"),
        ),
        chat=HELPFUL,
        sizes=_patches(14),
        **QWEN,
    ),
    Row(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLProcessor",
        "Qwen2VLImageProcessor",
        lambda text: _qwen(
            text,
            visual(out_hidden_size=text.width, fullatt_block_indexes=[1], window_size=56),
            text.rotating("qwen2_5_vl_text"),
        ),
        chat=HELPFUL,
        sizes=_patches(14),
        **QWEN,
    ),
    Row(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        lambda text: _qwen(
            text,
            visual(
                depth=4,
                out_hidden_size=text.width,
                num_position_embeddings=64,
                deepstack_visual_indexes=[0, 1],
            ),
            text.rotating("qwen3_vl_text"),
        ),
        chat=CHATML,
        sizes=_patches(16),
        layers=3,
        **QWEN,
    ),
    Row(
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        lambda text: _qwen(
            text,
            visual(out_hidden_size=text.width, num_position_embeddings=64),
            _delta(text, "qwen3_5_text"),
        ),
        chat=SILENT,
        sizes=_patches(16),
        layers=4,
        home="qwen3_vl",
        **QWEN,
    ),
    Row(
        "glm4v",
        "Glm4vForConditionalGeneration",
        "Glm4vProcessor",
        "Glm4vImageProcessor",
        lambda text: {
            "vision_config": visual(
                out_hidden_size=text.width, image_size=56, patch_size=14, spatial_merge_size=2
            ),
            "text_config": text.rotating(
                "glm4v_text", (2, 1, 1), rope={"partial_rotary_factor": 0.5}
            ),
            "image_token_id": text.id("<|image|>"),
            "video_token_id": text.id("<|video|>"),
            "image_start_token_id": text.id("<|begin_of_image|>"),
            "image_end_token_id": text.id("<|end_of_image|>"),
            "video_start_token_id": text.id("<|begin_of_video|>"),
            "video_end_token_id": text.id("<|end_of_video|>"),
        },
        chat=GLM,
        image="<|image|>",
        mark="<|begin_of_image|><|image|><|end_of_image|>",
        special=(
            "<|image|>",
            "<|video|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
        ),
        sizes=_patches(14, frames=2),
        tower="model.visual.",
        connector=("model.visual.merger.", "model.visual.downsample."),
    ),
    Row(
        "video_llama_3",
        "VideoLlama3ForConditionalGeneration",
        "VideoLlama3Processor",
        "VideoLlama3ImageProcessor",
        lambda text: {
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "patch_size": 14,
            },
            "text_config": text.config("qwen2"),
            "image_token_id": text.id("<image>"),
            "video_token_id": text.id("<video>"),
        },
        chat=CHATML,
        image="<image>",
        mark="<image>\n",
        words={"image_token": "<image>", "video_token": "<video>"},
        sizes=_patches(14),
        tower="model.vision_model.",
    ),
    Row(
        "gemma4_e2b",
        "Gemma4ForConditionalGeneration",
        "Gemma4Processor",
        "Gemma4ImageProcessor",
        lambda text: _gemma4(text, per_layer=True),
        **GEMMA4_WORDS,
        **GEMMA4_PICTURES,
    ),
    Row(
        "gemma4_31b",
        "Gemma4ForConditionalGeneration",
        "Gemma4Processor",
        "Gemma4ImageProcessor",
        lambda text: _gemma4(text, per_layer=False),
        **GEMMA4_WORDS,
        **GEMMA4_PICTURES,
    ),
    Row(
        "gemma4_unified",
        "Gemma4UnifiedForConditionalGeneration",
        "Gemma4UnifiedProcessor",
        "Gemma4UnifiedImageProcessor",
        lambda text: {
            "vision_config": {
                "patch_size": 4,
                "pooling_kernel_size": 3,
                "mm_embed_dim": 32,
                "mm_posemb_size": 64,
                "output_proj_dims": 32,
            },
            "text_config": text.gemma(
                "gemma4_unified_text", global_head_dim=16, use_bidirectional_attention="vision"
            ),
            **_gemma4_ids(text),
        },
        sizes={"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 70},
        settings={"image_seq_length": 70},
        tower="model.embed_vision.",
        connector=("model.embed_vision.multimodal_embedder.",),
        backend="torchvision",
        needs=("torchvision",),
        **GEMMA4_WORDS,
    ),
    Row(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "PixtralProcessor",
        "PixtralImageProcessor",
        lambda text: {
            "vision_config": PIXTRAL,
            "text_config": text.config("mistral"),
            "image_token_index": text.id("[IMG]"),
            "spatial_merge_size": 2,
        },
        settings={"patch_size": 8, "spatial_merge_size": 2},
        **PIXTRAL_WORDS,
    ),
    Row(
        "pixtral",
        "LlavaForConditionalGeneration",
        "PixtralProcessor",
        "PixtralImageProcessor",
        lambda text: {
            "vision_config": PIXTRAL,
            "text_config": text.config("mistral"),
            "image_token_index": text.id("[IMG]"),
            "image_seq_length": 1,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        settings={"patch_size": 8},
        **PIXTRAL_WORDS,
    ),
    Row(
        "lfm2_vl",
        "Lfm2VlForConditionalGeneration",
        "Lfm2VlProcessor",
        "Lfm2VlImageProcessor",
        lambda text: {
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "patch_size": 4,
                "num_patches": 64,
                "vision_use_head": False,
            },
            "text_config": text.config(
                "lfm2",
                layer_types=[("conv", "full_attention")[i % 2] for i in range(text.layers)],
            ),
            "image_token_id": text.id("<image>"),
            "projector_hidden_size": 64,
        },
        chat=LFM,
        image="<image>",
        mark="<image>",
        words={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        special=tuple(f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5)),
        sizes={
            "encoder_patch_size": 4,
            "downsample_factor": 2,
            "tile_size": 32,
            "size": {"height": 32, "width": 32},
            "min_tiles": 2,
            "max_tiles": 4,
            "min_image_tokens": 4,
            "max_image_tokens": 16,
            "do_image_splitting": True,
            "use_thumbnail": True,
        },
        call={"use_image_special_tokens": True},
        layers=4,
        backend="torchvision",
        needs=("torchvision",),
    ),
    Row(
        "minicpmv4_6",
        "MiniCPMV4_6ForConditionalGeneration",
        "MiniCPMV4_6Processor",
        "MiniCPMV4_6ImageProcessor",
        lambda text: {
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 4,
                "insert_layer_id": 1,
            },
            "text_config": _delta(text, "qwen3_5_text"),
            "image_token_id": text.id("<|image_pad|>"),
            "video_token_id": text.id("<|video_pad|>"),
            "insert_layer_id": 1,
            "image_size": 64,
        },
        chat=SILENT,
        image="<|image_pad|>",
        mark="<|image_pad|>\n",
        words={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "image_start_token": "<image>",
            "image_end_token": "</image>",
            "slice_start_token": "<slice>",
            "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>",
            "image_id_end_token": "</image_id>",
        },
        sizes={"scale_resolution": 48, "patch_size": 4, "max_slice_nums": 4},
        layers=4,
    ),
)
