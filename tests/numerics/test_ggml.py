"""ggml's types, read as llama.cpp's own package reads them."""

import numpy as np
import pytest

from cdcca_cli.numerics import ggml

KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
FLOATS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0]}
FLOATS |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
NUMBERS = {name: number for number, name in ggml.NAMES.items()}


def _blocks(name: str, num_blocks: int) -> np.ndarray:
    """Random bytes whose scales are finite."""
    draw = np.random.default_rng(3)
    size = ggml.SIZES[NUMBERS[name]][1]
    if name in ("F32", "F16"):
        kind = np.dtype("<f4" if name == "F32" else "<f2")
        return draw.standard_normal((num_blocks, 1)).astype(kind).view(np.uint8)
    blocks = draw.integers(0, 256, (num_blocks, size), np.uint8)
    if name == "BF16":
        blocks[:, 1] &= 0xBF
    for at in FLOATS.get(name, []):
        scales = draw.standard_normal((num_blocks, 1)).astype("<f2")
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks


@pytest.mark.parametrize("name", KINDS)
def test_as_llama_cpps_package_reads_it(name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="the package gguf is not installed")
    rows = _blocks(name, 12).reshape(3, -1)
    wanted = quants.dequantize(rows, quants.GGMLQuantizationType[name])
    found = ggml.dequantize(rows, NUMBERS[name])
    assert found is not None and found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_sizes_are_those_of_llama_cpps_package() -> None:
    constants = pytest.importorskip("gguf.constants", reason="the package gguf is not installed")
    theirs = {kind.value: tuple(size) for kind, size in constants.GGML_QUANT_SIZES.items()}
    assert {number: theirs[number] for number in ggml.SIZES if number in theirs} == ggml.SIZES
    assert theirs.keys() - ggml.SIZES.keys() == set()


def test_a_q4_1_block_by_hand() -> None:
    """d = 0.5, m = -1; the first byte 0x3A: number 0 is 10, number 16 is 3."""
    block = np.zeros((1, 20), np.uint8)
    block[0, :2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    block[0, 2:4] = np.frombuffer(np.float16(-1).tobytes(), np.uint8)
    block[0, 4] = 0x3A
    found = ggml.dequantize(block, NUMBERS["Q4_1"])
    assert found is not None
    assert (found[0, 0], found[0, 16], found[0, 1]) == (4.0, 0.5, -1.0)


def test_a_type_that_is_not_known_is_not_read() -> None:
    assert ggml.dequantize(np.zeros((1, 84), np.uint8), NUMBERS["Q2_K"]) is None
