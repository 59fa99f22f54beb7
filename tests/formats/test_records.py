import json
import struct
from io import BytesIO
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import DTYPES

ANY = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__" and name.isprintable()
)


@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(NAMES, ANY, max_size=4), note=st.text(max_size=20))
def test_what_is_written_is_read_again_by_us_and_by_safetensors(
    tensors: dict[str, np.ndarray], note: str
) -> None:
    out = BytesIO()
    num_bytes = records.write_record(out, tensors, {"kind": "k", "version": 1, "note": note})
    data = out.getvalue()
    assert num_bytes == len(data)
    record = records.read_record(BytesIO(data))
    assert record is not None and record.num_bytes == num_bytes
    assert record.header == {"kind": "k", "version": 1, "note": note}
    other = safetensors.numpy.load(data)
    assert set(record.tensors) == set(tensors) == set(other)
    for name, array in tensors.items():
        for read in (record.tensors[name], other[name]):
            assert (read.shape, read.dtype) == (array.shape, array.dtype)
            assert read.tobytes() == array.tobytes()


def test_a_record_of_the_safetensors_library_is_read() -> None:
    """It orders tensors by alignment, not by name."""
    tensors: dict[str, np.ndarray] = {
        "a": np.arange(3, dtype=np.int8),
        "b": np.arange(2, dtype=np.float32),
    }
    data = safetensors.numpy.save(tensors, {"cdcca": '{"kind":"k","version":1}'})
    record = records.read_record(BytesIO(data))
    assert record is not None
    assert record.tensors["a"].tolist() == [0, 1, 2] and record.tensors["b"].tolist() == [0, 1]


def test_the_header_has_one_metadata_key_and_sorted_json() -> None:
    out = BytesIO()
    records.write_record(out, {"b": np.zeros(1, np.int8)}, {"version": 1, "kind": "é"})
    (length,) = struct.unpack("<Q", out.getvalue()[:8])
    assert length % 8 == 0
    assert out.getvalue()[8 : 8 + length].rstrip(b" ").decode() == (
        '{"__metadata__":{"cdcca":"{\\"kind\\":\\"\\\\u00e9\\",\\"version\\":1}"},'
        '"b":{"data_offsets":[0,1],"dtype":"I8","shape":[1]}}'
    )


def test_arrays_are_aligned_and_writable() -> None:
    out = BytesIO()
    tensors: dict[str, np.ndarray] = {"a": np.zeros(3, np.int8), "b": np.arange(4)}
    records.write_record(out, tensors, {"kind": "k", "version": 1})
    record = records.read_record(BytesIO(out.getvalue()))
    assert record is not None
    assert record.tensors["b"].flags.aligned and record.tensors["b"].flags.writeable
    assert record.tensors["b"].tolist() == [0, 1, 2, 3]


def test_every_cut_is_refused() -> None:
    out = BytesIO()
    records.write_record(out, {"a": np.arange(5, dtype=np.int8)}, {"kind": "k", "version": 1})
    data = out.getvalue()
    assert records.read_record(BytesIO(b"")) is None
    for length in range(1, len(data)):
        with pytest.raises(BadData, match="cut short"):
            records.read_record(BytesIO(data[:length]))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_gives_a_record_but_never_anything_else(data: st.DataObject) -> None:
    out = BytesIO()
    tensors: dict[str, np.ndarray] = {
        "a": np.arange(4, dtype=np.float32),
        "b": np.arange(3, dtype=np.uint8),
    }
    records.write_record(out, tensors, {"kind": "k", "version": 1})
    damaged = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        record = records.read_record(BytesIO(bytes(damaged)), kinds={"k": 1})
    except (BadData, NewerFormat) as error:
        assert "\n" not in str(error)
    else:
        assert record is not None


def test_limits() -> None:
    out = BytesIO()
    records.write_record(out, {"a": np.zeros(1000, np.int8)}, {"kind": "k", "version": 1})
    assert records.read_record(BytesIO(out.getvalue()), limits=records.Limits(200, 2000))
    with pytest.raises(BadData, match="header would be"):
        records.read_record(BytesIO(out.getvalue()), limits=records.Limits(64, 2000))
    with pytest.raises(BadData, match="at most 900 are read"):
        records.read_record(BytesIO(out.getvalue()), limits=records.Limits(200, 900))


def test_what_could_not_be_read_is_not_written() -> None:
    tensors = {f"tensor {number:06}": np.zeros(1, np.int8) for number in range(15_000)}
    out = BytesIO()
    with pytest.raises(BadData, match="15,000 tensors"):
        records.write_record(out, tensors, {"kind": "k", "version": 1})
    assert out.getvalue() == b""


def test_numbers_that_json_does_not_have_are_not_written() -> None:
    with pytest.raises(ValueError):
        records.write_record(BytesIO(), {}, {"kind": "k", "version": 1, "x": float("nan")})


def test_fields_have_types() -> None:
    header = json.loads('{"n": 1, "x": 1.5, "b": true, "s": "t", "l": ["a", 1]}')
    assert records.field(header, "n", int, "here") == 1
    assert records.field(header, "n", float, "here") == 1.0
    hints = {"gone": str | None, "s": Literal["t"] | None, "l": list}
    found = records.fields(header, hints, "here", exact=False)
    assert found == {"gone": None, "s": "t", "l": ["a", 1]}
    for name, kind in (("b", int), ("b", float), ("x", int), ("gone", str), ("n", str)):
        with pytest.raises(BadData, match=f"here: '{name}' must be"):
            records.field(header, name, kind, "here")
    with pytest.raises(BadData, match="must be a string"):
        records.fields({"l": ["a", 1]}, {"l": list[str]}, "here")
    with pytest.raises(BadData, match="here: s 't'; expected a or b"):
        records.fields({"s": "t"}, {"s": Literal["a", "b"]}, "here")
    with pytest.raises(BadData, match="expected an object, found list"):
        records.fields([], {}, "here")


def test_a_whole_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(BadData, match="'entropy' is too large a number"):
        records.field({"entropy": 10**400}, "entropy", float, "frame 3")


@pytest.mark.parametrize("half", ["\ud800", "caf\udce9.jpg"])
def test_a_text_that_utf_8_cannot_hold_is_refused(half: str) -> None:
    with pytest.raises(BadData, match="here: 'frame' has a lone surrogate"):
        records.field({"frame": half}, "frame", str, "here")


@pytest.mark.parametrize(
    "shape", [[0, 1 << 40, 1 << 40], [1 << 40, 0, 1 << 40, 1 << 40], [2, 0, 1 << 40]]
)
def test_a_tensor_of_nothing_with_huge_dimensions_is_refused(shape: list[int]) -> None:
    """numpy has no such array: without the zeros its size would be beyond 2^63."""
    table = {
        "x": {"data_offsets": [0, 0], "dtype": "F32", "shape": shape},
        "__metadata__": {"cdcca": '{"kind":"k","version":1}'},
    }
    text = json.dumps(table).encode()
    with pytest.raises(BadData, match=r"tensor 'x': the shape .* has more than"):
        records.read_record(BytesIO(struct.pack("<Q", len(text)) + text))


def test_a_tensor_of_nothing_is_read() -> None:
    out = BytesIO()
    tensors = {"a": np.zeros((0, 5), np.float32), "b": np.ones(2, np.float32)}
    records.write_record(
        out, tensors | {"c": np.zeros((3, 0), np.int8)}, {"kind": "k", "version": 1}
    )
    out.seek(0)
    found = records.read_record(out)
    assert found is not None
    assert {name: array.shape for name, array in found.tensors.items()} == {
        "a": (0, 5),
        "b": (2,),
        "c": (3, 0),
    }
