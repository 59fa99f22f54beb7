"""Hidden states of the frames that may be sent, on disk until the end of the stream.

A temporary file without a name (gone with the process, however it ends) in slots of one size; a
frame that falls out of the ranking gives its slot to the next. So the file grows with the largest
number of candidates at one time, and memory stays that of one frame.

It is in the folder that TMPDIR names; where that is in memory (tmpfs), name a folder on a disk.
"""

import os
import tempfile
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class Spool:
    """Tensors of one shape and dtype, kept by slot number."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="cdcca-")  # noqa: SIM115 (closed in __exit__)
        self._free: list[int] = []
        self._num_slots = 0
        self._like: tuple[torch.Size, torch.dtype] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def put(self, tensor: Tensor) -> int:
        """Write `tensor` and return its slot."""
        tensor = tensor.detach().cpu().contiguous()
        like = (tensor.shape, tensor.dtype)
        self._like = self._like or like
        if like != self._like:
            raise ValueError(f"a spool of {self._like} was given {like}")
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        slot = self._free.pop()
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        start = slot * len(data)
        while data:
            written = os.pwrite(self._file.fileno(), data, start)
            data, start = data[written:], start + written
        return slot

    def get(self, slot: int) -> Tensor:
        """Read the tensor in `slot`, on the CPU."""
        assert self._like is not None, "get() before put()"
        shape, dtype = self._like
        num_bytes = shape.numel() * dtype.itemsize
        data = bytearray(os.pread(self._file.fileno(), num_bytes, slot * num_bytes))
        if len(data) != num_bytes:
            raise OSError("the temporary file of sample is shorter than what was written to it")
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def free(self, slot: int) -> None:
        """Give `slot` back; its content is lost."""
        self._free.append(slot)
