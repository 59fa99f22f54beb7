"""The settings of `cdcca infer` and `cdcca sample`. For `--help`, nothing slow is imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cdcca_cli.errors import SettingError
from cdcca_cli.serving.http import USUAL_KEY, Connection
from cdcca_cli.settings import check, setting
from cdcca_cli.text import Amount, parse_amount, parse_bytes, parse_seconds, parse_share

ENTROPIES = ("mean", "sum", "max", "first")
QUESTION_RULES = ("entropy", "random", "margin", "bald", "k-center", "entropy*k-center")
SPREAD_RULES = ("k-center", "entropy*k-center")
ENTROPY_RULES = ("entropy", "entropy*k-center")
MODEL_RULES = ("bald", *SPREAD_RULES)  # these need the model beside its predictions
TOKEN_RULES = ("variance", "random", "norm", "received", "grid", "spread", "tome")
VARIANCE_RULES = ("variance", "spread")  # these need passes with dropout
DEFAULT_TOP = parse_amount("10%")
DEFAULT_KEEP = parse_amount("100%")
PAYLOADS = ("auto", "tokens", "frame")
TOKEN_CODECS = ("klt", "int8", "float16", "float32")
MEDIA = ("avif", "webp", "jpeg")
DEFAULT_MAX_LOSS = 0.01
DEFAULT_QUALITY = 50


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
class ServedSettings:
    """Where and how a server that runs the device's model is asked."""

    server: str | None = setting(
        None,
        "Address of a server that runs the device's model (http://127.0.0.1:8080): llama-server, "
        "or an OpenAI-compatible one (https://host/v1#model)",
    )
    export: Path | None = setting(
        None, "Folder of export that the server runs, so that predictions name its overlay"
    )
    exact_entropy: bool = setting(
        False, "Ask llama-server for the whole vocabulary, some 100 bytes for each word of it"
    )
    api_key_env: str | None = setting(
        None,
        "Environment variable with the server's key",
        usually=f"{USUAL_KEY}, over https or to this machine alone",
    )
    concurrency: int = setting(
        8,
        "Most frames in work at once; with llama-server no more than its slots",
        at_least=1,
        at_most=1024,
        is_tuning=True,
    )
    timeout: float = setting(
        120.0,
        "Time that one request may take",
        above=0,
        unit="s",
        parse=parse_seconds,
        is_tuning=True,
    )
    attempts: int = setting(
        5, "Number of times that a request is tried", at_least=1, is_tuning=True
    )
    backoff: float = setting(
        0.5,
        "Pause before the second try, which doubles each time",
        at_least=0,
        unit="s",
        is_tuning=True,
    )
    wait: float = setting(
        60.0,
        "Time to wait for a server that is starting",
        at_least=0,
        unit="s",
        parse=parse_seconds,
        is_tuning=True,
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("export", "exact_entropy", "api_key_env"):
            if self.server is None and getattr(self, name):
                raise SettingError(name, "is of a `server`: name one")

    @property
    def connection(self) -> Connection:
        """How requests are sent."""
        return Connection(
            self.concurrency, self.timeout, self.attempts, self.backoff, self.api_key_env
        )


@dataclass(frozen=True)
class SampleSettings:
    """What is picked and how it is sent.

    Stage 1 uses one of `top`, `threshold`, `running` and `budget_bytes`; with `top` and
    `budget_bytes` the coding is as exact as the budget allows. Stage 2 uses one of `keep` and
    `beta`.
    """

    SELECTOR: ClassVar[tuple[str, ...]] = ("by", "select")

    top: Amount | None = setting(
        None,
        "Send the first questions of the ranking: a share like 10%, or a number",
        parse=parse_amount,
        usually=str(DEFAULT_TOP),
    )
    threshold: float | None = setting(
        None,
        "Send the questions of at least this entropy",
        at_least=0,
        unit="nats",
        methods=("entropy",),
    )
    running: float | None = setting(
        None,
        "Send this share of an endless stream, such as 5%: each question is compared, as it comes, "
        "with the earlier ones of its task",
        parse=parse_share,
        above=0,
        at_most=1,
        methods=("entropy", "random", "margin", "bald"),
    )
    budget_bytes: int | None = setting(
        None,
        "Size limit of the whole stream, such as 64KiB: filled in the order of the ranking; with "
        "a share of questions, coded as exactly as it allows",
        parse=parse_bytes,
        at_least=1,
        unit="bytes",
        option="budget",
    )
    select: str = setting(
        "entropy",
        "How questions are chosen: by entropy, margin or mutual information under dropout (bald), "
        "at random, or far apart (k-center); each task gives the same share",
        choices=QUESTION_RULES,
    )
    repeats: bool = setting(
        False, "Send a question again for nearly the same picture", is_tuning=True
    )
    entropy: str = setting(
        "mean",
        "How the entropies of an answer's tokens become one",
        choices=ENTROPIES,
        is_tuning=True,
    )
    keep: Amount | None = setting(
        None,
        "Tokens kept of each frame: a share like 50%, or a number",
        parse=parse_amount,
        usually=str(DEFAULT_KEEP),
    )
    beta: float | None = setting(
        None,
        "Keep the tokens whose variance exceeds this",
        at_least=0,
        methods=("variance",),
        is_tuning=True,
    )
    by: str = setting(
        "variance",
        "How tokens are chosen: by variance under dropout, norm, received attention, at random, "
        "on an even grid; spread: variance times distance; tome: similar ones merged",
        choices=TOKEN_RULES,
    )
    passes: int = setting(
        8,
        "Number of passes with dropout",
        at_least=2,
        methods=(*VARIANCE_RULES, "bald"),
        is_tuning=True,
    )
    dropout: float = setting(
        0.1,
        "Rate of dropout in them",
        above=0,
        below=1,
        methods=(*VARIANCE_RULES, "bald"),
        is_tuning=True,
    )
    blocks: int = setting(
        2,
        "Number of last blocks with it",
        at_least=1,
        methods=(*VARIANCE_RULES, "bald"),
        is_tuning=True,
    )
    seed: int = setting(0, "Seed of dropout and of random ranking")
    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    max_new_tokens: int | None = setting(
        None,
        "Length limit of an answer",
        at_least=1,
        unit="tokens",
        usually="16; captions 40",
        is_tuning=True,
    )

    def __post_init__(self) -> None:
        check(self)
        _refuse_two(self, "top", "threshold", "running")
        for name in ("threshold", "running"):
            _refuse_two(self, name, "budget_bytes")
        _refuse_two(self, "keep", "beta")
        if self.threshold is not None and self.select != "entropy":
            reason = f"is an entropy, which needs `select` entropy, not {self.select}"
            raise SettingError("threshold", reason)
        if self.running is not None and self.select in SPREAD_RULES:
            reason = f"needs a rule that judges one question alone, not `select` {self.select}"
            raise SettingError("running", reason)
        if self.beta is not None and self.by != "variance":
            raise SettingError("beta", f"is a variance, which needs `by` variance, not {self.by}")

    @property
    def is_top(self) -> bool:
        """Whether stage 1 is by `top`, the default rule."""
        return not self.is_live and (self.top is not None or self.budget_bytes is None)

    def uses_dropout(self, *, with_scores: bool) -> bool:
        """Whether questions or tokens are chosen, or scored, by passes with dropout."""
        keeps_all = self.beta is None and (self.keep or DEFAULT_KEEP).is_all and not with_scores
        return self.select == "bald" or (self.by in VARIANCE_RULES and not keeps_all)

    @property
    def is_live(self) -> bool:
        """Whether a question is picked or not as it comes, so that the stream need not end."""
        return self.threshold is not None or self.running is not None


@dataclass(frozen=True)
class PayloadSettings:
    """What goes up for a picked frame: its tokens, coded, or a picture.

    The point of klt is one of `step`, `bits` and `max_loss`, that of pictures one of `quality` and
    `max_loss`; `max_loss` is a look-up in the curves that the codebook has measured.
    """

    SELECTOR: ClassVar[tuple[str, ...]] = ("payload",)

    payload: str = setting(
        "auto",
        "What is sent of a frame: its visual tokens, a picture, or what takes fewer bytes",
        choices=PAYLOADS,
    )
    codec: str | None = setting(
        None,
        "How tokens are coded",
        choices=TOKEN_CODECS,
        methods=("auto", "tokens"),
        usually="klt if the device has a codebook, else int8",
    )
    step: float | None = setting(
        None, "Step of the quantiser of klt", above=0, at_most=1024, methods=("auto", "tokens")
    )
    bits: float | None = setting(
        None, "Bits per number of a token that klt aims at", above=0, methods=("auto", "tokens")
    )
    max_loss: float | None = setting(
        None,
        "How much the teacher's loss may grow by the coding, as a share like 3%",
        parse=parse_share,
        usually=f"{DEFAULT_MAX_LOSS:.0%}",
    )
    quality: int | None = setting(
        None,
        "Quality of pictures",
        at_least=1,
        at_most=100,
        methods=("auto", "frame"),
        usually=f"by the limit of loss, {DEFAULT_QUALITY} without a codebook",
    )
    media: str = setting(
        "avif", "File type of pictures", choices=MEDIA, methods=("auto", "frame"), is_tuning=True
    )
    side: int | None = setting(
        None,
        "Side of pictures, which are square",
        at_least=16,
        at_most=4096,
        unit="pixels",
        methods=("auto", "frame"),
        usually="what the vision tower takes",
        is_tuning=True,
    )
    scores: bool = setting(
        False, "Send the uncertainty of each token too", methods=("auto", "tokens"), is_tuning=True
    )

    def __post_init__(self) -> None:
        check(self)
        _refuse_two(self, "step", "bits", "max_loss")
        _refuse_two(self, "quality", "max_loss")
        for name in ("step", "bits"):
            if getattr(self, name) is not None and self.codec not in (None, "klt"):
                raise SettingError(name, f"is of the codec klt, not {self.codec}")


def _refuse_two(settings: Any, *names: str) -> None:
    given = [name for name in names if getattr(settings, name) is not None]
    if len(given) > 1:
        raise SettingError(given[1], f"cannot be combined with `{given[0]}`")
