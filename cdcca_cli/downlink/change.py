"""The change of an overlay: the subtraction of Eq. 7, the addition of Eq. 8, and the groups.

Tensors are in name order. The change of a tensor that is not selected is zero. The group of a
tensor follows from the names of its overlay:

- `lora`: ends in `.lora_A` or `.lora_B`; `lora.connector` if its linear is one of the connector,
  by the family's row, else `lora.language`;
- `norm`: a `.weight`, and a `.bias` beside one (the weights of linear layers are frozen);
- `bias`: any other `.bias`;
- `query`: the rest.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import Family, family_named
from cdcca_cli.formats.names import LORA_A, LORA_B, LORA_PARTS, whole_groups

Overlay = Mapping[str, NDArray[np.float32]]


def added(base: NDArray[np.float32], delta: NDArray[np.float32]) -> NDArray[np.float32]:
    """Theta_edge = Theta_base + Theta_compressed (Eq. 8), on a copy; one float32 rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add(base, delta, dtype=np.float32)


def overlay_with(
    base: Overlay, deltas: Iterable[NDArray[np.float32] | None]
) -> dict[str, NDArray[np.float32]]:
    """The base plus changes (Eq. 8), in name and C order; for None the base's own array is kept."""
    overlay = dict(base)
    for name, delta in zip(sorted(base), deltas, strict=True):
        if delta is not None:
            overlay[name] = added(base[name], delta.reshape(base[name].shape))
    return overlay


def group_of(name: str, names: Collection[str], row: Family | None = None) -> str:
    """The group of one tensor of the overlay that has `names`; with a family's row, LoRA's part."""
    if name.endswith((LORA_A, LORA_B)):
        language, connector = LORA_PARTS
        if row is None:
            return "lora"
        return connector if row.in_connector(name) else language
    stem, _, own = name.rpartition(".")
    if own == "weight" or (own == "bias" and f"{stem}.weight" in names):
        return "norm"
    return "bias" if own == "bias" else "query"


def selected(
    names: Collection[str], groups: Collection[str] | None, family: str = ""
) -> frozenset[str]:
    """The names in one of the groups, all for None.

    Args: family: the device's, which decides what a part of LoRA is.
    Raises: SettingError if there are none, and for a part of LoRA of a family that is not known.
    """
    if groups is None:
        return frozenset(names)
    wanted = whole_groups(groups)
    row = None
    if not set(LORA_PARTS).isdisjoint(wanted) and (row := family_named(family)) is None:
        raise SettingError(
            "select", f"this cdcca knows no family {family}: give lora", ",".join(groups)
        )
    groups_of = {name: group_of(name, names, row) for name in names}
    chosen = frozenset(name for name, group in groups_of.items() if group in wanted)
    if not chosen:
        held = ", ".join(sorted(set(groups_of.values())))
        raise SettingError("select", f"the base has only {held}", ",".join(groups))
    return chosen


@dataclass(frozen=True, eq=False)
class Change:
    """The selected part of an overlay's change."""

    base: Overlay
    names: Sequence[str]
    deltas: Sequence[NDArray[np.float32]]

    @classmethod
    def between(cls, updated: Overlay, base: Overlay, selected: Collection[str]) -> "Change":
        """Theta_updated - Theta_base (Eq. 7) of the selected names, in float32.

        Raises: BadData if names, shapes or dtypes differ, or a difference is not finite.
        """
        if updated.keys() != base.keys():
            name = min(updated.keys() ^ base.keys())
            raise BadData(
                f"the adaptation has {len(updated):,} tensors, its base {len(base):,}; "
                f"only one of them has {name[:80]}: distil again"
            )
        names = sorted(base)
        deltas = []
        for name in names:
            new, old = updated[name], base[name]
            if new.shape != old.shape or new.dtype != np.float32:
                raise BadData(
                    f"the adaptation's {name[:80]} is {new.dtype} {new.shape}, "
                    f"its base's float32 {old.shape}: distil again"
                )
            if name not in selected:
                deltas.append(np.zeros(old.shape, np.float32))
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                delta = np.subtract(new, old, dtype=np.float32)
            if not np.isfinite(delta).all():
                raise BadData(
                    f"the adaptation's change of {name[:80]} is not finite: "
                    "training diverged: distil again with a lower `lr`"
                )
            deltas.append(delta)
        return cls(base, names, deltas)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole overlay."""
        return sum(delta.size for delta in self.deltas)

    @cached_property
    def num_changed(self) -> int:
        """Parameters in tensors that changed at all."""
        return sum(delta.size for delta, e in zip(self.deltas, self.energies, strict=True) if e > 0)

    @cached_property
    def energies(self) -> list[float]:
        """The squared change of each tensor."""
        return [energy(delta) for delta in self.deltas]

    @cached_property
    def energy(self) -> float:
        return sum(self.energies)

    @property
    def rms(self) -> float:
        """Root mean square over the tensors that changed; 0 if none did."""
        return (self.energy / self.num_changed) ** 0.5 if self.num_changed else 0.0

    @cached_property
    def largest(self) -> float:
        return max((float(np.abs(delta).max(initial=0)) for delta in self.deltas), default=0.0)

    def relative_error(self, overlay: Overlay) -> float:
        """||overlay - base - change|| / ||change|| of a decoded overlay; 0 if nothing changed."""
        missed = sum(
            energy(overlay[name] - self.base[name] - delta)
            for name, delta in zip(self.names, self.deltas, strict=True)
        )
        return float((missed / (self.energy or 1.0)) ** 0.5)

    def unsent(self, overlay: Overlay) -> float:
        """The share of the squared change in values that a decoded overlay does not change."""
        left = sum(
            energy(delta[overlay[name] == self.base[name]])
            for name, delta in zip(self.names, self.deltas, strict=True)
        )
        return left / (self.energy or 1.0)


def energy(values: NDArray[np.float32]) -> float:
    exact = values.reshape(-1).astype(np.float64)
    return float(exact @ exact)
