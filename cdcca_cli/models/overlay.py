"""The overlay of a loaded model: which parameters may change, their start values, set and read.

The paper's four groups, with the names of `module.named_parameters()`:

- `norm`: weights and biases of the language model's normalisation layers;
- `bias`: biases of the language model's linears (its head left out);
- `query`: the query tokens of a Q-Former;
- `lora`: `<linear>.lora_A` and `<linear>.lora_B` for the linears of attention and MLP in the
  language model and in the connector.

For LLaMA-2-7B with biases on every linear and 32 query tokens of 768 the first three are 266,240 +
1,359,872 + 24,576 = 1,650,688 parameters, the paper's 1.65 M. The vision tower is in no group:
teacher and student share it. Values are float32.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import Family
from cdcca_cli.formats.names import GROUPS, LORA_A, LORA_B
from cdcca_cli.models import lora

# The name of a block has its number in a list.
_IN_A_BLOCK = re.compile(r"\.\d+\.")


def trainable_groups(module: Any, row: Family) -> dict[str, list[str]]:
    """The names of each group, sorted; `lora` names linears, the others parameters."""
    norm: list[str] = []
    bias: list[str] = []
    linears: list[str] = []
    head = module.get_output_embeddings()
    for name, part in module.named_modules():
        in_language = name.startswith(f"{row.language_path}.")
        if isinstance(part, nn.Linear):
            if in_language and part is not head:
                if part.bias is not None:
                    bias.append(f"{name}.bias")
                if _IN_A_BLOCK.search(name):
                    linears.append(name)
            elif row.in_connector(name):
                linears.append(name)
        elif in_language and type(part).__name__.endswith("Norm"):
            norm += [f"{name}.{own}" for own, _ in part.named_parameters(recurse=False)]
    return {
        "norm": sorted(norm),
        "bias": sorted(bias),
        "query": sorted(row.query_names),
        "lora": sorted(linears),
    }


def initial_overlay(
    module: nn.Module, named: Mapping[str, list[str]], groups: Iterable[str], rank: int, seed: int
) -> dict[str, NDArray[np.float32]]:
    """The overlay that changes nothing: present values, LoRA's A random and its B zero.

    A is uniform in ±1/sqrt(in): PEFT's kaiming-uniform with a = sqrt(5). Each value takes 24 bits
    from Philox-4x64 keyed by SHA-256(seed, name), so A is the same on any machine.
    """
    wanted = set(groups)
    given = ",".join(sorted(wanted))
    if not wanted or not wanted <= set(GROUPS):
        raise SettingError("groups", f"expected some of {', '.join(GROUPS)}", given)
    if rank < 1:
        raise SettingError("lora_rank", "expected 1 or more", rank)
    parameters = dict(module.named_parameters())
    overlay: dict[str, NDArray[np.float32]] = {}
    for group in ("norm", "bias", "query"):
        if group in wanted:
            for name in named[group]:
                overlay[name] = as_array(parameters[name])
    if "lora" in wanted:
        for name in named["lora"]:
            linear = module.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            a_name = name + LORA_A
            overlay[a_name] = _uniform(a_name, rank, linear.in_features, seed)
            overlay[name + LORA_B] = np.zeros((linear.out_features, rank), np.float32)
    if not overlay:
        raise SettingError(
            "groups",
            "this model has no such parameters, so there is nothing to train: add another group",
            given,
        )
    return overlay


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
    for name, value in overlay.items():
        linear_name = name.removesuffix(LORA_A).removesuffix(LORA_B)
        if linear_name != name:
            linears[linear_name] = _checked_linear(module, overlay, linear_name)
        elif name not in parameters:
            raise BadData(f"overlay: parameter {name} is not in this model: not its overlay")
        elif tuple(parameters[name].shape) != value.shape:
            raise BadData(
                f"overlay: {name} has shape {list(value.shape)}, "
                f"the model's has {list(parameters[name].shape)}: not its overlay"
            )
    for name, value in overlay.items():
        if name in parameters and not name.endswith((LORA_A, LORA_B)):
            _set(module, name, torch.from_numpy(np.array(value, dtype=np.float32)))
    for name, linear in linears.items():
        a_RI = torch.from_numpy(np.array(overlay[name + LORA_A], dtype=np.float32))
        b_OR = torch.from_numpy(np.array(overlay[name + LORA_B], dtype=np.float32))
        lora.attach(linear, a_RI, b_OR, alpha)


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
