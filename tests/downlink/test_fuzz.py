"""Whatever comes is read, or refused with a class of `errors`: ten thousand mutants, or a million.

What is read is held to what its format promises: it can be written again, byte for byte where the
format says so, and an overlay is float32, finite and of the base's shapes. Nothing takes longer
than a guard that is far above what it needs, in processor time.

`python -m tests.downlink.test_fuzz FIRST LAST` looks at the mutants of other numbers; one that
fails is `mutants.mutant(number)`.
"""

import json
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from cdcca_cli import streams
from cdcca_cli.downlink import codecs, receiver
from cdcca_cli.errors import (
    BadData,
    NewerFormat,
    SignatureRefused,
    StaleUpdate,
    WrongBase,
)
from cdcca_cli.formats.adaptation import read_adaptation, write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.overlay import read_overlay_file, write_overlay_file
from cdcca_cli.formats.shard_stream import encoded_bytes, read_shards
from cdcca_cli.formats.trust import TrustList, write_trust_list
from tests.downlink import forged, mutants, worlds
from tests.golden import make

CI, SLOW = 10_000, 1_000_000
HANG_SECONDS = 20.0
REFUSALS = (BadData, NewerFormat, SignatureRefused, StaleUpdate, WrongBase)


class Hung(BaseException):
    pass


@contextmanager
def guarded() -> Iterator[Callable[[], None]]:
    """Yields what to call before each piece of work: from then on it has HANG_SECONDS to run."""

    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS) and None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def from_the_downlink(device: Device, data: bytes) -> str:
    """Checks 1 to 5, and what an update leads to; returns what came of it."""
    is_first = b'\\"version\\":1' in data  # of an update: without signatures
    found = receiver.read(device, BytesIO(data), where="file", unsigned=is_first)
    if isinstance(found, TrustList):
        out = BytesIO()
        write_trust_list(out, found)
        assert out.getvalue() == data
        return f"list {receiver.rotate(device, found, dry_run=True).status}"
    assert worlds.file_of(found) == data
    kinds = codecs.byte_kinds(found)
    assert sum(kinds.values()) == len(found.payload) and min(kinds.values()) >= 0
    codecs.facts(found)
    base = forged.base()
    overlay = codecs.decode(found, base)
    assert overlay.keys() == base.keys()
    for name, value in overlay.items():
        assert value.shape == base[name].shape and value.dtype == np.float32
        assert np.isfinite(value).all()
    return "as signed" if overlay_digest(overlay) == found.target else "another overlay"


def adaptation(data: bytes) -> str:
    found = read_adaptation(BytesIO(data))
    out = BytesIO()
    write_adaptation(out, found)
    again = read_adaptation(BytesIO(out.getvalue()))
    assert overlay_digest(again.overlay) == overlay_digest(found.overlay)
    assert (again.report, again.rate_aware) == (found.report, found.rate_aware)
    return "read"


def shards(data: bytes) -> str:
    for shard in read_shards(BytesIO(data)):
        assert shard.tokens.dtype == np.float32 and np.isfinite(shard.tokens).all()
        assert encoded_bytes([shard]) > 0
    return "read"


def overlay(data: bytes) -> str:
    tensors, sequence = read_overlay_file(BytesIO(data))
    out = BytesIO()
    write_overlay_file(out, tensors, sequence)
    assert len(out.getvalue()) > 0
    return "read"


READERS: dict[str, Callable[[Device, bytes], str]] = {
    "update": from_the_downlink,
    "trust": from_the_downlink,
    "adaptation": lambda _, data: adaptation(data),
    "shards": lambda _, data: shards(data),
    "overlay": lambda _, data: overlay(data),
}


def look_at(numbers: range, device: Device) -> Counter[Any]:
    """What came of the mutants; the number of one that is no refusal and no sound file is told."""
    seen: Counter[Any] = Counter()
    before = worlds.bytes_of(device)
    with guarded() as again:
        for number in numbers:
            mutant = mutants.mutant(number)
            again()
            try:
                seen[mutant.kind, READERS[mutant.kind](device, mutant.data)] += 1
            except REFUSALS as error:
                assert streams.one_line(str(error)), number
                seen[mutant.kind, type(error).__name__] += 1
            except BaseException as error:
                raise AssertionError(f"mutant {number}: {type(error).__name__}: {error}") from error
    after = worlds.bytes_of(device)
    assert {n: data for n, data in after.items() if n != "lock"} == {
        n: data for n, data in before.items() if n != "lock"
    }
    return seen


@pytest.mark.parametrize("count", [CI, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_mutants(tmp_path: Path, count: int) -> None:
    seen = look_at(range(count), forged.device(tmp_path / "device"))
    assert sum(seen.values()) == count
    # The parsers are reached, and what they let through is something.
    for kind in READERS:
        assert seen[kind, "BadData"] > count // 500, seen
    assert seen["update", "another overlay"] > count // 50, seen
    assert seen["update", "as signed"] > 0 and seen["trust", "list would apply"] > 0, seen
    for error in (NewerFormat, SignatureRefused):
        assert seen["update", error.__name__] > 0, seen


@pytest.mark.parametrize("half", ["\\ud800", "\\udc00 a", "\\udc00\\ud800"])
def test_half_of_a_character(half: str) -> None:
    """A mutant's: an answer that was read and could not be written. No tokenizer takes one."""
    questions = [make.ASK | {"prompt": json.loads(f'"{half}"')}]
    chosen = [make.ASK | {"choices": ["cat", json.loads(f'"{half}"')]}]
    for data, reader in (
        (make.adaptation_2(f'[["{half}"]]'), adaptation),
        (make.shard({"asks": questions}) + make.end(1), shards),
        (make.shard({"asks": chosen}) + make.end(1), shards),
    ):
        with pytest.raises(BadData):
            reader(data)
    whole = make.shard({"asks": [make.ASK | {"prompt": "\\U0001f600"}]}) + make.end(1)
    assert shards(whole) == "read"


def test_a_mutant_is_the_same_every_time() -> None:
    """So that the number that a failure names is worth something, on every machine."""
    data = b"".join(mutants.mutant(number).data for number in range(50))
    assert data == b"".join(mutants.mutant(number).data for number in range(50))
    assert zlib.crc32(data)


def main(first: str, last: str) -> None:
    with TemporaryDirectory() as folder:
        device = forged.device(Path(folder) / "device")
        began = time.process_time()
        seen = look_at(range(int(first), int(last)), device)
        seconds = time.process_time() - began
    for (kind, what), number in sorted(seen.items()):
        sys.stdout.write(f"{kind:12} {what:20} {number:9,}\n")
    sys.stdout.write(f"{sum(seen.values()) / seconds:,.0f} a second\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
