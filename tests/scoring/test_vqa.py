"""A-OKVQA's two scores on hand cases."""

import pytest

from cdcca_cli.scoring.vqa import direct_answer, multiple_choice


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 1), (10, 1)]
)
def test_direct_answer_credit(matches: int, expected: float) -> None:
    """DEFINITIONS 6: A-OKVQA's formula gives 0, .33, .67, 1 for 0 to 3 matches of ten."""
    answers = ["dog"] * matches + ["cat"] * (10 - matches)
    assert direct_answer("dog", answers) == pytest.approx(expected, abs=1e-15)


def test_direct_answer_compares_raw_strings() -> None:
    """DEFINITIONS 5: no lower-casing, no punctuation or article removal."""
    for other in ("Dog", "dog.", "a dog", " dog", "dogs", "", None):
        assert direct_answer(other, ["dog"] * 10) == 0.0


def test_multiple_choice_compares_the_text() -> None:
    choices = ["cat", "dog", "cow", "dog"]
    assert multiple_choice("dog", choices, 1) == 1.0
    assert multiple_choice("dog", choices, 3) == 1.0  # the same text elsewhere is as right
    for other in ("cat", "Dog", "", None):
        assert multiple_choice(other, choices, 1) == 0.0
