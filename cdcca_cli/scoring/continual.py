"""Continual learning: the effect of rounds of adaptation on every domain.

Rounds i = 0..R are predictions for the same questions; round 0 is the source-only model. R_ij is
the score x100 of round i on domain j of D (one column `all` if the references name none). A round
may name the domain that it adapted to (`fog=r1.jsonl`); first(j) and last(j) are the first and last
round that names j.

    average            A_i = 1/D sum_j R_ij; A = A_R is GEM's ACC
    forgetting         f_j = max_{i<R} R_ij - R_Rj, F = mean of f_j over the domains that the last
                       round does not name; needs R >= 1. Negative where a domain was never better
    backward transfer  B = mean of R_Rj - R_{last(j),j} over the domains with last(j) < R
    forward transfer   W = mean of R_{first(j)-1,j} - R_0j over the domains with first(j) >= 2

Average, backward and forward transfer are Lopez-Paz & Ranzato's (GEM, NeurIPS 2017, eq. 2-4), with
the source-only model as their b; a round 0 that names a domain counts as having learnt it.
Forgetting is Chaudhry et al.'s (RWalk, ECCV 2018, eq. 3), in points.

Intervals are 95 % percentile bootstrap over frames: one draw of a domain's frames serves all
rounds, domains are drawn apart, and the maximum in f_j is that of each draw. None where a domain
has fewer than two frames. A maximum of noisy scores is biased upwards: with many rounds and few
frames, forgetting appears without a cause.

    {"metric": "da", "rounds": [{"round": 0, "adapted_to": null}, ...], "domains": ["fog", ...],
     "matrix": [[{"score", "interval", "n", "missing"}, ...], ...],          (a row a round)
     "averages": [{"value", "interval"}, ...],                                 (one a round)
     "average": {"value", "interval"},
     "forgetting": {"value", "interval", "over": [domains], "domains": {name: {"value",
                    "interval"}}},
     "backward_transfer", "forward_transfer": {"value", "interval", "over": [domains]},
     "left_out": {"forward_transfer": reason}}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.numerics.statistics import (
    DRAWS_AT_ONCE,
    RESAMPLES,
    Floats,
    Interval,
    percentile_interval,
)
from cdcca_cli.scoring import tasks
from cdcca_cli.scoring.scores import Score, Scores
from cdcca_cli.scoring.statistics import words_of

# I rounds (R + 1 of them), J domains, S resamples, U frames of one domain, K addends of a frame.


def forgetting(scores_SIJ: Floats) -> Floats:
    """f_j = max_{i<R} R_ij - R_Rj, of at least two rounds. (S, I, J) to (S, J)."""
    return scores_SIJ[:, :-1].max(axis=1) - scores_SIJ[:, -1]


def backward_transfer(scores_SIJ: Floats, last_J: Sequence[int]) -> Floats:
    """R_Rj - R_{last(j),j}. (S, I, J) to (S, J)."""
    return scores_SIJ[:, -1] - scores_SIJ[:, last_J, range(len(last_J))]


def forward_transfer(scores_SIJ: Floats, first_J: Sequence[int]) -> Floats:
    """R_{first(j)-1,j} - R_0j, where every first(j) is 1 or more. (S, I, J) to (S, J)."""
    before_J = [first - 1 for first in first_J]
    return scores_SIJ[:, before_J, range(len(before_J))] - scores_SIJ[:, 0]


@dataclass(frozen=True)
class Estimate:
    """A number in points with its interval, and the domains it is a mean over."""

    value: float
    interval: Interval | None
    over: tuple[str, ...]

    def as_json(self, *, over: bool = True) -> dict[str, Any]:
        entry: dict[str, Any] = {"value": self.value, "interval": self.interval}
        return {**entry, "over": list(self.over)} if over else entry


@dataclass(frozen=True)
class Continual:
    """What `of_scores` found. names: what each round adapted to; cells_IJ: the matrix R."""

    metric: str
    names: list[str | None]
    domains: list[str]
    cells_IJ: list[list[Score]]
    averages: list[Estimate]
    forgetting: Estimate | None = None
    forgetting_by_domain: dict[str, Estimate] = field(default_factory=dict)
    backward_transfer: Estimate | None = None
    forward_transfer: Estimate | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object in the module's docstring."""
        found: dict[str, Any] = {
            "metric": self.metric,
            "rounds": [
                {"round": number, "adapted_to": name} for number, name in enumerate(self.names)
            ],
            "domains": self.domains,
            "matrix": [[score.as_json() for score in row] for row in self.cells_IJ],
            "averages": [average.as_json(over=False) for average in self.averages],
            "average": self.averages[-1].as_json(over=False),
            **{name: one.as_json() for name, one in self._means().items()},
            "left_out": self.left_out,
        }
        if self.forgetting is not None:
            found["forgetting"]["domains"] = {
                name: one.as_json(over=False) for name, one in self.forgetting_by_domain.items()
            }
        return found

    def _means(self) -> dict[str, Estimate]:
        means = {
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
        }
        return {name: one for name, one in means.items() if one is not None}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Title, columns and rows: the matrix, then what follows from it."""
        columns = ["after", *self.domains, "average", "95 % interval"]
        rows: list[list[object]] = []
        for number, (name, row) in enumerate(zip(self.names, self.cells_IJ, strict=True)):
            label = "source only" if number == 0 else f"round {number}"
            average = self.averages[number]
            rows.append(
                [
                    label if name is None else f"{label} ({name})",
                    *(f"{score.value:6.2f}" for score in row),
                    f"{average.value:6.2f}",
                    words_of(average.interval, ".2f"),
                ]
            )
        metric = tasks.METRICS[self.metric].title
        tables = [(f"{metric} after each round, by domain", columns, rows)]
        found: list[list[object]] = [
            [f"forgetting of {name}", f"{one.value:+6.2f}", words_of(one.interval, "+.2f"), ""]
            for name, one in self.forgetting_by_domain.items()
        ]
        for name, mean in self._means().items():
            span, over = words_of(mean.interval, "+.2f"), ", ".join(mean.over)
            title = f"{name.replace('_', ' ')}, mean"
            found.append([title, f"{mean.value:+6.2f}", span, over])
        found += [[name.replace("_", " "), "", "", why] for name, why in self.left_out.items()]
        if found:
            title = f"{metric}: what later rounds did, in points"
            tables.append((title, ["", "points", "95 % interval", "over"], found))
        return tables


def of_scores(
    scored: Sequence[Scores],
    names: Sequence[str | None],
    metric: str,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Continual:
    """The effect of the rounds, from their scores over the same questions.

    scored: the source-only model's first. names: the domain that each adapted to, or None.
    Raises: BadData (65) if a round was not scored by this metric or over the same questions.
    """
    found = [_columns(one, metric, number) for number, one in enumerate(scored)]
    order = _order(found[0], names)
    for name in order:
        column = [row.get(name) for row in found]
        if len({one and (one.sample.rows_UK.shape, one.sample.n) for one in column}) > 1:
            raise BadData(
                f"the rounds were scored over different questions of '{name}': score them against "
                "the same references, and without `answered_only`"
            )
    cells_IJ = [[row[name] for name in order] for row in found]
    score_at = _Resampled(cells_IJ, order, seed, resamples)
    result: dict[str, Any] = {
        "averages": [score_at.mean(_row, order, number) for number in range(len(scored))],
        "left_out": {},
    }
    kept = [name for name in order if name != names[-1]]
    if len(scored) < 2:
        result["left_out"]["forgetting"] = "needs a round after the source-only model"
    elif not kept:
        result["left_out"]["forgetting"] = "the last round's domain is the only one"
    else:
        result["forgetting"] = score_at.mean(forgetting, kept)
        result["forgetting_by_domain"] = {name: score_at.mean(forgetting, [name]) for name in order}
    result |= _transfers(score_at, order, names, result["left_out"])
    return Continual(metric, list(names), order, cells_IJ, **result)


def _transfers(
    score_at: "_Resampled", order: list[str], names: Sequence[str | None], left_out: dict[str, str]
) -> dict[str, Estimate]:
    unnamed = [number for number, name in enumerate(names) if number and name not in order]
    if unnamed:
        name = names[unnamed[0]]
        why = f"is for '{name}', not a domain of the references" if name else "names no domain"
        reason = f"round {unnamed[0]} {why}: give the domain it adapted to, as DOMAIN=FILE"
        left_out |= {"backward_transfer": reason, "forward_transfer": reason}
        return {}
    known = [(name, number) for number, name in enumerate(names) if name in order]
    last = dict(known)
    first = dict(reversed(known))
    before = [name for name in order if last.get(name, len(names)) < len(names) - 1]
    later = [name for name in order if first.get(name, 0) >= 2]
    found = {}
    if before:
        rounds = [last[name] for name in before]
        found["backward_transfer"] = score_at.mean(backward_transfer, before, rounds)
    else:
        left_out["backward_transfer"] = "no domain was learnt before the last round"
    if later:
        rounds = [first[name] for name in later]
        found["forward_transfer"] = score_at.mean(forward_transfer, later, rounds)
    else:
        left_out["forward_transfer"] = "no domain was first learnt in round 2 or later"
    return found


def _row(scores_SIJ: Floats, number: int) -> Floats:
    return scores_SIJ[:, number]


class _Resampled:
    """The matrix as it is, (1, I, J), and of each draw of frames, (S, I, J)."""

    def __init__(
        self, cells_IJ: list[list[Score]], domains: list[str], seed: int, resamples: int
    ) -> None:
        self._domains = domains
        self._found_1IJ = np.array([[[score.value for score in row] for row in cells_IJ]])
        self._drawn_J: list[Floats | None] = []
        for j, name in enumerate(domains):
            column = [row[j] for row in cells_IJ]
            own_seed = np.random.SeedSequence([seed, *name.encode()])
            self._drawn_J.append(_draw(column, own_seed, resamples))

    def mean(
        self, function: Callable[..., Floats], over: Sequence[str], *arguments: object
    ) -> Estimate:
        """The mean over some domains of `function`, which makes (S, J) of scores (S, I, J)."""
        chosen = [self._domains.index(name) for name in over]
        value = float(function(self._found_1IJ[:, :, chosen], *arguments).mean())
        drawn = [scores_SI for j in chosen if (scores_SI := self._drawn_J[j]) is not None]
        interval = None
        if len(drawn) == len(chosen):
            means_S = function(np.stack(drawn, axis=2), *arguments).mean(axis=1)
            interval = percentile_interval(means_S)
        return Estimate(value, interval, tuple(over))


def _draw(column: list[Score], seed: np.random.SeedSequence, resamples: int) -> Floats | None:
    """The scores (S, I) of one domain in all rounds; each draw of its frames serves all of them."""
    units = column[0].sample.units
    if units < 2:
        return None
    rows_UIK = np.concatenate([score.sample.rows_UK for score in column], axis=1)
    generator = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, DRAWS_AT_ONCE // units)
    chunks = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        counts_SU = generator.multinomial(units, np.full(units, 1 / units), size=size)
        totals = np.split(counts_SU @ rows_UIK, len(column), axis=1)
        scores_IS = [score.sample.score(part) for score, part in zip(column, totals, strict=True)]
        chunks.append(np.stack(scores_IS, axis=1))
    return np.concatenate(chunks)


def _columns(scored: Scores, metric: str, number: int) -> dict[str, Score]:
    """One round's scores by domain, or its score over all; without offset, to be compared."""
    by_domain = {
        score.group: score.without_offset()
        for score in scored.scores
        if (score.metric, score.by) == (metric, "domain")
    }
    if by_domain:
        return by_domain
    pooled = scored.all(metric)
    if pooled is None:
        round_name = f"round {number}" if number else "the source-only model (round 0)"
        raise BadData(f"{round_name} has no predictions that {metric} could score")
    return {pooled.group: pooled.without_offset()}


def _order(known: Mapping[str, Score], names: Sequence[str | None]) -> list[str]:
    """The domains in the order in which they were learnt, then the others by name."""
    learnt = [name for name in dict.fromkeys(names) if name is not None and name in known]
    return learnt + [name for name in sorted(known) if name not in learnt]
