import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.errors import MissingInput
from cdcca_cli.formats.digest import file_digest, is_digest, overlay_digest, short


def test_the_digest_is_the_hash_of_the_bytes_that_the_specification_lists() -> None:
    """Written out by hand from the module's docstring for {"a": [[1, 2]] F32, "b": 3 I8}."""
    data = b"cdcca overlay 1\n"
    data += b"\x01\0\0\0\0\0\0\0a" + b"\x03\0\0\0\0\0\0\0F32"
    data += b"\x10\0\0\0\0\0\0\0" + b"\x01\0\0\0\0\0\0\0" + b"\x02\0\0\0\0\0\0\0"
    data += b"\x08\0\0\0\0\0\0\0" + struct.pack("<2f", 1, 2)
    data += b"\x01\0\0\0\0\0\0\0b" + b"\x02\0\0\0\0\0\0\0I8" + bytes(8)
    data += b"\x01\0\0\0\0\0\0\0" + b"\x03"
    tensors: dict[str, np.ndarray] = {
        "b": np.array(3, np.int8),
        "a": np.array([[1, 2]], np.float32),
    }
    assert overlay_digest(tensors) == "sha256:" + hashlib.sha256(data).hexdigest()


def test_neither_order_nor_memory_layout_nor_byte_order_counts() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    other = np.ones(2, np.int32)
    digest = overlay_digest({"x": array, "y": other})
    assert overlay_digest({"y": other, "x": np.asfortranarray(array)}) == digest
    assert overlay_digest({"y": other, "x": array.astype(">f4")}) == digest


def test_every_part_counts() -> None:
    array = np.arange(6, dtype=np.float32)
    variants: list[dict[str, np.ndarray]] = [
        {"x": array},
        {"z": array},
        {"x": array.reshape(2, 3)},
        {"x": array.view(np.int32)},
        {"x": -array},  # -0.0 in the first place too
        {"x": array, "e": np.zeros(0, np.float32)},
        {"x": array[:5]},
        {},
    ]
    assert len({overlay_digest(tensors) for tensors in variants}) == len(variants)


def test_arrays_that_no_format_holds_are_refused() -> None:
    with pytest.raises(TypeError, match="complex"):
        overlay_digest({"x": np.zeros(1, np.complex64)})


def test_file_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    """SHA-256 of "abc" from FIPS 180-2, appendix B.1."""
    (tmp_path / "abc").write_bytes(b"abc")
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "abc") == known
    assert short(known) == "sha256:ba7816bf…"
    with pytest.raises(MissingInput, match="no such file"):
        file_digest(tmp_path / "abd")


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 65, None, 3]
)
def test_what_is_no_digest(text: object) -> None:
    assert not is_digest(text)
    assert is_digest("sha256:" + "0" * 64)
