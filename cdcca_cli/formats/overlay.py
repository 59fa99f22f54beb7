"""The overlay: the parameters that are trained, by name; and the overlay file, version 1.

A file is a record (`records`) of kind "overlay", version 1, with the header
{"kind": "overlay", "sequence": whole number >= 0, "version": 1}. Its tensors are float32, finite,
by parameter name.
"""

from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData
from cdcca_cli.files import Writable
from cdcca_cli.formats import records

Overlay = Mapping[str, NDArray[np.float32]]

KINDS = {"overlay": 1}
LIMITS = records.Limits(record_bytes=1 << 32)


def write_overlay_file(out: Writable, overlay: Overlay, sequence: int) -> int:
    """Write an overlay file; returns its bytes."""
    header = {"kind": "overlay", "version": KINDS["overlay"], "sequence": sequence}
    return records.write_record(out, overlay, header)


def read_overlay_file(
    source: BinaryIO, *, where: str = "overlay"
) -> tuple[dict[str, NDArray[np.float32]], int]:
    """The tensors and the sequence of an overlay file. BadData, NewerFormat."""
    record = records.read_only_record(source, KINDS, limits=LIMITS, where=where)
    records.exact_keys(record.header, {"kind", "version", "sequence"}, where)
    sequence = records.field(record.header, "sequence", int, where)
    if sequence < 0:
        raise BadData(f"{where}: a sequence of {sequence}")
    check_overlay(record.tensors, where)
    return record.tensors, sequence


def check_overlay(tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse tensors that are not float32 or not finite. BadData."""
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise BadData(f"{where}: {name[:80]!r} is {array.dtype}; overlays are float32")
        if not np.isfinite(array).all():
            raise BadData(f"{where}: {name[:80]!r} has values that are not finite")
