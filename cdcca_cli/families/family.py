"""What is known of a family of vision-language models, and of a language model inside one.

A path names a module as `module.get_submodule` takes it.
"""

from dataclasses import dataclass
from typing import Literal

IMAGE_MARK = "<image>"
"""Where a picture stands in a prompt with one place for each visual token."""

Connector = Literal["qformer", "token_per_patch"]


@dataclass(frozen=True)
class Family:
    """One family.

    name: in device.json. model_type: in the checkpoint's config.json.
    architecture: the class in transformers.
    connector: how the picture comes into the prompt: a module of `models`.
    tower_path, language_path: the vision tower and the language model.
    connector_paths: modules whose linears get LoRA.
    query_names: the parameters of the group `query`.
    full_precision: modules that are never quantised.
    vqa_template, caption_template: the text around a question or a caption's prompt.
    caption_prompt: what is asked where a frame brings no prompt for its caption.
    marks: the special tokens in the templates; in a question the same words are text.
    instruction_tokenizer: folder in the checkpoint with the tokenizer of a Q-Former that reads the
        prompt; None where it sees the picture alone.
    """

    name: str
    model_type: str
    architecture: str
    connector: Connector
    tower_path: str
    language_path: str
    connector_paths: tuple[str, ...]
    full_precision: tuple[str, ...]
    vqa_template: str
    caption_prompt: str
    caption_template: str = "{prompt}"
    marks: tuple[str, ...] = ()
    query_names: tuple[str, ...] = ()
    instruction_tokenizer: str | None = None


@dataclass(frozen=True)
class TextModel:
    """What is particular to a kind of language model.

    attention: how the names of the self-attentions end that read the prompt.
    bias_settings: the settings of its config that give every linear a bias; none if it has them
        anyway, or cannot have them. bias_suffix: how the parameters that these add end.
    """

    attention: str = ".self_attn"
    bias_settings: tuple[str, ...] = ()
    bias_suffix: str = "_proj.bias"
