"""The rule that picks questions by their scores.

Stage 1 ranks questions (one frame with one prompt, the paper's instance) by entropy, the highest
first. Of equal ones the first in the input comes first. (Stage 2: `token_rules`.)

Legend: K questions of a frame.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence


class Ranking:
    """The questions of highest entropy so far, at most `max_questions` of `max_frames` frames.

    With `max_frames` it is the longest prefix of the ranking that has questions of no more frames.
    A question that falls out never comes back, so memory does not grow with the stream.
    """

    def __init__(self, *, max_questions: int | None = None, max_frames: int | None = None) -> None:
        self._max_questions = max_questions
        self._max_frames = max_frames
        self._ranked: list[tuple[float, int, int]] = []  # (-entropy, frame, question), ascending
        self._num_questions: Counter[int] = Counter()  # by frame

    def offer(self, frame: int, entropies_K: Sequence[float | None]) -> set[int]:
        """Rank the questions of one frame, given by its place in the input.

        Args: entropies_K: of each question, in nats; None leaves it out.
        Returns: the frames that lost their last question in the ranking, or never had one there.
        """
        for question, entropy in enumerate(entropies_K):
            if entropy is not None:
                insort(self._ranked, (-entropy, frame, question))
                self._num_questions[frame] += 1
        gone: set[int] = set() if frame in self._num_questions else {frame}
        return gone | self._cut()

    def shorten(self, max_questions: int) -> None:
        """Keep only the `max_questions` highest."""
        self._max_questions = max_questions
        self._cut()

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

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(frame, question), the highest entropy first."""
        return ((frame, question) for _, frame, question in self._ranked)

    def by_frame(self) -> dict[int, list[int]]:
        """The ranked questions of each frame; both in the order of the input."""
        questions: dict[int, list[int]] = {frame: [] for frame in sorted(self._num_questions)}
        for frame, question in sorted(self):
            questions[frame].append(question)
        return questions
