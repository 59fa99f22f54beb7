"""The settings of labels: how a teacher is loaded and asked, and what is kept of its answers."""

from dataclasses import dataclass
from functools import partial

from cdcca_cli.formats.names import LABEL_BITS
from cdcca_cli.settings import check, setting

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
