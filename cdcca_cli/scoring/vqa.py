"""Visual question answering as A-OKVQA's official scorer counts it, one value a question.

Both compare strings exactly: no lower-casing, no removal of punctuation or articles. VQAv2's own
leave-one-out accuracy with normalised answers is another measure and not here.
"""

from collections.abc import Sequence

MATCHES_FOR_FULL_CREDIT = 3


def multiple_choice(choice: str | None, choices: Sequence[str], correct_choice_idx: int) -> float:
    """1.0 if the chosen text is the correct one's, else 0.0; None (no prediction) is wrong.

    Source: allenai/aokvqa evaluation/eval_predictions.py, which compares the choice's string.
    """
    return float(choice == choices[correct_choice_idx])


def direct_answer(answer: str | None, answers: Sequence[str]) -> float:
    """min(1, matches / 3) over the human answers, in [0, 1]; None (no prediction) scores 0.

    Source: allenai/aokvqa evaluation/eval_predictions.py. Questions that are marked difficult for
    direct answers are left out there, before this.
    """
    matches = sum(answer == human for human in answers)
    return min(1.0, matches / MATCHES_FOR_FULL_CREDIT)
