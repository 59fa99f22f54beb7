"""Rows of families that scale a picture to the one size of their tower."""

from typing import Any

from tests.zoo.row import CROP, IMAGE, PLACES, SQUARE, Row, llava
from tests.zoo.texts import Text, clip, siglip, tower
from tests.zoo.words import CHATML, DEEPSEEK, GEMMA, HUMAN, JANUS, PLAIN_GEMMA, VICUNA, VOCABULARY


def _gemma3n(text: Text) -> dict[str, Any]:
    """Pictures and sounds have vocabularies of their own, behind the text's."""
    seen, heard = text.id("<end_of_image>"), text.id("<end_of_audio>")
    return {
        "vision_config": {
            "model_type": "gemma3n_vision",
            "architecture": "mobilenetv5_base",
            "hidden_size": 2048,
            "vocab_size": heard - seen,
            "vocab_offset": seen,
            "num_classes": 0,
        },
        "audio_config": {
            "model_type": "gemma3n_audio",
            "vocab_size": VOCABULARY - heard,
            "vocab_offset": heard,
            "hidden_size": 32,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "input_feat_size": 16,
            "sscp_conv_channel_size": [4, 4],
        },
        "text_config": text.gemma(
            "gemma3n_text",
            vocab_size_per_layer_input=seen,
            hidden_size_per_layer_input=16,
            intermediate_size=[2 * text.width] * text.layers,
            laurel_rank=4,
            num_kv_shared_layers=2,
            activation_sparsity_pattern=[0.0] * text.layers,
        ),
        "image_token_id": text.id("<image_soft_token>"),
        "audio_token_id": text.id("<audio_soft_token>"),
        "boi_token_id": text.id("<start_of_image>"),
        "eoi_token_id": seen,
        "boa_token_id": text.id("<start_of_audio>"),
        "eoa_token_id": heard,
        "vision_soft_tokens_per_image": 256,
    }


def _janus(text: Text) -> dict[str, Any]:
    vision = {"projection_dim": text.width, "mlp_ratio": 2, "num_image_tokens": 36}
    codes = {
        "embed_dim": 8,
        "num_embeddings": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "num_patches": 6,
        "latent_channels": 8,
        "projection_dim": text.width,
        "image_token_embed_dim": text.width,
    }
    return {
        "vision_config": tower(**vision),
        "vq_config": codes,
        "text_config": text.config("llama"),
        "image_token_id": text.id("<image_placeholder>"),
    }


ROWS = (
    Row(
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaProcessor",
        "CLIPImageProcessor",
        lambda text: llava(text, "llama", clip()),
        chat=VICUNA,
        sizes=CROP,
        settings=PLACES,
        **IMAGE,
    ),
    Row(
        "vipllava",
        "VipLlavaForConditionalGeneration",
        "LlavaProcessor",
        "CLIPImageProcessor",
        lambda text: llava(text, "llama", clip(), vision_feature_layers=[-2, -1, 1]),
        chat=HUMAN,
        sizes=CROP,
        settings=PLACES,
        home="llava",
        **IMAGE,
    ),
    Row(
        "fast_vlm",
        "FastVlmForConditionalGeneration",
        "LlavaProcessor",
        "CLIPImageProcessor",
        lambda text: llava(
            text,
            "qwen2",
            {
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci2",
                "do_pooling": True,
                "global_pool": "avg",
                "hidden_size": 64,
                "num_classes": 0,
                "initializer_range": 0.02,
                "model_args": {"layers": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32]},
            },
            image_seq_length=4,
        ),
        chat=CHATML,
        sizes={
            "size": {"shortest_edge": 64},
            "crop_size": {"height": 64, "width": 64},
        },
        settings={"patch_size": 32, "vision_feature_select_strategy": "full"},
        home="llava",
        needs=("torchvision", "timm"),
        **IMAGE,
    ),
    Row(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaProcessor",
        "SiglipImageProcessor",
        lambda text: {
            "vision_config": siglip(projection_dim=text.width),
            "text_config": text.gemma("gemma2"),
            "projection_dim": text.width,
            "image_token_index": text.id("<image>"),
            "tie_word_embeddings": False,  # else noise echoes the prompt's last word, a newline
        },
        chat=PLAIN_GEMMA,
        image="<image>",
        mark=None,
        words={"image_token": "<image>"},
        sizes={"size": SQUARE, "image_seq_length": 36},
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
        "gemma3n",
        "Gemma3nForConditionalGeneration",
        "Gemma3nProcessor",
        "SiglipImageProcessor",
        _gemma3n,
        chat=GEMMA,
        image="<image_soft_token>",
        mark="<image_soft_token>",
        words={
            "boi_token": "<start_of_image>",
            "boa_token": "<start_of_audio>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
            "eoa_token": "<end_of_audio>",
            "audio_token": "<audio_soft_token>",
        },
        sizes={"size": {"height": 64, "width": 64}, "do_normalize": False},
        settings={"image_seq_length": 256},
        layers=4,
        needs=("torchvision", "timm"),
    ),
    Row(
        "deepseek_vl",
        "DeepseekVLForConditionalGeneration",
        "DeepseekVLProcessor",
        "DeepseekVLImageProcessor",
        lambda text: {
            "vision_config": siglip(),
            "text_config": text.config("llama"),
            "image_token_id": text.id("<image_placeholder>"),
        },
        chat=DEEPSEEK,
        image="<image_placeholder>",
        mark="<image_placeholder>",
        words={"image_token": "<image_placeholder>"},
        sizes={"size": SQUARE, "min_size": 8},
        settings={"num_image_tokens": 36},
        tower="model.vision_model.",
    ),
    Row(
        "janus",
        "JanusForConditionalGeneration",
        "JanusProcessor",
        "JanusImageProcessor",
        _janus,
        chat=JANUS,
        image="<image_placeholder>",
        mark="<image_placeholder>\n",
        words={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        sizes={"size": SQUARE, "min_size": 8},
        settings={"num_image_tokens": 36},
        tower="model.vision_model.",
    ),
    Row(
        "got_ocr2",
        "GotOcr2ForConditionalGeneration",
        "GotOcr2Processor",
        "GotOcr2ImageProcessor",
        lambda text: {
            "vision_config": {
                "hidden_size": 32,
                "output_channels": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 4,
                "mlp_dim": 64,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "text_config": text.config("qwen2"),
            "image_token_index": text.id("<imgpad>"),
            "image_seq_length": 16,
        },
        chat=CHATML,
        image="<imgpad>",
        mark=None,
        special=("<img>", "</img>", "<imgpad>"),
        sizes={"size": {"height": 64, "width": 64}},
        call={"num_image_tokens": 16},
    ),
)
