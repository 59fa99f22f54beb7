"""The least sure share of a stream that never ends (`running`), in constant memory.

Each question is compared, as it comes, with the earlier ones of its task, which are kept as a
histogram of their scores with slow forgetting. Its smoothed conformal p-value (Vovk, Gammerman &
Shafer 2005, chapter 2),

    p_t = (W_above + u_t (W_beside + 1)) / (W + 1),

with W the weights of all earlier scores, of those in higher bins and of those in its own bin, and
u_t in [0, 1) drawn by its id, is uniform if scores come in random order, from the first question on
and also where scores tie. The question is taken if p_t <= share + excess_t. Where scores drift,

    excess_t+1 = excess_t + share / 50 (share - taken_t),       taken_t 0 or 1,

brings the share back (Gibbs & Candes 2021, Eq. 2): of T questions it is off by at most
(1 + share / 50) / (T share / 50), whatever the scores do.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdcca_cli.datasets.frames import TASKS

_NUM_BINS = 256
_BINS_AN_OCTAVE = 8
_LOWEST = -24  # the first bin begins at 2^-24, the last at 2^7.9
_MEMORY = 100  # an earlier score weighs 1/e after 100 / share questions
_GAIN = 1 / 50


@dataclass
class _Task:
    """What is kept of one task. weights: of the earlier scores, by bin, (256,) float64."""

    excess: float = 0.0
    weights: np.ndarray = field(default_factory=lambda: np.zeros(_NUM_BINS))

    def takes(self, share: float, score: float, drawn: float) -> bool:
        place = _bin(score)
        beside, above = self.weights[place], self.weights[place + 1 :].sum()
        p = (above + drawn * (beside + 1)) / (self.weights.sum() + 1)
        taken = bool(p <= share + self.excess)
        self.excess += _GAIN * share * (share - taken)
        self.weights *= 1 - share / _MEMORY
        self.weights[place] += 1
        return taken


def _bin(score: float) -> int:
    if score <= 0:
        return 0
    place = math.floor(_BINS_AN_OCTAVE * (math.log2(score) - _LOWEST))
    return min(max(place, 0), _NUM_BINS - 1)


class Running:
    """The scores of earlier questions, by task.

    rule: what the scores are, such as `entropy mean`; with another rule all begins anew.
    """

    def __init__(self, rule: str = "") -> None:
        self._rule = rule
        self._tasks: dict[str, _Task] = {}

    def begin(self, rule: str) -> None:
        """Go on with the scores of `rule`, or begin with none."""
        if rule != self._rule:
            self._rule, self._tasks = rule, {}

    def takes(self, task: str, share: float, score: float, drawn: float) -> bool:
        """Whether a question is among the `share` of highest score; it counts from now on.

        Args: score: >= 0. drawn: uniform in [0, 1), the same for the same question.
        """
        return self._tasks.setdefault(task, _Task()).takes(share, score, drawn)

    def to_json(self) -> dict[str, Any]:
        tasks = {
            task: {"excess": kept.excess, "weights": kept.weights.tolist()}
            for task, kept in sorted(self._tasks.items())
        }
        return {"rule": self._rule, "tasks": tasks}

    @classmethod
    def from_json(cls, value: Any) -> "Running":
        """Raises: KeyError, TypeError, ValueError for what `to_json` does not give."""
        found = cls(_of(str, value["rule"]))
        for task, kept in _of(dict, value["tasks"]).items():
            weights = np.array([_of(float, weight) for weight in _of(list, kept["weights"])])
            excess = _of(float, kept["excess"])
            is_sound = task in TASKS and weights.shape == (_NUM_BINS,) and abs(excess) <= 2
            if not is_sound or not ((weights >= 0) & (weights < 2.0**53)).all():
                raise ValueError(task)
            found._tasks[task] = _Task(excess, weights)
        return found


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(value)
    return value
