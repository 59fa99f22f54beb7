"""Digests of a model's parameters.

The digest is `formats.digest.overlay_digest` of the parameters, each cast to bfloat16 and taken as
16 bits (uint16), so that a teacher stored in 32 bits and a student in 16 agree on the tower they
share. For a quantised weight it covers the codes, not the scales, which the first answer rounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcca_cli.families import Family
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.models import quantization


def of_parameters(module: nn.Module) -> str:
    """Digest of all parameters of a module, by their names inside it."""
    return _digest(module, ())


def of_tower(module: nn.Module, row: Family) -> str:
    """Digest of the vision tower's parameters, by their names inside it.

    A connector inside the tower (Qwen's `merger`) is left out: its width is the language model's,
    so it differs between models that share the tower.
    """
    inside = f"{row.tower_path}."
    paths = [path.removeprefix(inside) for path in row.connector_paths if path.startswith(inside)]
    return _digest(module.get_submodule(row.tower_path), tuple(f"{path}." for path in paths))


def _digest(module: nn.Module, left_out: tuple[str, ...]) -> str:
    quantization.unpack(module)
    tensors = {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if not name.startswith(left_out)
    }
    return overlay_digest(_Bits(tensors))


def of_json(value: object) -> str:
    """Digest of a JSON value."""
    text = np.frombuffer(records.dump_json(value).encode(), np.uint8)
    return overlay_digest({"json": text})


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest of parameters by name, which are asked for one at a time."""
    return overlay_digest(_Bits(tensors))


def of_vocabulary(words: Mapping[str, int], rows: int, end_ids: Sequence[int]) -> str:
    """Digest of a tokenizer's table, the number of the head's rows and the end tokens."""
    table = sorted(words.items(), key=lambda item: (item[1], item[0]))
    return of_json([table, rows, list(end_ids)])


class _Bits(Mapping[str, NDArray[Any]]):
    """Tensors as arrays of their bfloat16 bits, converted one at a time to save memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        if tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16).view(torch.int16)
            return tensor.cpu().contiguous().numpy().view(np.uint16)
        array: NDArray[Any] = tensor.cpu().contiguous().numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
