"""LLaVA and SmolVLM around SmolLM2 and the tower of the photographs; how they are saved.

The tower of `../photographs` is BLIP-2's, and here it is written as SigLIP's: the same blocks
without the class token, that no patch needs (the kind of a corner is told as well without it).
LLaVA takes the 36 patches behind the last block, SmolVLM 9 squares of four, normalised.

Shapes: B batch, N patches (36), C channels (128).
"""

import json
import os
from pathlib import Path
from typing import Literal

import torch
from smollm2 import IMAGE
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    Blip2ForConditionalGeneration,
    Blip2VisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

Family = Literal["llava", "smolvlm"]
Model = LlavaForConditionalGeneration | SmolVLMForConditionalGeneration
SIDE = 96
PATCH = 16
NUM_PATCHES = (SIDE // PATCH) ** 2
SQUARE = 2  # patches a side of what SmolVLM takes as one token


def read_tower(photographs: Path) -> Blip2VisionModel:
    """The tower of a model of `../photographs`."""
    model = Blip2ForConditionalGeneration.from_pretrained(photographs, dtype=torch.float32)
    return model.vision_model.eval()


def siglip_state(tower: Blip2VisionModel) -> dict[str, Tensor]:
    """The tower's weights by SigLIP's names, without the class token."""
    state = {}
    for name, values in tower.state_dict().items():
        if name.startswith("encoder.layers.") and ".self_attn.qkv." in name:
            for part, some in zip("qkv", values.chunk(3), strict=True):
                state[name.replace(".qkv.", f".{part}_proj.")] = some
        elif name == "embeddings.position_embedding":
            state["embeddings.position_embedding.weight"] = values[0, 1:]
        elif name != "embeddings.class_embedding":
            state[name.replace(".self_attn.projection.", ".self_attn.out_proj.")] = values
    return {name: values.clone() for name, values in state.items()}


def build(
    family: Family,
    tower: Blip2VisionModel,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> Model:
    """A model of a family; all of it is trained but its connector, which is random."""
    vision = {
        "hidden_size": tower.config.hidden_size,
        "intermediate_size": tower.config.intermediate_size,
        "num_hidden_layers": tower.config.num_hidden_layers,
        "num_attention_heads": tower.config.num_attention_heads,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_act": tower.config.hidden_act,
        "layer_norm_eps": tower.config.layer_norm_eps,
    }
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    text = {**language.config.to_dict(), "pad_token_id": tokenizer.pad_token_id}
    model: Model
    if family == "llava":
        config = LlavaConfig(
            vision_config=SiglipVisionConfig(**vision, vision_use_head=False).to_dict(),
            text_config=text,
            image_token_index=image_id,
            image_seq_length=NUM_PATCHES,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=True,
        )
        model = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(siglip_state(tower))
        model.model.language_model.load_state_dict(language.model.state_dict())
    else:
        config = SmolVLMConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=image_id,
            scale_factor=SQUARE,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
        model = SmolVLMForConditionalGeneration(config)
        model.model.vision_model.load_state_dict(siglip_state(tower))
        model.model.text_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model


def load(folder: Path) -> Model:
    """A model that `save` wrote, in float32."""
    model: Model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def parts(model: Model) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Its vision tower, its connector and its language model, whichever family."""
    inner = model.model
    if isinstance(model, LlavaForConditionalGeneration):
        return inner.vision_tower, inner.multi_modal_projector, inner.language_model
    return inner.vision_model, inner.connector, inner.text_model


@torch.no_grad()
def see(model: Model, pixels_B3HW: Tensor) -> Tensor:
    """What the connector reads of pictures: (B, N, C)."""
    tower = parts(model)[0]
    if isinstance(model, LlavaForConditionalGeneration):
        hidden: Tensor = tower.embeddings(pixels_B3HW)
        for block in tower.encoder.layers:
            hidden = block(hidden, attention_mask=None)
        return hidden
    seen: Tensor = tower(pixel_values=pixels_B3HW).last_hidden_state
    return seen


@torch.no_grad()
def begin_connector(model: Model, seen_BNC: Tensor) -> None:
    """Scale a random connector so that its features look like words of the language model.

    The first linear reads channels of mean 0 and deviation 1, and what the last one gives has the
    mean and the deviation of the word embeddings: from there a frozen language model can be led.
    """
    _, connector, language = parts(model)
    linears = [part for part in connector.modules() if isinstance(part, nn.Linear)]
    first, last = linears[0], linears[-1]
    mean_C, deviation_C = seen_BNC.mean((0, 1)), seen_BNC.std((0, 1))
    times = first.in_features // len(mean_C)  # SmolVLM's reads a square at once
    mean, deviation = mean_C.repeat(times), deviation_C.repeat(times)
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight /= deviation
    if first.bias is not None:
        first.bias.copy_(-first.weight @ mean)
    words_VD = language.get_input_embeddings().weight.float()
    last.weight *= words_VD.std() / connector(seen_BNC).std()
    if last is not first and last.bias is not None:
        last.bias += words_VD.mean(0) - connector(seen_BNC).mean((0, 1))


def save(model: Model, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary checkpoint in bfloat16, with its processors; replace whole files."""
    beside = folder.with_name(folder.name + ".new")
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.tie_weights()
    half.to(torch.bfloat16).save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    if isinstance(model, LlavaForConditionalGeneration):
        processor = {
            "processor_class": "LlavaProcessor",
            "patch_size": PATCH,
            "num_additional_image_tokens": 0,
            "vision_feature_select_strategy": "full",
            "image_token": IMAGE,
        }
        image = {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
        }
    else:
        processor = {
            "processor_class": "SmolVLMProcessor",
            "image_seq_len": NUM_PATCHES // SQUARE**2,
        }
        image = {
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": SIDE},
            "max_image_size": {"longest_edge": SIDE},
            "do_image_splitting": False,
            "do_pad": True,
        }
    for name, settings in (("processor", processor), ("preprocessor", {**image, **pixels})):
        (beside / f"{name}_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for file in beside.iterdir():
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    beside.rmdir()
