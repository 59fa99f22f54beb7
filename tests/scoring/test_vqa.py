"""A-OKVQA's scores on hand cases, and the remap of answers that are no choices."""

import pytest

from cdcca_cli.scoring.vqa import (
    direct_answer,
    direct_answer_normalized,
    multiple_choice,
    remapped,
    squad_normalized,
)


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 1), (10, 1)]
)
def test_direct_answer_credit(matches: int, expected: float) -> None:
    """DEFINITIONS 6: A-OKVQA's formula gives 0, .33, .67, 1 for 0 to 3 matches of ten."""
    answers = ["dog"] * matches + ["cat"] * (10 - matches)
    assert direct_answer("dog", answers) == pytest.approx(expected, abs=1e-15)
    assert direct_answer_normalized("The dog.", answers) == pytest.approx(expected, abs=1e-15)


def test_direct_answer_compares_raw_strings() -> None:
    """DEFINITIONS 5: no lower-casing, no punctuation or article removal."""
    for other in ("Dog", "dog.", "a dog", " dog", "dogs", "", None):
        assert direct_answer(other, ["dog"] * 10) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog.", "dog"),
        ("a  hot-dog", "hotdog"),
        ("u.s.a", "usa"),
        ("an", ""),
        ("theatre", "theatre"),
        ("man's", "mans"),
        ("\u2019tis", "\u2019tis"),  # ASCII punctuation only
        ("", ""),
    ],
)
def test_squad_normalisation(text: str, expected: str) -> None:
    """SQuAD's evaluate-v1.1: lower case, no punctuation, no articles, single spaces, in this
    order: so a-dog is adog and keeps its article."""
    assert squad_normalized(text) == expected
    assert squad_normalized("a-dog") == "adog"


def test_no_prediction_is_wrong() -> None:
    assert direct_answer_normalized(None, [""] * 10) == 0.0
    assert direct_answer_normalized("", [""] * 10) == 1.0


def test_multiple_choice_compares_the_text() -> None:
    choices = ["cat", "dog", "cow", "dog"]
    assert multiple_choice("dog", choices, 1) == 1.0
    assert multiple_choice("dog", choices, 3) == 1.0  # the same text elsewhere is as right
    for other in ("cat", "Dog", "", None):
        assert multiple_choice(other, choices, 1) == 0.0


def test_remap_to_the_choice_the_model_scores_highest() -> None:
    choices = ["cat", "dog", "cow"]
    assert remapped(choices, None, [-3.0, -1.0, -2.0]) == "dog"
    assert remapped(choices, None, [-1.0, -1.0, -2.0]) == "cat"  # the first of equals
    # By their texts, where the model had them in another order, or others among them.
    assert remapped(choices, ["cow", "cat", "dog"], [-1.0, -2.0, -3.0]) == "cow"
    assert remapped(choices, ["horse", "cow"], [-1.0, -2.0]) == "cow"
    # By their places, where it had them in other words.
    assert remapped(choices, ["Cat", "Dog", "Cow"], [-3.0, -1.0, -2.0]) == "dog"
    assert remapped(choices, ["A", "B"], [-1.0, -2.0]) is None
    assert remapped(choices, choices, None) is None
    assert remapped(choices, [], []) is None
