"""JSON entry by entry: the same values as Python's reader gives at once, however it is cut up."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.datasets import entries as module
from cdcca_cli.datasets.entries import entries
from cdcca_cli.errors import BadData

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text("abc"), inner)),
    max_leaves=8,
)
FILES = st.one_of(st.lists(VALUES), st.dictionaries(st.text("abc"), VALUES))


def together(data: bytes) -> Any:
    """What the entries of a file make up."""
    whole: Any = [] if data.lstrip(b"\xef\xbb\xbf \n").startswith(b"[") else {}
    for key, number, value in entries(io.BytesIO(data), "file"):
        if key is None:
            assert number == len(whole)
            whole.append(value)
        elif number is None:
            whole[key] = value
        else:
            assert number == len(whole[key])
            whole[key].append(value)
    return whole


@given(FILES, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_equal_to_reading_at_once(value: Any, indent: int | None, ascii: bool, chunk: int) -> None:
    """In pieces of 1 to 9 bytes, which cut numbers, escapes and characters apart."""
    data = json.dumps(value, indent=indent, ensure_ascii=ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_BYTES", chunk)
        assert together(data) == value
        assert together(b"\xef\xbb\xbf \n" + data + b"\n ") == value


@given(FILES, st.data())
def test_a_cut_file_is_refused(value: Any, draw: st.DataObject) -> None:
    data = json.dumps(value).encode()
    with pytest.raises(BadData, match=r"^file: "):
        together(data[: draw.draw(st.integers(0, len(data) - 1))])


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found nothing"),
        (b"7", 'found "7"'),
        (b'"text"', "found"),
        (b"[1, 2,]", "character 6: Expecting value"),
        (b"[1 2]", "character 3: , or ] was expected"),
        (b'{"a" 1}', "character 5: : was expected"),
        (b"{1: 2}", "a key was expected"),
        (b"[] []", "something follows"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b'[{"a": 1, "a": 1}]', "the key .a. occurs twice"),
        (b"[\xff]", r"not UTF-8 \(byte 1\)"),
        (b'["' + "ä".encode() + b'\xc3"]', r"not UTF-8 \(byte 4\)"),
        (b'["a\nb"]', "Invalid control character"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", " digits"),
    ],
)
def test_a_fault_is_named(
    data: bytes, message: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    with pytest.raises(BadData, match=message) as caught:
        together(data)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("data", [b'["' + b"a" * 300, b"[" + b" " * 300, b'[{"a": [' + b"1," * 300])
def test_one_value_has_a_limit(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read no further than that, whatever would follow."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(module, "MAX_VALUE_CHARS", 100)
    file = io.BytesIO(data)
    with pytest.raises(BadData, match="more than 100"):
        list(entries(file, "file"))
    assert file.tell() < 220


def test_a_file_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(module.fields, "MAX_JSON_BYTES", 100)
    with pytest.raises(BadData, match="more than 100 bytes"):
        list(entries(io.BytesIO(b"[" + b"1," * 300), "file"))
