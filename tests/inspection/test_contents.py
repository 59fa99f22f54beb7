"""Safetensors files of other tools: read header alone, entry by entry, and refused if unsound."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from cdcca_cli.errors import BadData
from cdcca_cli.inspection.contents import summarize, weights
from tests.golden import make

SOUND = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HUGE = int("9" * 4000)


def header(table: Any) -> BytesIO:
    text = (table if isinstance(table, str) else json.dumps(table)).encode()
    return BytesIO(struct.pack("<Q", len(text)) + text + bytes(24))


def test_a_file_of_the_safetensors_library() -> None:
    """2 * 3 + 5 float32 and 4 bytes: 48 bytes of tensors."""
    tensors = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros(5, np.float32),
        "c": np.zeros((2, 0, 7), np.int64),
        "d": np.zeros(4, np.uint8),
    }
    data = safetensors.numpy.save(tensors, {"format": "pt", "note": "é"})
    found = weights(BytesIO(data), "it")
    assert found.counts == {"tensors": 4, "parameters_by_dtype": {"F32": 11, "I64": 0, "U8": 4}}
    assert found.ledger == {"payload": 48, "header": len(data) - 48}


def test_a_dtype_that_came_later_is_counted() -> None:
    assert weights(header({"a": {**SOUND, "dtype": "F8_E4M3"}}), "it").counts[
        "parameters_by_dtype"
    ] == {"F8_E4M3": 6}


@pytest.mark.parametrize(
    "table",
    [
        {"a": {**SOUND, "shape": [HUGE, HUGE]}},
        {"a": {**SOUND, "shape": [1 << 62, 1 << 62]}},
        {"a": {**SOUND, "shape": [1] * 65}},
        {"a": {**SOUND, "shape": [-1]}},
        {"a": {**SOUND, "shape": [True]}},
        {"a": {**SOUND, "shape": 3}},
        {"a": {**SOUND, "shape": None}},
        {"a": SOUND, "b": {**SOUND, "dtype": 1}},
        {"a": {**SOUND, "dtype": [1]}},
        {"a": {**SOUND, "dtype": "F" * 1000}},
        {"a": {**SOUND, "dtype": "f32"}},
        {"a": {**SOUND, "data_offsets": [0]}},
        {"a": {**SOUND, "data_offsets": [24, 0]}},
        {"a": {**SOUND, "data_offsets": [0, HUGE]}},
        {"a": {**SOUND, "data_offsets": [0, 1e5]}},
        {f"{n}": {**SOUND, "dtype": f"F{n + 10}"} for n in range(65)},
        {"a": [SOUND]},
        {"a": 1},
        {"__metadata__": 1},
        [SOUND],
        f'{{"a": {json.dumps(SOUND)}, "a": {json.dumps(SOUND)}}}',
        '{"a":',
        '{"a":' * 100_000,
        '{"\\ud800": 1}',
        "{} {}",
        "",
    ],
)
def test_an_unsound_header_is_refused(table: Any) -> None:
    with pytest.raises(BadData) as refusal:
        weights(header(table), "it")
    assert str(refusal.value).startswith("it: ") and len(str(refusal.value)) < 300


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 1 << 63])
def test_a_length_that_no_header_has(length: int) -> None:
    with pytest.raises(BadData, match="not a safetensors file"):
        weights(BytesIO(struct.pack("<Q", length) + b"{}"), "it")


def test_a_header_that_is_cut_short() -> None:
    with pytest.raises(BadData, match="cut short"):
        weights(BytesIO(struct.pack("<Q", 40) + b'{"a": '), "it")


HOSTILE = """
import resource, sys
from cdcca_cli.main import main
from cdcca_cli.inspection import contents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(["inspect", sys.argv[1]])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(code, after - before)
"""


@pytest.mark.parametrize(
    "pieces",
    [(b'{"a":', b"[],", b"1]}"), (b'{"a":{"x":[', b"[],", b"1]}}"), (b"{", b'"a":[],', b"}")],
)
def test_36_mb_of_empty_lists_take_little_memory(tmp_path: Path, pieces: Iterable[bytes]) -> None:
    """It took 976 MiB."""
    first, repeated, last = pieces
    text = first + repeated * (36_000_000 // len(repeated)) + last
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    found = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(path)], capture_output=True, text=True, check=True
    )
    code, more_kib = map(int, found.stdout.split()[-2:])
    assert code == 65, found.stderr
    assert more_kib < 256 << 10


def test_an_average_of_entropies_that_add_up_to_infinity() -> None:
    """1e308 twice is more than a float holds; the summary is JSON all the same."""
    line = make.prediction(entropy=dict.fromkeys(("mean", "sum", "max", "first"), 1e308))
    found = summarize("predictions", BytesIO(line * 2), "it").as_json()
    assert json.loads(json.dumps(found, allow_nan=False))["counts"]["predictions"] == 2


@pytest.mark.parametrize("version", [[[]], "1", None, 1.5, True])
def test_a_state_file_of_an_odd_version_is_refused(version: Any) -> None:
    text = json.dumps({"kind": "seen", "version": version, "frames": {}})
    with pytest.raises(BadData, match="'version' must be"):
        summarize("seen", BytesIO(text.encode()), "it")
