"""How questions are chosen (`select`), and how the tasks share what is sent.

A rule gives each question a rank within its task: a number, the highest first
(`selection.Ranking`), or a point in a space, of which `Spread` takes those that lie farthest apart.

    entropy           of the answer's tokens, in nats (Eq. 2)
    random            a number drawn by the seed and the question's id
    margin            1 - mean_j (p_j1 - p_j2), of the two most likely tokens at step j of the
                      answer (Scheffer et al. 2001; Settles 2009, 3.1)
    bald              mutual information between answer and dropout mask (Houlsby et al. 2011;
                      Gal et al. 2017), with the masks and blocks of stage 2
    k-center          farthest-first traversal (Gonzalez 1985), the greedy 2-approximation that
                      Sener & Savarese (2018) choose data by, of the student's queries
    entropy*k-center  the same with distances times the entropy: the greedy rule of Dyer & Frieze
                      (1985) for centres with weights

Memory is that of `Ranking`, and for the last two one vector of at most 256 float32 numbers a
question, beside the frame itself; their time grows with questions times questions picked. A frame's
own questions are the only batch here, so the batch size changes no bit of `bald` and `k-center`.

Legend: K questions of a frame or task, M passes, A answer tokens, V vocabulary, N visual tokens,
C channels.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.uplink.settings import SampleSettings

_CHUNK = 4096


class Point(NamedTuple):
    """A question in the space of queries: its weight >= 0 and its vector (C,), float32."""

    weight: float
    vector: np.ndarray


Rank = float | Point


class Order(Protocol):
    """The questions of one task, ordered by their ranks: `Ranking` and `Spread`."""

    def offer(self, frame: int, ranks_K: Sequence[Any]) -> set[int]: ...

    def __contains__(self, frame: int) -> bool: ...

    def __iter__(self) -> Iterator[tuple[int, int]]: ...


class Interleaved:
    """The orders of all tasks, merged by percentile, so that each task gives the same share.

    Question r (from 1) of n in the order of its task is at (r - 1/2) / n. The lowest come first, of
    equal ones the first in the input. So of any number of questions each task gets its share,
    rounded as Webster and Sainte-Laguë round seats; with one task nothing changes.
    """

    def __init__(self, make: Callable[[str], Order]) -> None:
        """Args: make: the empty order of a task."""
        self._make = make
        self._orders: dict[str, Order] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        """The number of questions that were offered."""
        return sum(self._counts.values())

    def offer(self, frame: int, tasks_K: Sequence[str], ranks_K: Sequence[Rank | None]) -> set[int]:
        """Order the questions of one frame; None leaves one out. Returns: as `Ranking.offer`."""
        gone = {frame}
        for task in dict.fromkeys(tasks_K):
            own_K = [
                rank if own == task else None for own, rank in zip(tasks_K, ranks_K, strict=True)
            ]
            if task not in self._orders:
                self._orders[task], self._counts[task] = self._make(task), 0
            self._counts[task] += sum(rank is not None for rank in own_K)
            gone |= self._orders[task].offer(frame, own_K)
        return {one for one in gone if not any(one in order for order in self._orders.values())}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(frame, question), the first to send first."""
        return (
            (frame, question) for _, frame, question in heapq.merge(*map(self._at, self._orders))
        )

    def _at(self, task: str) -> Iterator[tuple[Fraction, int, int]]:
        count = self._counts[task]
        for place, (frame, question) in enumerate(self._orders[task]):
            yield Fraction(2 * place + 1, 2 * count), frame, question


class Spread:
    """The questions of one task in the order of `farthest_first`."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._points: list[Point] = []
        self._frames: set[int] = set()

    def offer(self, frame: int, points_K: Sequence[Point | None]) -> set[int]:
        """Keep the questions of one frame. Returns: the frame, if it has none."""
        for question, point in enumerate(points_K):
            if point is not None:
                self._places.append((frame, question))
                self._points.append(point)
                self._frames.add(frame)
        return set() if frame in self._frames else {frame}

    def __contains__(self, frame: int) -> bool:
        return frame in self._frames

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self._points:
            vectors_KC = np.stack([point.vector for point in self._points])
            weights_K = np.array([point.weight for point in self._points])
            yield from (self._places[place] for place in farthest_first(vectors_KC, weights_K))


def farthest_first(vectors_KC: np.ndarray, weights_K: np.ndarray) -> Iterator[int]:
    """All places, each time the one of largest w_k min_c |x_k - x_c|, c over those before it.

    The first has the largest weight, and of those lies nearest to the mean of all. Of equal ones
    the first in the input is taken, and a vector that occurs twice comes again when all is covered.
    """
    centre = vectors_KC.mean(0, dtype=np.float64)
    heaviest = np.flatnonzero(weights_K == weights_K.max())
    place = int(heaviest[np.argmin(_distances(vectors_KC[heaviest], centre))])
    nearest_K = np.full(len(vectors_KC), np.inf)
    left_K = np.ones(len(vectors_KC), dtype=bool)
    for _ in range(len(vectors_KC)):
        yield place
        left_K[place] = False
        nearest_K = np.minimum(nearest_K, _distances(vectors_KC, vectors_KC[place]))
        place = int(np.argmax(np.where(left_K, weights_K * nearest_K, -1.0)))


def _distances(vectors_KC: np.ndarray, to_C: np.ndarray) -> np.ndarray:
    """Euclidean distances (K,), float64; a row's does not depend on the other rows."""
    parts = [vectors_KC[start : start + _CHUNK] for start in range(0, len(vectors_KC), _CHUNK)]
    return np.sqrt(
        np.concatenate([np.square(part.astype(np.float64) - to_C).sum(-1) for part in parts])
    )


def draw(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone."""
    text = "\n".join(map(str, key)).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def score_of(prediction: Prediction, settings: SampleSettings) -> float:
    """The score of a question by a rule that needs no more than its answer; the weight of a Point.

    Raises: BadData if the prediction lacks the margin.
    """
    if settings.select == "random":
        return draw("question", settings.seed, prediction.id)
    if settings.select == "k-center":
        return 1.0
    if settings.select != "margin":
        return prediction.entropy[settings.entropy]
    if prediction.margin is None:
        raise BadData(
            f"`predictions`: question {prediction.id} has no margin: answer again with infer of "
            "this cdcca, or use `select` entropy"
        )
    return 1.0 - prediction.margin
