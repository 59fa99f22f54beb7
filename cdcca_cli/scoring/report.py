"""The report of an evaluation: what was scored, against what, over the rounds, and the link.

    {"v": 1, "kind": "scores", "task": "aokvqa",
     "references": {"source": "aokvqa", "questions": 1145, "split": "val", "odd": null},
     "predictions": 1145, "unknown_ids": 0, "duplicates": 0, "left_out": {"mc": 1145},
     "not_scored": {"meteor": "scored only if named among the metrics; needs Java"},
     "remapped": {"answers": 3, "none_of_the_choices": 5}, "tokenizer": "python",
     "scores": {"da": {"score": 56.62, "interval": [53.9, 59.3], "n": 1075, "frames": 1053,
                       "missing": 0, "domains": {"near-domain": {...}}, "kinds": {"number": {...}},
                       "mean_of_domains": {...}}},
     "definitions": {"da": "..."},
     "interval": {"confidence": 0.95, "resamples": 2000, "unit": "frame"},
     "against": {"da": {"score": 53.5, "missing": 0, "difference": 3.1, "interval": [0.9, 5.2],
                        "n": 1075, "p": 0.0061, "better": 92, "worse": 54, "same": 929,
                        "domains": {...}}},
     "test": {"permutations": 10000, "unit": "frame"},
     "rounds": {"da": {...}}, "link": {...}}

Scores are x100; `against` has those of the other predictions. `difference` is between the scores,
for METEOR between the images' means. `interval` is the 95 % bootstrap interval over frames, null
for fewer than two. `p` is that of a two-sided permutation test. `better`, `worse` and `same` count
questions or images, null for BLEU. `split` is the published split that is as large as the
references; `odd` is what is unexpected about their size. `remapped` comes with multiple choice,
`tokenizer` and `not_scored` with captions, `rounds` (`continual`) and `link` on request.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from cdcca_cli import streams
from cdcca_cli.datasets import Reference
from cdcca_cli.errors import BelowMark, SettingError
from cdcca_cli.numerics.statistics import RESAMPLES
from cdcca_cli.scoring import plots, tasks
from cdcca_cli.scoring.answers import Answers
from cdcca_cli.scoring.continual import Continual
from cdcca_cli.scoring.link import ledger
from cdcca_cli.scoring.scores import By, Key, Scores
from cdcca_cli.scoring.statistics import PERMUTATIONS, Difference, words_of
from cdcca_cli.scoring.tasks import METRICS, Split

_NO_CHANGES = dict.fromkeys(("better", "worse", "same"))
_PLURALS: dict[By, str] = {"domain": "domains", "kind": "kinds"}


@dataclass
class Report:
    """What `evaluation.evaluate` found."""

    answers: Answers = field(default_factory=Answers)
    references: Mapping[str, Reference] = field(default_factory=dict)
    split: Split = field(default_factory=Split)
    tokenizer: str = "python"
    scores: Scores = field(default_factory=Scores)
    other: Scores = field(default_factory=Scores)
    differences: Mapping[Key, Difference] = field(default_factory=dict)
    continual: list[Continual] = field(default_factory=list)
    link: ledger.Ledger | None = None

    def as_json(self) -> dict[str, Any]:
        """The object in the module's docstring."""
        report: dict[str, Any] = {"v": 1, "kind": "scores"}
        if self.answers.by_id:
            report |= self._scored()
        if self.differences:
            report["against"] = self._against()
            report["test"] = {"permutations": PERMUTATIONS, "unit": "frame"}
        if self.continual:
            report["rounds"] = {one.metric: one.as_json() for one in self.continual}
        if self.link is not None:
            report["link"] = self.link.as_json()
        return report

    def _scored(self) -> dict[str, Any]:
        found = self.scores
        report: dict[str, Any] = {
            "task": found.task,
            "references": {
                "source": tasks.task_of(self.references),
                "questions": len(self.references),
                "split": self.split.name,
                "odd": self.split.odd,
            },
            "predictions": len(self.answers.by_id),
            "unknown_ids": len(found.unknown_ids),
            "duplicates": len(self.answers.duplicates) + len(self.answers.conflicts),
            "left_out": found.left_out,
        }
        metrics = list(dict.fromkeys(one.metric for one in found.scores))
        if "mc" in metrics:
            report["remapped"] = {
                "answers": found.num_remapped,
                "none_of_the_choices": found.num_not_choices,
            }
        if any(METRICS[metric].what == "caption" for metric in metrics):
            report["tokenizer"] = self.tokenizer
            report["not_scored"] = found.not_scored
        scores: dict[str, Any] = {}
        for one in found.scores:
            _place(scores, one.key, {**one.as_json(), "frames": one.sample.units})
        report["scores"] = scores
        report["definitions"] = {metric: METRICS[metric].definition for metric in metrics}
        report["interval"] = {"confidence": 0.95, "resamples": RESAMPLES, "unit": "frame"}
        return report

    def _against(self) -> dict[str, Any]:
        differences: dict[str, Any] = {}
        others = {other.key: other for other in self.other.scores}
        for key, found in self.differences.items():
            entry = {
                "score": others[key].value,
                "missing": others[key].num_missing,
                "difference": found.value,
                "interval": found.interval,
                "n": found.n,
                "p": found.p_value,
                **(asdict(found.changes) if found.changes else _NO_CHANGES),
            }
            _place(differences, key, entry)
        return differences

    def deliver(self, output: str | None, *, as_json: bool, plot: str | None = None) -> None:
        """Write the JSON object to a file or stdout, or show tables on a terminal; draw `plot`."""
        if output is not None:
            with streams.text_output(output) as out:
                out.write(json.dumps(self.as_json(), allow_nan=False) + "\n")
        elif as_json or not streams.is_terminal("stdout"):
            streams.emit_json(self.as_json())
        else:
            self.show()
        if plot is not None:
            plots.draw(self.as_json(), plot)

    def show(self) -> None:
        if self.scores.scores:
            streams.emit_table(self._title(), *self._score_table())
            if self.differences:
                streams.emit_table("against the other predictions", *self._difference_table())
            streams.emit_table("what is scored", ["", ""], self._notes())
        for continual in self.continual:
            for table in continual.tables():
                streams.emit_table(*table)
        if self.link is not None:
            for table in self.link.tables():
                streams.emit_table(*table)

    def _title(self) -> str:
        split = f", the size of {self.split.name}" if self.split.name else ""
        return f"{tasks.TASKS[self.scores.task].title} ({len(self.references):,} questions{split})"

    def _score_table(self) -> tuple[list[str], list[list[object]]]:
        columns = ["metric", "over", "score", "95 % interval", "n", "missing"]
        return columns, [
            [
                METRICS[one.metric].title,
                self._over(one.key),
                f"{one.value:6.2f}",
                words_of(one.interval, ".2f"),
                one.sample.n,
                one.num_missing,
            ]
            for one in self.scores.scores
        ]

    def _difference_table(self) -> tuple[list[str], list[list[object]]]:
        columns = ["metric", "over", "difference", "95 % interval", "p", "better", "worse", "same"]
        rows: list[list[object]] = []
        for key, found in self.differences.items():
            counts = astuple(found.changes) if found.changes else ("", "", "")
            p_value = "" if found.p_value is None else f"{found.p_value:.4f}"
            span = words_of(found.interval, "+.2f")
            title = METRICS[key[0]].title
            difference = f"{found.value:+7.2f}"
            rows.append([title, self._over(key), difference, span, p_value, *counts])
        return columns, rows

    def _over(self, key: Key) -> str:
        _, by, group = key
        if by == "mean":
            return "mean of the three domains"
        if by == "all":
            return "entire" if self.scores.task == "nocaps" else "all"  # nocaps' own word
        return f"{by} {group}"

    def _notes(self) -> list[list[object]]:
        titles: dict[str, list[str]] = {}
        for name in dict.fromkeys(one.metric for one in self.scores.scores):
            titles.setdefault(METRICS[name].definition, []).append(METRICS[name].title)
        rows: list[list[object]] = [
            [", ".join(names), definition] for definition, names in titles.items()
        ]
        rows += [[METRICS[name].title, reason] for name, reason in self.scores.not_scored.items()]
        rows.append(["95 % interval", f"bootstrap over frames, {RESAMPLES:,} resamples"])
        if self.differences:
            rows.append(["p", f"two-sided, {PERMUTATIONS:,} random swaps of the sides of frames"])
        return rows

    def require(self, marks: Mapping[str, float]) -> None:
        """Raises: BelowMark (3) for scores below a mark or missing; SettingError if ambiguous."""
        faults = []
        for name, mark in marks.items():
            value = self._marked(name)
            if value is None:
                faults.append(f"{name} was not scored (mark {mark:g})")
            elif value < mark:
                faults.append(f"{name} is {value:.2f}, under {mark:g}")
        if faults:
            raise BelowMark("; ".join(faults))

    def _marked(self, name: str) -> float | None:
        """The score that a mark names; None if it was not scored. The longer form comes first."""
        found = [one for one in self.scores.scores if ".".join(one.key) == name]
        found = found or [one for one in self.scores.scores if _mark_of(one.key) == name]
        if len(found) > 1:
            longer = " or ".join(".".join(one.key) for one in found)
            raise SettingError("fail_under", f"names more than one score: write {longer}", name)
        return found[0].value if found else None


def _place(tree: dict[str, Any], key: Key, entry: dict[str, Any]) -> None:
    metric, by, group = key
    if by == "all":
        tree[metric] = entry
    elif by == "mean":
        tree[metric][group] = entry
    else:
        tree[metric].setdefault(_PLURALS[by], {})[group] = entry


def _mark_of(key: Key) -> str:
    metric, by, group = key
    return metric if by == "all" else f"{metric}.{group}"
