"""The checks alone: bytes against a standing, with no file, no lock and no clock anywhere near.

What each check refuses, through a folder, is in `test_receiver` and `test_receiver_signed`.
"""

import ast
import builtins
import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.downlink import verify
from cdcca_cli.downlink.verify import Standing
from cdcca_cli.errors import (
    BadData,
    NewerFormat,
    SignatureRefused,
    StaleUpdate,
    WrongBase,
)
from cdcca_cli.formats.device_state import Slot
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.trust import TrustList
from cdcca_cli.formats.update import Update
from tests.downlink import changes, forged, mutants

REFUSALS = (BadData, NewerFormat, SignatureRefused, StaleUpdate, WrongBase)
START = Slot(0, overlay_digest(forged.base()), "overlay/0.safetensors")
STANDING = Standing(
    model=forged.MODEL,
    trust=changes.trust(0),
    current=START,
    kept=(),
    highest_sequence=0,
    named=START,
)
MOST = 1 << 21


def verified(data: bytes, standing: Standing = STANDING, now: float = 0.0) -> str:
    """All the checks, as `receiver` makes them."""
    found = verify.read(data, standing.trust, MOST, where="file")
    if isinstance(found, TrustList):
        return f"list {verify.admit_list(found, standing.trust)}"
    base, signed_by = verify.admit(found, standing, now)
    if base is None:
        return "already"
    new = verify.outcome(found, forged.base())
    assert overlay_digest(new) == found.target
    assert signed_by == (changes.key(0).public,)
    return "applied"


@contextmanager
def sealed_off() -> Iterator[None]:
    """No file can be opened, locked or looked at, and no clock read."""

    def refused(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"not pure: {arguments[:1]}")

    verified(forged.sealed(forged.made("usq")))  # what is imported late is imported now
    monkeypatch = pytest.MonkeyPatch()
    for owner, names in (
        (os, ("open", "stat", "lstat", "fstat", "listdir", "scandir", "replace", "unlink")),
        (builtins, ("open",)),
        (fcntl, ("flock",)),
        (time, ("time",)),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, refused)
    try:
        yield
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("codec", forged.CODECS)
def test_an_update_of_each_codec_without_a_file_or_a_clock(codec: str) -> None:
    data = forged.sealed(forged.made(codec))
    with sealed_off():
        assert verified(data) == "applied"


def test_each_check_by_its_standing_alone() -> None:
    found = forged.made("usq")
    data = forged.sealed(found)
    with sealed_off():
        at_it = replace(START, sequence=1, digest=found.target)
        for standing, now, what in (
            (replace(STANDING, trust=changes.trust(1)), 0.0, SignatureRefused),
            (replace(STANDING, model=forged.OTHER), 0.0, WrongBase),
            (replace(STANDING, highest_sequence=1), 0.0, StaleUpdate),
            (replace(STANDING, current=replace(START, digest=forged.OTHER)), 0.0, WrongBase),
        ):
            with pytest.raises(what):
                verified(data, standing, now)
        assert verified(data, replace(STANDING, current=at_it, named=at_it)) == "already"
        damaged = replace(STANDING, named=at_it, highest_sequence=1)
        assert verified(data, damaged) == "applied"  # it repairs what is damaged
        kept = replace(STANDING, current=replace(START, digest=forged.OTHER), kept=(START,))
        assert verified(data, kept) == "applied"
        late = forged.sealed(replace(found, expires=1000))
        assert verified(late, now=999.9) == "applied"
        with pytest.raises(StaleUpdate, match="1970-01-01 00:16 UTC"):
            verified(late, now=1000.0)
        with pytest.raises(BadData, match="more than training can make"):
            verified(forged.sealed(replace(found, sequence=(1 << 20) + 1)))


def test_lists_by_their_standing_alone() -> None:
    with sealed_off():
        second = changes.trust_file(changes.trust(0, 1, version=2), 0)
        assert verified(second) == "list True"
        assert (
            verified(second, replace(STANDING, trust=changes.trust(0, 1, version=2)))
            == "list False"
        )
        with pytest.raises(SignatureRefused, match="the device's keys"):
            verified(changes.trust_file(changes.trust(1, version=2), 1))
        with pytest.raises(WrongBase, match="apply list 2 first"):
            verified(changes.trust_file(changes.trust(0, version=3), 0))


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1 << 40, 1 << 63, 10**30, "", "a", "\ud800", [], {}, [[]], {"a": []}),
    *([0] * 3, [0, 1 << 40, 1 << 40], [1 << 62, 0], 30 * "[" + 30 * "]"),
)


def test_hostile_structure_is_refused_with_a_class() -> None:
    """Shapes, dtypes, counts, offsets, nesting and types of the header and of the table of tensors:
    a refusal, or an update that leads to its target. Sealed again with the right key where it can
    be."""
    chance = random.Random(0)
    sound = [forged.sealed(forged.made(codec)) for codec in forged.CODECS]
    sound.append(changes.trust_file(changes.trust(0, 1, version=2), 0))
    seen: dict[str, int] = {}
    for number in range(1500):
        data = mutants._other_words(chance, chance.choice(sound))
        if number % 3:
            data = forged.resigned(data)
        try:
            what = verified(data)
        except REFUSALS as error:
            what = type(error).__name__
            assert "\n" not in str(error) and len(str(error)) < 1000
        seen[what] = seen.get(what, 0) + 1
    assert seen["BadData"] > 500, seen


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_value_in_a_tensors_entry(value: Any) -> None:
    """B1: `"shape": [0, 2^40, 2^40]` crashed every reader before the signature was looked at."""
    header = {"kind": "update", "version": 2}
    for entry in (
        {"dtype": "F32", "shape": value, "data_offsets": [0, 0]},
        {"dtype": value, "shape": [0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0], "data_offsets": value},
        {"dtype": "F32", "shape": [value, value], "data_offsets": [0, value]},
        value,
    ):
        from cdcca_cli.formats import records

        try:
            table = records.dump_json(
                {"__metadata__": {"cdcca": records.dump_json(header)}, "payload": entry}
            )
        except (ValueError, TypeError):
            continue
        with pytest.raises(BadData):
            verified(forged.raw(header, table))


def test_bombs_and_damaged_payloads_without_a_folder() -> None:
    from tests.downlink import bombs

    for codec in forged.CODECS:
        for name, data in bombs.payloads(codec):
            with pytest.raises((BadData, NewerFormat)):
                verified(data)
                raise AssertionError(name)


def test_it_imports_nothing_that_reads_or_writes() -> None:
    """Neither a device folder nor files nor streams nor time, by name."""
    tree = ast.parse(Path(verify.__file__).read_text())
    names = {
        alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    banned = ("os", "time", "fcntl", "pathlib", "cdcca_cli.files", "cdcca_cli.streams")
    assert not {name for name in names if name.startswith(banned)}
    assert not {name for name in names if name.startswith("cdcca_cli.formats.device.")}


def test_the_update_and_the_base_are_not_changed() -> None:
    base = {name: value.copy() for name, value in forged.base().items()}
    found = forged.made("usq")
    assert isinstance(found, Update)
    verify.outcome(found, base)
    assert all(np.array_equal(base[name], value) for name, value in forged.base().items())
