"""How to train: the options of `cdcca distill`, checked.

Methods differ in what stands in `DEFAULTS`; everything else is the same for all of them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from cdcca_cli.errors import UsageError
from cdcca_cli.formats.names import GROUPS

LARGEST_HOLDOUT = 0.9
MOST_BITS = 16

REPR_AT = ("visual", "answer", "both")
BALANCES = ("gradients", "none")
KLS = ("none", "forward", "reverse")
LESSON_BITS = (32, 16, 8)


@dataclass(frozen=True)
class Defaults:
    """What a method does when nothing is said.

    weights: of its terms. balance: whether they are of one gradient (`balance`), or as they are.
    groups: what it trains; None: all that the student has. needs_teacher: whether it is taught.
    """

    weights: dict[str, float] = field(default_factory=dict)
    balance: str = "none"
    groups: tuple[str, ...] | None = None
    needs_teacher: bool = True


DEFAULTS: dict[str, Defaults] = {
    "akd": Defaults({"query": 0.03, "repr": 0.1, "ce": 1.0}, "gradients"),
    "pseudo-label": Defaults({"ce": 1.0}),
    "pkd": Defaults({"query": 6.0, "repr": 6.0, "ce": 1.0}),
    "cwd": Defaults({"query": 3.0, "repr": 3.0, "ce": 1.0}),
    "tent": Defaults({}, groups=("norm",), needs_teacher=False),
    "cotta": Defaults({}, needs_teacher=False),
    "none": Defaults({}, needs_teacher=False),
}
METHODS = tuple(DEFAULTS)


@dataclass(frozen=True)
class CottaSettings:
    """What CoTTA leaves open (`cotta`).

    ema: of the mean teacher. restore: the share of parameters that go back to the source in a
    step. threshold: p_th, below which the views are averaged. views: how many.
    """

    ema: float = 0.999
    restore: float = 0.01
    threshold: float = 0.92
    views: int = 32

    def __post_init__(self) -> None:
        for name, value in (
            ("--cotta-ema", self.ema),
            ("--cotta-restore", self.restore),
            ("--cotta-threshold", self.threshold),
        ):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} {value}: expected 0 to 1")
        if self.views < 1:
            raise UsageError(f"--cotta-views {self.views}: expected 1 or more")


@dataclass(frozen=True)
class DistillSettings:
    """How to train. The weights are the lambdas of Eq. 6; None is the method's default.

    balance: bring the terms to one scale before the weights count. tau: temperature of CWD. kl:
    also learn the teacher's distributions, forward or reverse. confidence: weigh pseudo-labels by
    the teacher's own probability of them. repr_at: where representations are compared. groups: what
    of the overlay is trained. micro_batch_size: asks in one forward pass; None: `methods.PASS`.
    ema: keep a running mean of the overlay, and write that. patience: stop after so many epochs
    without a gain. replay: the share of the earlier shards that is learnt again.
    rate_aware: how many steps follow the epochs that see the overlay as it will be decoded, at
    `bits` a parameter. cache: a file of the teacher's lessons; cache_bits: how a new one keeps
    numbers (None: 16).
    """

    method: str = "akd"
    epochs: int = 3
    lr: float | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    query_weight: float | None = None
    repr_weight: float | None = None
    ce_weight: float | None = None
    kl: str = "none"
    kl_weight: float | None = None
    kl_temperature: float | None = None
    tau: float = 4.0
    balance: str | None = None
    repr_at: str = "both"
    confidence: bool = False
    groups: tuple[str, ...] | None = None
    ema: float | None = None
    cotta: CottaSettings = CottaSettings()
    replay: float = 0.25
    holdout: float = 0.1
    patience: int | None = None
    rate_aware: int = 0
    bits: float = 1.2
    seed: int = 0
    work: Path | None = None
    cache: Path | None = None
    cache_bits: int | None = None

    def __post_init__(self) -> None:
        _one_of("--method", self.method, METHODS)
        _one_of("--kl", self.kl, KLS)
        _one_of("--repr-at", self.repr_at, REPR_AT)
        if self.balance is not None:
            _one_of("--balance", self.balance, BALANCES)
        if self.cache_bits not in (None, *LESSON_BITS):
            raise UsageError(f"--cache-bits {self.cache_bits}: expected 32, 16 or 8")
        for name, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value < 1:
                raise UsageError(f"{name} {value}: expected 1 or more")
        for name, number in (
            ("--micro-batch-size", self.micro_batch_size),
            ("--patience", self.patience),
        ):
            if number is not None and number < 1:
                raise UsageError(f"{name} {number}: expected 1 or more")
        for name, amount in (
            ("--lr", self.lr),
            ("--tau", self.tau),
            ("--kl-temperature", self.kl_temperature),
        ):
            if amount is not None and not (math.isfinite(amount) and amount > 0):
                raise UsageError(f"{name} {amount}: expected a number above 0")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UsageError(f"--ema {self.ema}: expected 0 or more, less than 1")
        if self.ema is not None and self.method in ("cotta", "none"):
            has = "has its own, --cotta-ema" if self.method == "cotta" else "takes no step"
            raise UsageError(f"--ema does not go with --method {self.method}, which {has}")
        if self.patience is not None and not self.needs_teacher:
            raise UsageError(
                f"--patience goes with a teacher: --method {self.method} ends with its last state"
            )
        if self.patience is not None and not self.holdout:
            raise UsageError("--patience looks at held-out frames: --holdout is 0%")
        self._check_weights()
        self._check_groups()
        if not 0 <= self.holdout <= LARGEST_HOLDOUT:
            raise UsageError(f"--holdout {self.holdout:.0%}: expected 0% to {LARGEST_HOLDOUT:.0%}")
        if not 0 <= self.replay <= 1:
            raise UsageError(f"--replay {self.replay:.0%}: expected 0% to 100%")
        if self.rate_aware < 0:
            raise UsageError(f"--rate-aware {self.rate_aware}: expected a number of steps, or 0")
        if self.rate_aware and not self.needs_teacher:
            raise UsageError(f"--rate-aware goes with a teacher, not with --method {self.method}")
        if not 0 < self.bits <= MOST_BITS:
            raise UsageError(
                f"--bits {self.bits:g}: expected more than 0 bits a parameter, {MOST_BITS} at most"
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: expected 0 or more")

    @property
    def needs_teacher(self) -> bool:
        return DEFAULTS[self.method].needs_teacher

    @property
    def trained_groups(self) -> tuple[str, ...] | None:
        """What is trained of the overlay; None: all of it."""
        return self.groups or DEFAULTS[self.method].groups

    @property
    def balanced(self) -> bool:
        return (self.balance or DEFAULTS[self.method].balance) == "gradients"

    def given_weights(self) -> dict[str, float | None]:
        """The weight of each term as it was asked for; None where nothing was."""
        return {
            "query": self.query_weight,
            "repr": self.repr_weight,
            "ce": self.ce_weight,
            "kl": self.kl_weight,
        }

    def weights(self) -> dict[str, float]:
        """The weight of each term that counts."""
        found = dict(DEFAULTS[self.method].weights)
        if self.kl != "none":
            found["kl"] = 1.0
        found |= {name: given for name, given in self.given_weights().items() if given is not None}
        return {name: weight for name, weight in found.items() if weight}

    def _check_weights(self) -> None:
        given = {name: value for name, value in self.given_weights().items() if value is not None}
        for name, weight in given.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(f"--{name}-weight {weight}: expected 0 or more")
        if not self.needs_teacher:
            if given or self.kl != "none" or self.confidence:
                raise UsageError(
                    f"--method {self.method} has no teacher: --query-weight, --repr-weight, "
                    "--ce-weight, --kl and --confidence do not go with it"
                )
            return
        for option, value in (
            ("--kl-weight", self.kl_weight),
            ("--kl-temperature", self.kl_temperature),
        ):
            if value and self.kl == "none":
                raise UsageError(f"{option}: give --kl forward or --kl reverse, too")
        if self.kl != "none" and self.kl_weight == 0:
            raise UsageError(f"--kl {self.kl}: its --kl-weight is 0: leave both out")
        if self.method == "pseudo-label" and (given.get("query") or given.get("repr")):
            raise UsageError("--method pseudo-label has no query or repr term: that is akd")
        if not self.weights():
            raise UsageError("all weights are 0: nothing would be learnt")
        if self.confidence and "ce" not in self.weights():
            raise UsageError("--confidence weighs the cross-entropy, whose weight is 0")

    def _check_groups(self) -> None:
        for group in self.groups or ():
            _one_of("--train", group, GROUPS)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value}: expected {', '.join(allowed)}")
