"""Amounts as people write them: `10%`, `12`, `64KiB`; and counts in a sentence.

Shares are exact fractions, so 10 % of 30 is 3 on every machine. A text that is no such amount is a
ValueError with what was expected; `settings` adds the setting's name.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMG", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMG", 1)}
_NUMBER = r"\d{1,18}(?:\.\d{1,18})?"


@dataclass(frozen=True)
class Amount:
    """A count, or a share of what there is; a share is exact, so 10 % of 30 is 3."""

    value: Fraction
    is_share: bool

    def of(self, total: int) -> int:
        """How many of `total` this is: shares rounded up, so 1 at least, and never above it."""
        wanted = -(-self.value * total // 1) if self.is_share else self.value
        return min(total, int(wanted))

    def __str__(self) -> str:
        return f"{float(100 * self.value):g}%" if self.is_share else str(self.value)


def counted(number: int, noun: str) -> str:
    """`1 frame`, `2,000 frames`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def parse_amount(text: str) -> Amount:
    """Read `10%` or `12`. Raises: ValueError: neither, or not above 0, or above 100 %."""
    match = re.fullmatch(rf"({_NUMBER})%|(\d{{1,18}})", text.strip())
    if match is not None:
        is_share = match[1] is not None
        value = Fraction(match[1]) / 100 if is_share else Fraction(match[2])
        if value > 0 and (value <= 1 or not is_share):
            return Amount(value, is_share)
    raise ValueError("expected a share like 10% (above 0, at most 100%) or a count")


def parse_bytes(text: str) -> int:
    """Read a number of bytes: `65536`, `64KiB` (times 1024), `64KB` (times 1000).

    Raises: ValueError: not one, or 0.
    """
    match = re.fullmatch(rf"({_NUMBER})\s*([A-Za-z]*)", text.strip())
    if match is not None and match[2].upper() in _UNITS:
        num_bytes = int(Fraction(match[1]) * _UNITS[match[2].upper()])
        if num_bytes > 0:
            return num_bytes
    raise ValueError("expected bytes above 0, like 65536, 64KiB or 800KB")


def parse_share(text: str, largest: float = 1.0) -> float:
    """Read `10%` or `0.1`: from 0 to `largest`. Raises: ValueError."""
    match = re.fullmatch(rf"({_NUMBER})(%?)", text.strip())
    if match is not None:
        share = float(match[1]) / (100 if match[2] else 1)
        if share <= largest:
            return share
    raise ValueError(f"expected a share from 0% to {largest:.0%}, like 10%")
