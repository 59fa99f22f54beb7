"""The adaptation, version 1: the overlay as it is after training, in one record.

A record (`records`) whose tensors are the whole overlay, float32, finite, by parameter name.
Header, all keys always present:

    kind "adaptation", version 1
    base      digest of the overlay that training started from (the mirror's current one)
    sequence  that overlay's sequence, >= 0
    method    string, not empty: akd, pseudo-label, ...
    seed      whole number >= 0
    report    object: what training has to say for itself; nothing in it is needed to use the file

Nothing may follow the record. It is no delta: `compress` takes the difference against the mirror's
overlay, so a file can be compressed again against a later mirror. This module does not know which
names an overlay must have; whoever has the base does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.device import OVERLAY_LIMITS, check_overlay
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.streams import Writable

VERSION = 1
KINDS = {"adaptation": VERSION}


@dataclass(eq=False)
class Adaptation:
    """An overlay after training, and where it came from."""

    overlay: Mapping[str, np.ndarray]
    base: str
    sequence: int
    method: str
    seed: int
    report: dict[str, Any] = field(default_factory=dict)


def write_adaptation(out: Writable, adaptation: Adaptation) -> int:
    """Write it; returns its bytes. BadData if it is not sound (training diverged)."""
    check_overlay(adaptation.overlay, "the adaptation")
    header = {
        "kind": "adaptation",
        "version": VERSION,
        "base": adaptation.base,
        "sequence": adaptation.sequence,
        "method": adaptation.method,
        "seed": adaptation.seed,
        "report": adaptation.report,
    }
    _check(header, "the adaptation")
    return records.write_record(out, adaptation.overlay, header)


def read_adaptation(stream: BinaryIO, *, where: str = "the adaptation") -> Adaptation:
    """Read and check it. BadData, NewerFormat."""
    record = records.read_only_record(stream, KINDS, limits=OVERLAY_LIMITS, where=where)
    _check(record.header, where)
    check_overlay(record.tensors, where)
    header = record.header
    return Adaptation(
        overlay=record.tensors,
        base=header["base"],
        sequence=header["sequence"],
        method=header["method"],
        seed=header["seed"],
        report=header["report"],
    )


def _check(header: Mapping[str, Any], where: str) -> None:
    names = {"kind", "version", "base", "sequence", "method", "seed", "report"}
    records.exact_keys(header, names, where)
    records.field(header, "report", dict, where)
    if not is_digest(header["base"]):
        raise BadData(f"{where}: 'base' is not a digest")
    if not records.field(header, "method", str, where):
        raise BadData(f"{where}: 'method' is empty")
    for name in ("sequence", "seed"):
        if records.field(header, name, int, where) < 0:
            raise BadData(f"{where}: {name} is {header[name]}")
