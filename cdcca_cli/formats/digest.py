"""Content digests, version 1: of the parameters, whatever file stores them.

The digest of a set of named arrays is SHA-256 over

    b"cdcca overlay 1\\n"
    for each name in ascending order of its code points:
        field(name in UTF-8) field(dtype) field(shape) field(data)

    field(x) = length of x in bytes as an unsigned 64-bit little-endian number, then x
    dtype    = its name in safetensors, in ASCII: F32, F16, I8, U8, I32, I64, U16, ...
    shape    = each dimension as an unsigned 64-bit little-endian number
    data     = the elements in C order, little-endian

written as "sha256:" and 64 lower-case hexadecimal digits. -0.0 and 0.0 differ, as do NaN payloads.
"""

import hashlib
import re
import struct
from collections.abc import Mapping

import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U16": np.dtype("<u2"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def dtype_name(array: np.ndarray) -> str:
    """The safetensors name of an array's dtype; TypeError for one that no format uses."""
    name = _DTYPE_NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise TypeError(f"arrays of {array.dtype} have no place in cdcca files")
    return name


def little_endian_bytes(array: np.ndarray) -> bytes:
    """The elements in C order, little-endian."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="C")


def overlay_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """The digest of named arrays, "sha256:<64 hex digits>"."""
    sha = hashlib.sha256(b"cdcca overlay 1\n")
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        shape = struct.pack(f"<{array.ndim}Q", *array.shape)
        for field in (name.encode(), dtype_name(array).encode(), shape, little_endian_bytes(array)):
            sha.update(struct.pack("<Q", len(field)))
            sha.update(field)
    return f"sha256:{sha.hexdigest()}"


def is_digest(value: object) -> bool:
    """Whether this is a digest as written here."""
    return isinstance(value, str) and _PATTERN.fullmatch(value) is not None


def short(digest: str) -> str:
    """The digest as messages show it: sha256:1f2a90c4…"""
    return f"{digest[:15]}…"
