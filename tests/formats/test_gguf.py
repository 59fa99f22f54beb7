"""GGUF: what is written is read, by us and by llama.cpp's package; any bytes give a value or 65."""

import io
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.gguf import Array, Gguf, parse_gguf, read_gguf, write_copy, write_gguf

KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "a.b": 0.5,
    "t": True,
}
TENSORS = {
    "one.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "two.bias": np.arange(5, dtype=np.float16),
}


def _bytes(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    write_gguf(out, keys, tensors)
    return out.getvalue()


def _parsed(data: bytes) -> Gguf:
    return parse_gguf(np.frombuffer(data, np.uint8), Path("a.gguf"))


WHOLE = _bytes(KEYS, TENSORS)
PADDING = 32 - 10  # behind the last tensor, five numbers of two bytes


def test_what_is_written_is_read() -> None:
    found = _parsed(WHOLE)
    assert found.keys == KEYS
    for name, array in TENSORS.items():
        values = found.values(found.tensors[name])
        assert values is not None and values.shape == array.shape
        assert np.array_equal(values, array)
    assert all(tensor.start % 32 == 0 for tensor in found.tensors.values())


def test_version_2_is_read_too() -> None:
    found = _parsed(WHOLE[:4] + b"\x02" + WHOLE[5:])
    assert found.keys == KEYS and found.tensors == _parsed(WHOLE).tensors


def test_llama_cpps_package_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    (tmp_path / "a.gguf").write_bytes(WHOLE)
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    assert {name: theirs.fields[name].contents() for name in KEYS} == KEYS
    for tensor in theirs.tensors:
        assert np.array_equal(tensor.data, TENSORS[tensor.name])


def test_a_copy_keeps_the_bytes_of_keys_and_tensors(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    path = tmp_path / "theirs.gguf"
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("words", [f"word {n}" for n in range(300)])
    writer.add_array("numbers", [1.5, 2.5])
    kind = gguf.GGMLQuantizationType.Q4_1
    packed = gguf.quants.quantize(draw.standard_normal((4, 64)).astype(np.float32), kind)
    writer.add_tensor("q.weight", packed, raw_dtype=kind)
    writer.add_tensor("norm.weight", np.ones(7, np.float32))
    writer.add_tensor("last.weight", draw.standard_normal((2, 3, 4)).astype(np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    source = read_gguf(path)
    assert source.alignment == 64 and source.keys["words"] == Array(8, 300)
    new, added = np.full(7, 2, np.float32), np.arange(3, dtype=np.float32)
    with open(tmp_path / "copy.gguf", "wb") as out:
        write_copy(out, source, {"norm.weight": new, "q.bias": added})
    copy = read_gguf(tmp_path / "copy.gguf")
    assert copy.key_bytes == source.key_bytes and copy.keys == source.keys
    assert list(copy.tensors) == [*source.tensors, "q.bias"]
    for name in ("q.weight", "last.weight"):
        assert np.array_equal(copy.raw(copy.tensors[name]), source.raw(source.tensors[name]))
    theirs = {one.name: one for one in gguf.GGUFReader(tmp_path / "copy.gguf").tensors}
    assert np.array_equal(theirs["norm.weight"].data, new)
    assert np.array_equal(theirs["q.bias"].data, added)
    assert np.array_equal(theirs["last.weight"].data, copy.values(copy.tensors["last.weight"]))
    rows = copy.values(copy.tensors["q.weight"], 3)
    assert rows is not None and np.array_equal(rows, gguf.quants.dequantize(packed, kind)[:3])


@pytest.mark.parametrize("length", range(0, len(WHOLE) - PADDING, 3))
def test_a_file_that_is_cut_is_refused(length: int) -> None:
    with pytest.raises(BadData):
        _parsed(WHOLE[:length])


@given(st.data())
def test_any_bytes_give_a_value_or_bad_data(data: st.DataObject) -> None:
    made = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(made) - 1))
        size = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(
            st.sampled_from(
                [0, 1, 2, 8, 9, 31, 255, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1]
            )
            | st.integers(0, (1 << 64) - 1)
        )
        made[place : place + size] = value.to_bytes(8, "little")[:size]
    try:
        found = _parsed(bytes(made))
    except BadData:
        return
    for tensor in found.tensors.values():
        found.values(tensor)
    out = io.BytesIO()
    write_copy(out, found, {})
    assert _parsed(out.getvalue()).keys.keys() == found.keys.keys()


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic(data: bytes) -> None:
    with suppress(BadData):
        _parsed(b"GGUF\x03\0\0\0" + data)


def _info(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    words = name.encode()
    head = struct.pack("<Q", len(words)) + words + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


def _file(*infos: bytes, keys: bytes = b"", num_keys: int = 0, data: int = 256) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), num_keys) + keys + b"".join(infos)
    return head + bytes(-len(head) % 32 + data)


def _key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


NESTED = struct.pack("<IQ", 9, 1) * 5 + struct.pack("<IQ", 0, 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no GGUF"),
        (b"GGML" + bytes(100), "no GGUF"),
        (b"GGUF\0\0\0\x03" + bytes(100), "big-endian"),
        (b"GGUF\x01\0\0\0" + bytes(100), "version 1"),
        (b"GGUF\x09\0\0\0" + bytes(100), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "keys"),
        (_file(_info("a", [8], 0, 0), _info("a", [8], 0, 32)), "twice"),
        (_file(_info("a", [8], 0, 0), _info("b", [8], 0, 0)), "overlaps"),
        (_file(_info("a", [64], 0, 0), _info("b", [8], 0, 32)), "overlaps"),
        (_file(_info("a", [8], 0, 4)), "not within"),
        (_file(_info("a", [8], 0, 1 << 62)), "not within"),
        (_file(_info("a", [1 << 40], 0, 0)), "not within"),
        (_file(_info("a", [1 << 40, 1 << 40], 0, 0)), "shape"),
        (_file(_info("a", [0], 0, 0)), "shape"),
        (_file(_info("a", [31], 2, 0)), "shape"),
        (_file(_info("a", [8], 99, 0)), "type 99"),
        (_file(_info("a", [], 0, 0)), "dimensions"),
        (_file(_info("a", [1] * 5, 0, 0)), "dimensions"),
        (_file(keys=_key("k", 9, NESTED), num_keys=1), "nested"),
        (_file(keys=_key("k", 77, b""), num_keys=1), "type 77"),
        (_file(keys=_key("k", 4, bytes(4)) * 2, num_keys=2), "twice"),
        (_file(keys=_key("k", 9, struct.pack("<IQ", 4, 1 << 61)), num_keys=1), "cut short"),
        (_file(keys=_key("k", 9, struct.pack("<IQ", 8, 1 << 61)), num_keys=1), "texts"),
        (_file(keys=_key("k", 9, struct.pack("<IQ", 8, 1 << 20)), num_keys=1), "cut short"),
        (_file(keys=_key("k", 8, struct.pack("<Q", 1 << 63)), num_keys=1), "cut short"),
        (_file(keys=struct.pack("<Q", 1) + b"\xff" + bytes(8), num_keys=1), "not UTF-8"),
        (_file(keys=_key("general.alignment", 4, struct.pack("<I", 48)), num_keys=1), "power"),
        (_file(keys=_key("general.alignment", 4, struct.pack("<I", 0)), num_keys=1), "power"),
        (_file(keys=_key("general.alignment", 7, b"\x01"), num_keys=1), "power"),
        (_file(keys=_key("general.alignment", 4, struct.pack("<I", 1 << 31)), num_keys=1), "power"),
    ],
)  # fmt: skip
def test_each_lie_is_named(data: bytes, words: str) -> None:
    with pytest.raises(BadData, match=words):
        _parsed(data)


def test_a_large_vocabulary_costs_nothing() -> None:
    """200,000 words, as of the largest models, in far less than a second."""
    words = b"".join(struct.pack("<Q", 6) + b"%06d" % n for n in range(200_000))
    value = struct.pack("<IQ", 8, 200_000) + words
    data = _file(_info("a", [8], 0, 0), keys=_key("words", 9, value), num_keys=1)
    start = time.process_time()
    found = _parsed(data)
    assert time.process_time() - start < 0.5
    assert found.keys["words"] == Array(8, 200_000)


def test_no_file_is_66(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(BadData):
        read_gguf(tmp_path / "empty.gguf")


def test_a_key_of_another_type_is_refused() -> None:
    found = _parsed(WHOLE)
    assert found.text("general.architecture") == "llama" and found.number("llama.block_count") == 2
    assert found.text("none") is None and found.number("none") is None
    with pytest.raises(BadData, match="another type"):
        found.number("general.architecture")
