"""JSON that is not trusted; shares, counts and bytes as people write them."""

import time

import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.text import file_stem, is_text, load_json, parse_amount, parse_bytes, parse_share


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not JSON (column 1: Expecting value)"),
        ("{", "not JSON (column 2: "),
        ("[\n1,\n]", "not JSON (line 3, column 1: Expecting value)"),
        ('{"a":1,"a":1}', "the key 'a' occurs twice"),
        ("NaN", "NaN is not a finite number"),
        ("-Infinity", "-Infinity is not a finite number"),
        ("[1e400]", "1e400 is not a finite number"),
        ("[" * 200_000, "JSON nested too deeply"),
        ("[" * 65 + "]" * 65, "JSON nested too deeply"),
        ('{"a":' * 65 + "1" + "}" * 65, "JSON nested too deeply"),
        ("1" * 65, "a number of 65 digits"),
        ("-" + "1" * 9000, "a number of 9,001 digits"),
        ("1 2", "Extra data"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\udfff": 1}', "lone surrogate"),
        ('["\\ude00\\ud83d"]', "lone surrogate"),
        (b"\xef\xbb\xbf1", "not JSON"),
        (b'"\xff"', "not UTF-8 (byte 1)"),
        (b'"\xed\xa0\x80"', "not UTF-8 (byte 1)"),
    ],
)
def test_json_that_is_refused(text: str | bytes, fault: str) -> None:
    with pytest.raises(BadData) as refusal:
        load_json(text, "here")
    assert str(refusal.value).startswith("here: ") and fault in str(refusal.value)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":[1,2.5,true,null,"\\ud83d\\ude00"]}', {"a": [1, 2.5, True, None, "\U0001f600"]}),
        ("9" * 64, 10**64 - 1),
        (" 1e300 ", 1e300),
        ('"\\\\ud800"', "\\ud800"),  # an escaped backslash: six plain characters
        ("[" * 64 + "]" * 64, eval("[" * 64 + "]" * 64)),
    ],
)
def test_json_that_is_read(text: str, value: object) -> None:
    assert load_json(text, "here") == load_json(bytearray(text.encode()), "here") == value


def test_many_keys_of_which_the_last_occurs_twice_take_no_time() -> None:
    """Looking for the key was quadratic once: it took two minutes here."""
    text = "{" + ",".join(f'"{number}":0' for number in range(60_000)) + ',"x":0,"x":1}'
    began = time.perf_counter()
    with pytest.raises(BadData, match="the key 'x' occurs twice"):
        load_json(text, "it")
    assert time.perf_counter() - began < 5


def test_text_is_what_utf_8_can_hold() -> None:
    assert is_text("") and is_text("é \U0001f600")
    assert not is_text("\ud800") and not is_text("a\udce9")


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


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("night/0012.png", "night_0012.png"),
        ("../../etc/passwd", "etc_passwd"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("a b\n\0c", "a_b_c"),
        ("\ud800", "frame"),
        ("", "frame"),
        ("..", "frame"),
        ("x" * 100_000 + "12.png", "x" * 54 + "12.png"),
        ("日" * 100_000, "frame"),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_any_text_as_a_part_of_a_name(text: str, stem: str) -> None:
    assert file_stem(text) == stem
