"""The entropy of an answer from those of its tokens, and of a token from its likeliest ones.

A server lists the K likeliest of V tokens. What is left of the probability, r, is spread over V - K
tokens, of which none is likelier than the last that is listed, p_K:

    H_top - r ln min(p_K, r)  <=  H  <=  H_top + r (ln(V - K) - ln r),   H_top = - sum_k p_k ln p_k

The upper bound, the rest spread flat, is the estimate: its ranks are nearly those of the exact
figure (Spearman 0.997 on 80 answers of a model with a quarter of the mass outside the top 20).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def summarise(entropies_N: Sequence[float]) -> dict[str, float]:
    """The entropy of an answer of N >= 1 tokens, by each name of ENTROPIES, in nats.

    `sum` is Eq. 2 as printed, which grows with the length of the answer.
    """
    total = math.fsum(entropies_N)
    return {
        "mean": total / len(entropies_N),
        "sum": total,
        "max": max(entropies_N),
        "first": entropies_N[0],
    }


@dataclass(frozen=True)
class Listed:
    """What the likeliest tokens say of one step. least, most: bounds of its entropy, in nats.

    margin: how much likelier the first is than the second. is_exact: whether all are listed.
    """

    least: float
    most: float
    margin: float
    is_exact: bool

    @classmethod
    def of(cls, logps: Iterable[float], vocabulary: int) -> "Listed":
        """Args: logps: log-probabilities of the likeliest tokens, at least one. vocabulary: V."""
        best = sorted(logps, reverse=True)
        shares = [math.exp(logp) for logp in best]
        listed = math.fsum(-share * logp for share, logp in zip(shares, best, strict=True))
        margin = shares[0] - (shares[1] if len(shares) > 1 else 0.0)
        rest, num_others = 1.0 - math.fsum(shares), vocabulary - len(best)
        if num_others <= 0:
            return cls(listed, listed, margin, is_exact=True)
        if rest <= 0 or shares[-1] <= 0:
            return cls(listed, listed, margin, is_exact=False)
        # No other token is likelier than the last one, and all of them hold at least the rest.
        rest = min(rest, num_others * shares[-1])
        least = listed - rest * math.log(min(shares[-1], rest))
        most = listed + rest * (math.log(num_others) - math.log(rest))
        return cls(least, max(least, most), margin, is_exact=False)
