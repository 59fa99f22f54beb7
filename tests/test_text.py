"""Shares, counts and bytes as people write them."""

import pytest

from cdcca_cli.text import parse_amount, parse_bytes, parse_share


@pytest.mark.parametrize(
    ("text", "total", "number"),
    [
        ("10%", 30, 3),  # 0.1 * 30 is 3.0000000000000004 in floats, which would round up to 4
        ("10%", 31, 4),
        ("10%", 1, 1),
        ("10%", 0, 0),
        ("100%", 7, 7),
        ("0.5%", 200, 1),
        ("33.3%", 1000, 333),
        ("29%", 100, 29),  # 0.29 * 100 is 28.999999999999996 in floats
        ("12", 30, 12),
        ("12", 5, 5),
    ],
)
def test_amount(text: str, total: int, number: int) -> None:
    assert parse_amount(text).of(total) == number


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "101%", "-3", "1.5", "ten", "10 %%", "nan%", "1e3"]
)
def test_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_amount(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("65536", 65536),
        ("64KiB", 65536),
        ("64kib", 65536),
        ("800KB", 800_000),
        ("1.5 MiB", 1_572_864),
        ("2GB", 2_000_000_000),
        ("12B", 12),
    ],
)
def test_bytes(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "0", "0.2B", "64 K", "KiB", "-1KB", "1TB", "inf"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0), ("0%", 0.0), (" 12.5% ", 0.125)]
)
def test_share(text: str, share: float) -> None:
    assert parse_share(text, 0.9) == share


@pytest.mark.parametrize("text", ["", "-1%", "91%", "10", "nan", "ten", "1e-1"])
def test_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_share(text, 0.9)
