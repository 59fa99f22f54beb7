"""The rules that choose which visual tokens of a frame go up, where fewer than all are kept.

    variance, random, norm, received    the tokens of highest score
    spread                              high variance, and far from the tokens already chosen
    grid                                an even lattice over the picture
    tome                                similar tokens merged into their mean (Token Merging)

`choose` is the one interface, in numpy: one frame, from its tokens and scores alone. `sampling`
makes the scores, by `uncertainty`, `models.attention`, `token_norm` or random numbers. Of equal
tokens the one at the lower position is taken.

Legend: N visual tokens of a frame, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdcca_cli.errors import SettingError


@dataclass(frozen=True, eq=False)
class Chosen:
    """The tokens to send.

    positions: (N_kept,) int32, ascending. tokens: (N_kept, C) float32. scores: (N_kept,) float32,
    why each was kept; for `tome` the number of tokens that it is the mean of; None for `grid`.
    """

    positions: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray | None


def choose(
    rule: str,
    tokens_NC: np.ndarray,
    num_kept: int,
    *,
    scores_N: np.ndarray | None = None,
    grid: tuple[int, ...] = (),
    fixed: Sequence[int] = (),
) -> Chosen:
    """The `num_kept` tokens of a rule; all N, unchanged, if that is as many.

    Args:
        scores_N: larger is kept first, for all rules but `grid` and `tome`; 0 or more for `spread`,
            which takes a variance.
        grid: rows and columns of the patches, for `grid` and `tome`. Their tokens, row by row,
            follow the class token, if the tower has one, which these rules keep first. Empty if
            the picture is no single grid.
        fixed: places without content, which are kept and not ranked.
    Raises: SettingError for `grid` and `tome` without a grid.
    """
    if rule in ("grid", "tome") and not grid:
        raise SettingError("by", "needs a picture that is one grid of tokens, not tiles", rule)
    if len(fixed):
        return _beside(fixed, rule, tokens_NC, num_kept, scores_N)
    num_tokens = len(tokens_NC)
    if not 1 <= num_kept <= num_tokens:
        raise ValueError(f"{num_kept} of {num_tokens} tokens cannot be kept")
    if num_kept == num_tokens:
        return Chosen(np.arange(num_tokens, dtype=np.int32), tokens_NC, scores_N)
    if rule in ("grid", "tome"):
        num_class = num_tokens - grid[0] * grid[1]
        if not 0 <= num_class < num_tokens:
            raise ValueError(f"{num_tokens} tokens for a grid of {grid[0]} x {grid[1]}")
        first = np.arange(min(num_class, num_kept))
        num_patches = num_kept - len(first)
        if rule == "tome":
            places, means_KC, sizes = merged(tokens_NC[num_class:], num_patches)
            kept = np.concatenate([first, places + num_class]).astype(np.int32)
            tokens = np.concatenate([tokens_NC[first], means_KC])
            return Chosen(kept, tokens, np.concatenate([np.ones(len(first)), sizes], dtype="f4"))
        places, scores_N = lattice(grid, num_patches) + num_class, None
        positions = np.concatenate([first, places])
    elif scores_N is None:
        raise ValueError(f"the rule {rule} needs scores")
    elif rule == "spread":
        positions = spread(tokens_NC, scores_N, num_kept)
    else:
        positions = highest(scores_N, num_kept)
    scores = None if scores_N is None else scores_N[positions]
    return Chosen(positions.astype(np.int32), tokens_NC[positions], scores)


def _beside(
    fixed: Sequence[int],
    rule: str,
    tokens_NC: np.ndarray,
    num_kept: int,
    scores_N: np.ndarray | None,
) -> Chosen:
    """`num_kept` tokens with the fixed ones among them, and at least one other."""
    others = np.setdiff1d(np.arange(len(tokens_NC)), fixed)
    count = min(max(num_kept - len(fixed), 1), len(others))
    ranked = None if scores_N is None else scores_N[others]
    chosen = choose(rule, tokens_NC[others], count, scores_N=ranked)
    positions = np.concatenate([others[chosen.positions], np.asarray(fixed)])
    order = np.argsort(positions)
    tokens = np.concatenate([chosen.tokens, tokens_NC[list(fixed)]])
    scores = None
    if chosen.scores is not None:
        scores = np.concatenate([chosen.scores, np.zeros(len(fixed), np.float32)])[order]
    return Chosen(positions[order].astype(np.int32), tokens[order], scores)


def highest(scores_N: np.ndarray, num_kept: int) -> np.ndarray:
    """Positions of the highest scores, ascending: of 3, 9, 1, 9, 5 the best three are 1, 3, 4."""
    return np.sort(np.argsort(-scores_N, kind="stable")[:num_kept])


def count_above(scores_N: np.ndarray, beta: float) -> int:
    """How many scores are above `beta`, at least 1: a frame sends its best token in any case."""
    return max(1, int(np.count_nonzero(scores_N > beta)))


def token_norm(tokens_NC: np.ndarray) -> np.ndarray:
    """Mean square of each token over its channels, (N,)."""
    return np.square(tokens_NC).mean(-1)


def lattice(grid: tuple[int, ...], num_kept: int) -> np.ndarray:
    """Places on a grid, numbered row by row, nearest to an even lattice: (num_kept,), ascending.

    The lattice has r rows, whose cells are as near to squares as R x C places allow,

        r = sqrt(num_kept R / C), rounded and at most R, so that no row needs more than C points,

    with num_kept / r points in each, rounded down or up in turn. Row i of r is at (i + 1/2) R / r,
    that is in the grid's row floor((2 i + 1) R / 2 r), and points within a row likewise. All
    are distinct, because neighbours are at least one row or column apart.

    Example: 4 of a 4 x 4 grid: r = 2, rows floor(4/4) = 1 and floor(12/4) = 3, columns likewise:
    places 5, 7, 13, 15. Of 6 places in a row 4: floor(6/8) = 0, floor(18/8) = 2, 3, 5.
    """
    rows, columns = grid
    if num_kept == 0:
        return np.arange(0)
    fewest = -(-num_kept // columns)
    num_rows = min(max(round((num_kept * rows / columns) ** 0.5), fewest, 1), rows, num_kept)
    places = []
    for i in range(num_rows):
        row = (2 * i + 1) * rows // (2 * num_rows)
        count = (i + 1) * num_kept // num_rows - i * num_kept // num_rows
        places += [row * columns + (2 * j + 1) * columns // (2 * count) for j in range(count)]
    return np.array(places)


def spread(tokens_NC: np.ndarray, variance_N: np.ndarray, num_kept: int) -> np.ndarray:
    """Positions of tokens that are uncertain and unlike each other, ascending.

    Farthest-point sampling (Gonzalez 1985) with weights: the first is the token of largest
    variance, each next one maximises

        sigma_n * min over the chosen k of |x_n - x_k|,    sigma_n = sqrt(variance_n).

    Example: tokens 0, 1, 10 of one channel with sigma 2, 3, 1: first the second token; then
    2 * 1 = 2 against 1 * 9 = 9: the third; so two kept are positions 1 and 2.
    """
    x_NC = tokens_NC.astype(np.float64)
    norms_N = np.square(x_NC).sum(-1)
    squares_NN = norms_N[:, None] + norms_N - 2 * x_NC @ x_NC.T
    variance_N = variance_N.astype(np.float64)
    chosen = [int(np.argmax(variance_N))]
    nearest_N = np.full(len(x_NC), np.inf)
    while len(chosen) < num_kept:
        nearest_N = np.minimum(nearest_N, np.maximum(squares_NN[chosen[-1]], 0))
        gain_N = variance_N * nearest_N  # the square of the above, in the same order
        gain_N[chosen] = -1
        chosen.append(int(np.argmax(gain_N)))
    return np.sort(chosen)


def merged(tokens_NC: np.ndarray, num_kept: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token Merging (Bolya et al. 2023, section 3), on finished tokens, until `num_kept` are left.

    One round of bipartite soft matching: of the tokens in order, every other one from the first is
    in set A, the others in B; each of A has an edge to its most similar one in B (by cosine). The r
    tokens of A with the most similar edges are merged into their ends, which become the mean of all
    that they stand for, weighted by sizes. Rounds with r as large as it may be (half of the
    tokens) until `num_kept` are left. A merged token is at the position of its end in B.

    Returns: positions (num_kept,), ascending; means (num_kept, C) float32; sizes (num_kept,), how
        many tokens each is the mean of, which add up to N. All empty if `num_kept` is 0.

    Example: tokens (1, 0), (2, 0), (0, 1), (0, 5), 3 kept: A has the first and third, both of
    cosine 1 with the next; r = 1, so the first is merged: (1.5, 0) at position 1, of size 2.
    """
    x_NC = tokens_NC[: len(tokens_NC) if num_kept else 0].astype(np.float64)
    sizes = np.ones(len(x_NC))
    positions = np.arange(len(x_NC))
    while len(x_NC) > num_kept:
        norms = np.linalg.norm(x_NC, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # values that are not finite are refused when written
            unit_NC = x_NC / np.where(norms > 0, norms, 1)
            similarity_AB = unit_NC[0::2] @ unit_NC[1::2].T
        r = min(len(x_NC) - num_kept, len(x_NC) // 2)
        leaving = np.argsort(-similarity_AB.max(1), kind="stable")[:r]
        ends = 2 * similarity_AB.argmax(1)[leaving] + 1
        leaving = 2 * leaving
        sums_NC = x_NC * sizes[:, None]
        np.add.at(sums_NC, ends, sums_NC[leaving])
        np.add.at(sizes, ends, sizes[leaving])
        changed = np.unique(ends)
        x_NC[changed] = sums_NC[changed] / sizes[changed, None]
        stay = np.delete(np.arange(len(x_NC)), leaving)
        x_NC, sizes, positions = x_NC[stay], sizes[stay], positions[stay]
    return positions, x_NC.astype(np.float32), sizes
