"""Hostile files: every bit and every byte of an update, bombs, and numbers that are none.

Most are signed with a key that the device trusts, after the change, so that what stands behind the
signature is reached; without the signature they are refused for that. Whatever comes is refused
with the code of a class, in one line, in little memory, and not a byte of the folder changes.
`bombs` has the single cases; `test_fuzz` looks for those that nobody thought of.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from cdcca_cli.downlink import receiver
from cdcca_cli.errors import (
    BadData,
    CdccaError,
    NewerFormat,
    SignatureRefused,
    StaleUpdate,
    WrongBase,
)
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from tests.downlink import bombs, changes, forged, worlds
from tests.downlink.forged import CODECS, code_of, made, resigned, sealed, unsigned

BAD, NEWER, UNSIGNED, WRONG, STALE = (
    error.exit_code for error in (BadData, NewerFormat, SignatureRefused, WrongBase, StaleUpdate)
)
EXPECTED_BYTES = 32 << 20
LONG_SECONDS = 5.0  # of processor time: no measure of speed, a bomb takes minutes
SLOW = pytest.mark.slow


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A folder that trusts a key; no test changes a byte of it."""
    folder = forged.device(tmp_path / "device")
    before = worlds.bytes_of(folder)
    yield folder.path
    after = worlds.bytes_of(folder)
    assert {name: after[name] for name in after if name != "lock"} == {
        name: before[name] for name in before if name != "lock"
    }


@pytest.fixture
def open_device(tmp_path: Path) -> Path:
    """A folder that trusts no key and takes any sound update."""
    return forged.device(tmp_path / "open", trusts=False).path


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def header_bytes(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, the same ones each time."""
    return sorted(random.Random(count).sample(range(count), min(count, most)))


def test_what_is_forged_is_sound(device: Path) -> None:
    """Otherwise nothing below would mean anything."""
    for codec in CODECS:
        assert code_of(device, sealed(made(codec)), dry_run=True) == 0
        assert code_of(device, unsigned(made(codec))) == UNSIGNED
        assert resigned(sealed(made(codec))) == sealed(made(codec))


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("codec", ["usq", *(pytest.param(c, marks=SLOW) for c in CODECS[1:])])
def test_every_bit_of_the_header(device: Path, codec: str) -> None:
    """Signed again after the flip, but for the signature's own bits."""
    data = sealed(made(codec))
    own = forged.span_of_signature(data)
    codes: Counter[int] = Counter()
    for bit in range(8 * header_bytes(data)):
        changed = flipped(data, bit)
        code = code_of(device, changed if bit // 8 in own else resigned(changed))
        assert code in (BAD, NEWER, UNSIGNED, WRONG, STALE), bit
        assert bit // 8 not in own or code in (UNSIGNED, BAD), bit
        codes[code] += 1
    assert codes[WRONG] > 100 and codes[NEWER] > 10 and codes[UNSIGNED] > 400, codes


@pytest.mark.parametrize("most", [500, pytest.param(1 << 30, marks=SLOW)])
def test_every_bit_of_the_header_as_it_came(device: Path, most: int) -> None:
    """Not signed again: nothing but the signature has to notice it, and does."""
    data = sealed(replace(made("usq"), expires=4_000_000_000))
    for bit in spread(8 * header_bytes(data), most):
        assert code_of(device, flipped(data, bit)) in (BAD, NEWER, UNSIGNED), bit


@pytest.mark.parametrize("most", [500, pytest.param(1 << 30, marks=SLOW)])
def test_every_bit_of_an_unsigned_header(open_device: Path, most: int) -> None:
    """A device without keys: digests and sizes notice all of it (there is no expiry here)."""
    data = unsigned(made("usq"))
    for bit in spread(8 * header_bytes(data), most):
        assert code_of(open_device, flipped(data, bit)) in (BAD, NEWER, WRONG, STALE), bit


def test_every_bit_of_a_trust_list(device: Path) -> None:
    """Signed again after the flip. Its one key is the one that signs."""
    data = changes.trust_file(changes.trust(0, version=2), 0)
    assert code_of(device, data, dry_run=True) == 0
    own = forged.span_of_signature(data)
    for bit in range(8 * len(data)):
        changed = flipped(data, bit)
        code = code_of(device, changed if bit // 8 in own else resigned(changed))
        assert code in (BAD, NEWER, UNSIGNED, WRONG, STALE), bit


@pytest.mark.parametrize("most", [150, pytest.param(10_000, marks=SLOW)])
@pytest.mark.parametrize("codec", CODECS)
def test_bits_of_the_payload(device: Path, codec: str, most: int) -> None:
    """With length, hash and signature put right after the flip, and without."""
    found = made(codec)
    same = 0
    for bit in spread(8 * len(found.payload), most):
        other = replace(found, payload=flipped(found.payload, bit))
        code = code_of(device, sealed(other), dry_run=True)
        # A bit that no value needs: it leads to the very target that was signed.
        same += code == 0
        assert code in (0, BAD), bit
        assert code_of(device, sealed(found)[: -len(found.payload)] + other.payload) == BAD, bit
    assert same <= 0.02 * most + 16


# ---------------------------------------------------------------- lengths


def test_every_truncation_of_the_header(device: Path) -> None:
    data = sealed(made("usq"))
    for length in range(header_bytes(data)):
        assert code_of(device, data[:length]) == BAD, length


@pytest.mark.parametrize("most", [50, pytest.param(1000, marks=SLOW)])
@pytest.mark.parametrize("codec", CODECS)
def test_truncations_of_the_payload(device: Path, codec: str, most: int) -> None:
    """The file cut, and the payload cut and signed as if it were whole."""
    found = made(codec)
    data = sealed(found)
    for length in spread(len(found.payload), most):
        cut = found.payload[:length]
        assert code_of(device, data[: len(data) - len(found.payload) + length]) == BAD, length
        assert code_of(device, sealed(replace(found, payload=cut))) == BAD, length


@pytest.mark.parametrize("codec", CODECS)
def test_more_than_a_file(device: Path, codec: str) -> None:
    data = sealed(made(codec))
    for more in (b"\0", b" ", b"\n", data[:8], data, bytes(1 << 12), bytes(1 << 20)):
        assert code_of(device, data + more) == BAD
        assert code_of(device, more + data) == BAD


def test_nothing(device: Path) -> None:
    for data in (b"", b"\0", b"\n", bytes(8), bytes(16)):
        assert code_of(device, data) == BAD


# ---------------------------------------------------------------- bombs


def refusals(device: Path, found: bombs.Bombs) -> Counter[int]:
    """The codes; each file is refused for what it is and not for where it leads."""
    codes: Counter[int] = Counter()
    for name, data in found:
        code, words = _outcome(device, data)
        assert code, name
        assert "not to its target" not in words or "another target" in name, (name, words)
        codes[code] += 1
    return codes


def _outcome(device: Path, data: bytes) -> tuple[int, str]:
    try:
        return 0, receiver.receive(Device.open(device), BytesIO(data), where="file").summary()
    except CdccaError as error:
        assert "\n" not in str(error)
        return error.exit_code, str(error)


@pytest.mark.parametrize("codec", CODECS)
def test_payloads(device: Path, codec: str) -> None:
    codes = refusals(device, bombs.payloads(codec))
    assert set(codes) == {BAD} and codes[BAD] > 12


def test_headers(device: Path) -> None:
    assert set(refusals(device, bombs.headers())) == {BAD}


def test_fields(device: Path) -> None:
    assert set(refusals(device, bombs.fields())) == {BAD, NEWER, WRONG, STALE}
    assert set(refusals(device, bombs.coded_otherwise())) == {BAD}


def test_trust_lists(device: Path) -> None:
    assert set(refusals(device, bombs.trust_lists())) == {BAD}


def test_the_same_without_a_signature(device: Path) -> None:
    """Refused for that before a byte of the payload is looked at; or for a form that is none."""
    for codec in CODECS:
        for name, data in bombs.payloads(codec):
            assert code_of(device, _without_signature(data)) == UNSIGNED, name
    codes = []
    for _, data in bombs.fields():
        with suppress(BadData):  # not JSON: refused before the signatures
            codes.append(code_of(device, _without_signature(data)))
    assert set(codes) == {UNSIGNED} and len(codes) > 20


def _without_signature(data: bytes) -> bytes:
    head, rest = data[: header_bytes(data)], data[header_bytes(data) :]
    table, header = records.parse_head(head, "")
    text = records.dump_json({**header, "signatures": []})
    return forged.raw("", records.dump_json({"__metadata__": {"cdcca": text}, **table}), rest)


def cost(device: Path, folder: Path, found: bombs.Bombs) -> list[dict[str, object]]:
    """What `measured` says of each file; the first is a sound one."""
    folder.mkdir()
    names = []
    for number, (name, data) in enumerate([("sound", sealed(made("usq"))), *found]):
        (folder / str(number)).write_bytes(data)
        names.append(name)
    files = [str(folder / str(number)) for number in range(len(names))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.downlink.measured", str(device), *files],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [{**row, "name": name} for row, name in zip(rows, names, strict=True)]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_what_a_refusal_costs(device: Path, tmp_path: Path) -> None:
    """Memory at its highest, over what a process has that is ready to apply."""

    def all_bombs() -> bombs.Bombs:
        yield from bombs.compressed()
        yield from bombs.headers()
        yield from (one for one in bombs.fields() if "10^5" in one[0] or "deep" in one[0])
        for codec in CODECS:
            yield from (
                one
                for one in bombs.payloads(codec)
                if any(word in one[0] for word in ("2^", "giga", "255", "window", "dictionary"))
            )

    for row in cost(device, tmp_path / "files", all_bombs())[1:]:
        assert row["code"] == BAD, row
        assert row["bytes"] <= EXPECTED_BYTES, row  # type: ignore[operator]
        assert row["seconds"] <= LONG_SECONDS, row  # type: ignore[operator]
