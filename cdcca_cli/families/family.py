"""What cdcca knows of one family of models: the columns of the table.

Paths are as in `get_submodule`.
"""

import re
from dataclasses import dataclass
from typing import Literal

SHORT_ANSWER = "{prompt}\nAnswer the question using a single word or phrase."
SHORT_CAPTION = "Describe the image in one short sentence."
_MODEL_TYPES = {"blip_2": "blip-2"}


@dataclass(frozen=True)
class Family:
    """One family.

    name: in device.json.
    kind: how pictures come into the prompt (`models`): `cells`, a `perceiver` or a `qformer`.
    tower_path: the vision tower. blocks: path of its list of blocks, from the tower; "" if none.
    more_of_tower: modules outside it that make visual tokens too.
    language_path: the language model. connector_paths: modules whose linears get LoRA.
    entries, exits: of kind `cells`: the modules that the tokens of the places enter, and those
        that give the language model's features (usually the same); the first for the features in
        the prompt, more for deepstack layers. `*` in a path: each child.
    cell: how the tokens of one place lie in what an entry reads: `one` token a place, `adjacent`
        ones, a `square` of the picture, at sides `side`, a setting in the config; or each a `map`
        (channels, rows, columns).
    pixel_axis: along which the pixels of several pictures are put together.
    connect: from a place's tokens to its feature, where that is not a call of the exit; a function
        of `families.connectors`.
    types: the argument by which token types are given, and the types of pictures and of answers.
    is_mrope: whether positions have three axes (`get_rope_index`).
    features: the class of the outputs that the language model takes features in.
    deep: whether they have deepstack layers, beside those in the prompt or alone.
    newline: the parameter that is the feature of places without content.
    sizes: the input with a picture's height and width in pixels, where it is one lattice of cells.
    is_packed: whether the tower takes several pictures as one sequence with a mask as large as the
        square of its length; they go through one by one.
    adjust: what is set otherwise in the config and the image processor; a function of
        `families.adjusting`.
    extra: what the outputs hold beside the picture's features; a function of
        `families.connectors`.
    is_stacked: whether it takes them as one tensor, not as a list.
    processor: the class that knows a picture's text in a prompt, if not the one of this type; of
        transformers, or a function of `families.processors` that makes it. None: its text is image
        tokens alone.
    needs: packages that it cannot be loaded without, beside cdcca's own.
    backend: what reads pictures: PIL, or torchvision where transformers has no class for PIL.
    vqa_template, caption_template: the text around a question or a caption's prompt; what a user
        says, if the tokenizer has a chat template.
    chat: whether the tokenizer's chat template is used. plain_templates: the whole text of both
        where a checkpoint has none.
    caption_prompt: the prompt of a caption that has none of its own.
    query_names: the parameters of the group `query`.
    instruction_tokenizer: folder in the checkpoint with the tokenizer of a Q-Former that reads the
        prompt; None if it sees the picture alone.
    """

    name: str
    tower_path: str
    language_path: str
    connector_paths: tuple[str, ...]
    kind: Literal["cells", "perceiver", "qformer"] = "cells"
    blocks: str = "encoder.layers"
    more_of_tower: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    cell: Literal["one", "adjacent", "square", "map"] = "one"
    side: str = ""
    pixel_axis: int = 0
    connect: str = ""
    types: tuple[str, int, int] | None = None
    is_mrope: bool = False
    features: str = "BaseModelOutputWithPooling"
    deep: Literal["", "beside", "alone"] = ""
    newline: str = ""
    sizes: str = ""
    is_packed: bool = False
    adjust: str = ""
    extra: str = ""
    is_stacked: bool = False
    processor: str | None = ""
    needs: tuple[str, ...] = ()
    backend: Literal["pil", "torchvision"] = "pil"
    vqa_template: str = SHORT_ANSWER
    caption_template: str = "{prompt}"
    caption_prompt: str = SHORT_CAPTION
    chat: bool = True
    plain_templates: tuple[str, str] = (
        "USER: <image>\n{prompt}\nAnswer the question using a single word or phrase. ASSISTANT:",
        "USER: <image>\n{prompt} ASSISTANT:",
    )
    query_names: tuple[str, ...] = ()
    instruction_tokenizer: str | None = None

    @property
    def model_type(self) -> str:
        """The name in the checkpoint's config.json."""
        return _MODEL_TYPES.get(self.name, self.name)

    @property
    def architecture(self) -> str:
        """The class in transformers."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )

        return str(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[self.model_type])

    @property
    def full_precision(self) -> tuple[str, ...]:
        """The modules that are never quantised, as patterns: all but the language model's body."""
        return (rf"(?!{re.escape(self.language_path)}\.).+", "lm_head")

    def in_connector(self, name: str) -> bool:
        """Whether this is a parameter or a module of the connector, by its name."""
        return _is_under(name, self.connector_paths)

    def in_tower(self, name: str) -> str:
        """A parameter's name inside the vision tower; "" if it is no part of what makes tokens.

        A connector inside the tower (Qwen-VL's merger) is none: its width is the language model's,
        and what a device sends is what it reads.
        """
        if self.in_connector(name):
            return ""
        if _is_under(name, self.more_of_tower):
            return name
        prefix = f"{self.tower_path}."
        return name.removeprefix(prefix) if name.startswith(prefix) else ""


def _is_under(name: str, paths: tuple[str, ...]) -> bool:
    patterns = (re.escape(path).replace(r"\*", "[^.]+") for path in paths)
    return any(re.match(rf"{pattern}(?=\.|$)", name) for pattern in patterns)
