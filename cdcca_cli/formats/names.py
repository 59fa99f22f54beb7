"""Names that files, settings and models share. Imports nothing of ours.

GROUPS: of an overlay's parameters. LORA_PARTS: what `lora` stands for, the linears of the language
model and those of the connector. GROUP_NAMES: every name of a group.
LORA_ATTENTION: the part of `lora.language` in the self-attentions that read the prompt. It can be
trained alone; an overlay has all of `lora.language` or nothing.
LORA_A, LORA_B: how the names of LoRA's two matrices end.
QUANTIZATIONS: how a device holds its language model. DTYPES: what a model computes in.
LABEL_BITS: bits a number of the features in labels.
CODEBOOK_FILE: the name of a codebook (`codebook`) in a checkpoint folder, if it has one.
"""

from collections.abc import Iterable

GROUPS = ("norm", "bias", "query", "lora")
LORA_PARTS = ("lora.language", "lora.connector")
GROUP_NAMES = GROUPS + LORA_PARTS
LORA_ATTENTION = "lora.attention"
LORA_A, LORA_B = ".lora_A", ".lora_B"
QUANTIZATIONS = ("none", "int8", "nf4")
CODEBOOK_FILE = "codebook.safetensors"
DTYPES = ("float32", "bfloat16", "float16")
LABEL_BITS = (32, 16, 8)


def whole_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """The groups in order, `lora` in place of both its parts: as device.json has them."""
    named = set(groups)
    if named.issuperset(LORA_PARTS) or "lora" in named:
        named = named - set(LORA_PARTS) | {"lora"}
    return tuple(group for group in GROUP_NAMES if group in named)


def split_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """The groups in order, `lora` as its two parts: as a model has them."""
    named = set(whole_groups(groups))
    if "lora" in named:
        named = named - {"lora"} | set(LORA_PARTS)
    return tuple(group for group in GROUP_NAMES if group in named)


def has_lora(groups: Iterable[str]) -> bool:
    """Whether one of the groups is LoRA's."""
    return not {"lora", *LORA_PARTS}.isdisjoint(groups)
