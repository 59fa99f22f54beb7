"""What `compress` is asked for: which changes are sent, and how exactly.

At most one of a budget, bits, an error and a loss decides how exactly; a codec takes some of them.
Imports nothing heavy: `encode` does what the settings ask for.
"""

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.formats.names import GROUPS
from cdcca_cli.settings import check, setting
from cdcca_cli.text import parse_bytes, parse_share

PAPER = ("norm", "bias", "query")
"""The paper sends 266,240 + 1,359,872 + 24,576 = 1,650,688 parameters: all groups but LoRA."""
MAX_LOSS = 0.01
"""The share by which the held-out loss may grow where nothing else is asked for."""
CODECS = ("usq", "nf4", "ternary", "sign", "exact")

_LIMITS = ("budget_bytes", "bits", "max_error", "max_loss")
_LIMITS_OF = {"usq": _LIMITS, "ternary": ("budget_bytes", "bits")}
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SPAN = re.compile(r"([1-9][0-9]{0,8})\s*([mhdw])")


def parse_expiry(text: str, now: float | None = None) -> int:
    """Seconds since 1970 of `30d`, `12h` or a day like `2027-01-31` (its first second, UTC).

    Args: now: seconds since 1970, from which a span is counted; None: this machine's clock.
    Raises: SettingError: `text` is neither, or not after now.
    """
    now = time.time() if now is None else now
    match = _SPAN.fullmatch(text.strip())
    if match is not None:
        return int(now) + int(match[1]) * _SECONDS[match[2]]
    try:
        day = datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        expected = "expected a span like 30d or 12h, or a day like 2027-01-31"
        raise SettingError("expires", expected, text) from None
    if day.timestamp() <= now:
        raise SettingError("expires", "that day has begun already (UTC)", text)
    return int(day.timestamp())


@dataclass(frozen=True)
class CompressSettings:
    """What is sent of a change, and how exactly; a preset becomes what it is short for.

    since: the base of the update is the overlay of this sequence; None: the mirror's current one.
    expires: seconds since 1970 from which on devices refuse the update.
    num_signatures: how many will be added; their bytes are part of the file's.
    """

    select: tuple[str, ...] | None = setting(
        None, "Groups of parameters to send", choices=GROUPS, usually="all"
    )
    budget_bytes: int | None = setting(
        None,
        "Largest size of the update file: 200KB, 64KiB, 65536",
        at_least=1,
        unit="bytes",
        option="budget",
        parse=parse_bytes,
    )
    max_error: float | None = setting(
        None, "Smallest update with at most this relative error of the change", above=0, below=1
    )
    bits: float | None = setting(
        None, "Largest size of the update file in bits per changed parameter", above=0, at_most=32
    )
    max_loss: float | None = setting(
        None,
        "Smallest update with at most this growth of the held-out loss",
        at_least=0,
        at_most=1,
        usually=f"{MAX_LOSS:.0%}",
        parse=parse_share,
    )
    codec: str | None = setting(None, "How the change is coded", choices=CODECS, usually=CODECS[0])
    preset: str | None = setting(
        None,
        "What the paper sends, as the paper codes it: norm, bias and query in NF4",
        choices=("paper",),
    )
    since: int | None = setting(
        None, "Sequence that the receiving device is still at; 0 for a new device", at_least=0
    )
    expires: int | None = setting(
        None,
        "When devices refuse the update: 30d, 12h, or a day like 2027-01-31 (UTC)",
        usually="never",
        parse=parse_expiry,
    )
    num_signatures: int = 0

    def __post_init__(self) -> None:
        check(self)
        limits = [name for name in _LIMITS if getattr(self, name) is not None]
        if self.preset is not None:
            given = [name for name in ("select", "codec") if getattr(self, name) is not None]
            if names := [*given, *limits]:
                left_out = ", ".join(f"`{name}`" for name in names)
                reason = f"decides what is sent and how: leave out {left_out}"
                raise SettingError("preset", reason, self.preset)
            self._set(select=PAPER, codec="nf4", preset=None)
        self._set(codec=self.codec or CODECS[0])
        if len(limits) > 1:
            both = " and ".join(f"`{name}`" for name in limits)
            raise UsageError(f"{both} exclude each other: give one")
        possible = _LIMITS_OF.get(self.codec or "", ())
        if limits and limits[0] not in possible:
            takes = " or ".join(f"`{name}`" for name in possible) or "neither a budget nor a limit"
            reason = f"does not go with `{limits[0]}`: it takes {takes}"
            raise SettingError("codec", reason, self.codec)

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def codec_id(self) -> str:
        """The codec as the header of an update names it."""
        return "nf4-mixed" if self.codec == "nf4" else str(self.codec)

    @property
    def is_catch_up(self) -> bool:
        """Whether, without an adaptation, this asks for what a device has missed."""
        return self.codec == "exact" and self.since is not None
