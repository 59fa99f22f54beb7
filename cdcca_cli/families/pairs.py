"""What a student and a teacher have in common, and which payloads and methods that leaves open.

The rule is shared by `doctor`, which explains it, and by distillation, which refuses by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

OTHER_TOWER = (
    "the vision towers differ, so the teacher cannot read the student's tokens: send payload frame"
)
OTHER_PLACES = (
    "the connectors do not make as many vectors of a picture at the same places, so the query and "
    "representation terms have nothing to compare: use `method` kd"
)
OTHER_DISTRIBUTIONS = "the vocabularies differ, so the distributions over tokens cannot be compared"
OTHER_VOCABULARY = f"{OTHER_DISTRIBUTIONS}: leave `kl` out"


@dataclass(frozen=True)
class Open:
    """What a pair can do: each name with the reason why it is closed, "" if it is open.

    payloads: `tokens` and `frame`. methods: those with a teacher. kl: the KL divergence, which any
    of them can add.
    """

    payloads: dict[str, str]
    methods: dict[str, str]
    kl: str


def open_methods(*, same_tower: bool, same_vocabulary: bool, same_places: bool) -> Open:
    """The payloads and methods that are open to a pair.

    Args:
        same_tower: equal digests of the vision towers.
        same_vocabulary: equal digests of the vocabularies (`LoadedModel.vocabulary_digest`).
        same_places: as `same_places` finds it.
    """
    places = "" if same_places else OTHER_PLACES
    return Open(
        payloads={"tokens": "" if same_tower else OTHER_TOWER, "frame": ""},
        methods={"akd": places, "pseudo-label": "", "kd": "", "pkd": places, "cwd": places},
        kl="" if same_vocabulary else OTHER_VOCABULARY,
    )


def same_places(kinds: Sequence[str], num_queries: Sequence[int], *, same_tower: bool) -> bool:
    """Whether both connectors make as many vectors of any picture, at the same places.

    Q-Formers and perceivers do if they have as many query tokens. Connectors that make a vector of
    each place of the picture do if they share the tower and merge as many of its tokens.

    Args: kinds: `Family.kind` of both. num_queries: vectors that each makes of the same picture.
    """
    ours, theirs = kinds
    is_common = ours == theirs and (ours != "cells" or same_tower)
    return is_common and len(set(num_queries)) == 1
