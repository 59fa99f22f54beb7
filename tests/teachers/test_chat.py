"""The words of questions, and what answers by letter say."""

import math

import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import Question
from cdcca_cli.serving.openai import Reply, Token
from cdcca_cli.teachers import chat


def test_the_words_of_each_kind_of_question() -> None:
    suffix = "\nAnswer the question using a single word or phrase."
    assert chat.free_text(Question("q", "What {is} it?", "vqa")) == "What {is} it?" + suffix
    assert chat.free_text(Question("q", "Describe.", "caption")) == "Describe."
    assert chat.free_text(Question("q", None, "caption")).startswith("Describe the image")
    with pytest.raises(BadData, match="no words"):
        chat.free_text(Question("q", None, "vqa"))
    text, letters = chat.letter_text(Question("q", "Which {choices}?", "vqa", ["a {x}", "b"]))
    assert letters == "AB"
    assert text.splitlines()[:3] == ["Which {choices}?", "A. a {x}", "B. b"]
    assert "letter" in text.splitlines()[3]


def test_scores_of_letters_by_hand() -> None:
    """log(0.5 + 0.1) for A, log 0.2 for B; C is not listed: at most what is left, 0.05, and at most
    the least that is listed, 0.05 (of D, which is no choice)."""
    shares = [(b"A", 0.5), (b"B", 0.2), (b" A", 0.1), (b"x", 0.1), (b"D", 0.05)]
    top = tuple((piece, math.log(share)) for piece, share in shares)
    found = chat.letter_scores(Reply("A", "stop", (Token(b"A", top[0][1], top),)), "ABC")
    assert found == pytest.approx([math.log(0.6), math.log(0.2), math.log(0.05)])
    late = Reply(
        "I say A",
        "stop",
        (Token(b"I say ", -1.0, ((b"I say ", -1.0),)), Token(b"A", top[0][1], top)),
    )
    assert chat.letter_scores(late, "ABC") == found
    never = Reply("x", "stop", (Token(b"x", -0.1, top), Token(b"y", -0.1)))
    assert chat.letter_scores(never, "ABC") == found
    assert chat.letter_scores(Reply("A"), "ABC") is None
    assert chat.letter_scores(Reply("red", "stop", (Token(b"red", -1.0),)), "ABC") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(B)", "B"), ("B. two dogs", "B"), (" **B**", "B"), ("Blue", None), ("D", None),
     ("", None), ("b", None), ("A's", None)],
)  # fmt: skip
def test_the_letter_that_an_answer_begins_with(text: str, letter: str | None) -> None:
    assert chat.letter_of(text, "ABC") == letter
