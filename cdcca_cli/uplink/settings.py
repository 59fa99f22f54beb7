"""What the device is asked to answer and to send: the settings of `infer` and `sample`."""

from dataclasses import dataclass
from functools import partial

from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.settings import check, setting
from cdcca_cli.text import Amount, parse_amount, parse_bytes

DEFAULT_TOP = parse_amount("10%", "top")
DEFAULT_KEEP = parse_amount("50%", "keep")


@dataclass(frozen=True)
class AnswerSettings:
    """How questions are answered. `score_choices` is off where only the entropy is wanted."""

    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    max_new_tokens: int | None = setting(
        None, "Longest answer in tokens", at_least=1, usually="16; captions 40"
    )
    per_token: bool = setting(False, "Give the entropy of each answer token too")
    score_choices: bool = True

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SampleSettings:
    """What is picked, and how it is sent.

    Stage 1, one of: `top`, so many questions or such a share of them; `threshold`, an entropy in
    nats; `budget_bytes`, filled from the highest entropy down. Stage 2, one of: `keep`, so many
    tokens or such a share; `beta`, a variance.

    Raises: UsageError for a value out of range, or two rules at once.
    """

    top: Amount | None = setting(
        None,
        "Number or share of the questions to send, those of highest entropy",
        usually="10%",
        parse=partial(parse_amount, option="`top`"),
    )
    threshold: float | None = setting(
        None, "Least entropy of a question to send", at_least=0, unit="nats"
    )
    budget_bytes: int | None = setting(
        None,
        "Largest size of the shards: 64KiB, 800KB, 65536",
        at_least=1,
        unit="bytes",
        option="budget",
        parse=partial(parse_bytes, option="`budget_bytes`"),
    )
    keep: Amount | None = setting(
        None,
        "Number or share of the tokens of a frame to keep, the best",
        usually="50%",
        parse=partial(parse_amount, option="`keep`"),
    )
    beta: float | None = setting(None, "Least variance of a token to keep", at_least=0)
    by: str = setting(
        "vis",
        "What makes a token good: its variance under dropout (vis), its norm, or chance",
        choices=("vis", "random", "norm"),
    )
    entropy: str = setting(
        "mean",
        "How an answer's entropy is made of its tokens'",
        choices=("mean", "sum", "max", "first"),
    )
    passes: int = setting(8, "Number of forward passes with dropout", at_least=2)
    dropout: float = setting(0.1, "Dropout rate", above=0, below=1)
    blocks: int = setting(2, "Number of last vision blocks that get dropout", at_least=1)
    bits: int = setting(8, "Bits a number of a token is sent in", choices=(8, 16, 32))
    seed: int = setting(0, "Seed of dropout, and of random tokens")
    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    max_new_tokens: int | None = setting(
        None, "Longest answer in tokens", at_least=1, usually="16; captions 40"
    )

    def __post_init__(self) -> None:
        check(self)
        stage_1 = [self.top, self.threshold, self.budget_bytes]
        if sum(rule is not None for rule in stage_1) > 1:
            raise UsageError("`top`, `threshold` and `budget` exclude each other: give one")
        if self.keep is not None and self.beta is not None:
            raise UsageError("`keep` and `beta` exclude each other: give one")
        if self.beta is not None and self.by != "vis":
            raise SettingError("beta", f"is a variance: it needs `by` vis, not {self.by}")

    @property
    def is_top(self) -> bool:
        """Whether stage 1 is by `top`, the default."""
        return self.threshold is None and self.budget_bytes is None
