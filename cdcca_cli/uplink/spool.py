"""Frames that may be sent, halfway through the vision tower, on disk until the end of the stream.

A temporary file without a name, in slots that are used again for frames of the same size. It is in
TMPDIR: set that to a folder on a disk if the default is in memory (tmpfs).
"""

import tempfile
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cdcca_cli.models import Trunk


@dataclass(frozen=True)
class _Like:
    """A tensor without its values. only: the one number that all of it is, which needs no disk."""

    shape: torch.Size
    dtype: torch.dtype
    only: float | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_Like":
        is_hollow = set(tensor.stride()) == {0}
        return cls(tensor.shape, tensor.dtype, tensor.flatten()[0].item() if is_hollow else None)

    @property
    def num_bytes(self) -> int:
        return 0 if self.only is not None else self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Slot:
    """Where a frame is, and what it is without its values."""

    place: int
    trunk: Trunk
    likes: tuple[_Like, ...]

    @property
    def num_bytes(self) -> int:
        return sum(like.num_bytes for like in self.likes)


class Spool:
    """`Trunk`s, kept by their slots. Close it, with `closing`."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="cdcca-")  # noqa: SIM115 (closed by `close`)
        self.close = self._file.close
        self._free: dict[int, list[int]] = {}
        self._end = 0

    def put(self, trunk: Trunk) -> Slot:
        """Write a frame and return its slot."""
        tensors = _tensors(trunk)
        likes = tuple(map(_Like.of, tensors))
        names = dict.fromkeys(trunk.picture.inputs, torch.empty(0))
        empty = replace(trunk, picture=replace(trunk.picture, inputs=names), states=())
        num_bytes = sum(like.num_bytes for like in likes)
        if self._free.get(num_bytes):
            place = self._free[num_bytes].pop()
        else:
            place, self._end = self._end, self._end + num_bytes
        self._file.seek(place)
        for tensor, like in zip(tensors, likes, strict=True):
            if like.only is None:
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                self._file.write(flat.view(torch.uint8).numpy().data)
        return Slot(place, empty, likes)

    def get(self, slot: Slot) -> Trunk:
        """Read the frame in `slot`, on the CPU."""
        self._file.seek(slot.place)
        tensors = [self._read(like) for like in slot.likes]
        names = list(slot.trunk.picture.inputs)
        inputs = dict(zip(names, tensors, strict=False))
        picture = replace(slot.trunk.picture, inputs=inputs)
        return replace(slot.trunk, picture=picture, states=tuple(tensors[len(names) :]))

    def _read(self, like: _Like) -> Tensor:
        if like.only is not None:
            return torch.tensor([like.only], dtype=like.dtype).expand(like.shape)
        data = bytearray(self._file.read(like.num_bytes))
        if len(data) != like.num_bytes:
            raise OSError("the temporary file of sample is shorter than what was written to it")
        return torch.frombuffer(data, dtype=like.dtype).reshape(like.shape)

    def free(self, slot: Slot) -> None:
        """Give `slot` back; its content is lost."""
        self._free.setdefault(slot.num_bytes, []).append(slot.place)


def _tensors(trunk: Trunk) -> list[Tensor]:
    return [*trunk.picture.inputs.values(), *trunk.states]
