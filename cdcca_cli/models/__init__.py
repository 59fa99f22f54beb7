"""Vision-language models behind one interface, `LoadedModel`.

Read `model` first, then `qformer`, `token_per_patch`, `language`, `decoding` and `prompts`.
`loading` and `sizes` load and check a checkpoint, `initial` makes a device folder from one.
`overlay`, `lora` and `quantization` change a loaded model, `attention` watches its vision tower.
torch is imported at the first use of a name below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdcca_cli.models.language import PromptTooLong, Spliced
    from cdcca_cli.models.loading import load, load_device
    from cdcca_cli.models.model import LoadedModel

__all__ = ["LoadedModel", "PromptTooLong", "Spliced", "load", "load_device"]
_MODULES = {
    "LoadedModel": "model",
    "PromptTooLong": "language",
    "Spliced": "language",
    "load": "loading",
    "load_device": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
