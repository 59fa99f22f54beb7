"""A codebook's transform from tokens and from what the teacher looks at, in numpy.

Reverse water-filling (Cover & Thomas 2006, 10.3.3) gives every component the same step if the error
that counts is a plain sum of squares. What counts is the error e of a token as the teacher sees it,
e' W e, so the KLT is of W^(1/2) x. W and x are in units of each channel's deviation, which makes
the result independent of the channels' scales, outliers of ViTs included.

Shapes: F frames, N visual tokens, C channels, K components.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData

Floats = NDArray[np.float64]

FLOOR = 1e-4
"""The least that a direction counts, relative to the one that counts most."""
FINEST_STEP = 0.5
_FARTHEST_MEAN = 2.0**-15  # scales in a mean that 16 bits hold
_SMALLEST_SCALE = 2.0**-24  # of a channel that does not vary, relative to the largest
_NEVER_SHOWN = 0.25  # a component of a smaller deviation, in steps, is rounded to zero in 95 %


@dataclass(frozen=True)
class Transform:
    """The arrays of a codebook, by their names in it, before rounding."""

    scale: Floats
    mean: Floats
    forward: Floats
    inverse: Floats
    positions: Floats
    sizes: Floats

    def arrays(self) -> dict[str, np.ndarray]:
        """As the file holds them. Raises: BadData beyond the range of 16 bits."""
        with np.errstate(over="ignore"):
            rounded = {name: value.astype(np.float16) for name, value in vars(self).items()}
        rounded["scale"] = self.scale.astype(np.float32)
        if not all(np.isfinite(value).all() for value in rounded.values()):
            raise BadData("a codebook of these tokens has values that are too large for 16 bits")
        return rounded


def fit(tokens_FNC: NDArray[np.floating], weight_CC: Floats, components: int | None) -> Transform:
    """The transform for tokens whose error counts by `weight_CC`.

        x = (tokens - position means) / scale           deviations are 1, of dead channels less
        R = W^(1/2), eigenvalues at least FLOOR of the largest; W in the same units
        cov(R x) = U diag(e) U',  e descending,  u^2 = mean(e)
        A = R U / u,  B = u U' R^-1                     mean variance of A' x is 1
        V: eigenvectors over positions of sum_k y y',  y = A' x

    Args: weight_CC: symmetric, positive semidefinite, of the tokens' own units. components: K;
        None: those that are not always zero at FINEST_STEP.
    Raises: BadData if the tokens do not vary.
    """
    mean_NC = tokens_FNC.mean(0, dtype=np.float64)
    x_FNC = tokens_FNC - mean_NC
    scale_C = np.sqrt(np.square(x_FNC).mean((0, 1)))
    if not (scale_C.max(initial=0) > 0 and np.isfinite(scale_C).all()):
        raise BadData("the frames have the same tokens, or tokens that are not finite")
    least_C = np.maximum(np.abs(mean_NC).max(0) * _FARTHEST_MEAN, scale_C.max() * _SMALLEST_SCALE)
    scale_C = np.maximum(scale_C, least_C).astype(np.float32).astype(np.float64)
    x_FNC /= scale_C
    weights, axes = np.linalg.eigh(weight_CC * scale_C * scale_C[:, None])
    if not weights[-1] > 0:
        raise BadData("the teacher's queries do not depend on the tokens")
    roots = np.sqrt(np.maximum(weights / weights[-1], FLOOR))
    root_CC, inverse_CC = (axes * roots) @ axes.T, (axes / roots) @ axes.T
    flat = x_FNC.reshape(-1, x_FNC.shape[-1])
    variances, basis = _descending(root_CC @ (flat.T @ flat / len(flat)) @ root_CC)
    unit = np.sqrt(variances.mean())
    deviations = np.sqrt(np.maximum(variances, 0)) / unit
    shown = int(np.count_nonzero(deviations > _NEVER_SHOWN * FINEST_STEP))
    k = max(shown if components is None else min(components, len(scale_C)), 1)
    forward_CK = root_CC @ basis[:, :k] / unit
    y_FNK = x_FNC @ forward_CK
    _, positions_NN = _descending(np.einsum("fnk,fmk->nm", y_FNK, y_FNK, optimize=True))
    return Transform(
        scale_C,
        mean_NC / scale_C,
        forward_CK,
        unit * basis[:, :k].T @ inverse_CC,
        positions_NN,
        np.abs(positions_NN.T @ y_FNK).mean(0),
    )


def _descending(symmetric: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, the largest first, and eigenvectors, whose largest entries are above zero."""
    values, vectors = np.linalg.eigh(symmetric)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(0)
    return values[::-1], vectors * np.sign(vectors[largest, np.arange(len(vectors))])
