"""Settings of `compress`: which changes are sent, and how exactly; and of the command that `apply`
runs. Imports nothing heavy.

The paper's update is `codec` nf4 with `select` norm,bias,query: 1,650,688 parameters at 7B.
"""

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.formats.names import GROUP_NAMES
from cdcca_cli.settings import check, defaults, setting
from cdcca_cli.text import parse_bytes, parse_share

MAX_LOSS = 0.01
"""The share by which the held-out loss may grow if no limit is given."""
CODECS = ("usq", "nf4", "ternary", "sign", "exact")

_LIMITS = ("budget_bytes", "bits", "max_error", "max_loss")
_LIMITS_OF = {"usq": _LIMITS, "ternary": ("budget_bytes", "bits")}
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SPAN = re.compile(r"([1-9][0-9]{0,8})\s*([mhdw])")


def parse_expiry(text: str, now: float | None = None) -> int:
    """Seconds since 1970 of `30d`, `12h` or a day like `2027-01-31` (its first second, UTC).

    Args: now: start of a span, in seconds since 1970; None: this machine's clock.
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
    """Which part of a change is sent, and how exactly.

    since: sequence of the overlay that the update starts from; None: the mirror's current one.
    expires: seconds since 1970 from which on devices refuse the update.
    num_signatures: how many will be added; their bytes count towards the budget.
    """

    select: tuple[str, ...] | None = setting(
        None, "Groups of parameters to send", choices=GROUP_NAMES, usually="all"
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
    codec: str = setting(CODECS[0], "How the change is coded", choices=CODECS)
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
        if len(limits) > 1:
            both = " and ".join(f"`{name}`" for name in limits)
            raise UsageError(f"{both} exclude each other: give one")
        possible = _LIMITS_OF.get(self.codec, ())
        if limits and limits[0] not in possible:
            takes = " or ".join(f"`{name}`" for name in possible) or "neither a budget nor a limit"
            reason = f"does not go with `{limits[0]}`: it takes {takes}"
            raise SettingError("codec", reason, self.codec)

    @property
    def codec_id(self) -> str:
        """The codec as the update's header names it."""
        return "nf4-mixed" if self.codec == "nf4" else self.codec

    @property
    def is_catch_up(self) -> bool:
        """Whether this is a catch-up if there is no adaptation."""
        return self.codec == "exact" and self.since is not None


@dataclass(frozen=True)
class NotifySettings:
    """The command that is told of a change of the overlay (`notify`); None: there is none."""

    command: str | None = setting(
        None,
        "Command to run after the overlay has changed; if it fails, the change is taken back (81)",
        option="notify",
    )
    seconds: float = setting(
        300.0,
        "Seconds after which the command has failed",
        above=0,
        at_most=86_400,
        unit="seconds",
        option="notify_timeout",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.command is not None and not self.command.strip():
            raise SettingError("notify", "expected a command")
        if self.command is None and self.seconds != defaults(type(self))["seconds"]:
            raise SettingError("notify_timeout", "does nothing without `notify`")
