"""`cdcca inspect` of many: a row for each device, and nothing damaged stops the rest."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.formats.device import Device
from cdcca_cli.inspection.fleet import COLUMNS, DeviceRow, Fleet, read_fleet
from cdcca_cli.inspection.fleet_files import has_devices
from cdcca_cli.main import main
from cdcca_cli.skipped import Skipped
from tests.downlink import worlds
from tests.golden import make

Capture = pytest.CaptureFixture[str]
DIGEST = "sha256:" + 64 * "a"


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Two devices by day and one by night."""
    root = tmp_path / "fleet"
    for name in ("day/camera-1", "day/camera-2", "night/camera-1"):
        worlds.device(root / name)
    return root


def line(path: str | Path, minute: int = 0, **facts: object) -> str:
    head = {"command": "apply", "device": str(path), "exit_code": 0}
    return json.dumps(head | {"time": f"2026-11-28T18:{minute:02}:00Z"} | facts) + "\n"


def file_of(number: int, num_bytes: int = 100) -> dict[str, object]:
    return {"bytes": num_bytes, "content": f"sha256:{number:064x}"}


def row_of(found: Fleet, group: str, device: str) -> DeviceRow:
    (row,) = [one for one in found.devices if (one.group, one.device) == (group, device)]
    return row


def test_folders_give_their_group_sequence_and_digest(fleet: Path) -> None:
    update = worlds.next_update(Device.open(fleet / "night" / "camera-1"))
    worlds.receive(Device.open(fleet / "night" / "camera-1"), worlds.file_of(update))
    found = read_fleet([fleet])
    names = [(row.group, row.device, row.sequence) for row in found.devices]
    assert names == [("day", "camera-1", 0), ("day", "camera-2", 0), ("night", "camera-1", 1)]
    assert found.devices[-1].digest == update.target
    groups = found.groups()
    assert groups["day"]["digests"] == {found.devices[0].digest: 2}
    assert (groups["night"]["sequences"], groups["night"]["devices"]) == ({"1": 1}, 1)
    assert found.left_out == {} and len(next(found.rows())) == len(COLUMNS)


def test_the_name_does_not_depend_on_how_a_folder_is_named(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fleet / "day")
    for paths in (["camera-1"], ["../day/camera-1/"], [fleet / "day/camera-1/device.json"]):
        (row,) = read_fleet(paths).devices
        assert (row.group, row.device) == ("day", "camera-1")
    assert len(read_fleet([".", fleet, "camera-1"]).devices) == 3, "each folder once"


def test_a_log_in_a_device_folder_is_about_that_device(fleet: Path) -> None:
    log = fleet / "day" / "camera-1" / "log.jsonl"
    log.write_text(line("device", 5, file=file_of(1)) + line("/elsewhere/device", 7))
    row = row_of(read_fleet([fleet]), "day", "camera-1")
    assert (row.last_contact, row.downlink_bytes) == ("2026-11-28T18:07:00Z", 100)


def test_a_log_of_many_devices_is_told_apart_by_their_paths(fleet: Path, tmp_path: Path) -> None:
    log = tmp_path / "all.txt"
    current = {"sequence": 4, "digest": DIGEST}
    log.write_text(
        line("/var/lib/cdcca/day/camera-1", 1, file=file_of(1))
        + line("/srv/night/camera-9", 3, current=current)
        + line("/srv/night/camera-9", 2, current={"sequence": 3, "digest": DIGEST})
    )
    found = read_fleet([fleet, log])
    assert row_of(found, "day", "camera-1").downlink_bytes == 100
    assert row_of(found, "day", "camera-1").sequence == 0, "that of the folder"
    only_log = row_of(found, "night", "camera-9")
    assert (only_log.sequence, only_log.digest) == (4, DIGEST), "of the latest line"


def test_bytes_refusals_and_the_last_gate(fleet: Path) -> None:
    device = fleet / "day" / "camera-1"
    sample = {"command": "sample", "questions": 3, "bytes": 50}
    measured = {"metric": "da", "before": 60.0, "after": 40.0}
    (device / "log.jsonl").write_text(
        line(device, 1, file=file_of(1), exit_code=78, reason="first 1")
        + line(device, 2, file=file_of(1), exit_code=78)  # tried again
        + line(device, 3, file=file_of(2, 10), exit_code=65)
        + line(device, 4, file=file_of(1))  # installed in the end
        + line(device, 5, file=file_of(1), exit_code=79)  # a copy of it, late
        + line(device, 6, file=file_of(3), exit_code=80, sequence=2, measured=measured)
        + line(device, 7, **sample)
        + line(device, 8, **(sample | {"questions": 0, "bytes": 9}))  # an empty stream
    )
    row = row_of(read_fleet([fleet]), "day", "camera-1")
    assert (row.uplink_bytes, row.downlink_bytes) == (50, 210)
    assert [(one["exit_code"], one["sequence"]) for one in row.refusals] == [(65, None), (80, 2)]
    assert row.num_refusals == 2
    assert row.last_gate == {
        "time": "2026-11-28T18:06:00Z",
        "sequence": 2,
        "verdict": "refused",
    } | (measured)
    assert row.cells()[4:] == ["11-28 18:08", "refused 2", 50, 210, "1 x 65, 1 x 80"]


def test_only_the_latest_refusals_are_kept_and_all_are_counted(fleet: Path) -> None:
    device = fleet / "day" / "camera-1"
    lines = [line(device, n % 60, file=file_of(n), exit_code=65) for n in range(100)]
    (device / "log.jsonl").write_text("".join(lines))
    row = row_of(read_fleet([fleet]), "day", "camera-1")
    assert (row.num_refusals, len(row.refusals)) == (100, 16)
    assert row.cells()[-1] == "16 x 65, 84 earlier"


def damage_json(device: Path) -> None:
    (device / "device.json").write_bytes(b'{"kind": "device"')


def damage_overlay(device: Path) -> None:
    (file,) = (device / "overlay").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def lose_overlay(device: Path) -> None:
    shutil.rmtree(device / "overlay")


@pytest.mark.parametrize("damage", [damage_json, damage_overlay, lose_overlay])
def test_a_damaged_folder_is_named_shown_and_stops_nothing(
    fleet: Path, damage: Callable[[Path], None], capfd: Capture
) -> None:
    damage(fleet / "day" / "camera-2")
    assert main(["inspect", str(fleet), "--quiet"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert [row["damage"] is None for row in found["devices"]] == [True, False, True]
    assert found["left_out"] == {"device folder": 1} and found["groups"]["day"]["damaged"] == 1
    assert err.count("\n") == 1 and "camera-2" in err
    assert read_fleet([fleet]).devices[1].cells()[3] == "damaged"


def test_damaged_lines_and_logs_stop_nothing(fleet: Path, capfd: Capture) -> None:
    device = fleet / "day" / "camera-1"
    good = line(device, 1, file=file_of(1)).encode()
    bad = [b'{"device": "x", "sta\n', b"\xff\xfe\n", b"[]\n", b'"' + (2 << 20) * b"x" + b'"\n']
    (device / "log.jsonl").write_bytes(bad[0] + good + b"\n" + b"".join(bad[1:]) + good + good[:20])
    (device / "log.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + 20 * b"\0")
    found = read_fleet([fleet])
    assert row_of(found, "day", "camera-1").downlink_bytes == 100
    assert found.left_out == {"line": 5, "log": 1}
    assert "log.jsonl:1: " in capfd.readouterr().err


def test_a_log_whose_first_line_is_damaged(fleet: Path, tmp_path: Path, capfd: Capture) -> None:
    """It is a log by its next line; predictions and a manifest like that are none."""
    log = tmp_path / "log"
    log.write_text('{"device": "x", "sta\n' + line("day/camera-1", 1, file=file_of(1)))
    found = read_fleet([fleet, log])
    assert (row_of(found, "day", "camera-1").downlink_bytes, found.left_out) == (100, {"line": 1})
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "frames.jsonl").write_text("{\n")
    (frames / "answers.jsonl").write_bytes(b"{\n" + make.prediction())
    assert not has_devices(str(frames))
    assert main(["inspect", str(frames)]) == 65
    assert "frames.jsonl" in capfd.readouterr().err


def test_files_of_another_kind_are_passed_over_in_folders_and_listed_by_name(
    fleet: Path, capfd: Capture
) -> None:
    predictions = fleet / "day" / "camera-1" / "answers.jsonl"
    predictions.write_bytes(make.prediction())
    update = fleet / "update.cdcca"
    update.write_bytes(worlds.file_of(worlds.next_update(Device.open(fleet / "day/camera-1"))))
    assert read_fleet([fleet]).files == []
    assert read_fleet([fleet]).as_json()["kind"] == "fleet"
    assert read_fleet([predictions, update]).as_json()["kind"] == "files"  # no device among them
    assert main(["inspect", str(fleet), str(update), str(predictions), str(fleet / "none")]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert [one["kind"] for one in found["files"]] == ["update", "predictions"]
    assert len(found["devices"]) == 3 and found["left_out"] == {"file": 1}
    assert "3 devices in 2 groups, 2 files, 1 file left out" in err


def test_two_folders_of_one_name_are_not_mixed(fleet: Path, tmp_path: Path) -> None:
    other = worlds.device(tmp_path / "other" / "day" / "camera-1", seed=3)
    found = read_fleet([fleet, tmp_path / "other"])
    assert found.left_out == {"device folder": 1}
    assert row_of(found, "day", "camera-1").digest != other.digest


def test_nothing_sound_is_an_error(tmp_path: Path) -> None:
    damage = tmp_path / "day" / "camera-1"
    damage.mkdir(parents=True)
    damage_json(damage)
    with pytest.raises(BadData, match="nothing is left: 1 device folder and 1 file"):
        read_fleet([tmp_path / "day", tmp_path / "none"])


def test_one_operand_is_described_as_before(fleet: Path, tmp_path: Path, capfd: Capture) -> None:
    log = tmp_path / "log"
    log.write_text(line("a/b", 1) + line("a/b", 2, exit_code=78))
    for path, kind in ((fleet / "day" / "camera-1", "device"), (log, "log")):
        assert main(["inspect", str(path)]) == 0
        assert json.loads(capfd.readouterr().out)["kind"] == kind
    assert not has_devices(str(fleet / "day" / "camera-1")) and has_devices(str(fleet))
    log.write_text(line("a/b", 1) + "{}\n")
    assert main(["inspect", str(log)]) == 65


def test_links_and_hidden_folders_are_not_followed(fleet: Path) -> None:
    (fleet / "again").symlink_to(fleet / "day")
    shutil.copytree(fleet / "day", fleet / ".trash" / "day")
    assert len(read_fleet([fleet]).devices) == 3


def test_a_device_that_changes_while_it_is_read(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process installs an update between device.json and the overlay."""
    path = fleet / "day" / "camera-1"
    before, real = Device.open(path), Device.open

    def opened(where: Path) -> Device:
        monkeypatch.setattr(Device, "open", real)
        for seed in (1, 2):  # so that the overlay which was current is deleted
            update = worlds.next_update(Device.open(where), seed)
            worlds.receive(Device.open(where), worlds.file_of(update))
        return before

    monkeypatch.setattr(Device, "open", opened)
    (row,) = read_fleet([path]).devices
    assert (row.damage, row.sequence, row.digest) == (None, 2, Device.open(path).digest)


PROGRAM = """
import sys
from cdcca_cli.main import main
assert main(["inspect", *sys.argv[1:], "--quiet"]) == 0
most = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
print(most, *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_log_of_many_devices_takes_little_memory(tmp_path: Path) -> None:
    """60,000 lines of 2,000 devices, 20 MB; and neither torch nor PIL is imported."""
    log = tmp_path / "log.jsonl"
    with log.open("w") as out:
        for number in range(60_000):
            refused = {"exit_code": 65, "reason": 100 * "x"} if number % 3 else {}
            path = f"/srv/group-{number % 8}/camera-{number % 2000}"
            out.write(line(path, number % 60, file=file_of(number), **refused))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    devices = found["devices"]
    assert sum(row["num_refusals"] for row in devices) == 40_000
    assert sum(row["downlink_bytes"] for row in devices) == 6_000_000
    most_mb, *modules = done.stderr.split()
    assert int(most_mb) < 200
    assert {"torch", "PIL", "transformers"}.isdisjoint(modules)


def test_a_table_on_a_terminal(fleet: Path) -> None:
    import pty

    (fleet / "day" / "camera-1" / "log.jsonl").write_text(line("\x1b[31m", 1, file=file_of(1)))
    damage_json(fleet / "night" / "camera-1")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "cdcca_cli", "inspect", str(fleet)]
    running = subprocess.Popen(command, stdout=child, env={**os.environ, "COLUMNS": "120"})
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 1 << 16):
            shown += piece
    except OSError:  # the terminal of a process that has ended
        pass
    assert running.wait() == 0
    text = shown.decode()
    assert "camera-2" in text and "damaged" in text and "11-28 18:01" in text


def test_names_are_only_counted_after_the_first_ten(fleet: Path, capfd: Capture) -> None:
    (fleet / "day" / "camera-1" / "log.jsonl").write_text(50 * "noise\n")
    skipped = Skipped()
    assert read_fleet([fleet], skipped).left_out == {"line": 50}
    assert capfd.readouterr().err.count("\n") == 11


def test_a_gate_in_a_cell() -> None:
    row = DeviceRow("camera-1", "day", last_gate={"verdict": "passed", "sequence": 3})
    assert row.cells()[5] == "ok 3"
