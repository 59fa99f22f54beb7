"""The change of an overlay: the subtraction of Eq. 7, the addition of Eq. 8, and its groups.

Tensors are in name order. One that is not selected has a change of zero, which no codec changes.
The four groups follow from the names of an overlay alone:

- `lora`: ends in `.lora_A` or `.lora_B`;
- `norm`: a `.weight`, and a `.bias` beside one: linear layers have their weights frozen, so a
  weight in an overlay is a normalisation's;
- `bias`: any other `.bias`;
- `query`: the rest.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData, SettingError

Overlay = Mapping[str, NDArray[np.float32]]


def difference(updated: NDArray[np.float32], base: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is quantised: Theta_updated - Theta_base (Eq. 7), elementwise, in float32.

    The base is the device's own state, not the cloud's exact weights: what the quantiser of the
    last round rounded off is part of this difference, so errors never add up.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.subtract(updated, base, dtype=np.float32)


def added(base: NDArray[np.float32], delta: NDArray[np.float32]) -> NDArray[np.float32]:
    """The new parameter: Theta_edge = Theta_base + Theta_compressed (Eq. 8), on a copy.

    One addition and one rounding to float32 an element, so every machine gets the same bits.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add(base, delta, dtype=np.float32)


def group_of(name: str, names: Collection[str]) -> str:
    """The group of one name of the overlay that holds `names`."""
    if name.endswith((".lora_A", ".lora_B")):
        return "lora"
    stem, _, own = name.rpartition(".")
    if own == "weight" or (own == "bias" and f"{stem}.weight" in names):
        return "norm"
    return "bias" if own == "bias" else "query"


def selected(names: Collection[str], groups: Collection[str] | None) -> frozenset[str]:
    """The names that belong to one of the groups; all of them for None.

    Raises: SettingError if the overlay has none of them.
    """
    if groups is None:
        return frozenset(names)
    chosen = frozenset(name for name in names if group_of(name, names) in groups)
    if not chosen:
        held = ", ".join(sorted({group_of(name, names) for name in names}))
        raise SettingError("select", f"the base has only {held}", ",".join(groups))
    return chosen


@dataclass(frozen=True, eq=False)
class Change:
    """A change of an overlay, as far as it was selected."""

    base: Overlay
    names: Sequence[str]
    deltas: Sequence[NDArray[np.float32]]

    @classmethod
    def between(cls, updated: Overlay, base: Overlay, selected: Collection[str]) -> "Change":
        """Theta_updated - Theta_base of the selected names.

        Raises: BadData if they are not overlays of one kind, or a difference is not finite.
        """
        if updated.keys() != base.keys():
            name = min(updated.keys() ^ base.keys())
            raise BadData(
                f"the adaptation has {len(updated):,} tensors, its base {len(base):,}; "
                f"{name[:80]} is in one only: distil again"
            )
        names = sorted(base)
        for name in names:
            _expect_alike(name, updated[name], base[name])
        deltas = [
            difference(updated[name], base[name])
            if name in selected
            else np.zeros(base[name].shape, np.float32)
            for name in names
        ]
        for name, delta in zip(names, deltas, strict=True):
            if not np.isfinite(delta).all():
                raise BadData(
                    f"the adaptation's change of {name[:80]} is not finite: "
                    "training diverged: distil again with a lower `lr`"
                )
        return cls(base, names, deltas)

    @property
    def num_parameters(self) -> int:
        """Of the whole overlay."""
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
        """The squared change of all of them."""
        return sum(self.energies)

    @property
    def rms(self) -> float:
        """Root mean square over the tensors that changed; 0 if none did."""
        return (self.energy / self.num_changed) ** 0.5 if self.num_changed else 0.0

    @cached_property
    def largest(self) -> float:
        """The largest magnitude."""
        return max((float(np.abs(delta).max(initial=0)) for delta in self.deltas), default=0.0)

    def relative_error(self, overlay: Overlay) -> float:
        """||overlay - base - change|| / ||change||, of what was decoded; 0 if nothing changed."""
        missed = sum(
            energy(overlay[name] - self.base[name] - delta)
            if overlay[name] is not self.base[name]
            else own
            for name, delta, own in zip(self.names, self.deltas, self.energies, strict=True)
        )
        return float((missed / (self.energy or 1.0)) ** 0.5)

    def unsent(self, overlay: Overlay) -> float:
        """The share of the squared change in values that stay as they are."""
        left = sum(
            energy(delta[overlay[name] == self.base[name]])
            for name, delta in zip(self.names, self.deltas, strict=True)
        )
        return left / (self.energy or 1.0)


def energy(values: NDArray[np.float32]) -> float:
    """The sum of squares."""
    exact = values.reshape(-1).astype(np.float64)
    return float(exact @ exact)


def _expect_alike(name: str, updated: NDArray[np.float32], base: NDArray[np.float32]) -> None:
    if updated.shape != base.shape or updated.dtype != np.float32:
        raise BadData(
            f"the adaptation's {name[:80]} is {updated.dtype} {updated.shape}, "
            f"its base's float32 {base.shape}: distil again"
        )
