"""What training gained, measured on the frames that were held out from it.

Shapes: E held-out examples, F held-out frames.

The examples are asks, several about one frame, so an interval that took them for independent would
be too narrow: whole frames are resampled. Does not decide anything; `training` and `loop` do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdcca_cli.distillation.draws import For, draws

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(eq=False)
class Judgement:
    """The held-out examples under one state of the student.

    nats_E: cross-entropy per answer token against the teacher's answer, (E,) float32.
    agrees_E: 1 where greedy decoding gives the teacher's very answer, else 0, (E,) float32.
    """

    nats_E: np.ndarray
    agrees_E: np.ndarray

    def __len__(self) -> int:
        return len(self.nats_E)

    @property
    def cross_entropy(self) -> float:
        """Mean nats; without examples infinity, so that any state is as good."""
        return float(self.nats_E.mean(dtype=np.float64)) if len(self) else float("inf")


def comparison(
    before: Judgement, after: Judgement, frames: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Before and after, and the paired gain with its 95 % bootstrap interval over frames.

    Args: frames: the frame of each example.
    Returns: what an adaptation's report holds under `held_out`; None without examples. The gain is
        in nats per answer token, above zero where training helped; the verdict is "better" or
        "worse" where its interval leaves zero out, else "equal".
    """
    if not len(before):
        return None
    gain_E = before.nats_E.astype(np.float64) - after.nats_E.astype(np.float64)
    low, high = bootstrap_interval(gain_E, frames, seed)
    return {
        "num_frames": len(set(frames)),
        "num_asks": len(before),
        "cross_entropy": {"before": before.cross_entropy, "after": after.cross_entropy},
        "agreement": {
            "before": float(before.agrees_E.mean(dtype=np.float64)),
            "after": float(after.agrees_E.mean(dtype=np.float64)),
        },
        "gain": {"mean": float(gain_E.mean()), "low": low, "high": high, "level": LEVEL},
        "verdict": "better" if low > 0 else "worse" if high < 0 else "equal",
    }


def bootstrap_interval(
    values_E: np.ndarray, clusters: Sequence[str], seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean when whole clusters are drawn with replacement.

    With a single cluster its examples are drawn. Depends on values, clusters and seed alone.
    """
    _, places_E = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    if places_E.max() == 0:
        places_E = np.arange(len(values_E))
    sums_F = np.bincount(places_E, weights=values_E)
    counts_F = np.bincount(places_E)
    drawn_SF = draws(seed, For.INTERVAL).integers(len(sums_F), size=(RESAMPLES, len(sums_F)))
    means = sums_F[drawn_SF].sum(1) / counts_F[drawn_SF].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
