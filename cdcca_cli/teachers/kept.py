"""Labels as distillation reads them: of a shard's questions, in the student's vocabulary.

Shapes: L rows, C channels, A answer tokens, K likeliest tokens.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.label_stream import Labels, ShardKey
from cdcca_cli.formats.labels import Label, Source
from cdcca_cli.formats.shard import Shard

KEPT_BYTES = 1 << 27
"""Decoded labels that are kept in memory, those used last; the others are decoded again."""


class KeptLabels:
    """The labels of shards, read from files."""

    def __init__(self, labels: Labels, shards: Sequence[Shard]) -> None:
        self._labels = labels
        self._keys = {id(shard): ShardKey.of(shard) for shard in shards}
        self._kept: OrderedDict[tuple[int, int], Label | None] = OrderedDict()
        self._kept_bytes = 0
        self._widths: dict[str, int] = {}
        self._source: Source | None = None

    @property
    def source(self) -> Source | None:
        """Whose labels were read; None before the first."""
        return self._source

    def of(self, shard: Shard, place: int) -> Label | None:
        """The label of a question; None without one. Raises: BadData for one of another width."""
        key = (id(shard), place)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = self._labels.read(self._keys[id(shard)], place)
        label = None if found is None else found[0]
        if found is not None:
            self._source = self._source or found[1]
            if found[1].vocabulary != self._source.vocabulary:
                raise BadData(
                    f"frame {shard.frame[:80]}: its labels are of another vocabulary than those "
                    "before: are they of one teacher?"
                )
            self._check(found[0], shard)
        self._kept[key] = label
        self._kept_bytes += _num_bytes(label)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _num_bytes(self._kept.popitem(last=False)[1])
        return label

    def kept(self, shard: Shard, place: int, name: str) -> Kept:
        """Which of a picture's rows of one question `rows` has. Args: name: queries or visual."""
        label = self._label(shard, place)
        if label.kept is not None and name in label.kept:
            return label.kept[name]
        count = len(self.rows(shard, place, name))
        return Kept(np.arange(count, dtype=np.int32), count)

    def rows(self, shard: Shard, place: int, name: str) -> np.ndarray:
        """(L, C) float32: the rows of a question: `queries`, `visual` or `answer`. BadData."""
        found = _rows(self._label(shard, place)).get(name)
        if found is None:
            raise BadData(f"frame {shard.frame[:80]}: the teacher's labels have no {name}")
        return found

    def _label(self, shard: Shard, place: int) -> Label:
        label = self.of(shard, place)
        assert label is not None  # only labelled questions are examples
        return label

    def _check(self, label: Label, shard: Shard) -> None:
        widths = {name: rows.shape[1] for name, rows in _rows(label).items()}
        first = {name: self._widths.setdefault(name, width) for name, width in widths.items()}
        if widths != first:
            raise BadData(
                f"frame {shard.frame[:80]}: its labels have rows {widths} wide; expected {first}: "
                "are they of one teacher?"
            )


def _rows(label: Label) -> dict[str, np.ndarray]:
    rows = {"queries": label.queries, "visual": label.visual, "answer": label.answer_rows}
    return {name: values for name, values in rows.items() if values is not None}


def _num_bytes(label: Label | None) -> int:
    if label is None:
        return 0
    top = label.top
    tops = () if top is None else (top.logp_AK, top.rest_A)
    return sum(array.nbytes for array in chain(_rows(label).values(), tops))
