import subprocess
import sys
from typing import Any

import pytest

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.settings import CODECS, CompressSettings, parse_expiry
from cdcca_cli.errors import UsageError
from cdcca_cli.settings import value_of

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
    with pytest.raises(UsageError, match="`expires`"):
        parse_expiry(text, NOW)


def test_a_day_that_has_begun() -> None:
    with pytest.raises(UsageError, match="has begun already"):
        parse_expiry("2027-01-15", NOW)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"budget_bytes": 10_000, "max_error": 0.1}, "`budget_bytes` and `max_error` exclude"),
        ({"bits": 2.0, "max_loss": 0.1}, "`bits` and `max_loss` exclude"),
        ({"bits": 0.0}, "`bits` 0"),
        ({"bits": float("nan")}, "`bits` nan"),
        ({"budget_bytes": 0}, "1 or more bytes"),
        ({"max_error": 1.0}, "more than 0, less than 1"),
        ({"max_loss": 1.1}, "`max_loss` 1.1: expected"),
        ({"since": -1}, "`since` -1"),
        ({"codec": "gzip"}, "expected one of usq, nf4, ternary, sign, exact"),
        ({"codec": "nf4-mixed"}, "expected one of usq, nf4"),
        ({"select": ("norm", "weights")}, "`select` weights: expected one of norm, bias, query"),
        ({"codec": "nf4", "max_loss": 0.1}, "`codec` nf4: does not go with `max_loss`"),
        ({"codec": "nf4", "budget_bytes": 1000}, "neither a budget nor a limit"),
        ({"codec": "ternary", "max_error": 0.1}, "it takes `budget_bytes` or `bits`"),
        ({"codec": "sign", "budget_bytes": 1000}, "neither a budget nor a limit"),
        ({"codec": "exact", "bits": 3.0}, "neither a budget nor a limit"),
    ],
)
def test_settings_that_contradict_each_other(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        CompressSettings(**arguments)


def test_every_codec_has_a_name() -> None:
    assert [CompressSettings(codec=name).codec_id for name in CODECS] == list(codecs.CODECS)


def test_settings_in_words() -> None:
    """As an option or cdcca.toml has them."""
    for name, text, value in (
        ("select", "lora, query", ("lora", "query")),
        ("budget_bytes", "64KiB", 65_536),
        ("max_loss", "3%", 0.03),
        ("bits", "2.2", 2.2),
        ("since", "0", 0),
        ("codec", "nf4", "nf4"),
    ):
        assert value_of(CompressSettings, name, text) == value
    for name, text in (("budget_bytes", "many"), ("max_loss", "150%"), ("expires", "soon")):
        with pytest.raises(UsageError, match=f"`{name}` {text}: expected"):
            value_of(CompressSettings, name, text)


def test_nothing_heavy_is_imported() -> None:
    """For `--help`: the settings alone, in a new interpreter."""
    code = (
        "import sys, cdcca_cli.downlink.settings\n"
        "assert not {'numpy', 'torch', 'zstandard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
