"""The table of families in README: what each costs and where it is different, made by `doctor`.

`python -m tests.zoo.table` writes it between two marks in README.md. Each line is what
`cdcca doctor --json` says of a checkpoint of the published sizes (`published`). A family whose
packages are not here has dashes in place of counts.
"""

import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL.Image import Image
from transformers.utils import logging as transformers_logging

from cdcca_cli.config import Runtime
from cdcca_cli.doctor import checkpoint, frame, identities
from cdcca_cli.families import FAMILIES, Family
from cdcca_cli.payloads import pictures
from tests import zoo
from tests.zoo import published
from tests.zoo.published import Published

README = Path(__file__).parents[2] / "README.md"
MARKS = ("<!-- families -->\n", "<!-- /families -->")
HEAD = (
    "| family | checkpoints | further groups | tokens | kB in 8 bits | x AVIF | exceptions |\n"
    "|---|---|---|---|---|---|---|\n"
)
USUAL = ("norm", "bias", "lora.language")
"""The groups that every family has."""
_BY_NAME = {row.name: row for row in FAMILIES.values()}
_ADJUSTED = {"llava_onevision": "at most ten tiles", "idefics2": "not cut in quarters"}


@dataclass(frozen=True)
class Line:
    """One line of the table; the counts are None where a package is missing.

    groups: those beside USUAL. tokens: visual tokens of a frame of 1080p. num_bytes: of all of
    them in 8 bits. avif: bytes of the picture that would be sent in place of them.
    """

    family: str
    examples: tuple[str, ...]
    exceptions: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    tokens: int | None = None
    num_bytes: int | None = None
    avif: int | None = None

    def __str__(self) -> str:
        groups, counts = "-", ["-"] * 3
        if self.groups is not None:
            groups = ", ".join(f"`{name}`" for name in self.groups)
        if self.tokens is not None and self.num_bytes is not None and self.avif is not None:
            times = self.num_bytes / self.avif
            counts = [
                f"{self.tokens:,}",
                f"{self.num_bytes / 1000:,.0f}",
                f"{times:.{0 if times >= 2 else 1}f}",
            ]
        names = ", ".join(self.examples)
        cells = [f"`{self.family}`", names, groups, *counts, "; ".join(self.exceptions)]
        return f"| {' | '.join(cells)} |"


def rows() -> list[Published]:
    """The published checkpoints of the families that cdcca knows, by family."""
    known = [row for row in published.ROWS if row.family in _BY_NAME]
    return sorted(known, key=lambda row: _BY_NAME[row.family].model_type)


def is_made_here(row: Published) -> bool:
    """Whether the packages that its family needs are here."""
    return row.zoo in zoo.QFORMERS or not zoo.missing(row.zoo)


def line(row: Published) -> Line:
    """One line; without counts where a package is missing."""
    made = without_counts(row)
    if not is_made_here(row):
        return made
    found = report(row)
    assert row.is_hybrid == (identities.EXPLAINED in found["exceptions"]), row
    assert bool(found["vision_blocks"]) == bool(_BY_NAME[row.family].blocks), row
    assert all(found["groups"].get(name) for name in USUAL), row
    return replace(
        made,
        groups=tuple(name for name, size in found["groups"].items() if size and name not in USUAL),
        tokens=found["frame"]["tokens"],
        num_bytes=found["frame"]["bytes"]["int8"],
        avif=found["frame"]["bytes"]["avif"],
    )


def without_counts(row: Published) -> Line:
    """What is known of a line without any package."""
    family = _BY_NAME[row.family]
    return Line(family.model_type, row.examples, tuple(_exceptions(row, family)))


def report(row: Published) -> dict[str, Any]:
    """What `cdcca doctor --json` says of a checkpoint of these sizes."""
    with tempfile.TemporaryDirectory() as folder, _one_frame():
        made = published.outline(row, Path(folder) / "checkpoint")
        return checkpoint.report(str(made), Runtime(compute="cpu", threads=1))


def _exceptions(row: Published, family: Family) -> Iterator[str]:
    if family.needs:
        yield f"needs {' and '.join(family.needs)}"
    if not family.blocks:
        yield "no dropout in the tower"
    if row.is_hybrid:
        yield "dropping is not masking"
    if family.adjust:
        yield _ADJUSTED[family.adjust]
    if row.is_default:
        yield "sizes assumed"


@contextmanager
def _one_frame() -> Iterator[None]:
    """The frame is made and coded once for all families, which is most of the time."""
    with (
        mock.patch.object(frame, "like_a_photograph", _photograph),
        mock.patch.object(pictures, "encode", _encode),
    ):
        yield


_photograph = cache(frame.like_a_photograph)
_coded: dict[tuple[str, int], Any] = {}
_encode_once = pictures.encode


def _encode(image: Image, media: str) -> Any:
    key = media, zlib.crc32(image.tobytes())
    if key not in _coded:
        _coded[key] = _encode_once(image, media)
    return _coded[key]


def main() -> None:
    """Write the table into README."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    made = []
    for row in rows():
        made.append(f"{line(row)}\n")
        sys.stderr.write(made[-1])
    README.write_text(before + MARKS[0] + HEAD + "".join(made) + MARKS[1] + after, encoding="utf-8")


if __name__ == "__main__":
    main()
