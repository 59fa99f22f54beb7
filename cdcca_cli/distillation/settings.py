"""How to train: the options of `cdcca distill`, checked."""

import math
from dataclasses import dataclass
from pathlib import Path

from cdcca_cli.errors import UsageError

LARGEST_HOLDOUT = 0.9
MOST_BITS = 16


@dataclass(frozen=True)
class DistillSettings:
    """How to train. The three weights are the lambdas of Eq. 6 on normalised terms.

    rate_aware: how many steps follow the epochs that see the overlay as it will be decoded, at
    `bits` a parameter.
    """

    epochs: int = 3
    lr: float | None = None
    batch_size: int = 16
    query_weight: float = 1.0
    repr_weight: float = 1.0
    ce_weight: float = 1.0
    holdout: float = 0.1
    rate_aware: int = 0
    bits: float = 1.2
    seed: int = 0
    work: Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value < 1:
                raise UsageError(f"{name} {value}: expected 1 or more")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"--lr {self.lr}: expected a number above 0")
        for name, weight in (
            ("--query-weight", self.query_weight),
            ("--repr-weight", self.repr_weight),
            ("--ce-weight", self.ce_weight),
        ):
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(f"{name} {weight}: expected 0 or more")
        if self.query_weight == self.repr_weight == self.ce_weight == 0:
            raise UsageError("all three weights are 0: nothing would be learnt")
        if not 0 <= self.holdout <= LARGEST_HOLDOUT:
            raise UsageError(f"--holdout {self.holdout:.0%}: expected 0% to {LARGEST_HOLDOUT:.0%}")
        if self.rate_aware < 0:
            raise UsageError(f"--rate-aware {self.rate_aware}: expected a number of steps, or 0")
        if not 0 < self.bits <= MOST_BITS:
            raise UsageError(
                f"--bits {self.bits:g}: expected more than 0 bits a parameter, {MOST_BITS} at most"
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: expected 0 or more")
