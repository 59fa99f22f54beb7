"""Files of labels as versions 0.1 to 0.6 wrote them, which nothing writes any more."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdcca_cli.formats import lessons, records
from cdcca_cli.formats.labels import Label, sum_of
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel


def write_lessons(
    path: Path, teacher: LoadedModel, shards: Sequence[Shard], labels: Sequence[Sequence[Label]]
) -> None:
    """Each question with queries of its own, in 32 bits, without logits."""
    head = {"teacher": teacher.digest, "vocabulary": teacher.vocabulary_digest}
    head |= {"dtype": "float32", "bits": 32}  # type: ignore[dict-item]
    with path.open("wb") as out:
        records.write_record(out, {}, {"kind": "lessons", "version": 1, **head})
        for shard, found in zip(shards, labels, strict=True):
            parts = {
                "queries": [label.queries for label in found],
                "visual": [label.visual for label in found],
                "answer": [label.answer_rows for label in found],
            }
            tensors = {
                name: np.concatenate([rows for rows in each if rows is not None])
                for name, each in parts.items()
            }
            header = {
                "kind": "lesson",
                "version": 1,
                "key": lessons.key_of(shard),
                "answers": [label.answer for label in found],
                "nats": [label.nats for label in found],
                "inputs": [*range(len(found))],
                **{
                    name: [0 if rows is None else len(rows) for rows in each]
                    for name, each in parts.items()
                },
            }
            header["sum"] = sum_of(header, tensors)
            records.write_record(out, tensors, header)
