"""Digests of a model's parameters: who made these tokens, which model gave this answer.

Both are `formats.digest.overlay_digest` over parameters in name order, each cast to bfloat16 and
taken as its 16 bits (uint16). The cast makes a teacher stored in 32 bits and a student stored in 16
agree on the tower they share. (A tower stored as float16 on one side agrees with float32 on the
other where the float32 values are float16's, as in the public checkpoints.)

Of a quantised weight the codes are taken, not their scales: those are rounded by the first answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcca_cli.formats import records
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.models import quantization


def of_tower(tower: nn.Module) -> str:
    """Digest of a vision tower's parameters, by their names relative to the tower."""
    return overlay_digest(_Bits({name: p.detach() for name, p in tower.named_parameters()}))


def of_parameters(module: nn.Module) -> str:
    """Digest of all of a model's parameters."""
    quantization.unpack(module)
    return overlay_digest(_Bits({name: p.detach() for name, p in module.named_parameters()}))


def of_overlay(values: Mapping[str, NDArray[Any]]) -> str:
    """Digest of an overlay, as a device folder names it."""
    return overlay_digest(values)


def of_json(value: object) -> str:
    """Digest of something that JSON can say."""
    said = np.frombuffer(records.dump_json(value).encode(), np.uint8)
    return overlay_digest({"json": said})


class _Bits(Mapping[str, NDArray[Any]]):
    """Tensors as arrays of their bfloat16 bits, converted one at a time: memory stays flat."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
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
