"""What a report is made with."""

from dataclasses import dataclass
from pathlib import Path

from cdcca_cli.settings import check, setting


@dataclass(frozen=True)
class ReportSettings:
    """Settings of `cdcca report`."""

    references: tuple[str, ...] = setting(
        (), "Frames with right answers and pictures, as [NAME=]FRAMES (repeatable)"
    )
    images: Path | None = setting(None, "Folder that image names are relative to")
    examples: int = setting(24, "Number of example frames", at_least=0, at_most=200)

    def __post_init__(self) -> None:
        check(self)
