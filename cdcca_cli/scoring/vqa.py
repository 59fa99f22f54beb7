"""Visual question answering as A-OKVQA and VQAv2 count it, one value a question.

A-OKVQA's official scores compare strings exactly; `direct_answer_normalized` normalises as SQuAD
does first. VQAv2's accuracy is that of GT-Vision-Lab/VQA vqaEval.py with its errors, since
published numbers have them: answers that are all the same are compared as they are, at most 32
periods are removed, and the contractions of "I" are never written (looked up in lower case).
"""

import re
import string
from collections.abc import Sequence
from functools import lru_cache

MATCHES_FOR_FULL_CREDIT = 3
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")

_SYMBOLS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # re.UNICODE, passed where re.sub takes a count
_VQAV2_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll "
    "you'd you'd've you'll you're you've"
)
# A contraction that lacks one of its apostrophes gets it; one entry goes the other way.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def multiple_choice(choice: str | None, choices: Sequence[str], correct_choice_idx: int) -> float:
    """1.0 for the text of the correct choice, else 0.0. Source: A-OKVQA's eval_predictions.py."""
    return float(choice == choices[correct_choice_idx])


def remapped(
    choices: Sequence[str],
    scored_choices: Sequence[str] | None,
    choice_scores: Sequence[float] | None,
) -> str | None:
    """The choice that the model scores highest, the first of equals; None without scores.

    For answers that are none of the choices. A-OKVQA's own remap_predictions.py takes the choice
    nearest in GloVe space instead, which needs 1 GB of word vectors. If none of `scored_choices` is
    one of the choices, the scores are taken to be in the order of the choices.
    """
    if choice_scores is None:
        return None
    named = dict(zip(scored_choices or (), choice_scores, strict=False))
    known = [choice for choice in choices if choice in named]
    if known:
        return max(known, key=named.__getitem__)
    if len(choice_scores) != len(choices):
        return None
    return choices[max(range(len(choices)), key=choice_scores.__getitem__)]


def direct_answer(answer: str | None, answers: Sequence[str]) -> float:
    """min(1, matches / 3) of the human answers. Source: A-OKVQA's eval_predictions.py."""
    matches = sum(answer == human for human in answers)
    return min(1.0, matches / MATCHES_FOR_FULL_CREDIT)


def direct_answer_normalized(answer: str | None, answers: Sequence[str]) -> float:
    """`direct_answer` after `squad_normalized` of both sides."""
    if answer is None:
        return 0.0
    return direct_answer(squad_normalized(answer), [squad_normalized(human) for human in answers])


@lru_cache(maxsize=1 << 16)
def squad_normalized(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles. Source: SQuAD's evaluate-v1.1.py."""
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def vqav2_accuracy(answer: str | None, answers: Sequence[str]) -> float:
    """Leave-one-out: the mean over human answers of min(1, matches among the others / 3)."""
    matches, count = _matches(answer, answers)
    own = min(1.0, (matches - 1) / MATCHES_FOR_FULL_CREDIT) if matches else 0.0
    rest = min(1.0, matches / MATCHES_FOR_FULL_CREDIT)
    return (matches * own + (count - matches) * rest) / count


def vqav2_accuracy_min3(answer: str | None, answers: Sequence[str]) -> float:
    """min(1, matches / 3) over all human answers, normalised as in `vqav2_accuracy`; in [0, 1]."""
    matches, _ = _matches(answer, answers)
    return min(1.0, matches / MATCHES_FOR_FULL_CREDIT)


def _matches(answer: str | None, answers: Sequence[str]) -> tuple[int, int]:
    """The number of human answers that match, and the number of all."""
    if answer is None:
        return 0, len(answers)
    given, human = _stripped(answer), [_stripped(text) for text in answers]
    if len(set(human)) > 1:
        given, human = vqav2_normalized(given), [vqav2_normalized(text) for text in human]
    return sum(text == given for text in human), len(human)


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def vqav2_normalized(text: str) -> str:
    """Symbols and periods removed, lower case, digits, no articles, contractions.

    A symbol is deleted if it stands beside a space anywhere in the text, or if the text has a comma
    between two digits; otherwise it becomes a space. Periods before a digit stay.
    """
    plain = text
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    for symbol in _SYMBOLS:
        if symbol in text:
            gone = in_number or f"{symbol} " in text or f" {symbol}" in text
            plain = plain.replace(symbol, "" if gone else " ")
    words = _PERIOD.sub("", plain, count=_MOST_PERIODS).lower().split()
    counted = (_DIGITS.get(word, word) for word in words)
    return " ".join(
        _CONTRACTIONS.get(word, word) for word in counted if word not in _VQAV2_ARTICLES
    )
