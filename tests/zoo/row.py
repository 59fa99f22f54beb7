"""What one family's checkpoint is made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.zoo.texts import Text
from tests.zoo.words import Chat


@dataclass(frozen=True)
class Row:
    """One family; `name` is its model type unless two rows share one.

    model, processor, pictures: the classes of transformers; `pictures` as preprocessor_config.json
        names it, so without `Pil` or `Fast`.
    config: the arguments of the model's config.
    chat: the language model's tokens and turns.
    image: the token that stands for one feature. mark: the picture in the chat template; None if
        the family has no template.
    words: tokens that the processor reads as attributes of its tokenizer. special: other tokens.
    sizes: settings of the image processor. settings: arguments of the processor.
    call: arguments that the processor's call takes for pictures.
    tower: prefix of the vision tower's parameters; empty if there is none. connector: prefixes
        inside it that are no part of the tower.
    layers: blocks of the language model, unless told otherwise.
    home: folder of transformers/models/ that has the processor; `name` if empty.
    backend: what reads pictures; "torchvision" where transformers has no class for PIL.
    needs: packages that are not installed with cdcca, without which it cannot be built or read.
    """

    name: str
    model: str
    processor: str
    pictures: str
    config: Callable[[Text], dict[str, Any]]
    chat: Chat
    image: str
    mark: str | None
    words: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    tower: str = "model.vision_tower."
    connector: tuple[str, ...] = ()
    layers: int = 2
    home: str = ""
    backend: str = "pil"
    needs: tuple[str, ...] = ()


SQUARE = {"height": 48, "width": 48}
CROP = {"size": {"shortest_edge": 48}, "crop_size": SQUARE}
TILES = [[48, 96], [96, 48], [96, 96]]
"""Height and width of the canvases that a picture is cut into tiles from."""
IMAGE: dict[str, Any] = {
    "image": "<image>",
    "mark": "<image>\n",
    "words": {"image_token": "<image>"},
}
PLACES = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
"""How LLaVA's processor counts the tokens of a CLIP tower: the class token is left out."""


def llava(text: Text, language: str, vision: dict[str, Any], **other: Any) -> dict[str, Any]:
    """The config of LLaVA and what descends from it."""
    made = {
        "vision_config": vision,
        "text_config": text.config(language),
        "image_token_index": text.id("<image>"),
        "image_seq_length": 36,
    }
    return made | other
