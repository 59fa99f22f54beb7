"""One report of an evaluation: what was scored, against what, and the link's ledger.

    {"v": 1, "kind": "scores",
     "predictions": 1145, "unknown_ids": 0, "duplicates": 0, "left_out": {"mc": 1145},
     "scores": {"da": {"score": 56.62, "interval": [53.9, 59.3], "n": 1075, "frames": 1053,
                       "missing": 0,
                       "domains": {"near": {...}}, "kinds": {"number": {...}}}},
     "against": {"da": {"difference": 3.1, "interval": [0.9, 5.2], "n": 1075, "domains": {...}}},
     "definitions": {"da": "..."},
     "link": {"uplink": {...}, "downlink": {...}, "raw": {...}, "sent": {...}}}

Scores are x100. `interval` is the 95 % bootstrap interval over frames, null for fewer than two.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdcca_cli import streams
from cdcca_cli.datasets import read_frames, read_references
from cdcca_cli.errors import BelowMark, UsageError
from cdcca_cli.scoring import ledger
from cdcca_cli.scoring.answers import Answers, read_answers
from cdcca_cli.scoring.scores import METRICS, By, Scores, compare, in_common, score
from cdcca_cli.scoring.statistics import RESAMPLES, Difference, Interval

DEFINITIONS = {
    "mc": "A-OKVQA multiple choice: the chosen text equals the correct one",
    "da": "A-OKVQA direct answer: min(1, matches / 3) of ten, exact strings, difficult ones out",
    "bleu4": "corpus BLEU-4, pycocoevalcap, closest reference length",
    "cider": "CIDEr-D, pycocoevalcap; document frequencies of the group that is scored",
}
_TITLES = {"mc": "MC", "da": "DA", "bleu4": "BLEU-4", "cider": "CIDEr"}
_PLURALS: dict[By, str] = {"domain": "domains", "kind": "kinds"}


@dataclass
class Report:
    """What `evaluate` found."""

    answers: Answers = field(default_factory=Answers)
    scores: Scores = field(default_factory=Scores)
    differences: Mapping[tuple[str, By, str], Difference] = field(default_factory=dict)
    link: ledger.Ledger | None = None

    def as_json(self) -> dict[str, Any]:
        report: dict[str, Any] = {"v": 1, "kind": "scores"}
        if self.answers.by_id:
            report["predictions"] = len(self.answers.by_id)
            report["unknown_ids"] = len(self.scores.unknown_ids)
            report["duplicates"] = self.answers.num_duplicates
            report["left_out"] = self.scores.left_out
            report["scores"] = self._scores()
            report["definitions"] = {name: DEFINITIONS[name] for name in report["scores"]}
            report["interval"] = {"confidence": 0.95, "resamples": RESAMPLES, "unit": "frame"}
        if self.differences:
            report["against"] = self._against()
        if self.link is not None:
            report["link"] = self.link.as_json()
        return report

    def _scores(self) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        for one in self.scores.scores:
            interval = one.interval
            entry = {
                "score": one.value,
                "interval": None if interval is None else [interval.low, interval.high],
                "n": one.sample.n,
                "frames": one.sample.units,
                "missing": one.num_missing,
            }
            _place(scores, one.key, entry)
        return scores

    def _against(self) -> dict[str, Any]:
        differences: dict[str, Any] = {}
        for key, difference in self.differences.items():
            interval = difference.interval
            entry = {
                "difference": difference.value,
                "interval": None if interval is None else [interval.low, interval.high],
                "n": difference.n,
            }
            _place(differences, key, entry)
        return differences

    def deliver(self, output: str | None, *, as_json: bool) -> None:
        """The JSON object to a file, or to stdout unless that is a terminal and gets tables."""
        if output is not None:
            with streams.text_output(output) as out:
                out.write(json.dumps(self.as_json(), allow_nan=False) + "\n")
        elif as_json or not streams.is_terminal("stdout"):
            streams.emit_json(self.as_json())
        else:
            self.show()

    def show(self) -> None:
        """Tables on stdout, for people."""
        if self.scores.scores:
            columns = ["metric", "over", "score", "95 % interval", "n", "missing"]
            if self.differences:
                columns += ["difference", "95 % interval"]
            streams.emit_table("scores", columns, self._rows())
        if self.link is not None:
            for title, columns, rows in _link_tables(self.link):
                streams.emit_table(title, columns, rows)

    def _rows(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for one in self.scores.scores:
            row: list[object] = [
                _TITLES[one.metric],
                "all" if one.by == "all" else f"{one.by} {one.group}",
                round(one.value, 2),
                _span(one.interval, ".1f"),
                one.sample.n,
                one.num_missing,
            ]
            if self.differences:
                found = self.differences.get(one.key)
                row.append(f"{found.value:+.2f}" if found else "")
                row.append(_span(found.interval, "+.2f") if found else "")
            rows.append(row)
        return rows

    def require(self, marks: Mapping[str, float]) -> None:
        """BelowMark (3) naming every score that is under its mark, or was not scored."""
        faults = []
        for metric, mark in marks.items():
            found = self.scores.all(metric)
            if found is None:
                faults.append(f"{metric} was not scored (mark {mark:g})")
            elif found.value < mark:
                faults.append(f"{metric} is {found.value:.2f}, under {mark:g}")
        if faults:
            raise BelowMark("; ".join(faults))


def evaluate(
    predictions: Sequence[str | None],
    references: str | None,
    *,
    task: str | None = None,
    against: str | None = None,
    answered_only: bool = False,
    uplink: Sequence[str] = (),
    downlink: Sequence[str] = (),
    raw: str | None = None,
    images: str | None = None,
    seed: int = 0,
) -> Report:
    """Score predictions against references, and measure the link; each only if asked for.

    What is odd but no fault is said on stderr: unknown ids, duplicates, asks without a prediction.
    """
    report = Report()
    if references is None and (predictions or against is not None or task is not None):
        raise UsageError("predictions are scored against --references FILE: name it")
    if references is None and not (uplink or downlink or raw):
        raise UsageError("nothing to evaluate: give --references, or --uplink, --downlink, --raw")
    if references is not None:
        known = read_references(references)
        report.answers = read_answers(predictions or [None])
        ours, theirs = report.answers.by_id, None
        if against is not None:
            theirs = read_answers([against]).by_id
            if answered_only:
                ours, theirs = in_common(ours, theirs)
        settings: dict[str, Any] = {"task": task, "answered_only": answered_only, "seed": seed}
        report.scores = score(known, ours, **settings)
        if theirs is not None:
            report.differences = compare(report.scores, score(known, theirs, **settings), seed=seed)
        _say(report)
    if uplink or downlink or raw:
        frames = read_frames(raw, images=images) if raw else None
        report.link = ledger.measure(uplink, downlink, frames)
    return report


def read_marks(text: str | None) -> dict[str, float]:
    """Marks from `mc=50,cider=70`; UsageError for anything else."""
    marks: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, number = part.partition("=")
        try:
            mark = float(number)
        except ValueError:
            mark = math.nan
        if name.strip() not in METRICS or not math.isfinite(mark):
            raise UsageError(
                f"--fail-under '{part}': expected METRIC=NUMBER, with one of {', '.join(METRICS)}"
            )
        marks[name.strip()] = mark
    return marks


def _say(report: Report) -> None:
    unknown = report.scores.unknown_ids
    if unknown:
        streams.message(
            f"{len(unknown)} predictions have ids that the references do not: '{unknown[0]}'"
        )
    if report.answers.num_duplicates:
        streams.message(f"{report.answers.num_duplicates} predictions stood there twice, alike")
    for metric, count in report.scores.left_out.items():
        streams.message(f"{metric}: left out, not one of its {count} asks has a prediction")
    for metric in METRICS:
        found = report.scores.all(metric)
        if found is not None and found.num_missing:
            streams.message(
                f"{metric}: {found.num_missing} of {found.sample.n} asks have no prediction and "
                "count as wrong (--answered-only leaves them out)"
            )


def _place(tree: dict[str, Any], key: tuple[str, By, str], entry: dict[str, Any]) -> None:
    metric, by, group = key
    if by == "all":
        tree[metric] = entry
    else:
        tree[metric].setdefault(_PLURALS[by], {})[group] = entry


def _span(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f"{interval.low:{form}} to {interval.high:{form}}"


Table = tuple[str, list[str], list[list[object]]]


def _link_tables(link: ledger.Ledger) -> list[Table]:
    tables: list[Table] = []
    for name, part in (("uplink", link.uplink), ("downlink", link.downlink)):
        if part is None:
            continue
        shown = part.as_json()
        rows: list[list[object]] = [
            [f"bytes of {kind}", number] for kind, number in shown.pop("bytes").items()
        ]
        rows += [[key.replace("_", " "), number] for key, number in shown.items()]
        tables.append((name, ["", ""], rows))
    frames = [("all frames", link.raw), ("sent frames", link.sent)]
    given = [(name, sizes) for name, sizes in frames if sizes is not None]
    if given:
        columns = ["bytes of", *(f"{name} ({sizes['frames']:,})" for name, sizes in given)]
        rows = [[form, *(sizes[form] for _, sizes in given)] for form in ledger.FORMS]
        tables.append(("the frames themselves", columns, rows))
    return tables
