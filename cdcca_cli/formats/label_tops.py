"""The distributions of answer tokens in a record of labels: how they are stored.

Shapes: A answer tokens, K likeliest tokens, R rows of all parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from cdcca_cli.errors import BadData

LOWEST = -65504.0
"""The log-probability that stands for a probability of 0: the lowest number of 16 bits."""
MOST_LOGP = 0.01
"""A log-probability may be above 0 by what rounding adds."""
MOST_PIECE_BYTES = (1 << 16) - 1


@dataclass(eq=False)
class Top:
    """The likeliest tokens at each of A answer tokens, and all others as one.

    logp_AK: float32, descending; rest_A: float32. ids_AK: int32, -1 where there are fewer, or None;
    then pieces_AK are the tokens' texts, in bytes, b"" for the end token and where there are fewer.
    """

    logp_AK: np.ndarray
    rest_A: np.ndarray
    ids_AK: np.ndarray | None = None
    pieces_AK: list[list[bytes]] | None = None


def rest_of(logp_AK: np.ndarray) -> np.ndarray:
    """The log-probability of all other tokens, (A,) float32; below 1e-6, which rounding gives, 0.

    From the likeliest alone, so that a teacher that lists no others gives the same.
    """
    left_A = 1 - np.exp(logp_AK.astype(np.float64)).sum(1)
    log_A = np.log(np.maximum(left_A, 1e-6))
    return np.where(left_A < 1e-6, LOWEST, log_A).astype(np.float32)


def stored(tops: Sequence[Top | None], has_vocabulary: bool, where: str) -> dict[str, np.ndarray]:
    """The tensors of some distributions, at least one. Raises: BadData for what cannot be read."""
    there = [top for top in tops if top is not None]
    width = max(top.logp_AK.shape[1] for top in there)
    has_ids = {top.ids_AK is not None for top in there}
    if len(has_ids) > 1 or (True in has_ids and not has_vocabulary):
        raise BadData(f"{where}: top has ids of no vocabulary, or of some answers alone")
    for values in (part for top in there for part in (top.logp_AK, top.rest_A)):
        if np.isnan(values).any() or (values > MOST_LOGP).any():
            raise BadData(f"{where}: top has values that are no log-probabilities")

    def wide(values_AK: np.ndarray, fill: float) -> np.ndarray:
        missing = width - values_AK.shape[1]
        return np.pad(values_AK, ((0, 0), (0, missing)), constant_values=fill)

    def half(values: np.ndarray) -> np.ndarray:
        return np.maximum(values, LOWEST).astype(np.float16)

    tensors = {
        "top": half(np.concatenate([wide(top.logp_AK, LOWEST) for top in there])),
        "top.rest": half(np.concatenate([top.rest_A for top in there])),
    }
    ids = [top.ids_AK for top in there if top.ids_AK is not None]
    if ids:
        return tensors | {"top.ids": np.concatenate([wide(part, -1) for part in ids])}
    rows = [row + [b""] * (width - len(row)) for top in there for row in top.pieces_AK or []]
    if any(len(piece) > MOST_PIECE_BYTES for row in rows for piece in row):
        raise BadData(f"{where}: top has a token of more than {MOST_PIECE_BYTES:,} bytes")
    sizes = np.array([[len(piece) for piece in row] for row in rows], np.uint16)
    text = np.frombuffer(b"".join(piece for row in rows for piece in row), np.uint8)
    return tensors | {"top.pieces": sizes.reshape(len(rows), width), "top.bytes": text}


def split(
    tensors: Mapping[str, np.ndarray], lengths: Sequence[int], where: str
) -> list[Top | None]:
    """The distributions of each question, None without any. Raises: BadData."""
    top, rest, total = tensors["top"], tensors["top.rest"], sum(lengths)
    is_sound = top.ndim == 2 and top.dtype == rest.dtype == np.float16
    if not is_sound or len(top) != total or rest.shape != (total,):
        raise BadData(f"{where}: {len(top):,} rows of top; expected {total:,} of F16")
    logp_RK, rest_R = top.astype(np.float32), rest.astype(np.float32)
    if not all(np.isfinite(part).all() and (part <= MOST_LOGP).all() for part in (logp_RK, rest_R)):
        raise BadData(f"{where}: top has values that are no log-probabilities")
    ids_RK = tensors.get("top.ids")
    pieces = None
    if ids_RK is not None:
        if ids_RK.dtype != np.int32 or ids_RK.shape != logp_RK.shape or (ids_RK < -1).any():
            raise BadData(f"{where}: top has other ids than log-probabilities")
    else:
        pieces = _pieces(tensors["top.pieces"], tensors["top.bytes"], logp_RK.shape, where)
    found: list[Top | None] = []
    for begin, end in pairwise([0, *accumulate(lengths)]):
        at = slice(begin, end)
        part = Top(
            logp_RK[at],
            rest_R[at],
            None if ids_RK is None else ids_RK[at],
            None if pieces is None else pieces[at],
        )
        found.append(part if end > begin else None)
    return found


def _pieces(
    sizes_RK: np.ndarray, text: np.ndarray, shape: tuple[int, ...], where: str
) -> list[list[bytes]]:
    is_sound = sizes_RK.dtype == np.uint16 and sizes_RK.shape == shape
    if not is_sound or text.dtype != np.uint8 or text.shape != (int(sizes_RK.sum()),):
        raise BadData(f"{where}: top has other pieces of text than log-probabilities")
    ends = np.cumsum(sizes_RK.ravel(), dtype=np.int64).tolist()
    data = text.tobytes()
    flat = [data[begin:end] for begin, end in pairwise([0, *ends])]
    width = shape[1]
    return [flat[at * width : (at + 1) * width] for at in range(shape[0])]
