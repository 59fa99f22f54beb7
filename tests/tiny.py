"""Tiny random checkpoints, made on the spot and saved as a real checkpoint is saved.

Each function writes one folder that `from_pretrained` loads: config.json, model.safetensors,
tokenizer files, preprocessor_config.json (and qformer_tokenizer/ for InstructBLIP). Weights are
random but large enough that another image or another word changes the logits visibly; the sizes of
the language model's linears are multiples of 64, which NF4 on a CPU asks for.

Does not make a model that knows anything: answers are noise.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

IMAGE_SIZE = 48
PATCH_SIZE = 16
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
SENTENCES = (
    "Question: what colour is the square? Answer: red",
    "Question: how many circles are there? Answer: two",
    "a photo of a green triangle left of a blue circle",
    "What is it? Short answer: yes no one three yellow white black",
    "A short image description. USER: ASSISTANT:",
    "Answer the question using a single word or phrase.",
    "Describe the image in one short sentence.",
)


def tokenizer(folder: Path, *, ends: bool = False, image: bool = False) -> Any:
    """Save a byte-level BPE tokenizer into `folder`.

    Args:
        ends: put </s> behind the text, as T5 does, where the others put <s> before it.
        image: know <image>, as LLaVA's tokenizer does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", *(["<image>"] if image else [])]
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(SENTENCES, trainer)
    model.post_processor = processors.TemplateProcessing(
        single="$A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"] if image else [],
    )
    fast.save_pretrained(folder)
    return fast


def image_processor(folder: Path, *, clip: bool = False) -> Any:
    """Save an image processor for IMAGE_SIZE pixels into `folder`."""
    if clip:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        made: Any = CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        )
    else:
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        made = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    made.save_pretrained(folder)
    return made


def text_config(
    kind: str, vocabulary: int, *, layers: int = 2, width: int = 64, positions: int = 256
) -> Any:
    """The config of a tiny language model: llama, opt or t5."""
    from transformers import LlamaConfig, OPTConfig, T5Config

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2 if width >= 128 else 4,
            max_position_embeddings=positions,
            attention_bias=True,
            mlp_bias=True,
            **special,
        )
    if kind == "opt":
        return OPTConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=positions,
            dropout=0.1,
            **special,
        )
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        **{name: value for name, value in special.items() if name != "bos_token_id"},
    )


def _loud(model: Any, seed: int, scale: float = 0.12) -> None:
    """Fill every parameter with noise; norms stay around one, so that nothing dies out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + noise if is_norm else noise)


def q_checkpoint(
    folder: Path,
    *,
    instruct: bool = False,
    text: str = "llama",
    qformer_layers: int = 2,
    text_layers: int = 2,
    width: int = 64,
    seed: int = 0,
    tower: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    positions: int = 256,
    qformer_positions: int = 128,
) -> Path:
    """A tiny BLIP-2 or InstructBLIP checkpoint.

    Args:
        tower: parameters for the vision tower, by their names relative to it, to share one.
        dtype: what the weights are stored in.
    """
    import transformers as tf

    ends = text == "t5"
    words = tokenizer(folder, ends=ends, image=True)
    image_processor(folder)
    if instruct:
        tokenizer(folder / "qformer_tokenizer", ends=True)
    family = "InstructBlip" if instruct else "Blip2"
    vision = getattr(tf, f"{family}VisionConfig")(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    former = getattr(tf, f"{family}QFormerConfig")(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=qformer_layers,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=qformer_positions,
        encoder_hidden_size=32,
        cross_attention_frequency=2 if instruct else 1,
    )
    config = getattr(tf, f"{family}Config")(
        vision_config=vision,
        qformer_config=former,
        text_config=text_config(
            text, len(words), layers=text_layers, width=width, positions=positions
        ),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    model = getattr(tf, f"{family}ForConditionalGeneration")(config)
    # T5 does not scale its attention scores: the same noise would saturate them.
    _loud(model, seed, 0.07 if text == "t5" else 0.12)
    if tower is not None:
        model.vision_model.load_state_dict(tower)
    model.to(dtype).save_pretrained(folder)
    return folder


def llava_checkpoint(
    folder: Path,
    *,
    width: int = 64,
    text_layers: int = 2,
    seed: int = 0,
    tower: str = "clip",
    layer: int | list[int] = -2,
    strategy: str = "default",
) -> Path:
    """A tiny LLaVA checkpoint with a CLIP or SigLIP tower and a LLaMA language model."""
    import transformers as tf

    vision = tf.CLIPVisionConfig if tower == "clip" else tf.SiglipVisionConfig

    words = tokenizer(folder, image=True)
    image_processor(folder, clip=True)
    config = tf.LlavaConfig(
        vision_config=vision(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text_config=text_config("llama", len(words), layers=text_layers, width=width),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    model = tf.LlavaForConditionalGeneration(config)
    _loud(model, seed)
    model.save_pretrained(folder)
    return folder


def text_checkpoint(folder: Path) -> Path:
    """A language model alone, which cdcca has to refuse."""
    import transformers as tf

    words = tokenizer(folder)
    tf.LlamaForCausalLM(text_config("llama", len(words), layers=1)).save_pretrained(folder)
    return folder


def tower_of(folder: Path) -> dict[str, torch.Tensor]:
    """The vision tower's parameters of a Q checkpoint, by their names relative to the tower."""
    from safetensors.torch import load_file

    prefix = "vision_model."
    tensors = load_file(folder / "model.safetensors")
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def images(count: int, *, seed: int = 0, size: int = 60) -> list[Image.Image]:
    """Random pictures of coarse coloured squares."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        coarse = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(coarse.numpy(), "RGB")
        made.append(picture.resize((size + 8, size), Image.Resampling.NEAREST))
    return made
