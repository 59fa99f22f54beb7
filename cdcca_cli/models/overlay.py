"""The overlay of a loaded model: which parameters may change, their start values, set and read.

The paper's four groups, the last in two parts, with the names of `module.named_parameters()`:

- `norm`: weights and biases of the language model's normalisation layers;
- `bias`: biases of the language model's linears (its head left out). A linear that has none gets
  one of zeros when an overlay that names it is installed;
- `query`: the query tokens of a Q-Former;
- `lora.language`, `lora.connector`: `<linear>.lora_A` and `<linear>.lora_B` for the linears in the
  blocks of the language model, and for those of the connector. Experts that share one 3-D weight
  are no linears and get no LoRA.

For LLaMA-2-7B with 32 query tokens of 768 the first three are 266,240 +
1,359,872 + 24,576 = 1,650,688 parameters, the paper's 1.65 M. The vision tower is in no group:
teacher and student share it. Values are float32.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import Family
from cdcca_cli.formats.names import GROUP_NAMES, LORA_A, LORA_B, LORA_PARTS, split_groups
from cdcca_cli.models import lora

# The name of a block has its number in a list.
_IN_A_BLOCK = re.compile(r"\.\d+\.")


def trainable_groups(module: Any, row: Family) -> dict[str, list[str]]:
    """The names of each group, sorted; LoRA's are names of linears, the others of parameters.

    `bias` has every linear of the language model, with a bias or without one as yet.
    """
    norm: list[str] = []
    bias: list[str] = []
    language: list[str] = []
    connector: list[str] = []
    head = module.get_output_embeddings()
    connectors = tuple(f"{path}." for path in row.connector_paths)
    for name, part in module.named_modules():
        in_language = name.startswith(f"{row.language_path}.")
        if isinstance(part, nn.Linear):
            if in_language and part is not head:
                bias.append(f"{name}.bias")
                if _IN_A_BLOCK.search(name):
                    language.append(name)
            elif f"{name}.".startswith(connectors):
                connector.append(name)
        elif in_language and is_norm(part):
            norm += [f"{name}.{own}" for own, _ in part.named_parameters(recurse=False)]
    return {
        "norm": sorted(norm),
        "bias": sorted(bias),
        "query": sorted(row.query_names),
        "lora.language": sorted(language),
        "lora.connector": sorted(connector),
    }


def is_norm(part: nn.Module) -> bool:
    """Whether a module normalises.

    By the name of its class, or because one number a channel (and perhaps a second) is all it has:
    so gated norms are found, and neither gates nor the constants of a recurrence.
    """
    if type(part).__name__.endswith("Norm"):
        return True
    own = dict(part.named_parameters(recurse=False))
    is_leaf = next(part.children(), None) is None and not isinstance(part, nn.PReLU)
    is_affine = set(own) in ({"weight"}, {"weight", "bias"})
    return is_leaf and is_affine and all(parameter.ndim == 1 for parameter in own.values())


def fused_experts(module: nn.Module) -> str:
    """The experts that get no LoRA, in words, such as `the fused experts of 2 layers (Experts)`.

    Empty if there are none.
    """
    kinds = Counter(
        type(part).__name__
        for part in module.modules()
        if "Experts" in type(part).__name__
        and any(parameter.ndim == 3 for parameter in part.parameters(recurse=False))
    )
    layers = f"{kinds.total()} layer{'s' if kinds.total() > 1 else ''}"
    return f"the fused experts of {layers} ({', '.join(sorted(kinds))})" if kinds else ""


def initial_overlay(
    module: nn.Module, named: Mapping[str, list[str]], groups: Iterable[str], rank: int, seed: int
) -> dict[str, NDArray[np.float32]]:
    """The overlay that changes nothing: present values, new biases and LoRA's B zero, A random.

    A is uniform in ±1/sqrt(in): PEFT's kaiming-uniform with a = sqrt(5). Each value takes 24 bits
    from Philox-4x64 keyed by SHA-256(seed, name), so A is the same on any machine.
    """
    asked = set(groups)
    given = ",".join(sorted(asked))
    if not asked or not asked <= set(GROUP_NAMES):
        raise SettingError("groups", f"expected some of {', '.join(GROUP_NAMES)}", given)
    if rank < 1:
        raise SettingError("lora_rank", "expected 1 or more", rank)
    parameters = dict(module.named_parameters())
    overlay: dict[str, NDArray[np.float32]] = {}
    for group in split_groups(asked):
        for name in named[group]:
            if group in LORA_PARTS:
                inputs, outputs = _size(module, name)
                overlay[name + LORA_A] = _uniform(name + LORA_A, rank, inputs, seed)
                overlay[name + LORA_B] = np.zeros((outputs, rank), np.float32)
            elif name in parameters:
                overlay[name] = as_array(parameters[name])
            else:
                overlay[name] = np.zeros(_size(module, name.removesuffix(".bias"))[1], np.float32)
    if not overlay:
        experts = fused_experts(module)
        raise SettingError(
            "groups",
            f"this model has no such parameters{experts and f' ({experts} get no LoRA)'}, so there "
            "is nothing to train: add another group",
            given,
        )
    return overlay


def _size(module: nn.Module, name: str) -> tuple[int, int]:
    """Inputs and outputs of a linear."""
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.in_features, linear.out_features


def _uniform(name: str, rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    source = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    raw = source.random_raw(rows * columns) >> np.uint64(40)
    unit = raw.astype(np.float32) * np.float32(2**-23) - np.float32(1)
    bound = np.float32(1 / np.sqrt(columns))
    return (unit * bound).reshape(rows, columns)


def as_array(parameter: torch.Tensor) -> NDArray[np.float32]:
    """A float32 copy on the CPU."""
    array: NDArray[np.float32] = parameter.detach().to("cpu", torch.float32).numpy().copy()
    return array


def install(module: nn.Module, overlay: Mapping[str, NDArray[np.float32]], alpha: float) -> None:
    """Put an overlay's values into `module`; all are checked before any is set. Raises: BadData."""
    parameters = dict(module.named_parameters())
    linears: dict[str, nn.Linear] = {}
    new: dict[str, nn.Linear] = {}
    for name, value in overlay.items():
        linear_name = name.removesuffix(LORA_A).removesuffix(LORA_B)
        if linear_name != name:
            linears[linear_name] = _checked_linear(module, overlay, linear_name)
            continue
        if name not in parameters:
            new[name] = _without_bias(module, name)
        own = parameters[name].shape if name in parameters else (new[name].out_features,)
        if tuple(own) != value.shape:
            raise BadData(
                f"overlay: {name} has shape {list(value.shape)}, "
                f"the model's has {list(own)}: not its overlay"
            )
    for linear in new.values():
        zeros = torch.zeros(linear.out_features, device=linear.weight.device)
        linear.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))
    for name, value in overlay.items():
        if not name.endswith((LORA_A, LORA_B)):
            _set(module, name, torch.from_numpy(np.array(value, dtype=np.float32)))
    for name, linear in linears.items():
        a_RI = torch.from_numpy(np.array(overlay[name + LORA_A], dtype=np.float32))
        b_OR = torch.from_numpy(np.array(overlay[name + LORA_B], dtype=np.float32))
        lora.attach(linear, a_RI, b_OR, alpha)


def _without_bias(module: nn.Module, name: str) -> nn.Linear:
    """The linear that gets the bias `name`, which it lacks. Raises: BadData."""
    path, _, own = name.rpartition(".")
    try:
        part = module.get_submodule(path)
    except AttributeError:
        part = module
    if own != "bias" or not isinstance(part, nn.Linear) or part.bias is not None:
        raise BadData(f"overlay: parameter {name} is not in this model: not its overlay")
    return part


def _checked_linear(
    module: nn.Module, overlay: Mapping[str, NDArray[np.float32]], name: str
) -> nn.Linear:
    try:
        linear = module.get_submodule(name)
    except AttributeError:
        linear = nn.Identity()
    if not isinstance(linear, nn.Linear):
        raise BadData(f"overlay: LoRA for {name}, which is no linear of this model")
    a_RI, b_OR = overlay.get(name + LORA_A), overlay.get(name + LORA_B)
    if a_RI is None or b_OR is None:
        raise BadData(f"overlay: LoRA for {name} has only one of lora_A and lora_B")
    expected = (linear.in_features, linear.out_features)
    fits = a_RI.ndim == b_OR.ndim == 2 and a_RI.shape[0] == b_OR.shape[1] > 0
    if not fits or (a_RI.shape[1], b_OR.shape[0]) != expected:
        raise BadData(
            f"overlay: LoRA for {name} has shapes {list(a_RI.shape)} and {list(b_OR.shape)}, "
            f"the linear has {expected[0]} inputs and {expected[1]} outputs"
        )
    return linear


def _set(module: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, own = name.rpartition(".")
    part = module.get_submodule(path)
    present = part._parameters[own]
    assert present is not None
    if present.dtype == torch.float32:
        with torch.no_grad():
            present.copy_(value)
    else:
        part._parameters[own] = nn.Parameter(value.to(present.device), requires_grad=False)


def read_back(module: nn.Module, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """The present values of an overlay's parameters, as float32 copies."""
    parameters = dict(module.named_parameters())
    return {name: as_array(parameters[name]) for name in names}
