"""The modelled link: times by hand, units as written, and what means two things refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.scoring.link.transfer import parse_link, transfer_seconds


@pytest.mark.parametrize(
    ("text", "up", "down", "latency"),
    [
        ("1gbit,1ms", 1e9, 1e9, 0.001),
        ("20mbit/5mbit,50ms", 5e6, 20e6, 0.05),
        ("2.5Gbit,300us", 2.5e9, 2.5e9, 0.0003),
        ("64kbit , 1.5s", 64e3, 64e3, 1.5),
        ("1 mibit,0ms", 1_048_576, 1_048_576, 0),
        ("300bit/1tbit,2s", 1e12, 300, 2),
    ],
)
def test_reading(text: str, up: float, down: float, latency: float) -> None:
    link = parse_link(text)
    assert (link.up_bits_per_second, link.down_bits_per_second) == (up, down)
    assert link.latency_seconds == latency
    assert link.text == text


def test_times_by_hand() -> None:
    """125,000,000 bytes are 10^9 bits: a second at 1 Gbit/s, and 1 ms for the way. The paper's
    65,536 bytes are 524,288 bits: 0.1048576 s at 5 Mbit/s and 0.0262144 s at 20, and 50 ms."""
    assert parse_link("1gbit,1ms").up_seconds(125_000_000) == pytest.approx(1.001)
    link = parse_link("20mbit/5mbit,50ms")
    assert link.up_seconds(65_536) == pytest.approx(0.1548576)
    assert link.down_seconds(65_536) == pytest.approx(0.0762144)
    assert link.up_seconds(0) == 0.05


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.floats(1, 1e12),
    st.floats(0, 10),
)
def test_bytes_add_up_and_latency_counts_once(a: int, b: int, rate: float, latency: float) -> None:
    together = transfer_seconds(a + b, rate, latency)
    apart = transfer_seconds(a, rate, latency) + transfer_seconds(b, rate, latency)
    assert together == pytest.approx(apart - latency, rel=1e-9, abs=1e-9)
    assert together >= latency


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected RATE,LATENCY"),
        ("1gbit", "expected RATE,LATENCY"),
        ("1gbit,", "no latency in ''"),
        (",1ms", "no rate in ''"),
        ("1000,1ms", "no rate in '1000'"),
        ("1gbit,1", "no latency in '1'"),
        ("1gbit,1ms,2ms", "no latency in '1ms,2ms'"),
        ("0mbit,1ms", "a rate above 0"),
        ("-1mbit,1ms", "no rate"),
        ("nanbit,1ms", "no rate"),
        ("1e9bit,1ms", "no rate"),
        ("1mbit/,1ms", "no rate in ''"),
        ("1/2/3mbit,1ms", "no rate"),
        ("800kbps,1ms", "write kbit"),
        ("1MBps,1ms", "write mbit"),
        ("9bps,1ms", "write bit"),
        ("1mibps,1ms", "write mibit"),
        ("9" * 400 + "bit,1ms", "no rate"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_link(text)
    assert words in str(error.value) and "\n" not in str(error.value)
