"""Predictive entropy: stage 1 of Uncertainty-guided Token Sampling (Eq. 2).

H_j = - sum_v p_jv log p_jv of each answer token j, in nats and float32, of the model's own logits,
is `families.decoding.step_entropy`: it is taken in the very pass that chooses the token, the end
token's step too. This module makes one figure for an answer of them; an answer has at least one.
"""

import math
from collections.abc import Sequence


def summarise(entropies_N: Sequence[float]) -> dict[str, float]:
    """One figure for an answer of N >= 1 tokens, by each name of `predictions.ENTROPIES`, in nats.

    `mean` does not grow with the length of the answer, `sum` (Eq. 2 as printed) does; `max` is the
    least sure token, `first` the one before which nothing has been said.
    """
    total = math.fsum(entropies_N)
    return {
        "mean": total / len(entropies_N),
        "sum": total,
        "max": max(entropies_N),
        "first": entropies_N[0],
    }
