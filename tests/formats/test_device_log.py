"""The lines of a device's log: what is written can be read, and any bytes are read or refused."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli.errors import BadData, SignatureRefused, WrongBase
from cdcca_cli.formats import device_log
from cdcca_cli.formats.kind import describe
from tests.downlink import worlds

DIGEST = "sha256:" + 64 * "a"
APPLIED: dict[str, Any] = {
    "command": "apply",
    "time": "2026-11-28T18:40:12Z",
    "device": "/var/lib/cdcca/day/camera-7",
    "exit_code": 0,
    "current": {"sequence": 3, "digest": DIGEST},
    "status": "applied",
    "sequence": 3,
    "digest": DIGEST,
    "file": {"name": "3.cdcca", "bytes": 2700, "content": "sha256:" + 64 * "b"},
    "measured": {"metric": "da", "before": 60.0, "after": 61.5, "difference": {"n": 82}},
}


def parsed(**changes: object) -> device_log.Entry:
    return device_log.parse_line(json.dumps(APPLIED | changes), "it")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    device = worlds.device(tmp_path / "day" / "camera-7")
    line = device_log.line("apply", device.path, 78, **device_log.refusal(WrongBase("no base")))
    found = device_log.parse_line(json.dumps(line), "it")
    assert (found.device, found.exit_code, found.status) == (str(device.path), 78, "refused")
    assert (found.reason, found.current) == ("no base", (0, device.digest))
    assert found.time is not None and found.content is None and found.num_bytes == 0


def test_a_folder_that_cannot_be_read_and_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9"
    line = device_log.line("apply", path, 66, **device_log.refusal(SignatureRefused(str(path))))
    found = device_log.parse_line(json.dumps(line, ensure_ascii=False), "it")
    assert found.current is None and found.device.endswith(r"caf\udce9")


def test_an_update_that_was_tested() -> None:
    found = parsed()
    assert found.measured == {"metric": "da", "before": 60.0, "after": 61.5}
    assert (found.num_bytes, found.content) == (2700, "sha256:" + 64 * "b")
    assert parsed(measured=None).measured is None


@pytest.mark.parametrize(
    ("status", "code", "current"),
    [("applied", 0, (3, DIGEST)), ("refused", 80, None), ("command failed", 81, (3, DIGEST))],
)
def test_lines_from_before_0_10(status: str, code: int, current: tuple[int, str] | None) -> None:
    line = {"device": "device", "status": status, "sequence": 3, "digest": DIGEST}
    found = device_log.parse_line(json.dumps(line), "it")
    assert (found.command, found.time, found.exit_code) == ("apply", None, code)
    assert found.current == current


@pytest.mark.parametrize(
    "changes",
    [
        {"command": "infer"},
        {"device": 1},
        {"device": None},
        {"time": "yesterday"},
        {"time": "2026-11-28T18:40:12+01:00"},
        {"time": 1764355212},
        {"exit_code": "0"},
        {"current": {"sequence": -1, "digest": DIGEST}},
        {"current": {"sequence": 1 << 60, "digest": DIGEST}},
        {"current": {"sequence": 1}},
        {"current": {"sequence": 1, "digest": "sha256:beef"}},
        {"file": {"bytes": -1, "content": DIGEST}},
        {"file": {"bytes": 10, "content": "<script>"}},
        {"file": []},
        {"measured": {"before": "much"}},
        {"measured": 3},
        {"bytes": True},
    ],
)
def test_a_line_that_is_not_sound_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadData, match=r"^it: ") as refusal:
        parsed(**changes)
    assert len(str(refusal.value)) < 300


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)), st.data()
)
def test_any_value_in_any_field_is_read_or_refused(value: object, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(APPLIED)))
    with suppress(BadData):
        assert isinstance(parsed(**{name: value}), device_log.Entry)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    with pytest.raises(BadData):
        device_log.parse_line(line, "it")


def test_what_it_is_in_words() -> None:
    assert "a log of devices" in (describe(json.dumps(APPLIED).encode()) or "")
