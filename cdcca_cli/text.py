"""Untrusted text: JSON, amounts such as `10%`, `64KiB` and `5s`, and whether it is UTF-8.

JSON is accepted if it is UTF-8, no object has a key twice, every number is finite, a whole number
has at most 64 digits, at most 64 containers are nested, and no text has a lone surrogate
(`"\\ud800"`), so what was read can be written again. DECODER leaves the last two to its caller.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.errors import BadData, MissingInput

_MOST_DIGITS = 64
_MOST_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_finite
)


def load_json(text: str | bytes | bytearray, where: str) -> Any:
    """One JSON value. Raises: BadData."""
    try:
        if not isinstance(text, str):
            text = text.decode("utf-8")
        value = DECODER.decode(text)
        _check_depth(value)
        if _SURROGATE.search(text) and not is_text(json.dumps(value, ensure_ascii=False)):
            raise ValueError("a text has a lone surrogate")
        return value
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 (byte {error.start})"
    except RecursionError:
        fault = "JSON nested too deeply"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        fault = f"not JSON ({line}column {error.colno}: {error.msg})"
    except ValueError as error:
        fault = f"not JSON ({str(error)[:200]})"
    raise BadData(f"{where}: {fault}")


def read_json(path: Path, most_bytes: int) -> Any:
    """The JSON value in a file. Raises: MissingInput if it cannot be read, BadData."""
    try:
        with open(path, "rb") as source:
            text = source.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    if len(text) > most_bytes:
        raise BadData(f"{path}: larger than {most_bytes:,} bytes")
    return load_json(text, str(path))


def _check_depth(value: object) -> None:
    """RecursionError for more than _MOST_DEPTH containers inside one another."""
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise RecursionError


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: JSON escapes and file names can have lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMG", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMG", 1)}
_SECONDS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_NUMBER = r"\d{1,18}(?:\.\d{1,18})?"


@dataclass(frozen=True)
class Amount:
    """A count, or a share, which is exact: 10 % of 30 is 3 on every machine."""

    value: Fraction
    is_share: bool

    def of(self, total: int) -> int:
        """How many of `total` this is: shares rounded up, at most `total`."""
        wanted = -(-self.value * total // 1) if self.is_share else self.value
        return min(total, int(wanted))

    @property
    def is_all(self) -> bool:
        return self.is_share and self.value == 1

    def __str__(self) -> str:
        return f"{float(100 * self.value):g}%" if self.is_share else str(self.value)


def counted(number: int, noun: str) -> str:
    """`1 frame`, `2,000 frames`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def parse_amount(text: str) -> Amount:
    """Read `10%` or `12`, above 0. Raises: ValueError."""
    match = re.fullmatch(rf"({_NUMBER})%|(\d{{1,18}})", text.strip())
    if match is not None:
        is_share = match[1] is not None
        value = Fraction(match[1]) / 100 if is_share else Fraction(match[2])
        if value > 0 and (value <= 1 or not is_share):
            return Amount(value, is_share)
    raise ValueError("expected a share like 10% (above 0, at most 100%) or a count")


def parse_bytes(text: str) -> int:
    """Read bytes above 0: `65536`, `64KiB` (times 1024), `64KB` (times 1000). ValueError."""
    match = re.fullmatch(rf"({_NUMBER})\s*([A-Za-z]*)", text.strip())
    if match is not None and match[2].upper() in _UNITS:
        num_bytes = int(Fraction(match[1]) * _UNITS[match[2].upper()])
        if num_bytes > 0:
            return num_bytes
    raise ValueError("expected bytes above 0, like 65536, 64KiB or 800KB")


def parse_seconds(text: str) -> float:
    """Read a time above 0 in seconds: `5s`, `200ms`, `1.5h`, `7d`, `30`. Raises: ValueError."""
    match = re.fullmatch(rf"({_NUMBER})\s*(ms|s|m|min|h|d|)", text.strip())
    if match is not None and float(match[1]) > 0:
        return float(match[1]) * _SECONDS[match[2]]
    raise ValueError("expected a time above 0, like 5s, 200ms, 10m, 1h or 7d")


def parse_share(text: str, largest: float = 1.0) -> float:
    """Read `10%` or `0.1`: from 0 to `largest`. Raises: ValueError."""
    match = re.fullmatch(rf"({_NUMBER})(%?)", text.strip())
    if match is not None:
        share = float(match[1]) / (100 if match[2] else 1)
        if share <= largest:
            return share
    raise ValueError(f"expected a share from 0% to {largest:.0%}, like 10%")


def file_stem(text: str, most: int = 60) -> str:
    """A text from a file as a part of a file's name: ASCII letters, digits, `.`, `_` and `-`.

    It is no path, is not hidden, and its end is kept if it is too long. Two texts may get one.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text[-4 * most :])[-most:].strip("._-") or "frame"
