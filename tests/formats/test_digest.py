import hashlib
import struct

import numpy as np
import pytest

from cdcca_cli.formats.digest import is_digest, overlay_digest, short


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


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 65, None, 3]
)
def test_what_is_no_digest(text: object) -> None:
    assert not is_digest(text)
    assert is_digest("sha256:" + "0" * 64)
    assert short("sha256:ba7816bf" + "0" * 56) == "sha256:ba7816bf…"
