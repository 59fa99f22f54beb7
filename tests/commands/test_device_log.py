"""`apply --json` and `sample --json`: one line, also of a fault, by which a fleet is followed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.downlink import keys as key_files
from cdcca_cli.formats import device_log
from cdcca_cli.formats.device import Device
from cdcca_cli.inspection.fleet import read_fleet
from cdcca_cli.main import main
from tests.downlink import worlds
from tests.shipped import few_frames

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return worlds.device(tmp_path / "day" / "camera-7").path


def updates(device: Path, number: int) -> list[Path]:
    """Files of updates one after the other, by a mirror."""
    mirror = worlds.device(device.parent / "mirror")
    found = []
    for index in range(number):
        path = device.parent / f"{index + 1}.cdcca"
        path.write_bytes(worlds.file_of(worlds.next_update(Device.open(mirror.path))))
        worlds.receive(Device.open(mirror.path), path.read_bytes())
        found.append(path)
    return found


def applied(capfd: Capture, *words: object) -> tuple[int, dict[str, Any], str]:
    """The exit code, the one line of stdout, and the message."""
    capfd.readouterr()
    code = main(["apply", *map(str, words), "--json"])
    out, err = capfd.readouterr()
    assert out.count("\n") == 1, out
    device_log.parse_line(out, "it")
    return code, json.loads(out), err


def state(device: Path) -> dict[str, object]:
    found = Device.open(device)
    return {"sequence": found.sequence, "digest": found.digest}


def refused(
    device: Path, code: int, capfd: Capture, update: Path, *words: object, sequence: int | None
) -> dict[str, Any]:
    """Apply a file that is refused; its line, whose words are those of the message."""
    before = state(device)
    found, line, err = applied(capfd, device, update, *words)
    assert (found, line["exit_code"], line["status"]) == (code, code, "refused"), err
    assert line["current"] == before and line.get("sequence") == sequence
    assert line["reason"].split("`")[0] in err
    data = update.read_bytes()
    content = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert line["file"] == {"name": str(update), "bytes": len(data), "content": content}
    return line


def test_a_damaged_file_another_base_and_an_old_one(device: Path, capfd: Capture) -> None:
    first, second, third = updates(device, 3)
    (device.parent / "noise").write_bytes(b"noise")
    refused(device, 65, capfd, device.parent / "noise", sequence=None)
    line = refused(device, 78, capfd, third, sequence=3)
    assert line["digest"].startswith("sha256:") and "fetch updates 1 to 2 first" in line["reason"]
    for update in (first, second):
        code, line, _ = applied(capfd, device, update)
        assert (code, line["current"]) == (0, state(device))
    refused(device, 79, capfd, first, sequence=1)
    refused(device, 79, capfd, first, "--dry-run", sequence=1)


def test_a_signature_that_is_missing(device: Path, capfd: Capture) -> None:
    """Nothing in such a file is believed, so the line has no sequence."""
    (update,) = updates(device, 1)
    assert main(["keygen", str(device.parent / "key")]) == 0
    trust = key_files.first_trust([device.parent / "key.pub"], 1)
    assert trust is not None
    Device.open(device).install_trust(trust)
    refused(device, 77, capfd, update, sequence=None)


def test_a_trust_list_and_a_codebook_that_are_refused(device: Path, capfd: Capture) -> None:
    key, trust = device.parent / "key", device.parent / "trust"
    assert main(["keygen", str(key)]) == 0
    assert main(["trust", "--key", f"{key}.pub", "--sign", str(key), "-o", str(trust)]) == 0
    line = refused(device, 77, capfd, trust, sequence=None)
    assert line["trust"]["version"] == 1
    book = device.parent / "book"
    book.write_bytes(worlds.codebook_file(worlds.codebook(5, tower="sha256:" + 64 * "1")))
    assert refused(device, 78, capfd, book, sequence=None)["codebook"]["sequence"] == 5


def test_a_command_that_fails(device: Path, capfd: Capture) -> None:
    (update,) = updates(device, 1)
    before = state(device)
    code, line, err = applied(capfd, device, update, "--notify", "[ $CDCCA_SEQUENCE = 0 ]")
    assert (code, line["exit_code"], line["status"]) == (81, 81, "command failed")
    assert line["current"] == before == state(device) and line["reason"] in err


def test_a_folder_that_is_none_and_a_file_that_is_missing(device: Path, capfd: Capture) -> None:
    (update,) = updates(device, 1)
    code, line, _ = applied(capfd, device.parent / "none", update)
    assert (code, line["current"], line["file"]) == (66, None, None)
    code, line, _ = applied(capfd, device, device.parent / "none")
    assert (code, line["current"], line["file"]) == (66, state(device), None)


def test_a_command_line_that_is_wrong_is_no_outcome(device: Path, capfd: Capture) -> None:
    assert main(["apply", str(device), "--rollback", "--dry-run", "--json"]) == 2
    assert capfd.readouterr().out == ""


def test_the_device_is_named_by_its_absolute_path(
    device: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    (update,) = updates(device, 1)
    monkeypatch.chdir(device.parent)
    _, line, _ = applied(capfd, device.name, update)
    assert line["device"] == str(device)


def test_the_lines_make_the_row_of_the_device(device: Path, capfd: Capture) -> None:
    first, second, third = updates(device, 3)
    lines = [applied(capfd, device, path)[1] for path in (second, first, first, second, third)]
    (device / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (row,) = read_fleet([device]).devices
    assert (row.group, row.device, row.sequence) == ("day", "camera-7", 3)
    assert row.downlink_bytes == sum(path.stat().st_size for path in (first, second, third))
    assert row.num_refusals == 0, "the second came too early, and was installed later"
    assert row.last_contact == lines[-1]["time"]


def test_sample(tmp_path: Path, capfd: Capture) -> None:
    """Bytes are those of the file, in zstd; with --append those that were added."""
    frames = few_frames(tmp_path / "frames", "stream", 3)
    device, output = tmp_path / "day" / "camera-7", tmp_path / "up.tokens.zst"
    assert main(["init", str(device), "--quiet"]) == 0
    words = ["sample", str(frames), "-m", str(device), "--json", "--quiet", "--top", "50%"]
    sizes = [0]
    for more in ([], ["--append"]):
        capfd.readouterr()
        assert main([*words, "-o", str(output), *more]) == 0
        out = capfd.readouterr().out
        line = json.loads(out)
        sizes.append(output.stat().st_size)
        assert (line["command"], line["exit_code"], line["current"]) == ("sample", 0, state(device))
        assert (line["frames"], line["left_out"], line["output"]) == (3, 0, str(output))
        assert 1 <= line["picked"] <= 3 <= line["questions"]
        assert line["bytes"] == sizes[-1] - sizes[-2] > 0
        with (device / "log.jsonl").open("a") as log:
            log.write(out)
    assert read_fleet([device]).devices[0].uplink_bytes == sizes[-1]


def test_sample_refuses_to_mix_shards_and_json(tmp_path: Path) -> None:
    """Before a model is loaded or the device folder read."""
    command = [sys.executable, "-m", "cdcca_cli", "sample", str(tmp_path), "--json"]
    for more in ([], ["-o", "-"], ["-o", "/dev/stdout"]):
        env = {**os.environ, "CDCCA_DEVICE": str(tmp_path / "none")}
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--json needs --output FILE" in done.stderr


def test_a_sample_that_fails_has_a_line(device: Path, tmp_path: Path, capfd: Capture) -> None:
    words = [str(tmp_path / "nosuch"), "-m", str(device), "-o", str(tmp_path / "up"), "--json"]
    assert main(["sample", *words]) == 66
    out, err = capfd.readouterr()
    line = json.loads(out)
    assert (line["command"], line["exit_code"], line["status"]) == ("sample", 66, "refused")
    assert line["reason"] in err and line["current"] == state(device)
    log = tmp_path / "log.jsonl"
    log.write_text(out)
    (row,) = read_fleet([device, log]).devices
    assert (row.num_refusals, row.last_contact) == (1, line["time"])


def test_one_device_by_whatever_path(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    (first,) = updates(device, 1)
    folder = device.parent / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    log = tmp_path / "log.jsonl"
    _, line, _ = applied(capfd, f"../{device.name}", first)
    assert line["device"] == str(device)
    older = line | {"device": f"{folder}/../{device.name}"}
    log.write_text(json.dumps(line) + "\n" + json.dumps(older) + "\n")
    assert len(read_fleet([log, log]).devices) == 1


def test_a_reason_is_the_message_on_stderr(device: Path, capfd: Capture) -> None:
    first, second = updates(device, 2)
    applied(capfd, device, first)
    applied(capfd, device, second)
    assert main(["apply", str(device), "--rollback"]) == 0
    code, line, err = applied(capfd, device, second)
    assert code == 79 and "`" not in line["reason"]
    assert line["reason"] in err
