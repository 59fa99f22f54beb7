"""`cdcca inspect`: what a file or folder holds, or many devices at a glance."""

from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Json, Quiet


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="File or folder, or several; standard input if omitted or -",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a file's kind, digests and counts, and how many bytes each of its parts takes.

    Reads token shards, predictions, labels, adaptations, updates, overlays, device folders,
    checkpoints, frames, manifests and annotation files, also if zstd has compressed them. A damaged
    file is refused, so inspect also verifies a file. Standard output gets one JSON object if it is
    not a terminal.

    Several of them, or a folder of device folders, give a table of devices: group (the folder above
    the device's), sequence, digest, last contact, last gate (apply --if-better), bytes and
    refusals. The last four come from the lines of apply --json and sample --json, in files that
    end with .jsonl. What is damaged is named and counted, and stops nothing.

    Example: cdcca sample frames/ -m device/ | tee uplink.tokens | cdcca inspect
    """
    streams.set_quiet(quiet)
    from cdcca_cli.inspection.fleet_files import has_devices

    named = files or []
    if len(named) > 1 or (named and has_devices(named[0])):
        _fleet(named, json)
        return
    from cdcca_cli.inspection.look import look
    from cdcca_cli.inspection.summary import rows

    file = named[0] if named else None
    found = {"file": streams.input_name(file), **look(file).as_json()}
    if json or not streams.is_terminal("stdout"):
        streams.emit_json(found)
    else:
        streams.emit_facts(rows(found))


def _fleet(named: list[str], json: bool) -> None:
    from cdcca_cli.inspection.fleet import COLUMNS, FILE_COLUMNS, read_fleet
    from cdcca_cli.skipped import Skipped

    skipped = Skipped()
    fleet = read_fleet(named, skipped)
    if json or not streams.is_terminal("stdout"):
        streams.emit_json(fleet.as_json())
    else:
        if fleet.devices:
            streams.emit_table("", COLUMNS, fleet.rows())
        if fleet.files:
            streams.emit_table("", FILE_COLUMNS, fleet.file_rows())
    streams.summary(f"{fleet.summary()}{skipped}")
