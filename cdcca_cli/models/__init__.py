"""Vision-language models behind one interface.

    model = load("folder-or-hub-id")
    model = load_device(device)

In order of reading: `model` holds the interface, `qformer` and `token_per_patch` the two kinds of
connector, `language` and `decoding` the language model, `prompts` the text. `loading` finds and
checks a checkpoint (`sizes`: whether its parts fit), `initial` makes a device folder from one.
`overlay`, `lora` and `quantization` change a loaded model. Which model is which: `families`.

torch is imported when one of the names below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdcca_cli.models.decoding import Generated
    from cdcca_cli.models.language import PromptTooLong, Spliced
    from cdcca_cli.models.loading import load, load_device
    from cdcca_cli.models.model import Forward, LoadedModel

__all__ = [
    "Forward",
    "Generated",
    "LoadedModel",
    "PromptTooLong",
    "Spliced",
    "load",
    "load_device",
]
_HOMES = {
    **dict.fromkeys(("Forward", "LoadedModel"), "model"),
    **dict.fromkeys(("PromptTooLong", "Spliced"), "language"),
    **dict.fromkeys(("load", "load_device"), "loading"),
    "Generated": "decoding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
