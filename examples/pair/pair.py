"""The two models: their configurations, how stored tokens run through them, how they are saved.

Both are `Blip2ForConditionalGeneration` with a LLaMA language model. The teacher has twice the
student's Q-Former layers and a wider language model; the vision tower is the same.

Shapes: B batch, N visual tokens (37), L query tokens (16), T text tokens, C channels, V vocabulary.
"""

import json
import os
from pathlib import Path

import torch
from language import IGNORE, NUM_QUERY_TOKENS, VOCABULARY, Packed
from torch import Tensor, nn
from train_tower import TOWER
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

ROLES = {
    "student": {"qformer_layers": 2, "hidden": 128, "mlp": 256, "layers": 3},
    "teacher": {"qformer_layers": 4, "hidden": 192, "mlp": 320, "layers": 3},
}


def build(role: str, tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """A model of a role with random weights."""
    size = ROLES[role]
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=size["qformer_layers"],
        num_attention_heads=4,
        intermediate_size=256,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size["hidden"],
        intermediate_size=size["mlp"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["hidden"] // 32,
        max_position_embeddings=512,
        attention_bias=True,
        mlp_bias=True,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = Blip2Config(
        vision_config=TOWER.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=NUM_QUERY_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    model = Blip2ForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens)
    return model


def query_outputs(
    qformer: Blip2QFormerModel, queries_1LC: Tensor, tokens_BNC: Tensor, kept_BN: Tensor | None
) -> Tensor:
    """Visual tokens, all or those in `kept_BN`, through the Q-Former: (B, L, C)."""
    kept = torch.ones(tokens_BNC.shape[:2]) if kept_BN is None else kept_BN
    return qformer(
        query_embeds=queries_1LC.expand(len(tokens_BNC), -1, -1),
        encoder_hidden_states=tokens_BNC,
        encoder_attention_mask=kept.long(),
    ).last_hidden_state


def query_features(
    model: Blip2ForConditionalGeneration, tokens_BNC: Tensor, kept_BN: Tensor | None = None
) -> Tensor:
    """What the language model gets in place of a picture: (B, L, C)."""
    outputs = query_outputs(model.qformer, model.query_tokens, tokens_BNC, kept_BN)
    return model.language_projection(outputs)


def packed_hidden(
    model: Blip2ForConditionalGeneration, packed: Packed, features_BLC: Tensor | None
) -> Tensor:
    """The language model's last hidden states, (B, T, C), with pictures as the prefix if given."""
    embedded = model.language_model.get_input_embeddings()(packed.input_ids)
    if features_BLC is not None:
        embedded = torch.cat([features_BLC, embedded[:, features_BLC.shape[1] :]], dim=1)
    output = model.language_model.model(
        inputs_embeds=embedded,
        attention_mask=packed.mask,
        position_ids=packed.position_ids,
        use_cache=False,
    )
    return output.last_hidden_state


def token_losses(
    model: Blip2ForConditionalGeneration, packed: Packed, features_BLC: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood of every labelled token (M,), and its row and segment (M,) each.

    A label is predicted by the token before it; the first token of a segment is never a label.
    """
    hidden = packed_hidden(model, packed, features_BLC)
    labelled = packed.labels != IGNORE
    rows, columns = labelled.nonzero(as_tuple=True)
    logits = model.language_model.lm_head(hidden[rows, columns - 1])
    losses = nn.functional.cross_entropy(logits.float(), packed.labels[labelled], reduction="none")
    return losses, rows, packed.segment[labelled]


def set_tower(model: Blip2ForConditionalGeneration, tower: Blip2VisionModel) -> None:
    """Put the shared tower into a model."""
    model.vision_model.load_state_dict(tower.state_dict())


def save(
    model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write an ordinary checkpoint in float16, with its processors; replace whole files."""
    beside = folder.with_name(folder.name + ".new")
    half = Blip2ForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    processor = {
        "image_processor_type": "BlipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": TOWER.image_size, "width": TOWER.image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (beside / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (beside / "processor_config.json").write_text(
        json.dumps(
            {"processor_class": "Blip2Processor", "num_query_tokens": NUM_QUERY_TOKENS}, indent=2
        )
        + "\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file in beside.iterdir():
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    beside.rmdir()
