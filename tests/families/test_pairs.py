"""Which payloads and methods a pair can use."""

from itertools import product

import pytest

from cdcca_cli.distillation.settings import WEIGHTS
from cdcca_cli.families.pairs import open_methods, same_places


@pytest.mark.parametrize(
    ("same_tower", "same_vocabulary", "has_same_places"), list(product((True, False), repeat=3))
)
def test_each_closed_name_has_its_reason(
    same_tower: bool, same_vocabulary: bool, has_same_places: bool
) -> None:
    found = open_methods(
        same_tower=same_tower, same_vocabulary=same_vocabulary, same_places=has_same_places
    )
    assert found.payloads["frame"] == found.methods["kd"] == ""
    assert (found.payloads["tokens"] == "") == same_tower
    assert (found.kl == "") == same_vocabulary
    for name in ("akd", "pkd", "cwd"):
        assert (found.methods[name] == "") == has_same_places
        assert ("`method` kd" in found.methods[name]) != has_same_places


def test_every_method_with_a_teacher_is_there() -> None:
    found = open_methods(same_tower=True, same_vocabulary=True, same_places=True)
    assert found.methods.keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("kinds", "counts", "same_tower", "expected"),
    [
        (("qformer", "qformer"), (32, 32), True, True),
        (("qformer", "qformer"), (32, 32), False, True),
        (("qformer", "qformer"), (32, 64), True, False),
        (("perceiver", "perceiver"), (64, 64), False, True),
        (("perceiver", "qformer"), (32, 32), True, False),
        (("cells", "cells"), (2, 2), True, True),
        (("cells", "cells"), (2, 2), False, False),
        (("cells", "cells"), (2, 4), True, False),
        (("cells", "qformer"), (32, 32), True, False),
    ],
)
def test_common_places(
    kinds: tuple[str, str], counts: tuple[int, int], same_tower: bool, expected: bool
) -> None:
    assert same_places(kinds, counts, same_tower=same_tower) is expected
