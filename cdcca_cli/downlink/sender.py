"""An adaptation into an update: Theta_compressed = Quantize(Theta_updated - Theta_base, Q) (Eq. 7).

The base is the mirror's current overlay, which is the device's, bit for bit; not the weights that
training started from or the last adaptation. So what one round's coding rounded off is part of the
next round's change: error feedback. The update's sequence follows the highest that the mirror has
ever had: the base's plus one, unless the mirror was rolled back.

What is sent is what the receiver decodes: the target digest is taken from the coded bytes, read
back, not from what they should have said. `formats.update` writes the result.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink import allocation, coding, receiver
from cdcca_cli.downlink.delta import difference
from cdcca_cli.downlink.groups import PAPER, selected
from cdcca_cli.errors import BadData, UsageError, WrongBase
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.update import Update, write_update

_PLAIN_BITS = 4  # NF4


@dataclass(frozen=True)
class CompressSettings:
    """What is sent of a change, and how exactly.

    With neither a budget nor an error, NF4 for all that matters (`allocation.all_alike`).

    Args:
        select: groups to send (`groups`), None for all.
        budget_bytes: the most that the whole file may have.
        max_error: the most that ||decoded - change|| / ||change|| of what is selected may be.
    """

    select: tuple[str, ...] | None = None
    budget_bytes: int | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.budget_bytes is not None and self.max_error is not None:
            raise UsageError("--budget and --max-error exclude each other: give one")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise UsageError(f"--max-error {self.max_error:g}: expected a number between 0 and 1")


PRESETS = {"paper": CompressSettings(select=PAPER)}


def settings_of(
    preset: str | None, select: str | None, budget_bytes: int | None, max_error: float | None
) -> CompressSettings:
    """The settings that a command line means; groups stand in one string, between commas.

    Raises: UsageError.
    """
    if preset is None:
        groups = None if select is None else tuple(group.strip() for group in select.split(","))
        return CompressSettings(groups, budget_bytes, max_error)
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: expected {' or '.join(PRESETS)}")
    if (select, budget_bytes, max_error) != (None, None, None):
        raise UsageError(
            f"--preset {preset} decides what is sent and how: "
            "leave out --select, --budget and --max-error"
        )
    return PRESETS[preset]


@dataclass(frozen=True)
class Compressed:
    """An update, and what became of the change.

    Args:
        num_bytes: of the whole file.
        num_sent: parameters in tensors of more than 0 bits.
        relative_error: ||decoded - change|| / ||change|| over the selected groups; 0 if none.
    """

    update: Update
    num_bytes: int
    num_sent: int
    relative_error: float

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole file, for a parameter sent; 0 if none is."""
        return 8 * self.num_bytes / self.num_sent if self.num_sent else 0.0

    def summary(self) -> str:
        """One line for people."""
        bits = self.update.bits
        tensors = ", ".join(
            f"{bits.count(number)} at {number} bits" for number in (8, 4, 2) if number in bits
        )
        return (
            f"update {self.update.sequence}: {self.num_bytes:,} bytes for {self.num_sent:,} of "
            f"{self.update.num_parameters:,} parameters ({self.bits_per_parameter:.2f} bits each; "
            f"tensors: {tensors or 'none sent'}), relative error {self.relative_error:.4f}, "
            f"{short(self.update.base)} to {short(self.update.target)}"
        )


def compress(
    adaptation: Adaptation, base: Device, settings: CompressSettings | None = None
) -> Compressed:
    """Make the update that takes a device from the mirror's overlay to (nearly) the adaptation.

    The mirror itself is not changed: apply the update to it as well.

    Raises: WrongBase if the adaptation was made from another overlay than the mirror's current one,
    BadData if it does not fit it or is not finite, UsageError for a budget or an error that cannot
    be met, or groups that the base does not have.
    """
    settings = settings or CompressSettings()
    overlay = base.read_overlay()
    _expect_same_base(adaptation, base)
    change = _Change(base, _deltas(adaptation.overlay, overlay), selected(overlay, settings.select))
    bits = _allocated(change, settings)
    update = change.update(bits)
    update = replace(update, target=overlay_digest(receiver.decode(update, overlay)))
    error = sum(change.squared_error(tensor, b) for tensor, b in enumerate(bits))
    return Compressed(
        update=update,
        num_bytes=_file_bytes(update),
        num_sent=sum(change.deltas[tensor].size for tensor, b in enumerate(bits) if b),
        relative_error=(error / (sum(change.energies) or 1.0)) ** 0.5,
    )


class _Change:
    """The change of each tensor in name order, quantised once for each number of bits asked for."""

    def __init__(
        self, base: Device, deltas: Mapping[str, NDArray[np.float32]], chosen: Collection[str]
    ) -> None:
        names = sorted(deltas)
        self._base = base
        self.deltas = [deltas[name].reshape(-1) for name in names]
        self.energies = [
            _energy(deltas[name]) if name in chosen and deltas[name].size else 0.0 for name in names
        ]
        self._coded: dict[tuple[int, int], coding.CodedTensor] = {}

    def coded(self, tensor: int, bits: int) -> coding.CodedTensor:
        if (tensor, bits) not in self._coded:
            self._coded[tensor, bits] = coding.quantize(self.deltas[tensor], bits)
        return self._coded[tensor, bits]

    def squared_error(self, tensor: int, bits: int) -> float:
        if not bits:
            return self.energies[tensor]
        delta = self.deltas[tensor]
        return _energy(delta - coding.restore(self.coded(tensor, bits), delta.size))

    def options(self) -> list[list[allocation.Option]]:
        """What each tensor could be sent as; only as 0 bits if it did not change."""
        return [
            [
                allocation.Option(bits, self.squared_error(tensor, bits), self._bytes(tensor, bits))
                for bits in (coding.BITS if energy > 0 else (0,))
            ]
            for tensor, energy in enumerate(self.energies)
        ]

    def _bytes(self, tensor: int, bits: int) -> int:
        return len(coding.write_payload(0, [self.coded(tensor, bits)])) if bits else 0

    def update(self, bits: Sequence[int]) -> Update:
        """The update for these bits; its target is still to be found."""
        sequence = self._base.highest_sequence + 1
        sent = [self.coded(tensor, b) for tensor, b in enumerate(bits) if b]
        return Update(
            base=self._base.digest,
            target=self._base.digest,
            sequence=sequence,
            codec=coding.CODEC,
            bits=list(bits),
            num_parameters=sum(delta.size for delta in self.deltas),
            payload=coding.write_payload(sequence, sent),
        )


def _allocated(change: _Change, settings: CompressSettings) -> list[int]:
    """The bits of each tensor."""
    if settings.budget_bytes is not None:
        return allocation.within_budget(
            change.options(), settings.budget_bytes, lambda bits: _file_bytes(change.update(bits))
        )
    if settings.max_error is not None:
        return allocation.within_error(
            change.options(), settings.max_error**2 * sum(change.energies)
        )
    return allocation.all_alike(change.energies, _PLAIN_BITS)


def _file_bytes(update: Update) -> int:
    return write_update(BytesIO(), update)


def _energy(values: NDArray[np.float32]) -> float:
    exact = values.reshape(-1).astype(np.float64)
    return float(exact @ exact)


def _expect_same_base(adaptation: Adaptation, base: Device) -> None:
    if (adaptation.base, adaptation.sequence) != (base.digest, base.sequence):
        raise WrongBase(
            f"the adaptation was made from {short(adaptation.base)} (sequence "
            f"{adaptation.sequence}), the mirror is at {short(base.digest)} (sequence "
            f"{base.sequence}): distil against this mirror, or name the one it was made from"
        )


def _deltas(
    updated: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray]
) -> dict[str, NDArray[np.float32]]:
    if updated.keys() != base.keys():
        name = min(updated.keys() ^ base.keys())
        raise BadData(
            f"the adaptation has {len(updated):,} tensors, its base {len(base):,}; "
            f"{name[:80]} is in one only: distil again"
        )
    deltas = {}
    for name in sorted(base):
        if updated[name].shape != base[name].shape or updated[name].dtype != np.float32:
            raise BadData(
                f"the adaptation's {name[:80]} is {updated[name].dtype} {updated[name].shape}, "
                f"its base's float32 {base[name].shape}: distil again"
            )
        deltas[name] = difference(updated[name], base[name])
        if not np.isfinite(deltas[name]).all():
            raise BadData(
                f"the adaptation's change of {name[:80]} is not finite: "
                "training diverged, distil again with a lower --lr"
            )
    return deltas
