"""The state of training between two segments, on disk: what is needed to go on with the same bits.

    training-<16 hex digits of the key>.safetensors

A record (`formats.records`) of kind "training-state", version 1. Header {"best_epoch", "curves":
object of lists of numbers, "epoch": segments that are done (epochs, or legs of the rate-aware
steps), "key": digest of everything the result depends on, "kind", "steps": of Adam, "version"}.
Tensors, all F32: `overlay`, `phi` and `best` laid end to end as in `optimiser.Flat`;
`overlay.mean`, `overlay.square`, `phi.mean` and `phi.square`, Adam's moments; `best.nats`,
`best.agrees` and, of the epochs, `before.nats` and `before.agrees`, the held-out examples; and what
the method leaves from one step to the next (`mean`, the running mean; `counts`, of CoTTA). Without
a phi there are none of its tensors.

The file is replaced as a whole after each segment, so a run that is killed loses one at most.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import overlay_digest

VERSION = 1
KINDS = {"training-state": VERSION}
LIMITS = records.Limits(record_bytes=1 << 35)


@dataclass(eq=False)
class State:
    """Training after `done` segments. results: of the held-out part, by role."""

    done: int
    best_at: int
    steps: int
    curves: dict[str, list[float]]
    arrays: dict[str, np.ndarray]
    results: dict[str, HeldOutResult]


class Checkpoint:
    """The file of one run's state."""

    def __init__(self, folder: Path, identity: Sequence[Any]) -> None:
        """Args: identity: everything the result depends on, as JSON values."""
        text = np.frombuffer(records.dump_json(identity).encode(), np.uint8)
        self.key = overlay_digest({"key": text})
        self.path = folder / f"training-{self.key.removeprefix('sha256:')[:16]}.safetensors"

    def save(self, state: State) -> None:
        """Replace the file by this state. Raises: CannotWrite."""
        header = {
            "kind": "training-state",
            "version": VERSION,
            "key": self.key,
            "epoch": state.done,
            "best_epoch": state.best_at,
            "steps": state.steps,
            "curves": state.curves,
        }
        arrays = dict(state.arrays)
        for role, result in state.results.items():
            arrays |= {f"{role}.nats": result.nats_E, f"{role}.agrees": result.agrees_E}
        out = BytesIO()
        records.write_record(out, arrays, header)
        files.atomic_write_bytes(self.path, out.getvalue())

    def restore(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        roles: Collection[str],
        num_examples: int,
        curves: Collection[str],
    ) -> State | None:
        """The state on disk; None if there is none, or not this run's.

        Args: shapes: of this run's arrays. roles: of its results. num_examples: that are held out.
            curves: their names.
        """
        where = str(self.path)
        try:
            with open(self.path, "rb") as source:
                record = records.read_only_record(source, KINDS, limits=LIMITS, where=where)
            header, arrays = record.header, record.tensors
            done, best_at, steps = (
                records.field(header, name, int, where) for name in ("epoch", "best_epoch", "steps")
            )
            kept_curves = records.field(header, "curves", dict, where)
        except FileNotFoundError:
            return None
        except (BadData, NewerFormat, OSError) as error:
            words = files.reason(where, error) if isinstance(error, OSError) else error
            streams.message(f"{words}: training starts again")
            return None
        parts = {role: (f"{role}.nats", f"{role}.agrees") for role in roles}
        expected = dict(shapes) | dict.fromkeys(chain(*parts.values()), (num_examples,))
        is_own = header.get("key") == self.key and kept_curves.keys() == set(curves)
        if not (is_own and {name: array.shape for name, array in arrays.items()} == expected):
            return None
        if not all(map(_are_numbers, kept_curves.values())):
            return None
        results = {
            role: HeldOutResult(arrays[nats], arrays[agrees])
            for role, (nats, agrees) in parts.items()
        }
        return State(done, best_at, steps, kept_curves, arrays, results)


def _are_numbers(row: Any) -> bool:
    return isinstance(row, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in row
    )
