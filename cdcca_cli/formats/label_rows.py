"""The rows of an entry of labels: how they are stored, and which of a picture's rows they are.

Shapes: R rows of all parts, L of one part, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import absmax


@dataclass(frozen=True, eq=False)
class Kept:
    """The rows of `count` that are kept: rows_L, (L,) int32, ascending."""

    rows_L: np.ndarray
    count: int


def stored(name: str, values_RC: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """The tensors of some rows, in `bits` a number where these can hold them."""
    with np.errstate(over="ignore"):
        if bits == 8:
            codes_RC, scales_R = absmax.quantize(values_RC)
            if np.isfinite(absmax.dequantize(codes_RC, scales_R)).all():
                return {name: codes_RC, f"{name}.scales": scales_R}
        if bits == 16:
            half_RC = values_RC.astype(np.float16)
            if np.isfinite(half_RC).all():
                return {name: half_RC}
    return {name: values_RC.astype(np.float32)}


def split(
    tensors: Mapping[str, np.ndarray], name: str, lengths: Sequence[int], where: str
) -> list[np.ndarray]:
    """The rows of each part, (L, C) float32. BadData."""
    stored = tensors[name]
    if stored.ndim != 2 or stored.dtype not in (np.float32, np.float16, np.int8):
        raise BadData(f"{where}: {name} of {stored.ndim} dimensions, {stored.dtype}")
    if len(stored) != sum(lengths):
        raise BadData(f"{where}: {len(stored):,} rows of {name}; expected {sum(lengths):,}")
    if stored.dtype == np.int8:
        scales_R = tensors[f"{name}.scales"]
        if scales_R.shape != stored.shape[:1] or scales_R.dtype != np.float32:
            raise BadData(f"{where}: {name} has another number of scales than of rows")
        if (scales_R < 0).any() or (stored == -128).any():
            raise BadData(f"{where}: {name} has scales below 0, or codes of -128")
        with np.errstate(over="ignore", invalid="ignore"):
            values = absmax.dequantize(stored, scales_R)
    else:
        values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise BadData(f"{where}: {name} has values that are not finite")
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


def split_kept(
    kept_R: np.ndarray, counts: Sequence[int], lengths: Sequence[int], name: str, where: str
) -> list[Kept]:
    """Which rows of each part are kept. BadData."""
    if kept_R.shape != (sum(lengths),) or kept_R.dtype != np.int32 or len(counts) != len(lengths):
        raise BadData(f"{where}: {name} names another number of rows than it has")
    parts = []
    for end, length, count in zip(accumulate(lengths), lengths, counts, strict=True):
        rows_L = kept_R[end - length : end]
        is_ascending = (rows_L[1:] > rows_L[:-1]).all()
        if length and (rows_L[0] < 0 or rows_L[-1] >= count or not is_ascending):
            raise BadData(f"{where}: {name}: rows that do not ascend, or not among its {count:,}")
        parts.append(Kept(rows_L, count))
    return parts
