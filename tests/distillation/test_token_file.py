"""A shard whose arrays are in a file reads as one in memory does."""

import errno
from copy import copy
from dataclasses import fields, replace

import numpy as np
import pytest

from cdcca_cli.distillation import token_file
from cdcca_cli.distillation.token_file import TokenFile
from cdcca_cli.errors import CannotWrite
from cdcca_cli.formats.labels import payload_digest
from cdcca_cli.formats.shard import Coding, Shard


def a_shard(number: int, codes: np.ndarray | None = None) -> Shard:
    """Of `number` tokens of 5 channels, no two shards' alike."""
    tokens = np.random.default_rng(number).standard_normal((number, 5)).astype(np.float32)
    return Shard(
        frame=f"{number}",
        image=f"{number}.png",
        domain=None,
        tokens=tokens,
        positions=np.arange(number, dtype=np.int32),
        num_tokens=number,
        tower="sha256:" + "0" * 64,
        codes=codes,
        coding=Coding() if codes is None else Coding("klt", "sha256:" + "1" * 64, 0.5),
    )


def assert_same(found: Shard, expected: Shard) -> None:
    for one in fields(Shard):
        ours, theirs = getattr(found, one.name), getattr(expected, one.name)
        if isinstance(theirs, np.ndarray):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), one.name
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs, one.name


@pytest.mark.parametrize("in_memory", [1, token_file.IN_MEMORY_BYTES])
def test_every_shard_is_read_as_it_was_put(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads come between the writes and in any order, on disk and before it goes there."""
    monkeypatch.setattr(token_file, "IN_MEMORY_BYTES", in_memory)
    codes = np.array([[-7, 2**20]], np.int32)
    given = [
        a_shard(3),
        a_shard(1, codes),
        replace(a_shard(4), tokens=np.zeros((0, 0), np.float32)),
    ]
    file = TokenFile()
    kept = []
    for shard in given:
        kept.append(file.put(shard))
        assert_same(kept[0], given[0])
    for found, expected in zip(reversed(kept), reversed(given), strict=True):
        assert_same(found, expected)
        assert_same(copy(found), expected)
        assert payload_digest(found) == payload_digest(expected)
        assert found.is_open == expected.is_open


def test_nothing_of_the_tokens_is_kept() -> None:
    """Each use reads them again: what one use writes into them no other sees."""
    given = a_shard(3)
    kept = TokenFile().put(given)
    kept.tokens[:] = 0
    np.testing.assert_array_equal(kept.tokens, given.tokens)
    assert not any(isinstance(vars(copy(kept))[name], np.ndarray) for name in ("tokens", "codes"))


def test_whether_it_is_open_is_known_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    file = TokenFile()
    kept = file.put(a_shard(3))
    closed = file.put(replace(a_shard(3), tokens=np.zeros((0, 0), np.float32)))
    monkeypatch.setattr(file, "read", None)
    assert kept.is_open and not closed.is_open


def test_tokens_can_be_replaced() -> None:
    """In a copy, as when a codebook's codes become tokens."""
    given = a_shard(3)
    kept = TokenFile().put(given)
    other = copy(kept)
    other.tokens = np.ones((2, 5), np.float32)
    assert other.tokens.sum() == 10
    np.testing.assert_array_equal(kept.tokens, given.tokens)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    file = TokenFile()

    def full(_data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file._file, "write", full)
    with pytest.raises(CannotWrite, match=r"a temporary file for the tokens.*[Nn]o space"):
        file.put(a_shard(3))
