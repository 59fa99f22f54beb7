import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli import files
from cdcca_cli.errors import BadData, CannotWrite, MissingInput
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import DeviceSettings, Lora
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.trust import Trust

SETTINGS = DeviceSettings("shipped:student", "blip-2", "sha256:" + "3" * 64, Lora(4, 8.0, 1))

KEY = "12" * 32


def overlay(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), value, np.float32), "b": np.zeros(2, np.float32)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device.create(tmp_path / "device", SETTINGS, overlay(0))


def test_a_new_folder_is_read_again(device: Device) -> None:
    found = Device.open(device.path)
    assert found.settings == SETTINGS
    assert (found.sequence, found.highest_sequence, found.kept) == (0, 0, ())
    assert found.digest == overlay_digest(overlay(0))
    assert found.read_overlay()["w"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert found.current.file == f"overlay/0-{found.digest[7:23]}.safetensors"


def test_install_and_rollback(device: Device) -> None:
    device.install(overlay(1), 1)
    device.install(overlay(2), 2)
    found = Device.open(device.path)
    assert (found.sequence, found.kept[0].sequence) == (2, 1)
    assert found.read_overlay()["w"][0, 0] == 2
    assert len(list((device.path / "overlay").iterdir())) == 2  # sequence 0 is gone
    found.rollback()
    again = Device.open(device.path)
    assert (again.sequence, again.kept, again.highest_sequence) == (1, (), 2)
    assert again.read_overlay()["w"][0, 0] == 1
    assert len(list((device.path / "overlay").iterdir())) == 1
    before = contents(device.path)
    with pytest.raises(MissingInput, match="no earlier overlay"):
        again.rollback()
    assert contents(device.path) == before


def test_as_many_are_kept_as_the_folder_says(tmp_path: Path) -> None:
    device = Device.create(tmp_path / "device", SETTINGS, overlay(0), keep=3)
    for number in range(1, 6):
        device.install(overlay(number), number, [KEY] if number % 2 else [])
    found = Device.open(device.path)
    assert [slot.sequence for slot in found.kept] == [4, 3, 2]
    assert [slot.signed_by for slot in (found.current, *found.kept)] == [(KEY,), (), (KEY,), ()]
    assert len(list((device.path / "overlay").iterdir())) == 4
    for number in (5, 4, 3, 2):
        slot, tensors = found.read_kept(number)
        assert (slot.sequence, tensors["w"][0, 0]) == (number, number)
    with pytest.raises(MissingInput, match=r"of sequence 1, only of 5, 4, 3, 2 \(keep is 3\)"):
        found.read_kept(1)
    found.rollback()
    found.rollback()
    assert [slot.sequence for slot in (found.current, *found.kept)] == [3, 2]
    found.install(overlay(9), 6)
    assert [slot.sequence for slot in found.kept] == [3, 2]


def test_the_highest_sequence_never_falls(device: Device) -> None:
    """Not by a rollback, and not by whatever is installed after it."""
    device.install(overlay(1), 5)
    device.rollback()
    device.install(overlay(2), 3)
    assert Device.open(device.path).highest_sequence == device.highest_sequence == 5


def test_other_keys_change_nothing_else(device: Device) -> None:
    device.install(overlay(1), 1)
    before = json.loads((device.path / "device.json").read_text())
    device.install_trust(Trust(1, 1, (KEY,)))
    found = Device.open(device.path)
    assert found.trust == Trust(1, 1, (KEY,))
    assert found.as_json() == before | {"trust": {"keys": [KEY], "threshold": 1, "version": 1}}
    assert found.read_overlay()["w"][0, 0] == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone", "another's"])
def test_the_newest_sound_overlay_is_used_in_a_damaged_ones_place(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    device = Device.create(tmp_path / "device", SETTINGS, overlay(0), keep=3)
    for number in range(1, 4):
        device.install(overlay(number), number)
    for slot in (device.current, device.kept[0]):
        file = device.path / slot.file
        data = file.read_bytes()
        file.unlink()
        if damage != "gone":
            other = (device.path / device.kept[1].file).read_bytes()
            file.write_bytes(
                {
                    "flipped": data[:-1] + bytes([data[-1] ^ 1]),
                    "cut": data[:-1],
                    "empty": b"",
                    "another's": other,
                }[damage]
            )
    before = contents(device.path)
    found = Device.open(device.path)
    assert found.read_overlay()["w"][0, 0] == 1
    assert (found.sequence, found.highest_sequence) == (1, 3)
    assert [slot.sequence for slot in found.kept] == [0]
    assert found.digest == overlay_digest(overlay(1))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "using the newest sound one kept, of sequence 1" in said
    assert contents(device.path) == before
    found.rollback()  # makes it last
    again = Device.open(device.path)
    assert (again.sequence, again.highest_sequence) == (1, 3)
    assert len(list((device.path / "overlay").iterdir())) == 2


def test_what_a_killed_process_left_goes_with_the_next_change(device: Device) -> None:
    left = [".device.json.0a1b2c", "overlay/.1-00.safetensors.0a1b2c", "overlay/9-00.safetensors"]
    for name in left:
        (device.path / name).write_bytes(b"half")
    device.install_trust(Trust(1, 1, (KEY,)))
    assert contents(device.path).keys() == {"device.json", "lock", device.current.file}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_sync_that_fails(
    device: Device, number: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Overlay, its folder, device.json: nothing has changed. The last folder: it has, and all that
    the state before needs is still there, in case that the power fails now.
    """
    before, real, count = contents(device.path), os.fsync, [0]

    def failing(descriptor: int) -> None:
        count[0] += 1
        if count[0] == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if number < 4:
        with pytest.raises(CannotWrite, match="input/output error"):
            device.install(overlay(1), 1)
        assert contents(device.path) == before | {"lock": b""}
        assert Device.open(device.path).sequence == device.sequence == 0
    else:
        device.install(overlay(1), 1)
        assert "a power failure may bring the state before back" in capfd.readouterr().err
        assert Device.open(device.path).sequence == device.sequence == 1
        assert before.keys() < contents(device.path).keys()
    assert count[0] == number


def test_a_file_system_that_cannot_sync_folders_will_do(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    device.install(overlay(1), 1)
    assert Device.open(device.path).sequence == 1
    assert len(list((device.path / "overlay").iterdir())) == 2


def test_rolling_back_to_a_damaged_overlay_changes_nothing(device: Device) -> None:
    device.install(overlay(1), 1)
    (device.path / device.kept[0].file).write_bytes(b"junk")
    before = contents(device.path)
    with pytest.raises(BadData):
        device.rollback()
    assert contents(device.path) == before
    assert (device.sequence, Device.open(device.path).sequence) == (1, 1)


def test_installing_the_same_overlay_again_keeps_the_one_before(device: Device) -> None:
    device.install(overlay(1), 1)
    device.install(overlay(1), 1)
    assert [slot.sequence for slot in device.kept] == [0]


def test_an_existing_folder_is_kept(device: Device, tmp_path: Path) -> None:
    device.install(overlay(5), 1)
    before = contents(device.path)
    with pytest.raises(CannotWrite, match="`force`"):
        Device.create(device.path, SETTINGS, overlay(9))
    assert contents(device.path) == before
    Device.create(device.path, SETTINGS, overlay(9), force=True)
    found = Device.open(device.path)
    assert (found.sequence, found.highest_sequence, found.kept) == (0, 0, ())
    assert len(list((device.path / "overlay").iterdir())) == 1
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    for force in (False, True):
        with pytest.raises(CannotWrite, match="other things"):
            Device.create(tmp_path / "photos", SETTINGS, overlay(0), force=force)
    assert contents(tmp_path / "photos") == {"cat.jpg": b""}


@pytest.mark.parametrize(
    "unsound", [{"w": np.array([np.nan], np.float32)}, {"w": np.zeros(2, np.float64)}]
)
def test_an_unsound_overlay_is_not_installed(
    device: Device, unsound: dict[str, np.ndarray], tmp_path: Path
) -> None:
    before = contents(device.path)
    with pytest.raises(BadData, match="'w'"):
        device.install(unsound, 1)
    assert contents(device.path) == before
    with pytest.raises(BadData):
        Device.create(tmp_path / "new", SETTINGS, unsound)
    assert not (tmp_path / "new").exists()


def test_unsound_settings_make_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="'groups'"):
        unsound = DeviceSettings("c", "f", SETTINGS.tower, SETTINGS.lora, groups=("tower",))
        Device.create(tmp_path / "new", unsound, overlay(0))
    assert not (tmp_path / "new").exists()


def test_a_damaged_overlay_is_refused(device: Device) -> None:
    path = device.path / device.current.file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BadData, match="the folder is damaged"):
        Device.open(device.path).read_overlay()


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_no_device_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingInput, match="device folder"):
        Device.open(tmp_path / place)


@pytest.mark.parametrize("failing", ["overlay", "device.json"])
@pytest.mark.parametrize("error", [CannotWrite("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_changes_nothing(
    device: Device, failing: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(overlay(1), 1)
    current, read = device.current, device.read_overlay()
    write = files.atomic_write_bytes

    def fail(path: Path, data: bytes) -> None:
        if failing in str(path.relative_to(device.path)):
            raise error
        write(path, data)

    monkeypatch.setattr(files, "atomic_write_bytes", fail)
    with pytest.raises(type(error)):
        device.install(overlay(2), 2)
    monkeypatch.undo()
    found = Device.open(device.path)
    assert found.current == device.current == current
    assert np.array_equal(found.read_overlay()["w"], read["w"])
    device.install(overlay(2), 2)  # and what was left behind is no hindrance
    assert len(list((device.path / "overlay").iterdir())) == 2


def test_the_lock_keeps_others_out_and_reads_afresh(device: Device) -> None:
    other = Device.open(device.path)
    started, done = threading.Event(), []

    def install() -> None:
        started.set()
        other.install(overlay(7), 7)
        done.append(time.monotonic())

    with device.lock():
        thread = threading.Thread(target=install)
        thread.start()
        started.wait()
        device.install(overlay(3), 3)  # enters the lock again
        time.sleep(0.1)
        assert not done
    thread.join()
    assert other.kept[0].sequence == 3
    assert device.sequence == 3
    with device.lock():
        assert device.sequence == 7


KILLED = """
import sys, numpy as np
from cdcca_cli.formats.device import Device
device = Device.open(sys.argv[1])
print("ready", flush=True)
while True:
    number = device.sequence + 1
    device.install({"w": np.full(50_000, number, np.float32)}, number)
"""


def test_killed_at_any_moment_the_folder_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "device"
    Device.create(path, SETTINGS, {"w": np.zeros(50_000, np.float32)})
    for attempt in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * attempt)
            process.send_signal(signal.SIGKILL)
        found = Device.open(path)
        assert (found.read_overlay()["w"] == found.sequence).all()
    assert found.sequence > 0
    found.install(overlay(1), found.sequence + 1)
    kept = {"device.json", "lock", found.current.file, found.kept[0].file}
    assert contents(path).keys() == kept


def test_what_device_json_says_is_sorted_json(device: Device) -> None:
    text = (device.path / "device.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) + "\n"
    assert json.loads(text)["lora"] == {"alpha": 8.0, "rank": 4, "seed": 1}
    assert device.as_json() == json.loads(text)
    assert os.listdir(device.path / "overlay") == [Path(device.current.file).name]


def test_a_disk_that_fills_before_device_json_leaves_no_stray_overlay(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(device.path)
    write = files.atomic_write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "device.json":
            raise CannotWrite("no space left on device")
        write(path, data)

    monkeypatch.setattr(files, "atomic_write_bytes", full)
    with pytest.raises(CannotWrite):
        device.install(overlay(1), 1)
    assert contents(device.path) == before | {"lock": b""}


def test_ctrl_c_just_after_the_rename_leaves_the_new_state_whole(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.atomic_write_bytes

    def interrupted(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == "device.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "atomic_write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.install(overlay(1), 1)
    found = Device.open(device.path)
    assert found.sequence == 1
    assert found.read_overlay()["w"][0, 0] == 1


def test_a_reader_follows_what_others_installed_meanwhile(
    device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    """Opened before two updates, read after them: its file is gone, and nothing is damaged."""
    early = Device.open(device.path)
    overlay = device.read_overlay()
    for sequence in (1, 2):
        overlay = {name: value + np.float32(1) for name, value in overlay.items()}
        device.install(overlay, sequence)
    assert overlay_digest(early.read_overlay()) == device.digest
    assert early.sequence == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("oddity", ["folder", "loop", "dangling", "gone"])
def test_a_device_json_that_is_no_file_is_missing(device: Device, oddity: str) -> None:
    path = device.path / "device.json"
    path.unlink()
    if oddity == "folder":
        path.mkdir()
    elif oddity != "gone":
        path.symlink_to(path if oddity == "loop" else "elsewhere")
    with pytest.raises(MissingInput, match="cdcca init"):
        Device.open(device.path)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "caf\udce9", ""])
def test_a_folder_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingInput):
        Device.open(tmp_path / name)


@pytest.mark.parametrize("oddity", ["folder", "loop", "gone"])
def test_an_overlay_that_is_no_file_is_missing(device: Device, oddity: str) -> None:
    path = device.path / device.current.file
    path.unlink()
    if oddity == "folder":
        path.mkdir()
    elif oddity == "loop":
        path.symlink_to(path)
    with pytest.raises(MissingInput):
        device.read_overlay()
