"""The targets of an export, and an export from a device folder to the folder of files."""

from importlib import import_module
from pathlib import Path
from typing import Any

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
    with folder.fresh(out) as made:
        part = write(made.path, device, overlay, settings)
        record = folder.record(made.path, settings.to, device, part)
        made.finish(record)
    return record


def current(device: Device, out: Path, settings: ExportSettings) -> dict[str, Any] | None:
    """The record of the export in `out`, if it is of what the device holds, from the same files."""
    try:
        record = folder.read_record(out)
    except (BadData, MissingInput):
        return None
    inputs = {"base": settings.base, "mmproj": settings.mmproj}
    wanted = {name: str(path.absolute()) for name, path in inputs.items() if path is not None}
    is_same = (
        record["to"] == settings.to
        and record["device"].get("overlay") == device.digest
        and {name: one.get("path") for name, one in record["inputs"].items()} == wanted
        and all((out / name).exists() for name in record["files"])
    )
    return record if is_same else None


def command(record: dict[str, Any], out: Path) -> list[str]:
    """How the runtime is started, its files named from here; empty if that is not known."""
    words = record["command"] or []
    return [str(out / word) if word in record["files"] else word for word in words]


def summary(record: dict[str, Any]) -> str:
    """An export in one line."""
    names = ", ".join(f"{name} {each['bytes']:,} bytes" for name, each in record["files"].items())
    left = ", ".join(record["dropped"])
    return f"{names}, of sequence {record['device']['sequence']}" + (
        f"; left behind: {left}" if left else ""
    )
