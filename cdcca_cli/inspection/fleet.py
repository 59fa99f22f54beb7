"""Many devices at a glance: their folders, and what the lines of their logs add to them.

A device's name is that of its folder, and its group is the folder above: `day/camera-7` is
`camera-7` of the group `day`, wherever it lies. A line of a log (`formats.device_log`) belongs to
the device that its path names in this way, so logs of many devices can be joined. A log that lies
in a device folder is about that device, whatever its lines call it.

Folders are searched three levels deep; of the files in them, JSON lines that are a log are read,
and others are passed over. Other files, and other kinds of folders, are listed if they are named.

- A digest is that of the folder, whose current overlay is verified. If only the log is here, it is
  what the last line says, and nothing is verified.
- Bytes down are those of all files that arrived, bytes up those of shards. A file that is tried
  again counts once, and so does its refusal; that of a file which was installed before or after
  does not count. This holds for the last 64 files of a device.
- What cannot be read is named on stderr and counted. A damaged folder keeps its row, with the
  reason.

Memory grows with the number of devices, not with the length of logs.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CdccaError, MissingInput
from cdcca_cli.formats import device_log
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import short
from cdcca_cli.inspection.fleet_files import Found, find, log_lines
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import counted

COLUMNS = ("device", "group", "seq", "digest", "contact", "gate", "up", "down", "refused")
"""Of a table in 80 columns: up and down are bytes, contact a time in UTC."""
FILE_COLUMNS = ("file", "kind", "bytes", "content")
_MOST_DEVICES = 200_000
_MOST_FILES = 64
_MOST_REFUSALS = 16


@dataclass
class DeviceRow:
    """One device. last_contact: time of its last line. damage: what is wrong with its folder.

    refusals: the latest 16 of `num_refusals`.
    """

    device: str
    group: str
    path: str = ""
    sequence: int | None = None
    digest: str | None = None
    last_contact: str | None = None
    last_gate: dict[str, Any] | None = None
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    refusals: list[dict[str, Any]] = field(default_factory=list)
    num_refusals: int = 0
    damage: str | None = None
    _installed: dict[str, bool] = field(default_factory=dict)
    _gate_time: str = ""

    def add(self, entry: device_log.Entry, *, is_folder: bool) -> None:
        """Add a line. is_folder: sequence and digest are those of the folder, and stay."""
        time = entry.time or ""
        is_latest = time >= (self.last_contact or "")
        if is_latest:
            self.last_contact = entry.time or self.last_contact
            if entry.current is not None and not is_folder:
                self.sequence, self.digest = entry.current
        if entry.command == "sample":
            self.uplink_bytes += entry.num_bytes if entry.questions else 0
            if entry.exit_code:
                self._add_refusal(entry)
            return
        if entry.content not in self._installed:
            self.downlink_bytes += entry.num_bytes
        if entry.measured is not None or entry.exit_code == 80:
            self._add_gate(entry, time)
        if entry.exit_code:
            self._add_refusal(entry)
        if entry.content is not None:
            self._remember(entry.content, is_installed=entry.exit_code == 0)

    def _add_gate(self, entry: device_log.Entry, time: str) -> None:
        if time >= self._gate_time:
            self._gate_time = time
            verdict = "refused" if entry.exit_code else "passed"
            about = {"time": entry.time, "sequence": entry.sequence, "verdict": verdict}
            self.last_gate = about | dict(entry.measured or {})

    def _remember(self, content: str, *, is_installed: bool) -> None:
        """Count a file once, and no refusal of one that is installed at any time."""
        was_installed = self._installed.pop(content, False)
        self._installed[content] = was_installed or is_installed
        if len(self._installed) > _MOST_FILES:
            del self._installed[next(iter(self._installed))]
        if self._installed[content]:
            kept = [one for one in self.refusals if one["content"] != content]
            self.num_refusals -= len(self.refusals) - len(kept)
            self.refusals = kept

    def _add_refusal(self, entry: device_log.Entry) -> None:
        about = {
            "time": entry.time,
            "exit_code": entry.exit_code,
            "sequence": entry.sequence,
            "reason": entry.reason,
            "content": entry.content,
        }
        for one in self.refusals:
            same = (one["exit_code"], one["content"]) == (entry.exit_code, entry.content)
            if same and entry.content is not None:
                one["time"] = entry.time
                return
        self.num_refusals += 1
        self.refusals = [*self.refusals, about][-_MOST_REFUSALS:]

    def as_json(self) -> dict[str, Any]:
        """All fields but those that begin with an underscore."""
        return {name: value for name, value in vars(self).items() if name[0] != "_"}

    def cells(self) -> list[object]:
        """The row of a table, in the order of COLUMNS; a damaged folder has no digest there."""
        codes = Counter(one["exit_code"] for one in self.refusals)
        words = [f"{number} x {code}" for code, number in sorted(codes.items())]
        earlier = self.num_refusals - len(self.refusals)
        return [
            self.device,
            self.group,
            self.sequence,
            "damaged" if self.damage else (self.digest or "").removeprefix("sha256:")[:6],
            (self.last_contact or "")[5:16].replace("T", " "),
            self._gate_words(),
            self.uplink_bytes,
            self.downlink_bytes,
            ", ".join(words + ([f"{earlier} earlier"] if earlier else [])),
        ]

    def _gate_words(self) -> str | None:
        if self.last_gate is None:
            return None
        verdict = "ok" if self.last_gate["verdict"] == "passed" else self.last_gate["verdict"]
        return f"{verdict} {self.last_gate['sequence']}"


@dataclass
class Fleet:
    """devices: by group and name. files: what else was named. left_out: how many of each kind."""

    devices: list[DeviceRow]
    files: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def rows(self) -> Iterator[list[object]]:
        """The cells of COLUMNS, a device each."""
        return (row.cells() for row in self.devices)

    def file_rows(self) -> Iterator[list[object]]:
        """The cells of FILE_COLUMNS, a file each."""
        for one in self.files:
            digest = one["digests"].get("content")
            size = one.get("bytes", {}).get("total")
            yield [one["file"], one["kind"], size, None if digest is None else short(digest)]

    def groups(self) -> dict[str, dict[str, Any]]:
        """By name: how many devices hold which overlay, and the sums of their columns."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.devices:
            group = found.setdefault(row.group, {"devices": 0, "sequences": {}, "digests": {}})
            group["devices"] += 1
            if row.digest is not None:
                for name, value in (("sequences", str(row.sequence)), ("digests", row.digest)):
                    group[name][value] = group[name].get(value, 0) + 1
            sums = {name: getattr(row, name) for name in ("uplink_bytes", "downlink_bytes")}
            sums |= {"refusals": row.num_refusals, "damaged": int(row.damage is not None)}
            for name, number in sums.items():
                group[name] = group.get(name, 0) + number
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "fleet" if self.devices else "files",
            "devices": [row.as_json() for row in self.devices],
            "groups": self.groups(),
            "files": self.files,
            "left_out": self.left_out,
        }

    def summary(self) -> str:
        """Like: `200 devices in 3 groups, 2 files`."""
        groups = counted(len({row.group for row in self.devices}), "group")
        words = [f"{counted(len(self.devices), 'device')} in {groups}"] if self.devices else []
        words += [counted(len(self.files), "file")] if self.files else []
        return ", ".join(words)


def read_fleet(paths: Sequence[str | Path], skipped: Skipped | None = None) -> Fleet:
    """Device folders, folders of them, logs, and other files. BadData if all are damaged.

    Args: skipped: takes what is left out, each named on stderr.
    """
    reader = _Reader(skipped or Skipped())
    for path in paths:
        for found in find(path, reader.skipped):
            reader.add(found)
    reader.read_logs()
    reader.skipped.refuse_if_all()
    rows = sorted(reader.rows.values(), key=lambda row: (row.group, row.device, row.path))
    return Fleet(rows, reader.files, reader.skipped.counts())


def name_of(path: str | Path) -> tuple[str, str]:
    """The group and the name of the device whose folder this is."""
    parts = Path(os.path.normpath(path)).parts
    return parts[-2] if len(parts) > 1 else "", parts[-1] if parts else ""


class _Reader:
    """Folders first, so that lines find the device that they are about."""

    def __init__(self, skipped: Skipped) -> None:
        self.skipped = skipped
        self.rows: dict[tuple[str, str], DeviceRow] = {}
        self.files: list[dict[str, Any]] = []
        self._folders: set[str] = set()
        self._logs: dict[str, tuple[str, str] | None] = {}  # the device that each is about

    def add(self, found: Found) -> None:
        if found.kind == "device":
            self._add_device(Path(found.path))
        elif found.kind == "log":
            key = None if found.device is None else name_of(found.device)
            self._logs.setdefault(found.path, key)
        else:
            self._add_file(found.path)

    def _add_device(self, path: Path) -> None:
        if str(path) in self._folders:
            return
        self._folders.add(str(path))
        key = name_of(path)
        if key in self.rows:
            other = f"{self.rows[key].path} has the same name and group"
            self.skipped.add("device folder", BadData(f"{path}: {other}: rename one of them"))
            return
        row = DeviceRow(key[1], key[0], str(path))
        self.rows[key] = row
        try:
            device = Device.open(path)
            row.sequence, row.digest = device.sequence, device.digest
            device = _verified(device)
            row.sequence, row.digest = device.sequence, device.digest
            self.skipped.num_sound += 1
        except CdccaError as fault:
            row.damage = str(fault)
            self.skipped.add("device folder", fault)

    def _add_file(self, path: str) -> None:
        from cdcca_cli.inspection.look import look

        try:
            self.files.append({"file": streams.input_name(path), **look(path).as_json()})
            self.skipped.num_sound += 1
        except CdccaError as fault:
            self.skipped.add("file", fault)

    def read_logs(self) -> None:
        for path, key in self._logs.items():
            try:
                for entry in log_lines(path, self.skipped):
                    self._add_line(key or name_of(entry.device), entry)
            except CdccaError as fault:
                self.skipped.add("log", fault)

    def _add_line(self, key: tuple[str, str], entry: device_log.Entry) -> None:
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) >= _MOST_DEVICES:
                fault = BadData(f"{key[1][:80]}: more than {_MOST_DEVICES:,} devices")
                self.skipped.add("line", fault)
                return
            row = self.rows[key] = DeviceRow(key[1], key[0], entry.device)
        row.add(entry, is_folder=row.path in self._folders)


def _verified(device: Device) -> Device:
    """The device, its current overlay verified; as it is now if an apply was at work meanwhile."""
    try:
        device.read_slot(device.current)
    except (BadData, MissingInput):
        again = Device.open(device.path)
        if again.current == device.current:
            raise
        again.read_slot(again.current)
        return again
    return device
