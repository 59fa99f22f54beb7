"""What is gathered from folders, by hand; damaged files are left out and the rest goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.datasets import read_references
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.reporting.gather import gather
from cdcca_cli.reporting.settings import ReportSettings
from cdcca_cli.scoring.answers import read_answers
from cdcca_cli.scoring.scores import score
from tests.downlink import worlds
from tests.reporting import runs


def run_of(report: dict[str, Any]) -> dict[str, Any]:
    (run,) = report["runs"]
    return run


def test_a_history_says_the_scores(report: dict[str, Any]) -> None:
    """`runs.history`: heldout at 50.25 + round, with an interval from -4.25 to +4.5."""
    held_out, source, _ = run_of(report)["scores"]
    assert (held_out["name"], held_out["from"]) == ("heldout", "history")
    (metric,) = held_out["metrics"]
    assert metric["title"] == "MC"
    assert metric["points"][1] == {"round": 1, "value": 51.25, "low": 47.0, "high": 55.75, "n": 20}
    assert [point["round"] for point in source["metrics"][0]["points"]] == [0, 2]


def test_without_a_history_predictions_are_scored(tmp_path: Path) -> None:
    """Of 20 answers 10, 11 and 12 are right: 50, 55 and 60 %; the gain is 10 points."""
    run = runs.run(tmp_path / "run", has_history=False)
    frames = runs.frames(tmp_path / "elsewhere", 20)
    found, _ = gather([run], ReportSettings((f"heldout={frames}",)))
    by_name = {one["name"]: one for one in run_of(found)["scores"]}
    (metric,) = by_name["heldout"]["metrics"]
    assert by_name["heldout"]["from"] == "predictions"
    assert [point["value"] for point in metric["points"]] == [50.0, 55.0, 60.0]
    assert metric["gain"]["value"] == 10.0 and metric["gain"]["low"] >= 0
    answers = read_answers([str(run / "start" / "heldout.jsonl")]).by_id
    whole = score(read_references(frames), answers).all("mc")
    assert whole is not None and whole.interval is not None
    assert [metric["points"][0][end] for end in ("low", "high")] == [
        round(end, 2) for end in whole.interval
    ]
    assert run_of(found)["settings"] == {} and run_of(found)["link"]["model_float16_bytes"] is None
    stream = by_name["stream"]["metrics"][0]["points"]
    assert [(point["round"], point["value"]) for point in stream] == [(0, 50.0), (1, 50.0)]


def test_without_references_nothing_is_scored_and_the_names_are_said(tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", has_history=False)
    found, _ = gather([run], ReportSettings())
    assert run_of(found)["scores"] == [] and run_of(found)["examples"] == []
    assert set(run_of(found)["unscored"]) == {"stream", "heldout"}


def test_the_link_is_of_the_files(report: dict[str, Any], small: Path) -> None:
    run, folder = run_of(report), small / "run"
    sizes = {
        name: [(folder / f"round-{number}" / name).stat().st_size for number in (1, 2)]
        for name in ("uplink.tokens", "update.cdcca")
    }
    assert [one["uplink_bytes"] for one in run["rounds"]] == sizes["uplink.tokens"]
    assert run["link"]["uplink_bytes"] == sum(sizes["uplink.tokens"])
    assert run["link"]["downlink_bytes"] == sum(sizes["update.cdcca"])
    assert run["link"]["jpeg"]["frames"] == 40 and run["link"]["jpeg"]["measured"] == 20
    assert run["link"]["model_float16_bytes"] == 2 * 2 * 2_000_000
    parameters = sum(array.size for array in runs.worlds.overlay().values())
    assert run["link"]["changed_float32_bytes"] == 2 * 4 * parameters


def test_curves_are_thinned_and_keep_their_ends(report: dict[str, Any]) -> None:
    """A loss of 2 / step over 100 steps."""
    first = run_of(report)["training"][0]
    assert first["steps"][0] == 1 and first["steps"][-1] == 100
    assert len(first["steps"]) == len(first["curves"]["loss"]) <= 61
    for step, loss in zip(first["steps"], first["curves"]["loss"], strict=True):
        assert loss == pytest.approx(2 / step, abs=1e-4)


def test_verdicts_and_drift(report: dict[str, Any]) -> None:
    run = run_of(report)
    assert [one["status"] for one in run["gate"]] == ["refused", "refused"]
    assert (run["gate"][0]["before"], run["gate"][0]["after"]) == (60.5, 55.25)
    assert run["teaching"][0]["verdict"] == "better" and run["teaching"][0]["gain"] == 1.25
    assert run["teaching"][1]["drift_after"] == 0.0125


def test_entropies_by_round_and_over_time(report: dict[str, Any]) -> None:
    """They rise evenly from 0 to 1 / round, so the median is half of that."""
    entropy = run_of(report)["entropy"]
    assert [one["q50"] for one in entropy["rounds"]] == [0.5, 0.25]
    assert entropy["rounds"][0]["n"] == 20 and entropy["rounds"][0]["mean"] == 0.5
    assert sum(one["n"] for one in entropy["times"]) == 40
    assert entropy["times"][0]["from"].startswith("2023-11-14 22:")


def test_examples_are_the_questions_that_changed(report: dict[str, Any]) -> None:
    """Questions 10 and 11 became right after rounds 1 and 2; none became wrong."""
    examples, of_stream = run_of(report)["examples"]
    assert of_stream["better"] == of_stream["worse"] == 0
    assert (examples["better"], examples["worse"], examples["same"]) == (2, 0, 18)
    assert [one["id"] for one in examples["questions"]] == ["q10", "q11"]
    first = examples["questions"][0]
    assert [first[f"answer_{when}"] for when in ("before", "after")] == ["cat", "dog"]
    assert first["right"] == ["dog"]
    assert first["picture"]["uri"].startswith("data:image/jpeg;base64,")


def test_maps_are_of_the_last_uplink(report: dict[str, Any]) -> None:
    assert {one["round"] for one in run_of(report)["maps"]} == {2}
    assert run_of(report)["maps"][0]["of"] == 4


FILES = [
    "history.json",
    *("start/heldout.jsonl", "round-1/predictions.jsonl", "round-1/uplink.tokens"),
    *("round-1/steps.jsonl", "round-1/adaptation.safetensors", "round-1/update.cdcca"),
    "round-1/apply.jsonl",
]


@pytest.mark.parametrize("damage", [b"\0garbage\xff", b'{"v": 1, "model": 3, "status": [', b"{}"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    name: str, damage: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = runs.run(tmp_path / "run")
    frames = runs.frames(tmp_path / "heldout", 20)
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2].rpartition(b"\n")[0] + damage)
    found, bad = gather([run], ReportSettings((str(frames),)))
    is_still_sound = damage == b"{}" and name.endswith(("steps.jsonl", "apply.jsonl"))
    if not is_still_sound:
        assert [entry["file"] for entry in found["unreadable"]] == [str(path)]
        assert "1 file left out" in str(bad)
        assert str(path) in capfd.readouterr().err
    assert len(run_of(found)["rounds"]) == 2
    json.dumps(found, allow_nan=False)


def test_two_runs_and_names_of_rounds_without_round(tmp_path: Path) -> None:
    first = runs.run(tmp_path / "a")
    (first / "round-2").rename(first / "2")
    found, _ = gather([first, runs.run(tmp_path / "b")], ReportSettings())
    assert [len(one["rounds"]) for one in found["runs"]] == [2, 2]


def test_a_folder_without_rounds_is_one(tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", rounds=1)
    found, _ = gather([run / "round-1"], ReportSettings())
    assert [one["round"] for one in run_of(found)["rounds"]] == [1]


def test_what_is_not_there_and_what_is_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(MissingInput, match="no such file"):
        gather([tmp_path / "gone"], ReportSettings())
    (tmp_path / "empty").mkdir()
    nobody = type("Fleet", (), {"as_json": lambda self: {"devices": [], "groups": {}}})()
    place = "cdcca_cli.inspection.fleet.read_fleet"
    monkeypatch.setattr(place, lambda paths, skipped: nobody)
    with pytest.raises(BadData, match="neither rounds nor devices"):
        gather([tmp_path / "empty"], ReportSettings())


def test_a_fleet_is_what_has_no_rounds(tmp_path: Path, monkeypatch: Any) -> None:
    """Updates and verdicts beside devices make no round; a device may be called 7."""
    device = {"device": "7", "group": "day", "sequence": 3, "digest": runs.MODEL}
    device |= {"last_contact": None, "last_gate": {"verdict": "refused"}, "uplink_bytes": 5}
    device |= {"downlink_bytes": 6, "refusals": [{"reason": "old"}, {"reason": "late"}]}
    group = {"devices": 1, "sequences": {"3": 1}, "digests": {runs.MODEL: 1}, "refusals": 2}
    made = {"devices": [device] * 1200, "groups": {"day": group}}
    asked: list[Path] = []

    def read_fleet(paths: list[Path], skipped: object) -> Any:
        asked.extend(paths)
        return type("Fleet", (), {"as_json": lambda self: made})()

    monkeypatch.setattr("cdcca_cli.inspection.fleet.read_fleet", read_fleet)
    run = runs.run(tmp_path / "run", rounds=1)
    fleet = tmp_path / "fleet"
    (fleet / "day").mkdir(parents=True)
    (run / "device").rename(fleet / "day" / "7")
    for name in ("update.cdcca", "apply.jsonl"):
        (fleet / name).write_bytes((run / "round-1" / name).read_bytes())
    found, _ = gather([fleet, fleet / "day", fleet / "apply.jsonl", run], ReportSettings())
    assert asked == [fleet, fleet / "day", fleet / "apply.jsonl"]
    assert found["fleet"]["num_devices"] == 1200 and len(found["fleet"]["devices"]) == 1000
    assert found["fleet"]["devices"][0]["last_refusal"] == {"reason": "late"}
    assert found["fleet"]["groups"][0]["num_digests"] == 1
    assert len(found["runs"]) == 1


def devices(root: Path, *names: str) -> Path:
    for name in names:
        worlds.device(root / name)
    return root


def line(**facts: object) -> str:
    head = {"command": "apply", "exit_code": 0, "device": "/fleet/1/camera-1"}
    return json.dumps(head | {"status": "applied"} | facts) + "\n"


@pytest.mark.parametrize("groups", [("1", "2"), ("round-1", "start"), ("1", "north")])
def test_groups_may_have_the_names_of_rounds(groups: tuple[str, str], tmp_path: Path) -> None:
    """Two groups of two devices, with an update and a log in each group."""
    fleet = tmp_path / "fleet"
    for group in groups:
        devices(fleet / group, "camera-1", "camera-2")
        (fleet / group / "log.jsonl").write_text(line(device=f"/fleet/{group}/camera-1"))
        (fleet / group / "u.cdcca").write_bytes(b"damaged, and no part of a fleet")
    found, bad = gather([fleet], ReportSettings())
    assert found["fleet"]["num_devices"] == 4 and found["runs"] == []
    assert not bad.files


def test_rounds_and_numbered_groups_in_one_folder_are_both_shown(tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", rounds=1)
    devices(run / "7", "camera-1")
    found, _ = gather([run], ReportSettings())
    assert [one["round"] for one in run_of(found)["rounds"]] == [1]
    assert "camera-1" in {one["device"] for one in found["fleet"]["devices"]}


def test_a_numbered_folder_of_nothing_is_no_round(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "notes.txt").write_text("nothing of cdcca's")
    with pytest.raises(BadData):
        gather([tmp_path], ReportSettings())


@pytest.mark.parametrize("name", ["uplink.tokens", "history.json"])
def test_files_of_a_run_in_a_fleets_folder_hide_no_device(name: str, tmp_path: Path) -> None:
    fleet = devices(tmp_path / "fleet", "day/camera-1", "night/camera-1")
    run = runs.run(tmp_path / "run", rounds=1)
    source = run / name if name == "history.json" else run / "round-1" / name
    (fleet / name).write_bytes(source.read_bytes())
    found, bad = gather([fleet], ReportSettings())
    assert found["fleet"]["num_devices"] == 2
    assert [one["round"] for one in run_of(found)["rounds"]] == [1]
    assert not bad.files


def test_a_runs_own_device_and_mirror_are_no_fleet(tmp_path: Path) -> None:
    run = devices(runs.run(tmp_path / "run", rounds=1), "mirror")
    assert (run / "device").is_dir()
    assert gather([run], ReportSettings())[0]["fleet"] is None


def test_what_a_fleet_leaves_out_is_counted_and_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A torn line, a damaged device, and a second device of the same name and group."""
    fleet = devices(tmp_path / "fleet", "day/camera-1", "day/camera-2", "more/day/camera-1")
    (fleet / "day" / "camera-2" / "device.json").write_text("{")
    log = fleet / "log.jsonl"
    log.write_text(line(device="/x/day/camera-1") + '{"comm\n' + line(device="/x/day/camera-9"))
    found, bad = gather([fleet], ReportSettings())
    assert str(bad) == ", 2 device folders and 1 line left out"
    named = {one["file"] for one in found["unreadable"]}
    assert named == {
        f"{log}:2",
        str(fleet / "day" / "camera-2" / "device.json"),
        str(fleet / "more" / "day" / "camera-1"),
    }
    assert found["fleet"]["num_devices"] == 3
    assert capfd.readouterr().err.count("left out: ") == 3


def test_a_fleet_of_damage_beside_a_run_is_named_once(tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", rounds=1)
    fleet = devices(tmp_path / "fleet", "day/camera-1")
    (fleet / "day" / "camera-1" / "device.json").write_text("{")
    found, bad = gather([run, fleet], ReportSettings())
    assert str(bad) == ", 1 device folder left out" and len(found["unreadable"]) == 1
    with pytest.raises(BadData, match="nothing is left"):
        gather([fleet], ReportSettings())


@pytest.mark.parametrize("torn", [0, 1, 2])
def test_one_torn_line_of_a_log_is_one_line(torn: int, tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", rounds=1)
    lines = [line(sequence=1), line(sequence=2)]
    lines.insert(torn, '{"command": "app\n')
    (run / "round-1" / "apply.jsonl").write_text("".join(lines))
    found, bad = gather([run], ReportSettings())
    assert [one["sequence"] for one in run_of(found)["gate"]] == [1, 2]
    assert str(bad) == ", 1 line left out"
    (entry,) = found["unreadable"]
    assert entry["file"] == f"{run}/round-1/apply.jsonl:{torn + 1}"


def test_the_gate_shows_the_lines_of_apply_alone(tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", rounds=1)
    measured = {"metric": "da", "before": 50.0, "after": 60.0, "drift": 0.5}
    measured["difference"] = {"value": 10.0, "low": 4.0, "high": 16.0}
    sampled = line(command="sample", status=None, questions=3, bytes=50)
    (run / "round-1" / "apply.jsonl").write_text(
        sampled + line(sequence=3, digest=runs.MODEL, measured=measured) + sampled
    )
    found, bad = gather([run], ReportSettings())
    (one,) = run_of(found)["gate"]
    assert (one["status"], one["sequence"], one["digest"]) == ("applied", 3, runs.MODEL)
    assert [one[name] for name in ("metric", "before", "after", "drift")] == ["da", 50, 60, 0.5]
    assert [one[name] for name in ("difference", "low", "high")] == [10.0, 4.0, 16.0]
    assert not bad.files


@pytest.mark.parametrize("history", ["{", "whole"])
def test_a_history_of_nothing_is_nothing(history: str, tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    if history == "whole":
        empty = runs.history(0, 0) | {"scores": {}, "scored_after": {}, "gains": {}}
        history = json.dumps({"v": 1, "kind": "history", **empty})
    path.write_text(history)
    with pytest.raises(BadData, match="neither rounds nor devices"):
        gather([tmp_path], ReportSettings())


def test_only_one_name_is_that_of_the_stream(tmp_path: Path) -> None:
    """Entropies of 20 other answers lie beside those of the stream."""
    run = runs.run(tmp_path / "run")
    runs.answers(run / "round-2" / "predictions-old.jsonl", 20, 3, entropy=5.0)
    found, _ = gather([run], ReportSettings())
    rounds = run_of(found)["entropy"]["rounds"]
    assert [(one["round"], one["q50"]) for one in rounds] == [(1, 0.5), (2, 0.25)]


def test_an_interval_without_an_end_is_none(tmp_path: Path) -> None:
    """1e16 is no number to draw."""
    run = runs.run(tmp_path / "run")
    path = run / "history.json"
    history = json.loads(path.read_text())
    history["scores"]["heldout"][0]["mc"]["high"] = 1e16
    path.write_text(json.dumps(history))
    found, bad = gather([run], ReportSettings())
    (metric,) = run_of(found)["scores"][0]["metrics"]
    assert (metric["points"][0]["low"], metric["points"][0]["high"]) == (None, None)
    assert metric["points"][1]["low"] is not None and not bad.files
