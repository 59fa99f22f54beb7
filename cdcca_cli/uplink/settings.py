"""The settings of `cdcca infer` and `cdcca sample`. For `--help`, nothing slow is imported here."""

from dataclasses import dataclass
from typing import ClassVar

from cdcca_cli.errors import SettingError
from cdcca_cli.settings import check, setting
from cdcca_cli.text import Amount, parse_amount, parse_bytes, parse_seconds

ENTROPIES = ("mean", "sum", "max", "first")
TOKEN_RULES = ("vis", "random", "norm")
DEFAULT_TOP = parse_amount("10%")
DEFAULT_KEEP = parse_amount("50%")


@dataclass(frozen=True)
class CaptureSettings:
    """Which frames of a video or a live source are taken; `datasets.open_frames` takes them."""

    every: float | None = setting(
        None,
        "Time between the frames of a video or live source, such as 5s",
        parse=parse_seconds,
        at_least=0.01,
        unit="seconds",
        usually="each frame; live, the newest each time",
    )
    duration: float | None = setting(
        None,
        "Time after which a video or live source ends, such as 1h",
        parse=parse_seconds,
        above=0,
        unit="seconds",
        usually="its end; live, Ctrl-C",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AnswerSettings:
    """How questions are answered. score_choices: off where only entropies are needed."""

    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    max_new_tokens: int | None = setting(
        None, "Length limit of an answer", at_least=1, unit="tokens", usually="16; captions 40"
    )
    per_token: bool = setting(False, "Give the entropy of each answer token too")
    score_choices: bool = True

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SampleSettings:
    """What is picked and how it is sent.

    Stage 1 uses one of `top`, `threshold` and `budget_bytes`; stage 2 one of `keep` and `beta`.
    """

    SELECTOR: ClassVar[str] = "by"

    top: Amount | None = setting(
        None,
        "Send the questions of highest entropy: a share like 10%, or a number",
        parse=parse_amount,
        usually=str(DEFAULT_TOP),
    )
    threshold: float | None = setting(
        None, "Send the questions of at least this entropy", at_least=0, unit="nats"
    )
    budget_bytes: int | None = setting(
        None,
        "Size limit of the whole stream, such as 64KiB, filled from the highest entropy down",
        parse=parse_bytes,
        at_least=1,
        unit="bytes",
        option="budget",
    )
    entropy: str = setting(
        "mean", "How the entropies of an answer's tokens become one", choices=ENTROPIES
    )
    keep: Amount | None = setting(
        None,
        "Tokens kept of each frame: a share like 50%, or a number",
        parse=parse_amount,
        usually=str(DEFAULT_KEEP),
    )
    beta: float | None = setting(
        None, "Keep the tokens whose variance exceeds this", at_least=0, methods=("vis",)
    )
    by: str = setting(
        "vis",
        "How tokens are ranked: by variance under dropout (vis), by norm or at random",
        choices=TOKEN_RULES,
    )
    passes: int = setting(8, "Number of forward passes with dropout", at_least=2, methods=("vis",))
    dropout: float = setting(
        0.1, "Rate of dropout in those passes", above=0, below=1, methods=("vis",)
    )
    blocks: int = setting(
        2, "Number of last vision blocks with dropout", at_least=1, methods=("vis",)
    )
    bits: int = setting(8, "Bits per number of a token", choices=(8, 16, 32))
    seed: int = setting(0, "Seed of dropout and of random ranking")
    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    max_new_tokens: int | None = setting(
        None, "Length limit of an answer", at_least=1, unit="tokens", usually="16; captions 40"
    )

    def __post_init__(self) -> None:
        check(self)
        self._refuse_two("top", "threshold", "budget_bytes")
        self._refuse_two("keep", "beta")
        if self.beta is not None and self.by != "vis":
            raise SettingError("beta", f"is a variance, which needs `by` vis, not {self.by}")

    def _refuse_two(self, *names: str) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingError(given[1], f"cannot be combined with `{given[0]}`")

    @property
    def is_top(self) -> bool:
        """Whether stage 1 is by `top`, the default rule."""
        return self.threshold is None and self.budget_bytes is None
