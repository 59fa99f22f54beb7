"""A checkpoint with an overlay merged into its weights, for runtimes that read a checkpoint alone.

    W' = W + alpha / rank * B A,    in float32, then rounded to the type that is stored

Norms and query tokens are replaced. New biases have a place only where the language model's config
has a setting for them, as LLaMA's `attention_bias` and `mlp_bias`; the linears of such a setting
that get none in the overlay have zeros.
"""

import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdcca_cli.formats.names import CODEBOOK_FILE, LORA_A, LORA_B
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.sources import source_of

_SETTINGS = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias")
"""Settings of language models in transformers that give linears a bias."""
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", CODEBOOK_FILE)
_OF_WEIGHTS = ("config.json", "*.index.json", "adapter_config.json")


def bias_settings(model: LoadedModel, needed: Collection[str]) -> dict[str, set[str]]:
    """The settings that give some of the needed biases a place, each with all biases it makes."""
    return {
        name: made
        for name in _SETTINGS
        if (made := _made_by(model.module, name)) and not made.isdisjoint(needed)
    }


def _made_by(module: Any, setting: str) -> set[str]:
    """The biases that a setting of the language model's config adds."""
    from accelerate import init_empty_weights

    config = type(module.config).from_dict(module.config.to_dict())
    text = config.get_text_config()
    if getattr(text, setting, None) is not False:
        return set()
    setattr(text, setting, True)
    with init_empty_weights():
        made = type(module)._from_config(config)
    present = {name for name, _ in module.named_parameters()}
    biases = {name for name, _ in made.named_parameters() if name.endswith(".bias")}
    return biases - present


def merge(
    model: LoadedModel, overlay: Overlay, alpha: float, settings: dict[str, set[str]]
) -> dict[str, float]:
    """Change the weights of a plain model, which keep their types.

    Args: overlay: only what has a place. settings: as `bias_settings` found them.
    Returns: the squared norms of the "change", and of what "rounding" took of it.
    """
    module = model.module
    text = module.config.get_text_config()
    for setting, names in settings.items():
        setattr(text, setting, True)
        for name in names:
            linear = module.get_submodule(name.removesuffix(".bias"))
            zeros = torch.zeros(linear.out_features, dtype=linear.weight.dtype)
            linear.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))
    parameters = dict(module.named_parameters())
    squares: dict[str, float] = defaultdict(float)
    for name, value in overlay.items():
        if name.endswith(LORA_A):
            continue
        new = torch.from_numpy(value.copy())
        if name.endswith(LORA_B):
            a_RI = torch.from_numpy(overlay[name.removesuffix(LORA_B) + LORA_A].copy())
            parameter = parameters[f"{name.removesuffix(LORA_B)}.weight"]
            new = parameter.float() + alpha / len(a_RI) * (new @ a_RI)
        else:
            parameter = parameters[name]
        stored = new.to(parameter.dtype)
        squares["change"] += _square(new - parameter.float())
        squares["rounding"] += _square(new - stored.float())
        parameter.data = stored
    return dict(squares)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def save(model: LoadedModel, folder: Path, shard_bytes: int, revision: str | None) -> None:
    """Write the weights in shards, and copy what lies beside them in the checkpoint."""
    model.module.save_pretrained(folder, max_shard_size=shard_bytes)
    source = source_of(model.checkpoint, revision)
    root = Path(source.path)
    if not source.is_folder:
        from huggingface_hub import snapshot_download

        with source.reading("what lies beside its weights"):
            root = Path(
                snapshot_download(source.path, revision=revision, allow_patterns=[*_BESIDE_WEIGHTS])
            )
    for path in _beside_weights(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _beside_weights(root: Path) -> Iterator[Path]:
    """Tokenizers, processors, templates and a codebook, also those in a folder of their own."""
    for path in (*root.glob("*"), *root.glob("*/*")):
        is_wanted = any(fnmatch(path.name, pattern) for pattern in _BESIDE_WEIGHTS)
        of_weights = any(fnmatch(path.name, pattern) for pattern in _OF_WEIGHTS)
        if path.is_file() and is_wanted and not of_weights:
            yield path
