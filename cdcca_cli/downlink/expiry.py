"""When an update stops being good: `30d`, `12h`, or a day like `2027-01-31`, in UTC.

A device that was cut off, or is shown an old update on purpose, does not take one that has expired.
Reads text; what a device does with it is `receiver`'s.
"""

import re
from datetime import UTC, datetime

from cdcca_cli.errors import UsageError

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SPAN = re.compile(r"([1-9][0-9]{0,8})\s*([mhdw])")


def parse_expiry(text: str, now: float) -> int:
    """Seconds since 1970 that `text` means; a day is meant from its first second on, in UTC.

    Args: now: seconds since 1970, which a span is counted from.
    Raises: UsageError: `text` is neither, or not after now.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is not None:
        return int(now) + int(match[1]) * _SECONDS[match[2]]
    try:
        day = datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(
            f"--expires {text}: expected a span like 30d or 12h, or a day like 2027-01-31"
        ) from None
    if day.timestamp() <= now:
        raise UsageError(f"--expires {text}: that day has begun already (UTC)")
    return int(day.timestamp())
