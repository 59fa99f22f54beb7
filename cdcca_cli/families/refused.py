"""Models that cdcca cannot load: why, and what to use instead."""

from dataclasses import dataclass

_CROSS_ATTENTION = "its language model reads pictures by cross-attention, not in the prompt"
_OWN_WAY = "its class takes features of a picture in another way than all others, if at all"
OWN_CODE = "transformers has no class for it, and code in a checkpoint is never run"


@dataclass(frozen=True)
class Refused:
    """name: for people. reason: why it cannot be loaded. instead: families, by model type."""

    name: str
    reason: str
    instead: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} cannot be loaded: {self.reason}: use {' or '.join(self.instead)}"


_SMALL = ("smolvlm", "qwen3_vl")
REFUSED = {
    "mllama": Refused("Llama 3.2 Vision", _CROSS_ATTENTION, ("gemma3", "qwen3_vl")),
    "idefics": Refused("the first IDEFICS", _CROSS_ATTENTION, ("idefics2", "idefics3")),
    "kosmos-2": Refused("Kosmos-2", _OWN_WAY, _SMALL),
    "kosmos-2.5": Refused("Kosmos-2.5", _OWN_WAY, _SMALL),
    "florence2": Refused("Florence-2", _OWN_WAY, _SMALL),
    "moondream1": Refused("Moondream", OWN_CODE, _SMALL),
    "minicpmv": Refused("MiniCPM-V before 4.6", OWN_CODE, ("minicpmv4_6",)),
    "minicpmo": Refused("MiniCPM-o", OWN_CODE, ("minicpmv4_6",)),
    "internvl_chat": Refused("InternVL without -hf in its name", OWN_CODE, ("internvl",)),
    "llava_llama": Refused("LLaVA of other owners than llava-hf", OWN_CODE, ("llava",)),
    "llava_qwen2": Refused("Apple's FastVLM", OWN_CODE, ("fast_vlm",)),
}
"""By model type."""
