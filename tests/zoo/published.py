"""The sizes of published checkpoints, as far as they decide what a frame costs.

`outline(row, folder)` writes a checkpoint of a family without weights: the settings of its vision
tower, its connector and its processor are those of the hub, its language model is a tiny one.
`cdcca doctor` counts tokens and bytes from that. Sizes are from the checkpoints' config.json and
preprocessor_config.json as remembered; a row with `is_default` has what the classes of transformers
start with where the checkpoint's own sizes are not known.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import zoo


@dataclass(frozen=True)
class Published:
    """One line of README's table.

    family: in cdcca's table. examples: hub ids, all of these sizes. made_from: the row of the zoo;
    the family's name if empty. config, pictures, processor: what is other than in the tiny
    checkpoint, of config.json, preprocessor_config.json and processor_config.json.
    is_default: whether a size that counts is the classes' own, not known to be the checkpoint's.
    is_hybrid: whether its language model has layers that are no attention.
    """

    family: str
    examples: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    made_from: str = ""
    is_default: bool = False
    is_hybrid: bool = False

    @property
    def zoo(self) -> str:
        return self.made_from or self.family


_LONG = {"text_config": {"max_position_embeddings": 1 << 15}}
"""The tiny language models read 2048 tokens; some frames are more."""


def outline(row: Published, folder: Path) -> Path:
    """Write the checkpoint into `folder`, which is made."""
    zoo.checkpoint(row.zoo, folder)
    (folder / "model.safetensors").unlink()
    for file, changes in (
        ("config.json", _changed(_LONG, row.config)),
        ("preprocessor_config.json", row.pictures),
        ("processor_config.json", row.processor),
    ):
        if changes:
            path = folder / file
            changed = _changed(json.loads(path.read_text()), changes)
            path.write_text(json.dumps(changed, indent=2))
    return folder


def _changed(table: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with other values; tables inside it are changed alike, sizes are replaced."""
    found = dict(table)
    for name, value in changes.items():
        is_table = name.endswith("_config")
        found[name] = _changed(found.get(name) or {}, value) if is_table else value
    return found


def _tower(width: int, blocks: int, side: int, patch: int, **other: Any) -> dict[str, Any]:
    """Of a tower with `blocks` blocks that sees squares of `side` pixels in patches of `patch`."""
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": 16}
    inner = {"intermediate_size": 4 * width}
    return {**sizes, **inner, "image_size": side, "patch_size": patch, **other}


def _square(side: int) -> dict[str, Any]:
    return {"height": side, "width": side}


def _cropped(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": _square(side)}


def _visual(width: int, blocks: int, **other: Any) -> dict[str, Any]:
    """Of a tower of native resolution, in the words of Qwen-VL."""
    return {"hidden_size": width, "depth": blocks, "num_heads": 16, **other}


def _area(patch: int, least: int, most: int) -> dict[str, Any]:
    """Of a processor that keeps a picture's size if it has so many pixels."""
    return {"patch_size": patch, "size": {"shortest_edge": least, "longest_edge": most}}


def _gemma4(width: int, blocks: int, heads: int, inner: int) -> dict[str, Any]:
    """Of a tower that pools 3 x 3 patches to at most 280 tokens."""
    vision = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "patch_size": 16,
        "position_embedding_size": 10240,
    }
    return {
        "config": {"vision_config": vision},
        "pictures": {"patch_size": 16, "max_soft_tokens": 280},
        "processor": {"image_seq_length": 280},
    }


def _qwen3(width: int, blocks: int, **other: Any) -> dict[str, Any]:
    vision = _visual(width, blocks, num_position_embeddings=2304, **other)
    return {
        "config": {"vision_config": vision, "text_config": {"num_hidden_layers": 4}},
        "pictures": _area(16, 65536, 16777216),
    }


def _canvases(side: int, rows: int, columns: int, most: int) -> list[list[int]]:
    counts = ((row, column) for row in range(1, rows + 1) for column in range(1, columns + 1))
    return [[side * row, side * column] for row, column in counts if row * column <= most]


_EVA = _tower(1408, 39, 224, 14, intermediate_size=6144)
_QFORMER: dict[str, Any] = {
    "config": {
        "vision_config": _EVA,
        "qformer_config": {"encoder_hidden_size": 1408},
        "num_query_tokens": 32,
    },
    "pictures": {"size": _square(224)},
}
_CLIP_336 = _tower(1024, 24, 336, 14)
_SO400M = _tower(1152, 27, 384, 14, intermediate_size=4304)
_CLIP_PICTURES: dict[str, Any] = {"pictures": _cropped(336), "processor": {"patch_size": 14}}
_NEXT_CANVASES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION_CANVASES = _canvases(384, 6, 6, 36)
_GRANITE_CANVASES = _canvases(384, 10, 10, 10)

ROWS = (
    Published("blip_2", ("Salesforce/blip2-opt-2.7b", "Salesforce/blip2-flan-t5-xl"), **_QFORMER),
    Published(
        "instructblip",
        ("Salesforce/instructblip-vicuna-7b", "Salesforce/instructblip-vicuna-13b"),
        **_QFORMER,
    ),
    Published(
        "llava",
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"),
        config={"vision_config": _CLIP_336, "image_seq_length": 576},
        **_CLIP_PICTURES,
    ),
    Published(
        "llava",
        ("mistral-community/pixtral-12b",),
        config={"vision_config": _tower(1024, 24, 1024, 16, head_dim=64)},
        pictures={"patch_size": 16, "size": {"longest_edge": 1024}},
        processor={"patch_size": 16},
        made_from="pixtral",
    ),
    Published(
        "vipllava",
        ("llava-hf/vip-llava-7b-hf",),
        config={
            "vision_config": _CLIP_336,
            "vision_feature_layers": [-2, -5, -8, -11, 6],
            "image_seq_length": 576,
        },
        **_CLIP_PICTURES,
    ),
    Published(
        "llava_next",
        ("llava-hf/llava-v1.6-mistral-7b-hf",),
        config={
            "vision_config": _CLIP_336,
            "image_grid_pinpoints": _NEXT_CANVASES,
            "image_seq_length": 576,
        },
        pictures={**_cropped(336), "image_grid_pinpoints": _NEXT_CANVASES},
        processor={"patch_size": 14},
    ),
    Published(
        "llava_onevision",
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
        config={
            "vision_config": {**_SO400M, "num_hidden_layers": 26},
            "image_grid_pinpoints": _ONEVISION_CANVASES,
        },
        pictures={"size": _square(384), "image_grid_pinpoints": _ONEVISION_CANVASES},
        processor={"num_image_tokens": 729},
    ),
    Published(
        "smolvlm",
        (
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        ),
        config={
            "vision_config": _tower(768, 12, 512, 16, num_attention_heads=12),
            "scale_factor": 4,
        },
        pictures={"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        processor={"image_seq_len": 64},
    ),
    Published(
        "smolvlm",
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct",),
        config={"vision_config": _SO400M, "scale_factor": 3},
        pictures={"size": {"longest_edge": 1920}, "max_image_size": {"longest_edge": 384}},
        processor={"image_seq_len": 81},
    ),
    Published(
        "idefics3",
        ("HuggingFaceM4/Idefics3-8B-Llama3",),
        config={"vision_config": {**_SO400M, "image_size": 364}, "scale_factor": 2},
        pictures={"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
        processor={"image_seq_len": 169},
    ),
    Published(
        "idefics2",
        ("HuggingFaceM4/idefics2-8b",),
        config={
            "vision_config": {**_SO400M, "image_size": 980},
            "perceiver_config": {"resampler_n_latents": 64},
        },
        pictures={"size": {"shortest_edge": 378, "longest_edge": 980}},
        processor={"image_seq_len": 64},
    ),
    Published(
        "internvl",
        ("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-2B-hf"),
        config={
            "vision_config": _tower(1024, 24, 448, 14, image_size=[448, 448], patch_size=[14, 14]),
            "image_seq_length": 256,
        },
        pictures={"size": _square(448), "max_patches": 12},
        processor={"image_seq_length": 256},
    ),
    Published(
        "aya_vision",
        ("CohereLabs/aya-vision-8b",),
        config={"vision_config": {**_SO400M, "image_size": 364}},
        pictures={"size": _square(364), "max_patches": 12},
        processor={"patch_size": 14, "img_size": 364},
    ),
    Published("cohere2_vision", ("CohereLabs/command-a-vision-07-2025",)),
    Published(
        "ovis2",
        ("thisisiron/Ovis2-1B-hf", "thisisiron/Ovis2-2B-hf"),
        config={
            "vision_config": _tower(1024, 24, 448, 14, num_attention_heads=8),
        },
        pictures={"size": _square(448), "max_patches": 12},
        processor={"image_seq_length": 256},
        is_default=True,
    ),
    Published(
        "mistral3",
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
        config={"vision_config": _tower(1024, 24, 1540, 14, head_dim=64)},
        pictures={"patch_size": 14, "size": {"longest_edge": 1540}},
        processor={"patch_size": 14},
    ),
    Published(
        "gemma3",
        ("google/gemma-3-4b-it", "google/gemma-3-12b-it"),
        config={"vision_config": {**_SO400M, "image_size": 896}, "mm_tokens_per_image": 256},
        pictures={"size": _square(896)},
        processor={"image_seq_length": 256},
    ),
    Published("gemma3n", ("google/gemma-3n-E2B-it", "google/gemma-3n-E4B-it")),
    Published(
        "gemma4",
        ("google/gemma-4-E2B-it",),
        made_from="gemma4_e2b",
        **_gemma4(768, 16, 12, 3072),
    ),
    Published(
        "gemma4",
        ("google/gemma-4-31B-it",),
        made_from="gemma4_31b",
        **_gemma4(1152, 27, 16, 4304),
    ),
    Published("gemma4_unified", ("google/gemma-4-12B-it",)),
    Published(
        "paligemma",
        ("google/paligemma2-3b-mix-224", "google/paligemma-3b-mix-224"),
        config={"vision_config": {**_SO400M, "image_size": 224}},
        pictures={"size": _square(224), "image_seq_length": 256},
    ),
    Published(
        "qwen2_vl",
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
        config={"vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16}},
        pictures=_area(14, 3136, 12845056),
    ),
    Published(
        "qwen2_5_vl",
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        config={
            "vision_config": _visual(
                1280, 32, fullatt_block_indexes=[7, 15, 23, 31], window_size=112
            )
        },
        pictures=_area(14, 3136, 12845056),
    ),
    Published(
        "qwen3_vl",
        ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"),
        **_qwen3(1024, 24, deepstack_visual_indexes=[5, 11, 17]),
    ),
    Published(
        "qwen3_vl",
        ("Qwen/Qwen3-VL-8B-Instruct",),
        **_qwen3(1152, 27, deepstack_visual_indexes=[8, 16, 24]),
    ),
    Published(
        "qwen3_5",
        ("Qwen/Qwen3.5-2B", "Qwen/Qwen3.5-4B"),
        **_qwen3(1024, 24),
        is_default=True,
        is_hybrid=True,
    ),
    Published(
        "glm4v",
        ("zai-org/GLM-4.1V-9B-Thinking",),
        config={"vision_config": _visual(1536, 24, num_heads=12, image_size=336)},
        pictures={**_area(14, 12544, 28 * 28 * 15000), "merge_size": 2},
    ),
    Published(
        "video_llama_3",
        ("lkhl/VideoLLaMA3-2B-Image-HF",),
        config={"vision_config": _tower(1152, 27, 384, 14, intermediate_size=4304)},
        pictures={**_area(14, 56 * 56, 28 * 28 * 1280), "merge_size": 1},
        is_default=True,
    ),
    Published("lfm2_vl", ("LiquidAI/LFM2-VL-450M", "LiquidAI/LFM2-VL-1.6B"), is_hybrid=True),
    Published(
        "minicpmv4_6",
        ("openbmb/MiniCPM-V-4.6",),
        config={
            "vision_config": _tower(768, 12, 980, 14, num_attention_heads=12, insert_layer_id=6),
            "insert_layer_id": 6,
            "image_size": 448,
        },
        pictures={"scale_resolution": 448, "patch_size": 14, "max_slice_nums": 9},
        is_default=True,
        is_hybrid=True,
    ),
    Published(
        "granite4_vision",
        ("ibm-granite/granite-4.0-3b-vision",),
        config={
            "vision_config": {**_SO400M, "patch_size": 16},
            "text_config": {"num_hidden_layers": 8},
            "image_grid_pinpoints": _GRANITE_CANVASES,
            "downsample_rate": "4/8",
            "deepstack_layer_map": [[-19, 0], [-13, 1], [-7, 2], [-1, 3]],
            "spatial_target_layers": [4, 5, 6, 7],
        },
        pictures={**_cropped(384), "image_grid_pinpoints": _GRANITE_CANVASES},
        processor={"patch_size": 16, "downsample_rate": "4/8"},
        is_default=True,
    ),
    Published(
        "deepseek_vl",
        ("deepseek-community/deepseek-vl-1.3b-chat",),
        config={"vision_config": _tower(1024, 24, 384, 16)},
        pictures={"size": _square(384), "min_size": 14},
        processor={"num_image_tokens": 576},
    ),
    Published(
        "janus",
        ("deepseek-community/Janus-Pro-1B",),
        config={"vision_config": _tower(1024, 24, 384, 16, num_image_tokens=576)},
        pictures={"size": _square(384), "min_size": 14},
        processor={"num_image_tokens": 576},
    ),
    Published("perception_lm", ("facebook/Perception-LM-1B",)),
    Published("fast_vlm", ("KamilaMila/FastVLM-0.5B",)),
    Published(
        "got_ocr2",
        ("stepfun-ai/GOT-OCR-2.0-hf",),
        config={
            "vision_config": {
                "hidden_size": 768,
                "output_channels": 256,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 1024,
                "patch_size": 16,
                "mlp_dim": 3072,
                "window_size": 14,
                "global_attn_indexes": [2, 5, 8, 11],
            },
            "text_config": {"hidden_size": 1024},  # the last convolution is as wide
            "image_seq_length": 256,
        },
        pictures={"size": _square(1024)},
    ),
)
