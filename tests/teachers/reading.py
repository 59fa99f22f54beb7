"""Labels that a tiny teacher gave, read back and compared."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from cdcca_cli.formats.label_stream import Labels, ShardKey
from cdcca_cli.formats.label_tops import Top
from cdcca_cli.formats.labels import Label
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import labelled
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.settings import LabelSettings

ASKED = LabelSettings(teacher_batch_size=8, label_bits=32)


def labels_in(labels: Labels, shards: Sequence[Shard]) -> list[list[Label | None]]:
    """The label of each question of each shard."""
    return [
        [
            None if (found := labels.read(ShardKey.of(shard), place)) is None else found[0]
            for place in range(len(shard.questions))
        ]
        for shard in shards
    ]


def asked(
    model: LoadedModel,
    shards: Sequence[Shard],
    path: Path | None = None,
    how: LabelSettings = ASKED,
    skipped: Skipped | None = None,
) -> list[list[Label | None]]:
    """The labels of a model, those in the file and those that it lacks."""
    paths = [] if path is None else [path]
    skipped = skipped or Skipped(strict=True)
    found = labelled(shards, LocalTeacher(model, how), paths, how.label_bits, skipped)
    return labels_in(found, shards)


def given(
    model: LoadedModel,
    shards: Sequence[Shard],
    path: Path | None = None,
    how: LabelSettings = ASKED,
) -> list[list[Label]]:
    """The same where each question has one."""
    made = asked(model, shards, path, how)
    whole = [[label for label in labels if label is not None] for labels in made]
    assert [*map(len, whole)] == [*map(len, made)]
    return whole


def assert_same(
    left: Sequence[Sequence[Label | None]], right: Sequence[Sequence[Label | None]]
) -> None:
    """To the last bit."""
    assert [*map(len, left)] == [*map(len, right)]
    for one, other in zip(chain(*left), chain(*right), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_label(one, other)


def assert_label(one: Label, other: Label) -> None:
    """Two labels are the same to the last bit."""
    assert (one.answer, one.nats, one.end, one.scores) == (
        *(other.answer, other.nats, other.end, other.scores),
    )
    for name in ("queries", "visual", "answer_rows"):
        _assert_array(vars(one)[name], vars(other)[name])
    _assert_top(one.top, other.top)
    assert set(one.kept or ()) == set(other.kept or ())
    for name, kept in (one.kept or {}).items():
        assert other.kept is not None
        assert kept.count == other.kept[name].count
        _assert_array(kept.rows_L, other.kept[name].rows_L)


def _assert_top(one: Top | None, other: Top | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        for name in ("logp_AK", "rest_A", "ids_AK"):
            _assert_array(vars(one)[name], vars(other)[name])
        assert one.pieces_AK == other.pieces_AK


def _assert_array(one: np.ndarray | None, other: np.ndarray | None) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_array_equal(one, other)
