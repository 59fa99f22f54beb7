"""A training run between two epochs, on disk: what is needed to go on with the same bits.

The steps that follow the epochs (`rate_aware`) keep a state of their own, under a key of their own:
"epoch" then counts its legs, and "before" is absent.

    training-<16 hex digits of the key>.safetensors

A record (`formats.records`) of kind "training-state", version 1. Header {"best_epoch", "curves":
object of lists of numbers, "epoch": epochs that are done, "key", "kind", "steps": of Adam,
"version"}. Tensors, all F32: `overlay`, `phi` and `best` laid end to end as in `trainable.Flat`;
`overlay.mean`, `overlay.square`, `phi.mean` and `phi.square`, Adam's moments; `before.nats`,
`before.agrees`, `best.nats` and `best.agrees`, the held-out examples; and what the method leaves
from one step to the next (`mean`, the running mean; `counts`, of CoTTA). Without a phi there are
none of its tensors.

The file is replaced as a whole after each epoch, so a run that is killed loses one epoch at most.
Does not know what the key is made of (`run`).
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.distillation.held_out import Judgement
from cdcca_cli.errors import BadData
from cdcca_cli.formats import records

VERSION = 1
KINDS = {"training-state": VERSION}
LIMITS = records.Limits(record_bytes=1 << 35)


@dataclass(eq=False)
class State:
    """A run after `epoch` epochs."""

    epoch: int
    best_epoch: int
    steps: int
    curves: dict[str, list[float]]
    arrays: dict[str, np.ndarray]

    def judgement(self, role: str) -> Judgement:
        """One of the judgements among the arrays."""
        return Judgement(self.arrays[f"{role}.nats"], self.arrays[f"{role}.agrees"])


def judged(**roles: Judgement) -> dict[str, np.ndarray]:
    """Judgements as a state's arrays."""
    arrays = {f"{role}.nats": judgement.nats_E for role, judgement in roles.items()}
    return arrays | {f"{role}.agrees": judgement.agrees_E for role, judgement in roles.items()}


def judged_shapes(num_examples: int, *roles: str) -> dict[str, tuple[int, ...]]:
    """The shapes of those arrays."""
    return {f"{role}.{what}": (num_examples,) for role in roles for what in ("nats", "agrees")}


def path_of(folder: Path, key: str) -> Path:
    """Where the state of the run with this key is kept."""
    return folder / f"training-{key.removeprefix('sha256:')[:16]}.safetensors"


def save(path: Path, key: str, state: State) -> None:
    """Replace the file by this state. Raises: CannotWrite."""
    header = {
        "kind": "training-state",
        "version": VERSION,
        "key": key,
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "steps": state.steps,
        "curves": state.curves,
    }
    out = BytesIO()
    records.write_record(out, state.arrays, header)
    files.atomic_write_bytes(path, out.getvalue())


def restore(path: Path, key: str, shapes: dict[str, tuple[int, ...]]) -> State | None:
    """The state kept in `path`; None if there is none, or not this run's.

    Args: shapes: the arrays that this run keeps.
    """
    try:
        with open(path, "rb") as source:
            record = records.read_only_record(source, KINDS, limits=LIMITS, where=str(path))
        header, where = record.header, str(path)
        state = State(
            epoch=records.field(header, "epoch", int, where),
            best_epoch=records.field(header, "best_epoch", int, where),
            steps=records.field(header, "steps", int, where),
            curves=records.field(header, "curves", dict, where),
            arrays=record.tensors,
        )
    except FileNotFoundError:
        return None
    except BadData as error:
        streams.message(f"{error}: training starts anew")
        return None
    found = {name: array.shape for name, array in state.arrays.items()}
    return state if header.get("key") == key and found == shapes else None
