"""How unsure the device was: quantiles of the entropy of its answers, by round and over time.

The entropy is that of an answer, in nats a token (`formats.predictions`, `mean`). A frame has a
time if its shard has, or if its name ends in one, as those of a camera do.
"""

import re
from array import array
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.reporting.plain import number

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_MOST_POINTS = 200_000
_BINS = 40
_STAMP = re.compile(r"@(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)Z$")
_PLACES = 4
_LAST = 253_402_300_000.0  # the year 9999


class Entropies:
    """Adds up predictions on the stream.

    times: of all images whose shards have one. Beside them memory holds the entropies of one round
    and at most _MOST_POINTS of all rounds.
    """

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self.rounds: list[dict[str, Any]] = []
        self._now = array("d")
        self._timed: tuple[array[float], array[float]] = array("d"), array("d")
        self._every = self._count = 1

    def add(self, prediction: Prediction) -> None:
        """One answer of the round that is being read."""
        entropy = prediction.entropy["mean"]
        self._now.append(entropy)
        time = self.times.get(prediction.image) or _time_of(prediction.image)
        if time is None or not 0 <= time < _LAST:
            return
        self._count += 1
        if self._count % self._every == 0:
            self._timed[0].append(time)
            self._timed[1].append(entropy)
        if len(self._timed[0]) >= _MOST_POINTS:
            self._timed = self._timed[0][::2], self._timed[1][::2]
            self._every *= 2

    def end_round(self, round_number: int) -> None:
        """All predictions of a round were added."""
        values, self._now = np.array(self._now), array("d")
        if len(values):
            self.rounds.append({"round": round_number, **_quantiles(values)})

    def drop(self) -> None:
        """Forget the round that is being read: its file is damaged."""
        self._now = array("d")

    def as_json(self) -> dict[str, Any] | None:
        """{"rounds": [...], "times": [...]}; None without predictions."""
        if not self.rounds:
            return None
        return {"rounds": self.rounds, "times": self._over_time()}

    def _over_time(self) -> list[dict[str, Any]]:
        """Quantiles between equal steps of time; steps without a frame are left out."""
        times, values = np.array(self._timed[0]), np.array(self._timed[1])
        if not len(times) or times.min() == times.max():
            return []
        edges = np.linspace(times.min(), times.max(), min(_BINS, len(times)) + 1)
        places = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(edges) - 2)
        return [
            {"from": _utc(edges[i]), "to": _utc(edges[i + 1]), **_quantiles(values[places == i])}
            for i in range(len(edges) - 1)
            if (places == i).any()
        ]


def _quantiles(values: np.ndarray) -> dict[str, Any]:
    found = np.quantile(values, QUANTILES)
    names = [f"q{100 * share:.0f}" for share in QUANTILES]
    quantiles = {
        name: number(float(value), _PLACES) for name, value in zip(names, found, strict=True)
    }
    return {"n": len(values), **quantiles, "mean": number(float(values.mean()), _PLACES)}


def _time_of(image: str) -> float | None:
    match = _STAMP.search(image[-40:])
    if match is None:
        return None
    try:
        return datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(float(seconds), UTC):%Y-%m-%d %H:%M:%S}"
