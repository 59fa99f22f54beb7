"""The history of a run, version 1: what its rounds did, how it was scored, and how it was made.

`cdcca loop` and `cdcca demo` write it after every round, as history.json in their output folder:
JSON in UTF-8, one object, at most 64 MiB. All keys are always present.

    kind "history", v 1
    rounds       list of {"round": from 1, "frames", "questions": of the uplink, "uplink_bytes",
                 "downlink_bytes", "seconds", "digest": of the device after it, "held_out", "drift":
                 of the adaptation's report, or null}
    scores       {name of labelled frames: list of {metric: {"value": x100, "low", "high": the 95 %
                 interval, or both null, "n": questions or images}}}
    scored_after {name: after which round each entry of `scores` was measured; 0: before the first}
    gains        {name: {metric: as in `scores`}}: the last entry minus the first, paired by frame
    settings     {stage: {setting: value}}
    sources      {"frames", "teacher", "checkpoint", and the names of labelled frames: as named}
    parameters   how many parameters the device's whole model has, or null
    versions     {package: version} of what computed it
"""

from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.text import read_json

FILE_NAME = "history.json"
VERSION = 1
MOST_BYTES = 1 << 26
_LARGEST = 1 << 53
_HINTS = {
    "rounds": list[dict],
    "scores": dict,
    "scored_after": dict,
    "gains": dict,
    "settings": dict,
    "sources": dict,
    "parameters": int | None,
    "versions": dict,
}
_ROUND = {
    **dict.fromkeys(("round", "frames", "questions", "uplink_bytes", "downlink_bytes"), int),
    "seconds": float,
    "digest": str,
    "held_out": dict | None,
    "drift": dict | None,
}
_SCORE = {"value": float, "low": float | None, "high": float | None, "n": int}


def write_history(folder: Path, history: dict[str, Any]) -> None:
    """Replace the history in a folder. Raises: CannotWrite."""
    text = records.dump_json({"v": VERSION, "kind": "history", **history})
    with files.output(folder / FILE_NAME) as out:
        out.write(text.encode() + b"\n")


def read_history(path: Path) -> dict[str, Any]:
    """The object in a file, every value that it must have checked. BadData, MissingInput."""
    where = str(path)
    found = read_json(path, MOST_BYTES)
    if not isinstance(found, dict) or found.get("kind") != "history":
        raise BadData(f"{where}: not a history of rounds")
    version = records.field(found, "v", int, where)
    records.check_version(version, VERSION, "history format", where)
    history = records.fields(found, _HINTS, where, exact=False)
    for number, one in enumerate(history["rounds"], 1):
        place = f"{where}: entry {number} of rounds"
        row = history["rounds"][number - 1] = records.fields(one, _ROUND, place, exact=False)
        if any(isinstance(value, int) and not 0 <= value < _LARGEST for value in row.values()):
            raise BadData(f"{place}: a number below 0 or too large")
    for name, entries in history["scores"].items():
        place = f"{where}: the scores of '{name[:80]}'"
        points = records.fields({"points": entries}, {"points": list[dict]}, place)["points"]
        after = history["scored_after"].get(name)
        rounds = records.fields({"after": after}, {"after": list[int]}, place)["after"]
        is_sound = sorted(set(rounds)) == rounds and all(0 <= one < _LARGEST for one in rounds)
        if len(rounds) != len(points) or not is_sound:
            raise BadData(f"{place}: {len(points)} entries after the rounds {str(rounds)[:80]}")
        history["scores"][name] = [_scores(point, place) for point in points]
    history["gains"] = {
        name: _scores(gains, f"{where}: the gains of '{name[:80]}'")
        for name, gains in history["gains"].items()
    }
    return history


def _scores(found: Any, place: str) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict):
        raise BadData(f"{place}: expected an object")
    scores = {
        metric: records.fields(score, _SCORE, f"{place}: {metric[:40]}")
        for metric, score in found.items()
    }
    for metric, score in scores.items():
        if (score["low"] is None) != (score["high"] is None):
            raise BadData(f"{place}: {metric[:40]}: an interval with one end")
    return scores
