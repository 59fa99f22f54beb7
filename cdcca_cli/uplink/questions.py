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
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.datasets import Frame
from cdcca_cli.errors import BadData
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.models import LoadedModel, Seen, Trunk
from cdcca_cli.uplink import uncertainty
from cdcca_cli.uplink.settings import SPREAD_RULES, SampleSettings

_MOST_CHANNELS = 256
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


def ranks_of(
    model: LoadedModel,
    frame: Frame,
    answers_K: Sequence[str | None],
    scores_K: Sequence[float | None],
    trunk: Trunk | None,
    settings: SampleSettings,
) -> list[Rank | None]:
    """The rank of each question of a frame, by `select`.

    Args: answers_K: for `bald`; None leaves a question out. scores_K: of `score_of`, likewise.
        trunk: for `bald`, `k-center` and `entropy*k-center`.
    """
    if settings.select == "bald":
        assert trunk is not None, "bald needs the trunk's output"
        return [*answer_information(model, frame, answers_K, trunk, settings)]
    if settings.select not in SPREAD_RULES:
        return [*scores_K]
    assert trunk is not None, "k-center needs the trunk's output"
    with torch.no_grad():
        tokens_1NC, _ = model.tail(trunk)
    vectors = iter(pooled_queries(model, frame, [s is not None for s in scores_K], tokens_1NC))
    return [None if score is None else Point(round(score, 6), next(vectors)) for score in scores_K]


@torch.no_grad()
def pooled_queries(
    model: LoadedModel, frame: Frame, asked_K: Sequence[bool], tokens_1NC: Tensor
) -> np.ndarray:
    """The mean of the student's queries for each asked question of a frame, (K_asked, C), float32.

    Of a connector that does not read the question all are alike. More than 256 channels are mixed
    into 256 by fixed random signs, which keep distances to about 5 % (Achlioptas 2003).
    """
    texts = [
        model.format_prompt(question.prompt, question.task)
        for question, asked in zip(frame.questions, asked_K, strict=True)
        if asked
    ]
    if not texts:
        return np.empty((0, 0), np.float32)
    shown = texts if model.reads_prompt else texts[:1]
    queries_KLC = model.queries(tokens_1NC.expand(len(shown), -1, -1), prompts=shown)
    vectors_KC = queries_KLC.float().mean(1).cpu().numpy()
    if not np.isfinite(vectors_KC).all():
        raise BadData(f"{frame.id}: the connector gave values that are not finite")
    if vectors_KC.shape[1] > _MOST_CHANNELS:
        vectors_KC = vectors_KC @ _signs(vectors_KC.shape[1])
    return np.repeat(vectors_KC, len(texts) // len(shown), axis=0)


@cache
def _signs(channels: int) -> np.ndarray:
    """(C, 256), entries +-1/16, the same on every machine."""
    drawn = np.random.Generator(np.random.Philox(key=channels)).random((channels, _MOST_CHANNELS))
    return np.where(drawn < 0.5, -1.0, 1.0).astype(np.float32) / math.sqrt(_MOST_CHANNELS)


def mutual_information(logits_MAV: Tensor) -> Tensor:
    """Mutual information of each answer token with the mask of the pass, in nats: (A,) float32.

    I_a = H(1/M sum_m p_ma) - 1/M sum_m H(p_ma),   p_ma = softmax(logits_ma), in [0, log M]

    (Houlsby et al. 2011, Eq. 2; Gal et al. 2017). It is computed as the mean Kullback-Leibler
    divergence of the p_ma from their mean, which does not cancel.
    """
    logs_MAV = logits_MAV.float().log_softmax(-1)
    mean_AV = logs_MAV.logsumexp(0) - math.log(len(logs_MAV))
    terms_MAV = torch.where(logs_MAV == -math.inf, 0.0, logs_MAV.exp() * (logs_MAV - mean_AV))
    return terms_MAV.sum(-1).mean(0).clamp(min=0)


@torch.no_grad()
def answer_information(
    model: LoadedModel,
    frame: Frame,
    answers_K: Sequence[str | None],
    trunk: Trunk,
    settings: SampleSettings,
) -> list[float | None]:
    """BALD of each question: the mean mutual information of its greedy answer's tokens.

    The answer is given token by token, so that every mask judges the same words.
    Raises: BadData for values that are not finite.
    """
    tokens_BNC, layout = uncertainty.dropout_tokens(
        model,
        trunk,
        frame.id,
        blocks=settings.blocks,
        passes=settings.passes,
        rate=settings.dropout,
        seed=settings.seed,
    )
    seen = [Seen(tokens_NC, layout) for tokens_NC in tokens_BNC[1:]]
    found: list[float | None] = []
    for question, answer in zip(frame.questions, answers_K, strict=True):
        if answer is None:
            found.append(None)
            continue
        texts = [model.format_prompt(question.prompt, question.task)] * settings.passes
        spliced = model.read(seen, texts)
        logits_MAV = model.forward(spliced, model.answer_ids([answer] * settings.passes)).logits
        information = float(mutual_information(logits_MAV).mean())
        if not math.isfinite(information):
            raise BadData(f"{frame.id}: the model's outputs under dropout are not finite")
        found.append(information)
    return found
