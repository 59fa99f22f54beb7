"""What `seasons.py` left in its output folder, as a table, OUT/results.json and OUT/seasons.png.

Scores are over the held-out frames of a season, with 95 % intervals over frames (seeds averaged
first), and differences are paired by frame. Needs matplotlib.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from weather import SEASONS, SOURCE, season_of

from cdcca_cli import streams
from cdcca_cli.datasets import read_references
from cdcca_cli.scoring.answers import read_answers
from cdcca_cli.scoring.scores import score
from cdcca_cli.scoring.statistics import Sample, bootstrap_all, compare_all, words_of

VARIANTS = ("plain", "replay", "anchors", "anchors and replay")
PROBES = (*dict.fromkeys(SEASONS), SOURCE)
TITLES = {"day": "By day", "night": "At night", "fog": "In fog", SOURCE: "Source domain"}
COLOURS = {"day": "#fff6cf", "night": "#d5dbec", "fog": "#e6e6e6"}
LINES = dict(zip(VARIANTS, ("#6b6b6b", "#E69F00", "#0072B2", "#D55E00"), strict=True))
Scored = Mapping[tuple[str, str], Sample]


class Runs:
    """The chains of an output folder, but those that are not as far as the longest."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.references = {
            probe: read_references(str(out / "probes" / probe / "questions.jsonl"))
            for probe in PROBES
        }
        lengths = {
            path: len(list(path.glob("round-*/round.json")))
            for variant in VARIANTS
            for path in sorted(out.glob(f"seed-*/{variant}"))
        }
        self.num_rounds = max(lengths.values(), default=0)
        if not self.num_rounds:
            raise SystemExit(f"{out}: no round is there: run seasons.py first")
        chains: dict[str, list[Path]] = {}
        for path, length in lengths.items():
            if length == self.num_rounds:
                chains.setdefault(path.name, []).append(path)
        rounds = range(1, self.num_rounds + 1)
        self.start, self.teacher = (self._scored([out / name]) for name in ("start", "teacher"))
        self.scores = {
            name: [
                self.start,
                *(self._scored([path / f"round-{r}" for path in each]) for r in rounds),
            ]
            for name, each in chains.items()
        }
        self.rounds = {
            name: [
                [json.loads((path / f"round-{r}" / "round.json").read_text()) for path in each]
                for r in rounds
            ]
            for name, each in chains.items()
        }

    def mean(self, variant: str, name: str) -> list[float]:
        """A number of each round, over the seeds."""
        return [float(np.mean([one[name] for one in each])) for each in self.rounds[variant]]

    def as_json(self) -> dict[str, Any]:
        """Every figure, by variant and round."""
        return {
            "start": _values(self.start),
            "teacher": _values(self.teacher),
            "rounds": {
                name: [
                    {
                        "season": each[0]["season"],
                        "scores": _values(scores),
                        "source_drift": [one["source_drift"] for one in each],
                        "drift": [one["drift"] and one["drift"]["after"] for one in each],
                        "verdict": [one["held_out"] and one["held_out"]["verdict"] for one in each],
                        **{n: [one[n] for one in each] for n in ("uplink_bytes", "downlink_bytes")},
                    }
                    for each, scores in zip(self.rounds[name], self.scores[name][1:], strict=True)
                ]
                for name in self.rounds
            },
        }

    def _scored(self, folders: list[Path]) -> Scored:
        """By probe and metric, the mean over folders, frame by frame."""
        made: dict[tuple[str, str], Sample] = {}
        for probe, references in self.references.items():
            for metric in ("mc", "da"):
                found = []
                for folder in folders:
                    answers = read_answers([str(folder / f"{probe}.jsonl")]).by_id
                    scores = score(references, answers, task="manifest", intervals=False)
                    found.append(scores.all(metric).sample)
                made[probe, metric] = _mean(found)
        return made


def _mean(samples: Sequence[Sample]) -> Sample:
    """Their mean, frame by frame."""
    return replace(samples[0], rows_UK=np.mean([one.rows_UK for one in samples], axis=0))


def _values(scores: Scored) -> dict[str, dict[str, list[float]]]:
    """[value, low, high] by probe and metric."""
    intervals = bootstrap_all(list(scores.values()))
    made: dict[str, dict[str, list[float]]] = {}
    for ((probe, metric), sample), ends in zip(scores.items(), intervals, strict=True):
        numbers = (sample.value(), *(ends or ()))
        made.setdefault(probe, {})[metric] = [round(number, 2) for number in numbers]
    return made


def table(runs: Runs, metric: str) -> str:
    """The mean of each season's rounds: the first variant with its interval, the others with that
    of their difference to it, bold where it leaves zero out."""
    rows = [["", "source only", "teacher", *runs.scores]]
    for title, probe, rounds in moments(runs.num_rounds):
        cells = [f"{one[probe, metric].value():.1f}" for one in (runs.start, runs.teacher)]
        first, *others = (
            _mean([scores[number][probe, metric] for number in rounds])
            for scores in runs.scores.values()
        )
        cells.append(f"{first.value():.1f} ({words_of(bootstrap_all([first])[0], '.0f')})")
        for other in others:
            (found,) = compare_all([(other, first)], permutations=0)
            words = f"{found.value:+.1f} ({words_of(found.interval, '+.1f')})"
            is_clear = found.interval and (found.interval.low > 0 or found.interval.high < 0)
            cells.append(f"{other.value():.1f}, {f'**{words}**' if is_clear else words}")
        rows.append([title, *cells])
    return _markdown(rows)


def moments(num_rounds: int) -> Iterator[tuple[str, str, list[int]]]:
    """What is told: every season while it lasts, day and source in each, all at the end."""
    numbers = range(1, num_rounds + 1)
    for season, among in groupby(numbers, lambda number: season_of(number, num_rounds)):
        rounds = list(among)
        span = f"rounds {rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"round {rounds[0]}"
        for probe in PROBES if rounds[-1] == num_rounds else dict.fromkeys(("day", season, SOURCE)):
            yield f"{probe}, {span} ({season})", probe, rounds


def costs(runs: Runs) -> str:
    """Drift and bytes of each variant."""
    last = runs.num_rounds
    rows = [
        [
            "",
            "drift, first and last round",
            "bytes up a round",
            "bytes down a round",
            "rounds with a measurable gain",
        ]
    ]
    for name in runs.scores:
        drift = runs.mean(name, "source_drift")
        verdicts = [one["held_out"] for each in runs.rounds[name] for one in each]
        gains = sum(held is not None and held["verdict"] == "better" for held in verdicts)
        up, down = (np.mean(runs.mean(name, f"{way}link_bytes")) for way in ("up", "down"))
        cells = [f"{drift[0]:.3f}, {drift[last - 1]:.3f}", f"{up:,.0f}", f"{down:,.0f}"]
        rows.append([name, *cells, f"{gains} of {len(verdicts)}"])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def draw(runs: Runs, path: Path) -> None:
    """DA of every probe by round, drift, and bytes; the background is the season."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(3, 2, figsize=(8, 8), sharex=True, layout="constrained")
    panels = axes.ravel()
    for axis in panels:
        for number in range(1, runs.num_rounds + 1):
            season = season_of(number, runs.num_rounds)
            axis.axvspan(number - 0.5, number + 0.5, color=COLOURS[season], lw=0)
    for axis, probe in zip(panels, PROBES, strict=False):
        axis.set_title(f"{TITLES[probe]}: direct answers (DA), %", loc="left", fontsize=10)
        axis.axhline(
            runs.teacher[probe, "da"].value(), color="black", lw=1, ls=":", label="teacher"
        )
        for name, scores in runs.scores.items():
            axis.plot([one[probe, "da"].value() for one in scores], color=LINES[name], label=name)
    for name in runs.scores:
        rounds = range(1, runs.num_rounds + 1)
        panels[4].plot(rounds, runs.mean(name, "source_drift"), color=LINES[name])
        panels[5].plot(
            rounds, [n / 1000 for n in runs.mean(name, "downlink_bytes")], color=LINES[name]
        )
        panels[5].plot(
            rounds, [n / 1000 for n in runs.mean(name, "uplink_bytes")], color=LINES[name], ls="--"
        )
    panels[4].set_title("Drift on source frames, nats a token", loc="left", fontsize=10)
    panels[4].set_ylim(bottom=0)
    panels[5].set_title("kB a round: down, and up (dashed)", loc="left", fontsize=10)
    panels[5].set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("round")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlim(0, runs.num_rounds + 0.5)
    for number in range(runs.num_rounds):  # the season's name where it begins
        season = season_of(number + 1, runs.num_rounds)
        if number == 0 or season != season_of(number, runs.num_rounds):
            for axis in axes[0]:
                axis.text(
                    number + 0.6, 0.02, season, va="bottom", transform=axis.get_xaxis_transform()
                )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncol=len(labels), frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Table and figure of what seasons.py left.")
    parser.add_argument("out", type=Path, help="its output folder")
    out = parser.parse_args().out
    runs = Runs(out)
    (out / "results.json").write_text(json.dumps(runs.as_json(), indent=1) + "\n")
    draw(runs, out / "seasons.png")
    for metric in ("da", "mc"):
        streams.emit(f"{metric.upper()}\n\n{table(runs, metric)}\n")
    streams.emit(costs(runs))


if __name__ == "__main__":
    main()
