import pytest

from cdcca_cli.downlink.expiry import parse_expiry
from cdcca_cli.errors import UsageError

NOW = 1_800_000_000.7  # 2027-01-15 08:00:00.7 UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1m", 1_800_000_060),
        ("12h", 1_800_043_200),
        ("30d", 1_802_592_000),
        ("2w", 1_801_209_600),
        ("2027-01-16", 1_800_057_600),  # 16 h on
        ("2028-03-01", 1_835_481_600),  # date -ud 2028-03-01 +%s: over a 29 February
    ],
)
def test_spans_and_days(text: str, seconds: int) -> None:
    assert parse_expiry(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "0d", "-1d", "30", "1.5d", "tomorrow", "2027-02-30", "30 y"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(UsageError, match="--expires"):
        parse_expiry(text, NOW)


def test_a_day_that_has_begun() -> None:
    with pytest.raises(UsageError, match="has begun already"):
        parse_expiry("2027-01-15", NOW)
