"""Hidden states of the frames that may be sent, on disk until the end of the stream.

A temporary file without a name, in slots of one size that are used again. It is in TMPDIR: set that
to a folder on a disk if the default is in memory (tmpfs).
"""

import tempfile

import torch
from torch import Tensor


class Spool:
    """Tensors of one shape and dtype, kept by slot number. Close it, with `closing`."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="cdcca-")  # noqa: SIM115 (closed by `close`)
        self.close = self._file.close
        self._free: list[int] = []
        self._num_slots = 0
        self._like: tuple[torch.Size, torch.dtype] | None = None

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
        self._file.seek(slot * len(data))
        self._file.write(data)
        return slot

    def get(self, slot: int) -> Tensor:
        """Read the tensor in `slot`, on the CPU."""
        assert self._like is not None, "get() before put()"
        shape, dtype = self._like
        num_bytes = shape.numel() * dtype.itemsize
        self._file.seek(slot * num_bytes)
        data = bytearray(self._file.read(num_bytes))
        if len(data) != num_bytes:
            raise OSError("the temporary file of sample is shorter than what was written to it")
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def free(self, slot: int) -> None:
        """Give `slot` back; its content is lost."""
        self._free.append(slot)
