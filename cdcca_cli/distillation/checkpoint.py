"""The state of training after a segment, on disk, so that a stopped run ends with the same bits.

    training-<16 hex digits of the key>.safetensors

A record (`formats.records`) of kind "training-state", version 1, replaced as a whole after each
segment. Header {"best_epoch", "curves": object of lists of numbers, "epoch": segments that are
done, "key": digest of everything the result depends on, "kind", "steps": of Adam, "version"}.
Tensors, all F32: `overlay`, `phi` and `best` laid end to end as in `optimiser.Flat`;
`overlay.mean`, `overlay.square`, `phi.mean` and `phi.square`, Adam's moments; `best.nats`,
`best.agrees` and, of the epochs, `before.nats` and `before.agrees`, the held-out examples; and the
method's state (`mean`, the running mean; `counts`, of CoTTA). Without a phi there are none of its
tensors.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import overlay_digest

VERSION = 1
KINDS = {"training-state": VERSION}
LIMITS = records.Limits(record_bytes=1 << 35)


class Checkpoint:
    """The file of one run's state."""

    def __init__(self, folder: Path, identity: Sequence[Any]) -> None:
        """Args: identity: everything the result depends on, as JSON values."""
        text = np.frombuffer(records.dump_json(identity).encode(), np.uint8)
        self.key = overlay_digest({"key": text})
        self.path = folder / f"training-{self.key.removeprefix('sha256:')[:16]}.safetensors"

    def save(self, arrays: Mapping[str, np.ndarray], **state: Any) -> None:
        """Replace the file. Args: state: the header's other fields. Raises: CannotWrite."""
        header = {"kind": "training-state", "version": VERSION, "key": self.key, **state}
        out = BytesIO()
        records.write_record(out, arrays, header)
        files.atomic_write_bytes(self.path, out.getvalue())

    def restore(
        self, shapes: Mapping[str, tuple[int, ...]], curves: Collection[str]
    ) -> records.Record | None:
        """The state on disk; None if there is none of this run, with these shapes and curves."""
        where = str(self.path)
        try:
            with open(self.path, "rb") as source:
                record = records.read_only_record(source, KINDS, limits=LIMITS, where=where)
            for name in ("epoch", "best_epoch", "steps"):
                records.field(record.header, name, int, where)
            rows = records.field(record.header, "curves", dict, where)
        except FileNotFoundError:
            return None
        except (BadData, NewerFormat, OSError) as error:
            words = files.reason(where, error) if isinstance(error, OSError) else error
            streams.message(f"{words}: training starts again")
            return None
        is_own = (
            record.header.get("key") == self.key
            and rows.keys() == set(curves)
            and all(map(_are_numbers, rows.values()))
            and {name: array.shape for name, array in record.tensors.items()} == shapes
        )
        return record if is_own else None


def _are_numbers(row: Any) -> bool:
    return isinstance(row, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in row
    )
