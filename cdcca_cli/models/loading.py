"""A checkpoint becomes a `LoadedModel`: a folder or a hub id, one path, `from_pretrained`.

- A folder never causes a look at the hub. `shipped:teacher` and `shipped:student` are folders in
  the package. Code of a checkpoint is never run; weights are read from safetensors only.
- The vision tower's digest is taken of the parameters as they are stored (`dtype="auto"`), before
  they are cast to what the model computes in, so it does not depend on where it is loaded.
- What it computes in: float32 on a CPU, bfloat16 on CUDA, unless told otherwise.
- A checkpoint with a tensor too few, or of another shape than config.json says, is refused:
  transformers would fill the gap with noise. So is one whose parts do not fit (`sizes`).
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdcca_cli.errors import (
    BadData,
    CdccaError,
    MissingInput,
    SettingError,
    Unavailable,
    UsageError,
)
from cdcca_cli.families import FAMILIES, Family, text_model
from cdcca_cli.files import reason
from cdcca_cli.formats.names import DTYPES
from cdcca_cli.models import digests, quantization, sizes
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.qformer import QFormer
from cdcca_cli.models.token_per_patch import TokenPerPatch
from cdcca_cli.text import load_json

if TYPE_CHECKING:
    from cdcca_cli.formats.device import Device

SHIPPED = "shipped:"
_ASSETS = Path(__file__).parent.parent / "assets"
_FILES = (".lessons", ".labels", ".tokens", ".safetensors", ".cdcca")
"""No model on the hub is called so; a mistyped file may be."""
_CONNECTORS: dict[str, type[LoadedModel]] = {"qformer": QFormer, "token_per_patch": TokenPerPatch}
_BLOCK = re.compile(r"(?P<list>.*?\.)(?P<number>\d+)\.")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load(
    checkpoint: str | Path,
    *,
    compute: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    qformer_layers: int | None = None,
    revision: str | None = None,
    zero_biases: bool = False,
    device_map: str | None = None,
) -> LoadedModel:
    """Load a checkpoint, frozen and in eval mode.

    Args:
        checkpoint: a folder, a hub id, `shipped:teacher` or `shipped:student`; its weights may be
            quantised already (by bitsandbytes).
        compute: cpu, cuda, mps or auto (cuda if there is one).
        dtype: float32, bfloat16, float16, stored, or auto (float32 on a CPU, bfloat16 on CUDA).
        quantize: none, int8 or nf4; the language model only.
        qformer_layers: keep the first so many layers of the Q-Former.
        revision: of a hub id.
        zero_biases: give every linear of a LLaMA language model a bias, zero where the checkpoint
            has none, as the paper does.
    Raises: UsageError (not a vision-language model of these families), MissingInput (no such
        folder, no weights), BadData (damaged, or its parts do not fit together), Unavailable (no
        CUDA, no bitsandbytes, no hub).
    """
    quantization.check_name(quantize)
    device = _compute(compute)
    source = _source(checkpoint)
    named = str(checkpoint)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": source.is_folder}
    if not source.is_folder:
        options["revision"] = revision
    _quiet_transformers()
    config = _config(source, named, options)
    row = FAMILIES[config.model_type]
    if qformer_layers is not None:
        _cut_qformer(config, qformer_layers, named)
    if zero_biases:
        _question_for_biases(config)
    wanted = _dtype(dtype, device)
    placed = dict(options)
    if device_map is not None:
        if device_map not in DEVICE_MAPS:
            raise SettingError(
                "device_map", f"expected one of {', '.join(DEVICE_MAPS)}", device_map
            )
        placed["device_map"] = device_map
    module, missing, unexpected = _module(
        row, source, named, config, placed, quantize, device, wanted
    )
    if zero_biases:
        missing = _zero_biases(module, row, missing)
    _check_complete(named, module, missing, unexpected, row if qformer_layers else None)
    quantization.check_shapes(module, row.language_path, quantize, device)
    tower_digest = digests.of_tower(module.get_submodule(row.tower_path))
    wanted = module.dtype if wanted is None else wanted
    _cast(module, wanted)
    if device_map is None and not getattr(module, "is_quantized", False):
        module.to(device)
    module.eval().requires_grad_(False)
    second = None
    if row.instruction_tokenizer is not None:
        second = _tokenizer(source, named, row.instruction_tokenizer, options)
    model = _CONNECTORS[row.connector](
        row,
        module,
        _tokenizer(source, named, "", options),
        _image_processor(source, named, options),
        checkpoint=named,
        compute=device,
        dtype=wanted,
        tower_digest=tower_digest,
        instruction_tokenizer=second,
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
        zero_biases="bias" in settings.groups,
    )
    if settings.tower != model.tower_digest:
        raise BadData(
            f"{settings.checkpoint}: its vision tower is {model.tower_digest}, the device folder "
            f"was made with {settings.tower}: give that checkpoint, or run init again"
        )
    model.install_overlay(overlay, settings.lora.alpha)
    return model


class _Source:
    """Where a checkpoint is: a folder that exists, or a name on the hub."""

    def __init__(self, path: str, is_folder: bool) -> None:
        self.path = path
        self.is_folder = is_folder


def _source(checkpoint: str | Path) -> _Source:
    text = str(checkpoint)
    if text.startswith(SHIPPED):
        role = text.removeprefix(SHIPPED)
        if role not in ("teacher", "student"):
            raise UsageError(f"{text}: expected {SHIPPED}teacher or {SHIPPED}student")
        return _folder(_ASSETS / role, text)
    path = Path(text).expanduser()
    if path.exists() or isinstance(checkpoint, Path) or _looks_like_a_path(text):
        return _folder(path, text)
    return _Source(text, is_folder=False)


def _looks_like_a_path(text: str) -> bool:
    """A hub id is `name` or `owner/name`; everything else means a place on the disk."""
    if not text or text.startswith((".", "/", "~")) or text.endswith(("/", *_FILES)):
        return True
    return text.count("/") > 1


def _folder(path: Path, named: str) -> _Source:
    if not path.exists():
        raise MissingInput(f"{named}: no such checkpoint folder")
    if not path.is_dir():
        raise UsageError(f"{named}: expected a checkpoint folder or a hub id, found a file")
    if not (path / "config.json").is_file():
        raise MissingInput(f"{named}: not a checkpoint folder: it has no config.json")
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob("*.bin"))
        raise MissingInput(
            f"{named}: the checkpoint has no weights: expected model.safetensors"
            + (", found only .bin files, which are never read: convert them" if pickled else "")
        )
    return _Source(str(path), is_folder=True)


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
    """The type to cast to; None to leave what is stored."""
    if dtype == "stored":
        return None
    if dtype == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise SettingError("dtype", f"expected {', '.join(DTYPES)} or auto", dtype)
    named: torch.dtype = getattr(torch, dtype)
    return named


def _config(source: _Source, named: str, options: dict[str, Any]) -> Any:
    """The checkpoint's config, of a family that is known."""
    from transformers import AutoConfig

    if source.is_folder:
        model_type = _model_type(Path(source.path) / "config.json", named)
        if model_type not in FAMILIES:
            raise UsageError(_unknown(named, model_type))
    try:
        config = AutoConfig.from_pretrained(source.path, **options)
    except Exception as error:
        raise _failed(source, named, "config.json", error) from error
    if config.model_type not in FAMILIES:
        raise UsageError(_unknown(named, config.model_type))
    return config


def _model_type(path: Path, named: str) -> str:
    """`model_type` of a config.json, read without transformers, which may not know the type."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MissingInput(reason(path, error)) from error
    table = load_json(text, f"{named}: config.json")
    model_type = table.get("model_type") if isinstance(table, dict) else None
    if not isinstance(model_type, str):
        raise BadData(f"{named}: config.json names no model_type: not a model's config")
    return model_type


def _unknown(named: str, model_type: str) -> str:
    return (
        f"{named}: model type {model_type!r} is not a vision-language family that cdcca knows: "
        f"expected one of {', '.join(sorted(FAMILIES))}"
    )


def _cut_qformer(config: Any, layers: int, named: str) -> None:
    former = getattr(config, "qformer_config", None)
    if former is None:
        raise SettingError("qformer_layers", f"{named} has no Q-Former", layers)
    if not 1 <= layers <= former.num_hidden_layers:
        expected = f"{named} has {former.num_hidden_layers}: expected 1 to that many"
        raise SettingError("qformer_layers", expected, layers)
    former.num_hidden_layers = layers


def _question_for_biases(config: Any) -> None:
    text = config.text_config
    for name in text_model(text.model_type).bias_settings:
        setattr(text, name, True)


def _module(
    row: Family,
    source: _Source,
    named: str,
    config: Any,
    options: dict[str, Any],
    quantize: str,
    device: str,
    dtype: torch.dtype | None,
) -> tuple[Any, list[str], list[str]]:
    """The transformers module, its weights as stored; a quantised language model on `device`.

    Returns: the module, the tensors that the weights lack, those that it has no place for.
    """
    import transformers

    quantized = quantization.config(quantize, list(row.full_precision), dtype or torch.float32)
    if quantized is not None:
        options = {"device_map": {"": device}} | options | {"quantization_config": quantized}
    try:
        module, report = getattr(transformers, row.architecture).from_pretrained(
            source.path,
            config=config,
            dtype="auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the sizes
            **options,
        )
    except Exception as error:
        raise _failed(source, named, "the weights", error) from error
    if report["mismatched_keys"]:
        name, stored, expected = min(report["mismatched_keys"])
        raise BadData(
            f"{named}: {name} has the shape {list(stored)} in the weights, {list(expected)} by "
            "config.json: they do not belong together"
        )
    return module, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])


def _zero_biases(module: Any, row: Family, missing: list[str]) -> list[str]:
    """Set the biases that `_question_for_biases` added to zero; returns what else is missing."""
    text = text_model(module.config.text_config.model_type)
    added = [
        name
        for name in missing
        if text.bias_settings
        and name.startswith(f"{row.language_path}.")
        and name.endswith(text.bias_suffix)
    ]
    with torch.no_grad():
        for name in added:
            module.get_parameter(name).zero_()
    return [name for name in missing if name not in added]


def _check_complete(
    named: str, module: Any, missing: list[str], unexpected: list[str], cut: Family | None
) -> None:
    """Refuse weights with too few tensors, or with blocks that config.json does not count.

    Args: cut: the family, if its Q-Former was cut on purpose.
    """
    if missing:
        raise BadData(
            f"{named}: the weights lack {len(missing)} of the model's tensors, {missing[0]} first: "
            "the checkpoint is not complete, or not of this config"
        )
    present = {match[0] for name, _ in module.named_parameters() if (match := _BLOCK.match(name))}
    for name in unexpected:
        match = _BLOCK.match(name)
        is_cut = cut is not None and name.startswith(cut.connector_paths)
        if match is None or match[0] in present or is_cut:
            continue
        count = sum(block.startswith(match["list"]) for block in present)
        if count:
            raise BadData(
                f"{named}: the weights have a block {match['list']}{match['number']}, config.json "
                f"says that there are {count}: they do not belong together"
            )


def _cast(module: Any, dtype: torch.dtype) -> None:
    """Cast the floating parameters in place; buffers keep what they are computed in.

    In float16 the parts that transformers keeps in float32 (the Q-Former, T5's `wo`) stay there.
    """
    kept: set[str] = set()
    if dtype == torch.float16:
        for part in module.modules():
            kept.update(getattr(part, "_keep_in_fp32_modules", None) or ())
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            keep = not kept.isdisjoint(name.split("."))
            parameter.data = parameter.data.to(torch.float32 if keep else dtype)


def _tokenizer(source: _Source, named: str, subfolder: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    what = f"the tokenizer in {subfolder}/" if subfolder else "the tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, subfolder=subfolder, **options)
        knows_words = bool(tokenizer("Answer:", add_special_tokens=False)["input_ids"])
    except Exception as error:
        raise _failed(source, named, what, error) from error
    if not knows_words:  # transformers makes an empty one where the files are missing
        raise MissingInput(f"{named}: {what} has no vocabulary: is tokenizer.json missing?")
    if not tokenizer.is_fast:
        raise UsageError(
            f"{named}: {what} is a {type(tokenizer).__name__}, which cannot be saved as the "
            "tokenizer.json that cdcca needs"
        )
    return tokenizer


def _image_processor(source: _Source, named: str, options: dict[str, Any]) -> Any:
    """The processor that works on PIL images: the same pixels with torchvision and without."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source.path, backend="pil", **options)
    except Exception as error:
        raise _failed(source, named, "the image processor", error) from error


def _failed(source: _Source, named: str, what: str, error: Exception) -> CdccaError:
    """What an exception of transformers means to a user, in one line."""
    text = str(error)
    if isinstance(error, CdccaError):
        return error
    if isinstance(error, MemoryError) or ("memory" in text and "alloc" in text):
        return Unavailable(f"{named}: not enough memory for {what}: {_line(error)}")
    if isinstance(error, ImportError):
        return Unavailable(f"{named}: {what} needs a package that is not here: {_line(error)}")
    if isinstance(error, OSError) and not source.is_folder:
        return Unavailable(
            f"{named}: not a folder here, and {what} cannot be fetched from the hub: {_line(error)}"
        )
    if isinstance(error, OSError):
        return MissingInput(f"{named}: {what} cannot be read: {_line(error)}")
    return BadData(f"{named}: {what} cannot be loaded: {_line(error)}")


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


def _quiet_transformers() -> None:
    """transformers' own bars and reports are not for a user of cdcca."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
