"""The settings of labels: how a teacher is loaded and asked, and what is kept of its answers."""

from dataclasses import dataclass
from functools import partial

from cdcca_cli.errors import BadData
from cdcca_cli.formats.names import LABEL_BITS
from cdcca_cli.serving.http import USUAL_KEY, Connection
from cdcca_cli.settings import check, setting
from cdcca_cli.text import load_json, parse_seconds

_tuning = partial(setting, is_tuning=True)


@dataclass(frozen=True)
class LabelSettings:
    """How a local teacher is loaded, and what is kept of it."""

    teacher_quantize: str = setting(
        "none",
        "How the teacher's language model is quantised when it is loaded",
        choices=("none", "int8", "nf4"),
    )
    teacher_device_map: str | None = _tuning(
        None, "How the teacher is spread over GPUs and memory", choices=("auto",)
    )
    teacher_batch_size: int = _tuning(
        64, "Questions that a local teacher answers at once", at_least=1
    )
    top: int = _tuning(
        64,
        "Likeliest tokens kept of a local teacher's distribution of each answer token",
        at_least=0,
        at_most=1 << 16,
    )
    features: bool = _tuning(
        True, "Keep a local teacher's queries and representations, which akd, pkd and cwd need"
    )
    label_bits: int = _tuning(
        16, "Bits a number of queries and representations", choices=LABEL_BITS
    )

    def __post_init__(self) -> None:
        check(self)


def _fields(text: str) -> str:
    try:
        is_object = isinstance(load_json(text, "extra"), dict)
    except BadData:
        is_object = False
    if not is_object:
        raise ValueError('expected a JSON object, like {"seed": 1}')
    return text


@dataclass(frozen=True)
class ServerSettings:
    """How a served teacher is asked."""

    concurrency: int = setting(
        8, "Number of requests to a served teacher in flight", at_least=1, at_most=1024
    )
    max_requests: int | None = setting(
        None, "Largest number of requests; a run that may need more is refused", at_least=0
    )
    api_key_env: str | None = setting(
        None,
        "Environment variable with the key of a served teacher",
        usually=f"{USUAL_KEY}, over https or to this machine alone",
    )
    timeout: float = _tuning(
        120.0, "Time that one request may take", above=0, unit="s", parse=parse_seconds
    )
    attempts: int = _tuning(8, "Number of times that a request is tried", at_least=1)
    backoff: float = _tuning(
        0.5, "Pause before the second try, which doubles each time", at_least=0, unit="s"
    )
    top_logprobs: int = _tuning(
        20, "Likeliest tokens asked of a served teacher; 0: none", at_least=0, at_most=1 << 16
    )
    letter: str = _tuning(
        "needed",
        "When a served teacher is also asked for the letter of its choice: if its free answer is "
        "none of the choices, or always",
        choices=("needed", "always"),
    )
    skip_check: bool = _tuning(
        False, "Begin without checking that a served teacher receives the picture"
    )
    extra: str | None = _tuning(
        None, "More fields of each request, as a JSON object", parse=_fields
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_workers(self) -> int:
        """More than are in flight: some make the next request meanwhile, or read an answer."""
        return self.concurrency + self.concurrency // 4 + 2

    @property
    def connection(self) -> Connection:
        """How requests are sent."""
        return Connection(
            self.concurrency, self.timeout, self.attempts, self.backoff, self.api_key_env
        )
