"""How many bits each tensor of an `nf4-mixed` update gets: each tensor coded in every way, once.

With nothing asked for, NF4 for all that matters; with a budget or an error, `allocation`'s ladder
over 0, 2, 4 and 8 bits: that is the paper's 'higher compression for less impactful parameters', by
tensor and not by block, since a choice for each block would take as many bytes as the 2-bit blocks'
scales.
"""

from collections.abc import Sequence

from cdcca_cli.downlink import allocation, nf4_mixed
from cdcca_cli.downlink.change import Change, energy

_PLAIN_BITS = 4  # NF4


class Mixture:
    """The tensors of a change, quantised once for each number of bits asked for."""

    def __init__(self, change: Change, sequence: int) -> None:
        self._change = change
        self._sequence = sequence
        self._coded: dict[tuple[int, int], nf4_mixed.CodedTensor] = {}

    def plain(self) -> list[int]:
        """NF4 for all that matters."""
        return allocation.all_alike(self._change.energies, _PLAIN_BITS)

    def within_bytes(self, budget_bytes: int, file_bytes: allocation.FileBytes) -> list[int]:
        """The bits of least error whose file has at most so many bytes. Raises: UsageError."""
        return allocation.within_budget(self._options(), budget_bytes, file_bytes)

    def within_error(self, most: float) -> list[int]:
        """The fewest bits that leave at most this relative error. Raises: UsageError."""
        return allocation.within_error(self._options(), most**2 * self._change.energy)

    def payload(self, bits: Sequence[int]) -> bytes:
        """The payload for these bits, one number for each tensor."""
        sent = [self._tensor(tensor, number) for tensor, number in enumerate(bits) if number]
        return nf4_mixed.write_payload(self._sequence, sent)

    def _tensor(self, tensor: int, bits: int) -> nf4_mixed.CodedTensor:
        if (tensor, bits) not in self._coded:
            delta = self._change.deltas[tensor].reshape(-1)
            self._coded[tensor, bits] = nf4_mixed.quantize(delta, bits)
        return self._coded[tensor, bits]

    def _options(self) -> list[list[allocation.Option]]:
        """What each tensor could be sent as; only as 0 bits if it did not change."""
        return [
            [
                allocation.Option(
                    bits, self._squared_error(tensor, bits), self._bytes(tensor, bits)
                )
                for bits in (nf4_mixed.BITS if own > 0 else (0,))
            ]
            for tensor, own in enumerate(self._change.energies)
        ]

    def _squared_error(self, tensor: int, bits: int) -> float:
        if not bits:
            return self._change.energies[tensor]
        delta = self._change.deltas[tensor].reshape(-1)
        return energy(delta - nf4_mixed.restore(self._tensor(tensor, bits), delta.size))

    def _bytes(self, tensor: int, bits: int) -> int:
        return len(nf4_mixed.write_payload(0, [self._tensor(tensor, bits)])) if bits else 0
