"""Vision-language models behind one interface, `LoadedModel`.

Read `model` first, then `pictures`, `cells` and `watching`, `qformer`, `language`, `decoding` and
`prompts`.
`sources`, `preparation`, `loading` and `sizes` find, load and check a checkpoint, `skeleton` knows
one without its weights, and `initial` makes a device folder from one.
`overlay`, `lora` and `quantization` change a loaded model, `attention` watches its vision tower.
torch is imported at the first use of a name below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdcca_cli.models.language import PromptTooLong, Spliced
    from cdcca_cli.models.loading import load, load_device
    from cdcca_cli.models.model import LoadedModel, Trunk
    from cdcca_cli.models.pictures import Picture, Seen, padded

__all__ = [
    "LoadedModel",
    "Picture",
    "PromptTooLong",
    "Seen",
    "Spliced",
    "Trunk",
    "load",
    "load_device",
    "padded",
]
_MODULES = {
    "LoadedModel": "model",
    "Picture": "pictures",
    "PromptTooLong": "language",
    "Seen": "pictures",
    "Spliced": "language",
    "Trunk": "model",
    "load": "loading",
    "load_device": "loading",
    "padded": "pictures",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
