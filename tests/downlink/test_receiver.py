"""Every fault of an update is refused with its class, and the folder keeps every byte."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.codecs import nf4, payload
from cdcca_cli.errors import (
    BadData,
    CdccaError,
    MissingInput,
    NewerFormat,
    StaleUpdate,
    WrongBase,
)
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.records import CutShort
from cdcca_cli.formats.update import Update
from tests.downlink import worlds


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Never changed by a test: each fault leaves it as it is."""
    return worlds.device(tmp_path_factory.mktemp("device") / "device")


@pytest.fixture(scope="module")
def update(device: Device) -> Update:
    return worlds.next_update(device)


def refused(device: Device, data: bytes) -> CdccaError:
    """The error that a file is refused with; the folder is as it was."""
    before = worlds.bytes_of(device)
    with pytest.raises(CdccaError) as caught:
        worlds.receive(device, data)
    assert worlds.bytes_of(device) == before
    assert caught.value.exit_code in (65, 76, 78, 79), caught.value
    assert "\n" not in str(caught.value)
    return caught.value


def with_header(update: Update, signed: dict[str, object], **fields: object) -> bytes:
    """The file of an update with some fields of its header replaced, as `write_update` might."""
    data = worlds.file_of(update)
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    header = json.loads(table["__metadata__"]["cdcca"])
    header = {**header, "signed": header["signed"] | signed, **fields}
    table["__metadata__"]["cdcca"] = json.dumps(header, sort_keys=True, separators=(",", ":"))
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def with_payload(update: Update, data: bytes) -> Update:
    return replace(update, payload=data)


def test_these_tests_begin_with_a_sound_update(device: Device, update: Update) -> None:
    assert with_header(update, {}) == worlds.file_of(update)


OTHER = "sha256:" + 64 * "5"


@pytest.mark.parametrize(
    ("signed", "error", "reason"),
    [
        ({"base": OTHER}, WrongBase, "is for base sha256:55555555…, this device is at"),
        ({"target": OTHER}, BadData, "not to its target"),
        ({"sequence": 2}, BadData, "its header says sequence 2, its payload 1"),
        ({"sequence": 0}, BadData, "sequence is 0"),
        ({"sequence": 2**70}, BadData, "sequence is"),
        ({"sequence": 2**20}, BadData, "says sequence"),
        ({"sequence": 2**20 + 1}, BadData, "more than 1,048,576 ahead of 0"),
        ({"codec": "aac"}, NewerFormat, "codec 'aac'; this cdcca reads "),
        ({"codec": "exact"}, BadData, "update"),
        ({"codec": ""}, BadData, "'codec' is empty"),
        ({"num_parameters": 7}, BadData, "for 7 parameters"),
        ({"coding": {"bits": [4] * 7}}, BadData, "coding"),
        ({"coding": {"step": 0.5}}, BadData, "coding"),
        ({"coding": None}, BadData, "coding"),
        ({"payload_sha256": "0" * 64}, BadData, "hash"),
        ({"payload_bytes": 5}, BadData, "payload"),
        ({"expires": 1}, StaleUpdate, "expired on 1970-01-01 00:00 UTC"),
        ({"mould": None}, BadData, "unknown key 'mould'"),
    ],
)
def test_headers_that_lie(
    device: Device, update: Update, signed: dict[str, object], error: type, reason: str
) -> None:
    found = refused(device, with_header(update, signed))
    assert type(found) is error and reason in str(found), found


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"version": 3}, NewerFormat, "version 3"),
        ({"version": 1}, BadData, "unknown key"),
        ({"kind": "adaptation"}, BadData, "expected an update"),
        ({"signature": "me"}, BadData, "unknown key"),
        ({"signatures": {}}, BadData, "'signatures' must be a list"),
        ({"signatures": [{"key": "ab", "signature": "cd"}]}, BadData, "hexadecimal"),
    ],
)
def test_headers_of_another_form(
    device: Device, update: Update, fields: dict[str, object], error: type, reason: str
) -> None:
    found = refused(device, with_header(update, {}, **fields))
    assert type(found) is error and reason in str(found), found


def test_an_update_for_another_device(tmp_path: Path, device: Device) -> None:
    other = worlds.device(tmp_path / "other", seed=9)
    found = refused(device, worlds.file_of(worlds.next_update(other)))
    assert type(found) is WrongBase and "a mirror of this device" in str(found)


def test_a_sum_that_is_not_finite(tmp_path: Path) -> None:
    """-3e38 - 3e38 is no float32, though both are."""
    base = {"a.bias": np.full(4, -3e38, np.float32)}
    folder = Device.create(tmp_path / "device", worlds.SETTINGS, base)
    tensor = nf4.quantize(np.full(4, -3e38, np.float32))
    update = Update(
        base=folder.digest,
        target=OTHER,
        sequence=1,
        codec=nf4.CODEC,
        coding={"bits": [4]},
        num_parameters=4,
        payload=nf4.write_payload(1, [tensor]),
    )
    found = refused(folder, worlds.file_of(update))
    assert type(found) is BadData and "would not be finite" in str(found)


def test_another_payload_of_the_right_form(device: Device, update: Update) -> None:
    """Codes of another round under this header: only the target digest can tell."""
    other = worlds.next_update(device, seed=77)
    found = refused(device, worlds.file_of(with_payload(update, other.payload)))
    assert type(found) is BadData and "not to its target" in str(found)


def test_a_bomb_in_the_payload(device: Device, update: Update) -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 26))
    bomb = payload.with_sequence(1, bomb)
    exact = replace(update, codec="exact", payload=bomb)
    found = refused(device, worlds.file_of(exact))
    assert type(found) is BadData and "67,108,864" in str(found)


def test_every_truncation(device: Device, update: Update) -> None:
    data = worlds.file_of(update)
    for length in [*range(40), *range(40, len(data), 7), len(data) - 1]:
        assert type(refused(device, data[:length])) in (BadData, CutShort)


@pytest.mark.parametrize("more", [b"\0", b" ", b"\n"])
def test_anything_after_the_end(device: Device, update: Update, more: bytes) -> None:
    assert type(refused(device, worlds.file_of(update) + more)) is BadData


def test_two_updates_in_one_file(device: Device, update: Update) -> None:
    assert type(refused(device, 2 * worlds.file_of(update))) is BadData


def test_every_byte_changed_once(device: Device, update: Update) -> None:
    """Each byte of the file to another value; more than the 300 that would do."""
    data = worlds.file_of(update)
    generator = np.random.default_rng(0)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= int(generator.integers(1, 256))
        refused(device, bytes(damaged))
    assert len(data) > 800


@pytest.mark.parametrize("space", b"\t\n\r")
def test_white_space_for_white_space(device: Device, update: Update, space: int) -> None:
    """JSON would not mind."""
    data = worlds.file_of(update)
    (length,) = struct.unpack("<Q", data[:8])
    # A header whose text is a multiple of 8 already has no spaces: make one that has.
    for sequence in range(2, 12):
        if b" " in data[8 : 8 + length]:
            break
        update = replace(update, codec="x" * sequence)
        data = worlds.file_of(update)
        (length,) = struct.unpack("<Q", data[:8])
    at = data.index(b" ", 8)
    damaged = data[:at] + bytes([space]) + data[at + 1 :]
    assert "not written as cdcca writes it" in str(refused(device, damaged))


def test_a_file_too_large_for_any_update_is_not_read(device: Device) -> None:
    """The overlay's file and 1 MiB for the header."""
    found = refused(device, bytes(1 << 23))
    assert type(found) is BadData and "too large" in str(found)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "device.json").write_text("{}"),
        lambda folder: next((folder / "overlay").iterdir()).unlink(),
        lambda folder: next((folder / "overlay").iterdir()).write_bytes(b"nothing"),
    ],
)
def test_a_damaged_folder_takes_no_update(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = worlds.device(tmp_path / "device")
    data = worlds.file_of(worlds.next_update(folder))
    damage(folder.path)
    before = worlds.bytes_of(folder)
    with pytest.raises((BadData, MissingInput)):
        worlds.receive(folder, data)
    assert worlds.bytes_of(folder) == before


def test_the_base_is_not_changed_in_place(device: Device, update: Update) -> None:
    base = device.read_overlay()
    copies = {name: value.copy() for name, value in base.items()}
    decoded = codecs.decode(update, base)
    assert all((base[name] == copies[name]).all() for name in base)
    assert all(value.dtype == np.float32 for value in decoded.values())
    assert any((decoded[name] != base[name]).any() for name in base)
