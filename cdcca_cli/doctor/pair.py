"""A student and a teacher: what they have in common, and so which payloads and methods are open.

Towers are compared parameter by parameter, from the bytes of both towers alone, up to the first
difference.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cdcca_cli.doctor import frame
from cdcca_cli.doctor.checkpoint import Outlined, outlined
from cdcca_cli.families import pairs
from cdcca_cli.models import digests
from cdcca_cli.models.skeleton import TowerTensors, hollow

if TYPE_CHECKING:
    from torch import Tensor

    from cdcca_cli.models import LoadedModel


class _Differs(Exception):
    """The towers differ; the message says where."""


class _Compared(Mapping[str, "Tensor"]):
    """The parameters of one tower, each compared with the other's when it is asked for.

    Raises: _Differs, for names and shapes at once, from [] for values.
    """

    def __init__(self, ours: TowerTensors, theirs: TowerTensors) -> None:
        shapes = ours.shapes(), theirs.shapes()
        for name in sorted(shapes[0].keys() | shapes[1].keys()):
            here, there = (one.get(name) for one in shapes)
            if here != there:
                words = [one and " x ".join(map(str, one)) for one in (here, there)]
                raise _Differs(f"{name}: {words[0] or 'none'} and {words[1] or 'none'}")
        self._ours, self._theirs = ours, theirs

    def __getitem__(self, name: str) -> "Tensor":
        import torch

        ours, theirs = self._ours[name], self._theirs[name]
        if not torch.equal(ours.to(torch.bfloat16), theirs.to(torch.bfloat16)):
            raise _Differs(f"{name}: other values")
        return ours

    def __iter__(self) -> Iterator[str]:
        return iter(self._ours)

    def __len__(self) -> int:
        return len(self._ours)


def report(student: str, teacher: str) -> dict[str, Any]:
    """What a pair has in common and can do, as JSON. Raises: as `checkpoint.outlined`."""
    ours, theirs = outlined(student), outlined(teacher)
    digest, why = _tower(ours, theirs)
    same_vocabulary = ours.model.vocabulary_digest == theirs.model.vocabulary_digest
    same_places = pairs.same_places(
        [one.model.row.kind for one in (ours, theirs)],
        [_num_queries(one.model) for one in (ours, theirs)],
        same_tower=digest is not None,
    )
    found = pairs.open_methods(
        same_tower=digest is not None, same_vocabulary=same_vocabulary, same_places=same_places
    )
    return {
        "kind": "pair",
        "student": _named(ours.model),
        "teacher": _named(theirs.model),
        "tower": {"is_shared": digest is not None, "digest": digest, "difference": why},
        "vocabulary": {"is_shared": same_vocabulary},
        "places": {"are_common": same_places},
        "open": asdict(found),
    }


def _tower(ours: Outlined, theirs: Outlined) -> tuple[str | None, str | None]:
    """The digest of the tower that both have, or where they differ."""
    towers = ours.tower(), theirs.tower()
    if towers[0] is None or towers[1] is None:
        return None, "not known: a checkpoint has no weights here"
    try:
        return digests.of_tensors(_Compared(towers[0], towers[1])), None
    except _Differs as difference:
        return None, str(difference)


def _num_queries(model: "LoadedModel") -> int:
    """Vectors that the connector makes of a frame of 1080p."""
    if model.row.kind == "qformer":
        return int(model.module.query_tokens.shape[1])
    hollow(model)
    (seen,) = model.see(model.prepare([frame.like_a_photograph(*frame.SIZE)]))
    return seen.num_tokens


def _named(model: "LoadedModel") -> dict[str, Any]:
    return {
        "checkpoint": model.checkpoint,
        "family": model.family,
        "words": len(model.tokenizer.get_vocab()),
        "head_rows": int(model.module.get_output_embeddings().weight.shape[0]),
        "end_tokens": list(model.end_ids),
    }
