"""From the folders that rounds or a fleet leave to one JSON object: all that the page shows.

    {"v": 1, "kind": "report", "title", "versions": {package: version} that made the report,
     "runs": [RUN], "fleet": null or {"num_devices", "devices": [...], "groups": [...]},
     "unreadable": [{"file": with the line, if it is one of a log, "reason"}], at most 200 of them}

RUN, each part empty or null where its data is absent (`found` says which files it comes from):

    name       the folder as it was named
    rounds     [{"round", "frames", "questions", "uplink_bytes", "downlink_bytes", "seconds",
               "tokens_kept", "tokens_total"}]
    scores     [{"name", "from": "history" or "predictions", "metrics": [{"metric", "title",
               "points": [{"round", "value", "low", "high", "n"}], "gain": like a point, or null}]}]
    link       {"uplink_bytes", "downlink_bytes", "jpeg": null or {"bytes", "measured", "frames"},
               "changed_float32_bytes", "model_float16_bytes"} (`link`)
    training   [{"round", "method", "steps", "curves": {term: values}, "held_out"}]
    gate       what devices made of updates (`training.read_verdicts`)
    teaching   what each adaptation's held-out part says (`training.read_adaptation`)
    entropy    {"rounds": [{"round", "n", "q10", ..., "mean"}], "times": [{"from", "to", ...}]}
    examples   [{"name", "before", "after", "better", "worse", "same", "questions": [{"change",
               "id", "frame", "question", "choices", "metric", "score_before", "score_after",
               "answer_before", "answer_after", "teacher", "right": [...], "picture"}]}]
    maps       [{"round", "frame", "questions", "entropy", "kept", "of", "picture", "map"}]
    settings, sources, versions   of the history
    digests    [{"round", "base", "target", "codec", "sequence", "model", "signatures"}]

A picture is {"uri": a small JPEG, "width", "height"}. Texts of files are cut and without control
characters (`plain`), numbers are rounded. What is damaged is named, counted and left out.

Memory grows with the number of frames and questions, not with the size of pictures and tokens. It
holds one record and one file's answers at a time, and for the whole run: the first and last answers
to every name of frames, the labelled frames' references and the places of their pictures, how often
each frame went up, and the times of the frames whose shards have one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcca_cli import packages, progress
from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.formats.history import read_history
from cdcca_cli.reporting import examples, link, scored, training
from cdcca_cli.reporting.entropy import Entropies
from cdcca_cli.reporting.found import (
    PREDICTIONS,
    STREAM,
    RoundFiles,
    Run,
    Unreadable,
    find,
    name_of,
)
from cdcca_cli.reporting.frames import FrameSet, FrameSets
from cdcca_cli.reporting.maps import Candidates
from cdcca_cli.reporting.plain import number, text, tree
from cdcca_cli.reporting.settings import ReportSettings

MOST_DEVICES = 1000


def gather(
    paths: Sequence[Path], settings: ReportSettings, *, title: str | None = None
) -> tuple[dict[str, Any], Unreadable]:
    """The object in the module's docstring, and what could not be read.

    Args: title: None: the names of the folders.
    Raises: MissingInput for a path that does not exist; BadData if there is nothing to show.
    """
    bad = Unreadable()
    found = [(path, *find(path, bad)) for path in paths]
    runs = [run for _, run, _ in found if run is not None]
    frames = FrameSets(settings.references, settings.images, bad)
    made = [_Gatherer(run, frames, bad, settings.examples // max(len(runs), 1)) for run in runs]
    fleet, others = None, [path for path, _, has_devices in found if has_devices]
    num_bad = bad.count
    try:
        fleet = _fleet(others, bad)
    except CdccaError as error:
        if not runs:
            raise
        if bad.count == num_bad:  # else its parts are named
            bad.add(", ".join(map(str, others)), error)
    shown = [one.gather() for one in made]
    if not fleet and not any(map(_has_content, shown)):
        raise BadData(f"{', '.join(map(str, paths))}: neither rounds nor devices{bad}")
    more = ", ..." if paths[3:] else ""
    report = {
        "v": 1,
        "kind": "report",
        "title": title or ", ".join(text(path, 60) for path in paths[:3]) + more,
        "versions": packages.versions(),
        "runs": shown,
        "fleet": fleet,
        "unreadable": [{"file": text(name), "reason": text(reason)} for name, reason in bad.files],
    }
    return report, bad


def _has_content(run: Mapping[str, Any]) -> bool:
    """Whether a run has more than settings and empty rounds."""
    parts = ("scores", "unscored", "link", "training", "gate", "teaching", "entropy", "maps")
    rows = [value for row in run["rounds"] for name, value in row.items() if name != "round"]
    return any(run[part] for part in parts) or any(value is not None for value in rows)


def _fleet(paths: Sequence[Path], bad: Unreadable) -> dict[str, Any] | None:
    """The devices in some paths, at most MOST_DEVICES of them. Raises: as `read_fleet`."""
    if not paths:
        return None
    from cdcca_cli.inspection.fleet import read_fleet

    found = read_fleet(paths, bad.of_part()).as_json()
    devices = found["devices"]
    if not devices:
        return None
    return {
        "num_devices": len(devices),
        "devices": [_device(one) for one in devices[:MOST_DEVICES]],
        "groups": [_group(*one) for one in list(found["groups"].items())[:MOST_DEVICES]],
    }


def _group(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a group (`inspection.fleet`)."""
    numbers = ("devices", "uplink_bytes", "downlink_bytes", "refusals")
    return {
        "group": text(name, 80),
        **{key: number(group.get(key)) for key in numbers},
        "sequences": tree(group.get("sequences", {})),
        "num_digests": len(group.get("digests", ())),
    }


def _device(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a device (`inspection.fleet`)."""
    refusals = row.get("refusals") or []
    numbers = ("sequence", "uplink_bytes", "downlink_bytes")
    texts = ("device", "group", "digest", "last_contact", "damage")
    return {
        **{name: None if row.get(name) is None else text(row[name]) for name in texts},
        **{name: number(row.get(name)) for name in numbers},
        "last_gate": tree(row.get("last_gate")),
        "num_refusals": row.get("num_refusals", len(refusals)),
        "last_refusal": tree(refusals[-1]) if refusals else None,
    }


@dataclass
class _Gatherer:
    """One run, read file by file."""

    run: Run
    frames: FrameSets
    bad: Unreadable
    most: int
    history: dict[str, Any] | None = None
    entropies: Entropies = field(default_factory=Entropies)

    def gather(self) -> dict[str, Any]:
        if self.run.history is not None:
            try:
                self.history = read_history(self.run.history)
            except CdccaError as error:
                self.bad.add(self.run.history, error)
        rounds = [one for one in self.run.rounds if one.number]
        candidates = Candidates(self.most // 3)
        sent = {one.number: self._sent(one, candidates) for one in rounds}
        series = self._series()
        known = [(one, labels) for one, labels in series if labels is not None]
        shown, of_stream = examples.of_series(known, self.frames, self.most)
        examples.add_teachers(of_stream, self.run, self.bad)
        table = self._rounds(sent)
        total = sum((one.frames for one in sent.values()), Counter[str]())
        changed = max((one.parameters for one in sent.values()), default=0)
        history = self.history or {}
        return {
            "name": text(self.run.path, 120),
            "rounds": table,
            "scores": [one.as_json() for one, _ in series if one.points],
            "unscored": [text(one.name, 80) for one, _ in series if not one.points],
            "link": link.summary(
                table, link.jpeg_bytes(total, self.frames), history.get("parameters"), changed
            ),
            "training": self._each("steps", training.read_steps),
            "gate": [one for lines in self._each("apply", self._verdicts) for one in lines],
            "teaching": self._teaching(),
            "entropy": self.entropies.as_json(),
            "examples": shown,
            "maps": candidates.as_json(self.frames),
            "settings": tree(history.get("settings", {})),
            "sources": tree(history.get("sources", {})),
            "versions": tree(history.get("versions", {})),
            "digests": [
                {"round": number, **{key: text(value) for key, value in one.update.items()}}
                for number, one in sent.items()
                if one.update is not None
            ],
        }

    def _each(self, kind: str, read: Any) -> list[Any]:
        """What a reader finds in each round's files of a kind; damaged ones are named."""
        found = []
        for one in self.run.rounds:
            for path in one.kinds.get(kind, ()):
                try:
                    found.append(read(path, one.number))
                except CdccaError as error:
                    self.bad.add(path, error)
        return found

    def _verdicts(self, path: Path, round_number: int) -> list[dict[str, Any]]:
        return training.read_verdicts(path, round_number, self.bad.of_part())

    def _sent(self, one: RoundFiles, candidates: Candidates) -> link.Sent:
        sent = link.Sent()

        def see(shard: Any) -> None:
            if shard.time is not None:
                self.entropies.times[shard.image] = shard.time
            candidates.add(one.number, shard)

        for path in one.kinds.get("shards", ()):
            try:
                sent.read_shards(path, see)
            except CdccaError as error:
                self.bad.add(path, error)
        for path in one.kinds.get("update", ()):
            try:
                sent.read_update(path)
            except CdccaError as error:
                self.bad.add(path, error)
        return sent

    def _series(self) -> list[tuple[scored.Series, FrameSet | None]]:
        """Every name's predictions, read one file at a time, scored where nothing else says it."""
        files = self.run.series()
        names = [*(self.history or {}).get("scores", {}), *files]
        found = []
        for name in dict.fromkeys(names):
            one, labels = scored.Series(name), None
            if self.history is not None and name in self.history["scores"]:
                one.add_history(self.history)
            paths = files.get(name, {})
            ends = {min(paths), max(paths)} if paths else set()
            for after, path in progress.track(paths.items(), len(paths), f"reading {name}"):
                is_stream = name == STREAM and name_of(path) == PREDICTIONS
                is_scored = one.origin != "history" or after in ends
                if not is_stream and not (is_scored and not self.frames.is_empty):
                    continue
                see = self.entropies.add if is_stream else _ignore
                try:
                    answers = scored.read(path, see)
                    if is_stream:
                        self.entropies.end_round(after + 1)
                    labels = labels or self.frames.of_questions(name, answers.by_id)
                    if is_scored and labels is not None:
                        one.add(after, answers, labels.references)
                except CdccaError as error:
                    self.entropies.drop()
                    self.bad.add(path, error)
            one.finish()
            found.append((one, labels))
        return found

    def _rounds(self, sent: dict[int, link.Sent]) -> list[dict[str, Any]]:
        """A row for each round, from its files, and what only the history knows."""
        history = {one["round"]: one for one in (self.history or {}).get("rounds", ())}
        rows = []
        for round_number in sorted({*sent, *history}):
            files, known = sent.get(round_number, link.Sent()), history.get(round_number, {})
            up, down = files.uplink_bytes, files.downlink_bytes
            rows.append(
                {
                    "round": round_number,
                    "frames": len(files.frames) or known.get("frames"),
                    "questions": files.questions or known.get("questions"),
                    "uplink_bytes": known.get("uplink_bytes") if up is None else up,
                    "downlink_bytes": known.get("downlink_bytes") if down is None else down,
                    "seconds": number(known.get("seconds"), 1),
                    "tokens_kept": files.tokens_kept or None,
                    "tokens_total": files.tokens_total or None,
                }
            )
        return rows

    def _teaching(self) -> list[dict[str, Any]]:
        """Each round's adaptation, or what the history says of it."""
        found = {one["round"]: one for one in self._each("adaptation", training.read_adaptation)}
        for one in (self.history or {}).get("rounds", ()):
            if one["round"] not in found:
                nothing = dict.fromkeys(("method", "seed", "base", "teacher", "trained", "bytes"))
                found[one["round"]] = {"round": one["round"], **nothing, **training.teaching(one)}
        return [found[key] for key in sorted(found)]


def _ignore(prediction: object) -> None:
    pass
