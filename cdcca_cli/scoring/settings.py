"""The settings of an evaluation and of an acceptance test. Imports nothing heavy."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdcca_cli.errors import SettingError
from cdcca_cli.scoring.link.transfer import Link, parse_link
from cdcca_cli.scoring.tasks import ACCEPTANCE_METRICS, METRICS, TASKS
from cdcca_cli.settings import check, defaults, setting


def parse_size(text: str) -> tuple[int, int]:
    """Read `224` or `448x336`, width by height. Raises: ValueError."""
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip().lower())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(size):
        raise ValueError("expected pixels like 224 or 448x336")
    return size


def parse_marks(text: str) -> dict[str, float]:
    """Read `mc=50,cider.mean_of_domains=70`: a metric, or one over a group, and its mark.

    `da.domain.number` and `da.kind.number` distinguish a domain and a kind of the same name.
    """
    marks: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, number = part.rpartition("=")
        try:
            mark = float(number)
        except ValueError:
            mark = math.nan
        if name.strip().partition(".")[0] not in METRICS or not math.isfinite(mark):
            raise ValueError(
                f"expected METRIC=NUMBER, with one of {', '.join(METRICS)}; found '{part}'"
            )
        marks[name.strip()] = mark
    return marks


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of `cdcca eval`. `-` is standard input, the default for predictions."""

    predictions: tuple[str, ...] = setting((), "Prediction files (repeatable)")
    references: tuple[str, ...] = setting(
        (), "Labels: a manifest, a folder with frames.jsonl, or an annotation file (repeatable)"
    )
    against: str | None = setting(None, "Other predictions, to show the paired difference to")
    round: tuple[str, ...] = setting(
        (), "Predictions after a round, [DOMAIN=]FILE (repeatable; the source-only model first)"
    )
    uplink: tuple[str, ...] = setting((), "Token shards to count the bytes of (repeatable)")
    downlink: tuple[str, ...] = setting((), "Updates to count the bytes of (repeatable)")
    raw: str | None = setting(None, "The sampled frames, to compare their bytes with")
    images: str | None = setting(None, "Folder that the frames' image names are relative to")
    task: str | None = setting(
        None, "Benchmark to score as", choices=tuple(TASKS), usually="that of the references"
    )
    metrics: tuple[str, ...] | None = setting(
        None, "Metrics to score, separated by commas", choices=tuple(METRICS), usually="the task's"
    )
    tokenizer: str = setting(
        "python", "Tokenizer of captions; both give the same words", choices=("python", "java")
    )
    answered_only: bool = setting(
        False, "Leave out questions without a prediction instead of counting them as wrong"
    )
    duplicates: str = setting(
        "refuse",
        "Policy for a question that is answered twice, differently",
        choices=("refuse", "first"),
    )
    fail_under: Mapping[str, float] | None = setting(
        None, "Lowest scores that pass (exit 3 below), such as mc=50,da.domain.fog=40",
        parse=parse_marks,
    )  # fmt: skip
    encoder_size: tuple[int, int] | None = setting(
        None, "Size in pixels to compare the frames at too, such as 224 or 448x336",
        parse=parse_size,
    )  # fmt: skip
    link: Link | None = setting(
        None, "Link to model transfer times for, such as 1gbit,1ms", parse=parse_link
    )
    plot: str | None = setting(None, "File to draw the report to (.png, .svg or .pdf)")
    seed: int = setting(0, "Seed of intervals and p-values", at_least=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AcceptanceSettings:
    """When a device takes an update (without `validation`, always), and how its model is run."""

    validation: str | None = setting(
        None, "Labelled frames: refuse the update (80) if their score gets worse",
        option="if_better",
    )  # fmt: skip
    metric: str | None = setting(
        None, "Score that decides", choices=ACCEPTANCE_METRICS,
        usually="the first that the labels allow",
    )  # fmt: skip
    tolerance: float = setting(
        0.0, "Points (of 100) by which the score may get worse", at_least=0, unit="points"
    )
    max_drift: float | None = setting(
        None, "Refuse the update, too, if the model would be further than this from the one of "
        "sequence 0 on these frames, which then need no labels", above=0, unit="nats",
    )  # fmt: skip
    images: Path | None = setting(None, "Folder that the frames' image names are relative to")
    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    compute: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check(self)
        if self.validation is None:
            for name, default in defaults(type(self)).items():
                if getattr(self, name) != default:
                    raise SettingError(name, "does nothing without `if_better`")
