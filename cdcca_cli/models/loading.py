"""A checkpoint, which is a folder or a hub id, becomes a `LoadedModel`.

- Weights are read from safetensors only. `sources` says where, `preparation` has the tokenizer.
- The vision tower's digest is taken of the parameters as stored, before they are cast, so it does
  not depend on the machine.
- A checkpoint that lacks tensors, which transformers would fill with noise, or whose shapes are not
  those of config.json, is refused. So is one whose parts do not fit (`sizes`).
"""

import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdcca_cli.errors import (
    BadData,
    MissingInput,
    SettingError,
    Unavailable,
    UsageError,
)
from cdcca_cli.families import FAMILIES, Family, family_of
from cdcca_cli.families.refused import OWN_CODE, REFUSED
from cdcca_cli.files import reason
from cdcca_cli.formats.names import DTYPES
from cdcca_cli.models import digests, quantization, sizes
from cdcca_cli.models.cells import Cells
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.perceiver import Perceiver
from cdcca_cli.models.preparation import preparer_of, tokenizer_of
from cdcca_cli.models.qformer import QFormer
from cdcca_cli.models.sources import Source, quiet_transformers, source_of
from cdcca_cli.text import load_json

if TYPE_CHECKING:
    from cdcca_cli.formats.device import Device

_KINDS: dict[str, type[LoadedModel]] = {
    "qformer": QFormer,
    "perceiver": Perceiver,
    "cells": Cells,
}
_BLOCK = re.compile(r"(?P<list>.*?\.)(?P<number>\d+)\.")


def load(
    checkpoint: str | Path,
    *,
    compute: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    qformer_layers: int | None = None,
    revision: str | None = None,
    device_map: str | None = None,
    template: str | None = None,
) -> LoadedModel:
    """Load a checkpoint, frozen and in eval mode.

    Args:
        checkpoint: a folder, a hub id, `shipped:teacher` or `shipped:student`; its weights may be
            quantised already (by bitsandbytes).
        compute: cpu, cuda, mps or auto (cuda if there is one).
        dtype: float32, bfloat16, float16, stored, or auto (float32 on a CPU, bfloat16 on CUDA).
        quantize: none, int8 or nf4; the language model only.
        template: of prompts, with {prompt} and the picture's mark; None: the checkpoint's own.
        device_map: auto spreads the weights over GPUs and memory; None loads them on `compute`.
    Raises: UsageError (another kind of model), MissingInput (no folder, no weights), BadData
        (damaged, or its parts do not fit), Unavailable (no CUDA, no bitsandbytes, no hub).
    """
    if device_map not in (None, "auto"):
        raise SettingError("device_map", "expected auto", device_map)
    device = _compute(compute)
    cast_to = _dtype(dtype, device)
    source = source_of(checkpoint, revision)
    quiet_transformers()
    config = _config(source)
    row = family_of(config)
    _check_packages(row, source.named)
    if qformer_layers is not None:
        _cut_qformer(config, qformer_layers, source.named)
    placed: dict[str, Any] = {}
    with source.reading("config.json"):
        quantized = quantization.config(quantize, row, config, cast_to or torch.float32)
    if quantized is not None:
        placed = {"device_map": {"": device}, "quantization_config": quantized}
    if device_map is not None:
        placed["device_map"] = device_map
    module, missing, unexpected = _module(row, source, config, placed)
    _check_complete(source.named, module, missing, unexpected, row if qformer_layers else None)
    quantization.check_shapes(module, device)
    tower_digest = digests.of_tower(module, row)
    cast_to = cast_to or module.dtype
    _cast(module, cast_to)
    if device_map is None and not getattr(module, "is_quantized", False):
        module.to(device)
    module.eval().requires_grad_(False)
    return _wrapped(source, row, module, device, cast_to, tower_digest, template)


def outline(
    checkpoint: str | Path,
    *,
    qformer_layers: int | None = None,
    revision: str | None = None,
    template: str | None = None,
) -> LoadedModel:
    """A model without its weights, by config.json, tokenizer and processor (see `skeleton`).

    Its parameters are on torch's meta device, which takes no memory, and it has no tower's digest.
    Of a hub id nothing else is fetched. Raises: as `load`.
    """
    import transformers
    from accelerate import init_empty_weights

    source = source_of(checkpoint, revision, needs_weights=False)
    quiet_transformers()
    config = _config(source)
    row = family_of(config)
    _check_packages(row, source.named)
    if qformer_layers is not None:
        _cut_qformer(config, qformer_layers, source.named)
    with source.reading("config.json"), init_empty_weights():
        module = getattr(transformers, row.architecture)._from_config(config, dtype=config.dtype)
    module.tie_weights()
    with source.reading("generation_config.json"), suppress(OSError):  # many have none
        module.generation_config = transformers.GenerationConfig.from_pretrained(
            source.path, **source.options
        )
    module.eval().requires_grad_(False)
    return _wrapped(source, row, module, "cpu", module.dtype, "", template)


def _wrapped(
    source: Source,
    row: Family,
    module: Any,
    compute: str,
    dtype: torch.dtype,
    tower_digest: str,
    template: str | None,
) -> LoadedModel:
    folder, tokenizer = row.instruction_tokenizer, tokenizer_of(source)
    preparer = preparer_of(source, row, module, tokenizer)
    instruction_tokenizer = None if folder is None else tokenizer_of(source, folder)
    with source.reading("the model's parts"):
        model = _KINDS[row.kind](
            row,
            module,
            tokenizer,
            preparer,
            checkpoint=source.named,
            compute=compute,
            dtype=dtype,
            tower_digest=tower_digest,
            instruction_tokenizer=instruction_tokenizer,
            template=template,
        )
        sizes.check(model)
    return model


def load_device(
    device: "Device",
    *,
    compute: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
) -> LoadedModel:
    """Load the model of a device folder with its current overlay on it.

    Args: quantize: in place of the device's own (the cloud's mirror may compute in full).
    Raises: as `load`; BadData if the overlay or the vision tower is not this checkpoint's.
    """
    overlay = device.read_overlay()
    settings = device.settings
    model = load(
        settings.checkpoint,
        compute=compute,
        dtype=dtype,
        quantize=settings.quantize if quantize is None else quantize,
        qformer_layers=settings.qformer_layers,
        revision=settings.revision,
        template=settings.template,
    )
    if settings.tower != model.tower_digest:
        raise BadData(
            f"{settings.checkpoint}: the vision tower is {model.tower_digest}, the device folder "
            f"was made with {settings.tower}: restore that checkpoint, or run init again"
        )
    model.install_overlay(overlay, settings.lora.alpha)
    return model


def _compute(compute: str) -> str:
    if compute == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if compute not in ("cpu", "cuda", "mps"):
        raise SettingError("compute", "expected cpu, cuda, mps or auto", compute)
    if compute == "cuda" and not torch.cuda.is_available():
        raise Unavailable("`compute` cuda: torch finds no CUDA device here: use cpu")
    if compute == "mps" and not torch.backends.mps.is_available():
        raise Unavailable("`compute` mps: torch finds no MPS device here: use cpu")
    return compute


def _dtype(dtype: str, device: str) -> torch.dtype | None:
    """The type to cast to; None to keep the stored one."""
    if dtype == "stored":
        return None
    if dtype == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise SettingError("dtype", f"expected {', '.join(DTYPES)} or auto", dtype)
    named: torch.dtype = getattr(torch, dtype)
    return named


def _config(source: Source) -> Any:
    """The checkpoint's config. Raises: UsageError for a family that is not in the table."""
    from transformers import AutoConfig

    _check_family(source.named, _settings(source))
    with source.reading("config.json"):
        config = AutoConfig.from_pretrained(source.path, **source.options)
    _check_family(source.named, {"model_type": config.model_type})
    return config


def _settings(source: Source) -> Any:
    """What config.json holds, whether transformers knows the type or not."""
    if not source.is_folder:
        from transformers import PreTrainedConfig

        with source.reading("config.json"):
            return PreTrainedConfig.get_config_dict(source.path, **source.options)[0]
    path = Path(source.path) / "config.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MissingInput(reason(path, error)) from error
    return load_json(text, f"{source.named}: config.json")


def _check_family(named: str, settings: Any) -> None:
    """Args: settings: what config.json holds. Raises: BadData, UsageError with the cure."""
    model_type = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(model_type, str):
        raise BadData(f"{named}: config.json names no model_type: not a model's config")
    if model_type in FAMILIES:
        return
    if model_type in REFUSED:
        raise UsageError(f"{named}: {REFUSED[model_type]}")
    has_code = f" ({OWN_CODE})" if "auto_map" in settings else ""
    raise UsageError(
        f"{named}: model type {model_type[:80]!r} is not a vision-language family that cdcca knows"
        f"{has_code}: expected one of {', '.join(sorted(FAMILIES))}"
    )


def _check_packages(row: Family, named: str) -> None:
    """Raises: Unavailable for a package that this family needs, with the cure."""
    for package in row.needs:
        try:
            import_module(package)
        except (ImportError, RuntimeError) as error:  # torchvision of another torch raises both
            is_absent = isinstance(error, ModuleNotFoundError) and error.name == package
            cure = "pip install 'cdcca[families]'" if is_absent else "install that of this torch"
            reason = "is not installed" if is_absent else f"fails: {str(error).splitlines()[0]}"
            raise Unavailable(
                f"{named}: the family {row.name} needs {package}, which {reason}: {cure}"
            ) from error


def _cut_qformer(config: Any, layers: int, named: str) -> None:
    former = getattr(config, "qformer_config", None)
    if former is None:
        raise SettingError("qformer_layers", f"{named} has no Q-Former", layers)
    if not 1 <= layers <= former.num_hidden_layers:
        expected = f"expected 1 to {former.num_hidden_layers}, the layers of {named}"
        raise SettingError("qformer_layers", expected, layers)
    former.num_hidden_layers = layers


def _module(
    row: Family, source: Source, config: Any, placed: dict[str, Any]
) -> tuple[Any, list[str], list[str]]:
    """The module with its weights as stored, its missing tensors and its unexpected ones."""
    import transformers

    with source.reading("the weights"):
        module, report = getattr(transformers, row.architecture).from_pretrained(
            source.path,
            config=config,
            dtype="auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the sizes
            **source.options,
            **placed,
        )
    if report["mismatched_keys"]:
        name, stored, expected = min(report["mismatched_keys"])
        raise BadData(
            f"{source.named}: {name} has the shape {list(stored)} in the weights, "
            f"{list(expected)} by config.json: they do not belong together"
        )
    return module, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])


def _check_complete(
    named: str, module: Any, missing: list[str], unexpected: list[str], cut: Family | None
) -> None:
    """Refuse weights that lack tensors or have too many blocks, unless the Q-Former was `cut`."""
    if missing:
        raise BadData(
            f"{named}: the weights lack {len(missing)} of the model's tensors, {missing[0]} first: "
            "the checkpoint is incomplete, or does not belong to this config.json"
        )
    present = {match[0] for name, _ in module.named_parameters() if (match := _BLOCK.match(name))}
    for name in unexpected:
        match = _BLOCK.match(name)
        is_cut = cut is not None and cut.in_connector(name)
        if match is None or match[0] in present or is_cut:
            continue
        count = sum(block.startswith(match["list"]) for block in present)
        if count:
            raise BadData(
                f"{named}: the weights have a block {match['list']}{match['number']}, but the "
                f"number of blocks in config.json is {count}: they do not belong together"
            )


def _cast(module: Any, dtype: torch.dtype) -> None:
    """Cast the floating parameters in place, but not the buffers.

    The parts that transformers keeps in float32 stay float32: in float16 the Q-Former and T5's
    `wo`, in both 16-bit types the routers of experts.
    """
    kept: set[str] = set()
    for part in module.modules():
        if dtype == torch.float16:
            kept.update(getattr(part, "_keep_in_fp32_modules", None) or ())
        if dtype != torch.float32:
            kept.update(getattr(part, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            keep = any(f".{path}." in f".{name}." for path in kept)
            parameter.data = parameter.data.to(torch.float32 if keep else dtype)
