"""The targets of an export, and an export from a device folder to the folder of files."""

from importlib import import_module
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.export import folder
from cdcca_cli.export.settings import TARGETS, ExportSettings
from cdcca_cli.formats.device import Device

MODULES = {name: f"cdcca_cli.export.{name}" for name in TARGETS}
"""Where the `write` of each target is."""


def export(device: Device, out: Path, settings: ExportSettings) -> dict[str, Any]:
    """Write what the device holds for a runtime. Returns: what export.json holds.

    Raises: as the target's `write`; MissingInput, BadData, CannotWrite.
    """
    write = import_module(MODULES[settings.to]).write
    overlay = device.read_overlay()
    try:
        before = folder.read_record(out)["inputs"]
    except (BadData, MissingInput):
        before = {}
    with folder.fresh(out) as made:
        part = write(made.path, device, overlay, settings)
        record = folder.record(made.path, settings.to, device, part)
        for name, file in record["inputs"].items():
            if name in before and before[name].get("sha256") != file["sha256"]:
                streams.message(f"{file['path']}: other bytes than the export before was made from")
        made.finish(record)
    return record


def current(device: Device, out: Path, settings: ExportSettings) -> dict[str, Any] | None:
    """The record of the export in `out`, if it is of what the device holds, from the same files.

    All of these are as they were; and it has a probe, if `settings` name one.
    """
    try:
        record = folder.read_record(out)
    except (BadData, MissingInput):
        return None
    inputs = {"base": settings.base, "mmproj": settings.mmproj}
    wanted = {name: str(path.absolute()) for name, path in inputs.items() if path is not None}
    is_same = (
        record["to"] == settings.to
        and record["device"]["overlay"] == device.digest
        and {name: one["path"] for name, one in record["inputs"].items()} == wanted
        and (record["probe"] is not None or settings.probe in ("auto", "none"))
    )
    return record if is_same and folder.is_whole(out, record) else None


def command(record: dict[str, Any], out: Path) -> list[str]:
    """How the runtime is started from here; empty if that is not known."""
    found = []
    for word in record["command"] or []:
        before, sign, name = word.rpartition("=")
        is_here = name == "." or name in record["files"]
        found.append(f"{before}{sign}{out / name}" if is_here else word)
    return found


def summary(record: dict[str, Any]) -> str:
    """An export in one line."""
    names = ", ".join(f"{name} {each['bytes']:,} bytes" for name, each in record["files"].items())
    left = ", ".join(record["dropped"])
    return f"{names}, of sequence {record['device']['sequence']}" + (
        f"; left behind: {left}" if left else ""
    )
