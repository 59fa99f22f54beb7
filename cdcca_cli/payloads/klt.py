"""Tokens as whole numbers of one step in a codebook's transform, and back (codec `klt`).

    y = (x - mean) A             (N, K); A = forward / scale, weighted by what the teacher looks at
    z = V' y                     (N, K); only if all N tokens are kept, otherwise z = y
    code = round(z / step)       halves to even, within +-2^24
    x' = mean + V (code * step) B                   B = inverse * scale; never shrunk towards zero

The transform is a Karhunen-Loeve transform (KLT; Goyal 2001, "Theoretical foundations of transform
coding"). Codes come in descending order of their expected size, so that those of many frames can be
coded column by column (`numerics.columns`). Everything is in float32, whose last bits depend on the
machine: two decoders agree closely, not exactly, so compare codes and not tokens.

Shapes: N visual tokens, C channels, K components, n <= N tokens kept.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData
from cdcca_cli.numerics.uniform import quantize, restore

if TYPE_CHECKING:
    from cdcca_cli.formats.codebook import Codebook

CODEC = "klt"


def num_columns(num_kept: int, codebook: "Codebook") -> int:
    """The width of a frame's codes: N * K with all tokens kept, in one row; K with fewer."""
    is_all = num_kept == codebook.num_tokens
    return codebook.num_tokens * codebook.components if is_all else codebook.components


def encode(
    tokens_nC: NDArray[np.floating],
    positions_n: NDArray[np.integer],
    codebook: "Codebook",
    step: float,
) -> NDArray[np.int32]:
    """The codes: (1, N * K) of all tokens, (n, K) of fewer. Raises: BadData.

    Args: positions_n: of the tokens, ascending, in [0, N). step: exactly a float32.
    """
    _check(tokens_nC.shape, positions_n, codebook, codebook.channels)
    with np.errstate(over="ignore", invalid="ignore"):
        x_nC = tokens_nC.astype(np.float32) - codebook.mean_NC[positions_n]
        y_nK = x_nC @ codebook.forward_CK
        if len(positions_n) < codebook.num_tokens:
            return quantize(y_nK[:, codebook.component_order], step)
        z_NK = codebook.positions_NN.T @ y_nK
    return quantize(z_NK.reshape(1, -1)[:, codebook.order], step)


def decode(
    codes: NDArray[np.integer],
    positions_n: NDArray[np.integer],
    codebook: "Codebook",
    step: float,
) -> NDArray[np.float32]:
    """The tokens (n, C), float32, of codes as `encode` gives them.

    Raises: BadData for codes of another shape, or values that are not finite.
    """
    n, k = len(positions_n), codebook.components
    is_all = n == codebook.num_tokens
    expected = (1, n * k) if is_all else (n, k)
    if codes.shape != expected:
        raise BadData(
            f"codes of shape {codes.shape}; the codebook and {n:,} tokens need {expected}"
        )
    _check((n, k), positions_n, codebook, k)
    values = restore(codes, step)
    ordered = np.empty_like(values)
    ordered[:, codebook.order if is_all else codebook.component_order] = values
    with np.errstate(over="ignore", invalid="ignore"):
        y_nK = codebook.positions_NN @ ordered.reshape(n, k) if is_all else ordered
        x_nC = y_nK @ codebook.inverse_KC
        tokens_nC = (x_nC + codebook.mean_NC[positions_n]).astype(np.float32, copy=False)
    if not np.isfinite(tokens_nC).all():
        raise BadData(f"codes of step {step:g} give tokens that are not finite")
    return tokens_nC


def _check(
    shape: tuple[int, ...], positions_n: NDArray[np.integer], codebook: "Codebook", width: int
) -> None:
    """Refuse tokens of another tower's shape, and positions that are not ascending or not there."""
    if shape != (len(positions_n), width) or not len(positions_n):
        raise BadData(
            f"tokens of shape {shape} at {len(positions_n):,} positions; the codebook is for "
            f"{codebook.num_tokens:,} tokens of {codebook.channels:,} channels"
        )
    first, last = int(positions_n[0]), int(positions_n[-1])
    if first < 0 or last >= codebook.num_tokens or (np.diff(positions_n) <= 0).any():
        raise BadData(f"positions are not ascending within 0 to {codebook.num_tokens - 1:,}")
