"""Configs of tiny language models and vision towers, as dictionaries for a family's config.

Does not know a family's connector or its names for the parts.
"""

from dataclasses import dataclass
from typing import Any

from tests.zoo.words import VOCABULARY

POSITIONS = 2048
HEAD = 16
"""Channels of an attention head in every language model."""


@dataclass(frozen=True)
class Text:
    """The language model of one checkpoint, and its tokenizer."""

    words: Any
    width: int
    layers: int

    def id(self, token: str) -> int:
        found = self.words.convert_tokens_to_ids(token)
        assert found is not None and found != self.words.unk_token_id, token
        return int(found)

    def config(self, kind: str, **other: Any) -> dict[str, Any]:
        """A decoder of the usual sizes: linears of 64 n to 32 m channels, as NF4 asks for."""
        made = {
            "model_type": kind,
            "vocab_size": VOCABULARY,
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // HEAD,
            "num_key_value_heads": self.width // (2 * HEAD),
            "head_dim": HEAD,
            "max_position_embeddings": POSITIONS,
            "tie_word_embeddings": False,
            "pad_token_id": self.words.pad_token_id,
            "bos_token_id": self.words.bos_token_id,
            "eos_token_id": self.words.eos_token_id,
        }
        return made | other

    def rotating(self, kind: str, sections: tuple[int, int, int] = (2, 3, 3), **other: Any) -> Any:
        """A decoder with positions of three axes, as Qwen-VL's."""
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
        return self.config(kind, rope_parameters=rope | other.pop("rope", {}), **other)

    def gemma(self, kind: str, **other: Any) -> dict[str, Any]:
        """Layers that slide and layers that see everything, by turns."""
        layers = [("sliding_attention", "full_attention")[i % 2] for i in range(self.layers)]
        same = {"query_pre_attn_scalar": HEAD, "sliding_window": 512, "layer_types": layers}
        return self.config(kind, **same | other)


def tower(kind: str | None = None, **other: Any) -> dict[str, Any]:
    """A vision tower of three blocks for 48 pixels in patches of 8; `kind` None: the family's."""
    made: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 8,
    }
    if kind is not None:
        made["model_type"] = kind
    return made | other


def clip(**other: Any) -> dict[str, Any]:
    return tower("clip_vision_model", **other)


def siglip(**other: Any) -> dict[str, Any]:
    return tower("siglip_vision_model", vision_use_head=False, **other)


def visual(**other: Any) -> dict[str, Any]:
    """A tower of native resolution, in the words of Qwen-VL."""
    return {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4} | other
