"""The target gguf: what a device holds, as files of llama.cpp and of what is built on it.

    adapter.gguf  LoRA of the language model, in float16 unless `f32`, for `lora` of llama-server
    model.gguf    a copy of the base with the device's norms and biases, in float32, if the device
                  has these groups; all other tensors as they are, quantised or not
    mmproj.gguf   a copy of the mmproj with the connector's LoRA merged in float32, if the device
                  has that group. A merged weight is float32 if it was, else float16, because
                  bfloat16 and quantised types would round the change away

A file that would only be a copy is not written: the server takes the original. Which files are
written depends on the device's groups, not on their values, so that a server's command stays.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, SettingError, WrongBase
from cdcca_cli.export import placing, preflight, probe
from cdcca_cli.export.folder import file_digest
from cdcca_cli.export.preflight import Base
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import Gguf, Tensor, read_gguf, write_copy, write_gguf
from cdcca_cli.formats.names import LORA_A, LORA_B
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.numerics import ggml

ADAPTER, MODEL, MMPROJ = "adapter.gguf", "model.gguf", "mmproj.gguf"
_LARGEST_F16 = float(np.finfo(np.float16).max)
Arrays = dict[str, NDArray[Any]]


@dataclass
class Parts:
    """What goes where: tensors of the adapter, those put into base and mmproj.

    carried: the overlay's tensors that arrive. start: the base's values of norms and biases, by
    the overlay's names. why: by group, why some cannot be carried.
    """

    adapter: Arrays = field(default_factory=dict)
    model: Arrays = field(default_factory=dict)
    mmproj: Arrays = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    start: Arrays = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def write(
    folder: Path, device: Device, overlay: Overlay, settings: ExportSettings
) -> dict[str, Any]:
    """Fill a folder. Returns: its part of export.json.

    Raises: MissingInput, BadData, CannotWrite; SettingError for what cannot be exported, or for a
    change that would stay behind; WrongBase for files of another model.
    """
    assert settings.base is not None
    inputs = {"base": settings.base}
    if settings.mmproj is not None:
        inputs["mmproj"] = settings.mmproj
    before = {name: _stamp(path) for name, path in inputs.items()}
    base = preflight.check_base(device, read_gguf(settings.base))
    mmproj = None if settings.mmproj is None else read_gguf(settings.mmproj)
    parts = _parts(device, overlay, base, mmproj)
    dropped = placing.require_placed(
        device, overlay, parts.carried, settings.dropped, parts.start, parts.why
    )
    if not settings.f32:
        parts.adapter = {name: _as_f16(name, array) for name, array in parts.adapter.items()}
    if preflight.has_class_token(base, mmproj):
        words = "the order of the vision tower's tokens: it has a class token"
        base.unchecked.append(f"{words} (llama.cpp issue 25814)")
        streams.message(
            "the vision tower has a class token: llama.cpp reads the tokens of such a tower in "
            "another order (issue 25814 of ggml-org/llama.cpp): compare its answers with infer's"
        )
    command = ["llama-server", "-m", str(settings.base.absolute())]
    if parts.model:
        with files.output(folder / MODEL) as out:
            write_copy(out, base.file, parts.model)
        command[2] = MODEL
    if parts.adapter:
        with files.output(folder / ADAPTER) as out:
            write_gguf(out, _adapter_keys(device, base), parts.adapter)
        command += [_option("lora"), ADAPTER]
    if mmproj is not None:
        if parts.mmproj:
            with files.output(folder / MMPROJ) as out:
                write_copy(out, mmproj, parts.mmproj)
        command += [_option("mmproj"), MMPROJ if parts.mmproj else str(mmproj.path.absolute())]
    digests = {name: file_digest(path) for name, path in inputs.items()}
    for name, path in inputs.items():
        if _stamp(path) != before[name]:
            raise BadData(f"{path}: has changed while it was read: export again")
    if base.unchecked:
        streams.message(f"not checked: {'; '.join(base.unchecked)}")
    return {
        "inputs": {
            name: {"path": str(path.absolute()), "sha256": digests[name]}
            for name, path in inputs.items()
        },
        "placed": placing.placed(device, overlay, parts.carried),
        "dropped": dropped,
        "unchecked": base.unchecked,
        "probe": probe.recorded(device, overlay, parts.carried, settings.probe),
        "command": command,
    }


def _option(name: str) -> str:
    """A long option of llama-server."""
    return "--" + name


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # read_gguf says it
    return status.st_ino, status.st_size, status.st_mtime_ns


def _adapter_keys(device: Device, base: Base) -> dict[str, Any]:
    return {
        "general.architecture": base.architecture.name,
        "general.type": "adapter",
        "general.name": f"cdcca {device.sequence}",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(device.lora.alpha),
    }


def _parts(device: Device, overlay: Overlay, base: Base, mmproj: Gguf | None) -> Parts:
    """Put every tensor of the overlay where it belongs. Raises: WrongBase."""
    parts = Parts()
    connector = []
    for name, group in placing.groups_of(device, overlay).items():
        module, _, own = name.rpartition(".")
        if group == "lora.connector":
            if name.endswith(LORA_B):
                connector.append(module)
        elif group == "query":
            parts.why[group] = "llama.cpp has no place for query tokens"
        elif (named := base.named(module)) is None:
            parts.why[group] = f"llama.cpp's {base.architecture.name} has no such tensors"
        elif group == "lora.language":
            if name.endswith(LORA_B):
                _put_lora(parts, overlay, base, module, named)
        elif group == "norm":
            _put_norm(parts, overlay, base, name, f"{named}.{own}")
        else:
            _put_bias(parts, overlay, base, name, named)
    if mmproj is None:
        parts.why["lora.connector"] = "it needs `mmproj`, the file of tower and connector"
    else:
        _put_connector(parts, device, overlay, base, mmproj, sorted(connector))
    return parts


def _put_lora(parts: Parts, overlay: Overlay, base: Base, module: str, named: str) -> None:
    a_RI, b_OR = overlay[module + LORA_A], overlay[module + LORA_B]
    _require(base.file, f"{named}.weight", (len(b_OR), a_RI.shape[1]))
    parts.adapter[f"{named}.weight.lora_a"] = a_RI
    parts.adapter[f"{named}.weight.lora_b"] = base.reordered(named, b_OR)
    parts.carried |= {module + LORA_A, module + LORA_B}


def _put_norm(parts: Parts, overlay: Overlay, base: Base, name: str, named: str) -> None:
    tensor = _require(base.file, named, overlay[name].shape)
    offset = np.float32(base.architecture.norm_offset if named.endswith(".weight") else 0)
    new = overlay[name] + offset if offset else overlay[name]
    old = base.file.values(tensor)
    if old is not None:
        # Adding rounds: an unchanged weight must count as one.
        parts.start[name] = np.where(old == new, overlay[name], old - offset)
    parts.model[named] = new
    parts.carried.add(name)


def _put_bias(parts: Parts, overlay: Overlay, base: Base, name: str, named: str) -> None:
    file, bias = base.file, overlay[name]
    weight = file.tensors.get(f"{named}.weight")
    if weight is None or weight.shape[:-1] != bias.shape:
        raise _wrong(file, f"{named}.weight", bias.shape)
    tensor = file.tensors.get(f"{named}.bias")
    new = base.reordered(named, bias)
    if tensor is not None:
        old = file.values(_require(file, f"{named}.bias", bias.shape))
        if old is not None:
            parts.start[name] = base.restored(named, old)
    if base.architecture.reads_bias(named):
        parts.model[f"{named}.bias"] = new
        parts.carried.add(name)
    else:
        reads = ", ".join(base.architecture.biases)
        parts.why["bias"] = f"llama.cpp's {base.architecture.name} reads only those of {reads}"


def _put_connector(
    parts: Parts,
    device: Device,
    overlay: Overlay,
    base: Base,
    mmproj: Gguf,
    linears: list[str],
) -> None:
    named = preflight.check_mmproj(device, mmproj, base, linears)
    for module in linears:
        name = named.get(module)
        if name is None:
            kind = mmproj.keys.get("clip.projector_type")
            parts.why["lora.connector"] = f"cdcca does not know its place in a {kind} mmproj"
            continue
        a_RI, b_OR = overlay[module + LORA_A], overlay[module + LORA_B]
        tensor = _require(mmproj, f"{name}.weight", (len(b_OR), a_RI.shape[1]))
        weight = mmproj.values(tensor)
        if weight is None:
            kind = ggml.NAMES[tensor.kind]
            parts.why["lora.connector"] = f"cdcca does not read {kind}, the type of {name}"
            continue
        scale = np.float32(device.lora.alpha / len(a_RI))
        merged = weight + scale * (b_OR @ a_RI)
        if tensor.kind != ggml.F32 and float(np.abs(merged).max()) < _LARGEST_F16:
            merged = merged.astype(np.float16)
        if not np.isfinite(merged).all():
            raise BadData(f"{mmproj.path}: {name}.weight has values that are not finite")
        parts.mmproj[f"{name}.weight"] = merged
        parts.carried |= {module + LORA_A, module + LORA_B}


def _require(file: Gguf, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.shape != shape:
        raise _wrong(file, name, shape)
    return tensor


def _wrong(file: Gguf, name: str, shape: tuple[int, ...]) -> WrongBase:
    return WrongBase(f"{file.path}: has no {name} of {list(shape)}: it is of another model")


def _as_f16(name: str, array: NDArray[Any]) -> NDArray[np.float16]:
    if float(np.abs(array).max(initial=0)) > _LARGEST_F16:
        reason = f"{name} has values that float16 cannot hold: write the adapter in float32"
        raise SettingError("f32", reason)
    return array.astype(np.float16)
