"""The modelled time of a transfer, from bandwidth and latency alone.

A link is written `RATE,LATENCY`, like `1gbit,1ms`; `DOWN/UP,LATENCY`, like `20mbit/5mbit,50ms`,
where the two directions differ.

    rate      a number and bit, kbit, mbit, gbit or tbit (powers of 1000) or kibit, mibit, gibit or
              tibit (powers of 1024), a second, as tc writes them; case does not matter
    latency   a number and s, ms or us, one way

`bps`, `kbps` and `mbps` are refused: to tc they are bytes a second, elsewhere bits. Handshakes,
packet headers, congestion, loss and coding time are not modelled: a real transfer takes longer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

FORMULA = "seconds = latency + 8 x bytes / bits per second; everything in one go"
_RATES = {f"{letter}bit": 1000**power for power, letter in enumerate(("", "k", "m", "g", "t"))}
_RATES |= {f"{letter}ibit": 1024**power for power, letter in enumerate("kmgt", 1)}
_SECONDS = {"s": Fraction(1), "ms": Fraction(1, 1000), "us": Fraction(1, 1_000_000)}
_QUANTITY = r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)"


def transfer_seconds(num_bytes: int, bits_per_second: float, latency_seconds: float) -> float:
    """The modelled time of n bytes sent in one go, in seconds: latency + 8 n / bits per second."""
    return latency_seconds + 8 * num_bytes / bits_per_second


@dataclass(frozen=True)
class Link:
    """A modelled link. Up is from the device to the cloud, down is back; latency is one way."""

    text: str
    up_bits_per_second: float
    down_bits_per_second: float
    latency_seconds: float

    def up_seconds(self, num_bytes: int) -> float:
        return transfer_seconds(num_bytes, self.up_bits_per_second, self.latency_seconds)

    def down_seconds(self, num_bytes: int) -> float:
        return transfer_seconds(num_bytes, self.down_bits_per_second, self.latency_seconds)


def parse_link(text: str) -> Link:
    """Read `1gbit,1ms` or, down before up, `20mbit/5mbit,50ms`. Raises: ValueError."""
    rates, comma, latency = text.lower().partition(",")
    down, slash, up = rates.partition("/")
    if not comma:
        raise ValueError(_EXPECTED)
    down_rate = _rate(down)
    up_rate = _rate(up) if slash else down_rate
    seconds = _quantity(latency, _SECONDS, "latency")
    return Link(text, float(up_rate), float(down_rate), float(seconds))


_EXPECTED = "expected RATE,LATENCY like 1gbit,1ms, or DOWN/UP,LATENCY like 20mbit/5mbit,50ms"


def _rate(text: str) -> Fraction:
    match = re.fullmatch(_QUANTITY, text.strip())
    if match is not None and re.fullmatch(r"[kmgt]?i?bp?s", match[2]):
        raise ValueError(
            f"{match[2]} is bytes a second to tc and bits to others: write "
            f"{match[2][:-2].removesuffix('b')}bit, eight of them for a byte"
        )
    rate = _quantity(text, _RATES, "rate")
    if not rate:
        raise ValueError("expected a rate above 0")
    return rate


def _quantity(text: str, units: Mapping[str, int | Fraction], what: str) -> Fraction:
    match = re.fullmatch(_QUANTITY, text.strip())
    if match is None or match[2] not in units:
        raise ValueError(f"no {what} in '{text}': {_EXPECTED}")
    return Fraction(match[1]) * units[match[2]]
