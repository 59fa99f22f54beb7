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
            state = State(
                done=records.field(header, "epoch", int, where),
                best_at=records.field(header, "best_epoch", int, where),
                steps=records.field(header, "steps", int, where),
                curves=records.field(header, "curves", dict, where),
                arrays=arrays,
                results={},
            )
        except FileNotFoundError:
            return None
        except (BadData, NewerFormat) as error:
            streams.message(f"{error}: training starts again")
            return None
        except OSError as error:
            streams.message(f"{files.reason(where, error)}: training starts again")
            return None
        expected = dict(shapes)
        for role in roles:
            expected |= {f"{role}.nats": (num_examples,), f"{role}.agrees": (num_examples,)}
        found = {name: array.shape for name, array in arrays.items()}
        is_own = header.get("key") == self.key and found == expected
        if not (is_own and state.curves.keys() == set(curves) and _are_numbers(state.curves)):
            return None
        for role in roles:
            state.results[role] = HeldOutResult(
                arrays.pop(f"{role}.nats"), arrays.pop(f"{role}.agrees")
            )
        return state


def _are_numbers(curves: Mapping[str, Any]) -> bool:
    return all(
        isinstance(row, list)
        and all(type(value) in (int, float) and math.isfinite(value) for value in row)
        for row in curves.values()
    )
