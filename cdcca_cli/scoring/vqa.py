"""Visual question answering as A-OKVQA counts it, one value a question.

The official scores compare strings exactly: no lower-casing, no removal of punctuation or articles.
`direct_answer_normalized` is the variant of published systems that normalise as SQuAD does first.
VQAv2's leave-one-out accuracy is in `vqav2`.
"""

import re
import string
from collections.abc import Sequence
from functools import lru_cache

MATCHES_FOR_FULL_CREDIT = 3
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def multiple_choice(choice: str | None, choices: Sequence[str], correct_choice_idx: int) -> float:
    """1.0 if the chosen text is the correct one's, else 0.0; None (no prediction) is wrong.

    Source: allenai/aokvqa evaluation/eval_predictions.py, which compares the choice's string.
    """
    return float(choice == choices[correct_choice_idx])


def remapped(
    choices: Sequence[str],
    scored_choices: Sequence[str] | None,
    choice_scores: Sequence[float] | None,
) -> str | None:
    """The choice that the model itself scores highest, the first of equals; None without scores.

    For answers that are none of the choices. A-OKVQA's own remap_predictions.py takes the choice
    nearest in GloVe space instead, which needs 1 GB of word vectors and not the model's opinion.

    Args: scored_choices: what the scores are for; if not one of them is a choice as it is written
        (or None), the scores are taken to be in the order of the choices.
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
    """min(1, matches / 3) over the human answers, in [0, 1]; None (no prediction) scores 0.

    Source: allenai/aokvqa evaluation/eval_predictions.py. Questions that are marked difficult for
    direct answers are left out there, before this.
    """
    matches = sum(answer == human for human in answers)
    return min(1.0, matches / MATCHES_FOR_FULL_CREDIT)


def direct_answer_normalized(answer: str | None, answers: Sequence[str]) -> float:
    """`direct_answer` after `squad_normalized` of both sides; None (no prediction) scores 0."""
    if answer is None:
        return 0.0
    return direct_answer(squad_normalized(answer), [squad_normalized(human) for human in answers])


@lru_cache(maxsize=1 << 16)
def squad_normalized(text: str) -> str:
    """Lower case without ASCII punctuation and articles, single spaces.

    Source: SQuAD's evaluate-v1.1.py.
    """
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())
