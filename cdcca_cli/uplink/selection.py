"""The rule that picks questions by their scores.

Stage 1 ranks questions (one frame with one prompt, the paper's instance) by score, the highest
first. Of equal ones the first in the input comes first. Scores are compared to six decimals,
because the bits behind depend on the batch in which a question was answered. (Stage 2:
`token_rules`.)

Legend: K questions of a frame.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence


class Ranking:
    """The questions of highest score so far, at most `max_questions` of `max_frames` frames.

    With `max_frames` it is the longest prefix of the ranking that has questions of no more frames.
    A question that falls out never comes back, so memory does not grow with the stream.
    """

    def __init__(self, *, max_questions: int | None = None, max_frames: int | None = None) -> None:
        self._max_questions = max_questions
        self._max_frames = max_frames
        self._ranked: list[tuple[float, int, int]] = []  # (-score, frame, question), ascending
        self._num_questions: Counter[int] = Counter()  # by frame

    def offer(self, frame: int, scores_K: Sequence[float | None]) -> set[int]:
        """Rank the questions of one frame, given by its place in the input.

        Args: scores_K: of each question; None leaves it out.
        Returns: the frames that lost their last question in the ranking, or never had one there.
        """
        for question, score in enumerate(scores_K):
            if score is not None:
                insort(self._ranked, (-round(score, 6), frame, question))
                self._num_questions[frame] += 1
        gone: set[int] = set() if frame in self._num_questions else {frame}
        return gone | self._cut()

    def _cut(self) -> set[int]:
        gone = set()
        while self._is_over():
            _, dropped, _ = self._ranked.pop()
            self._num_questions[dropped] -= 1
            if not self._num_questions[dropped]:
                del self._num_questions[dropped]
                gone.add(dropped)
        return gone

    def _is_over(self) -> bool:
        over_questions = self._max_questions is not None and len(self._ranked) > self._max_questions
        over_frames = self._max_frames is not None and len(self._num_questions) > self._max_frames
        return over_questions or over_frames

    def __contains__(self, frame: int) -> bool:
        return frame in self._num_questions

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(frame, question), the highest score first."""
        return ((frame, question) for _, frame, question in self._ranked)


def by_frame(places: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """The questions of each frame, of pairs (frame, question); both in the order of the input."""
    questions: dict[int, list[int]] = {}
    for frame, question in sorted(places):
        questions.setdefault(frame, []).append(question)
    return questions
