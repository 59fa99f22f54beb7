"""`cdcca inspect`: what a file or folder holds, or many devices at a glance."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.options import Images, Json, Quiet


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="File or folder, or several; standard input if omitted or -",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for maps of a shards file's frames"),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the maps as text")] = False,
    first: Annotated[
        int | None,
        typer.Option(min=1, help="Map only so many frames, from the first  [default: all]"),
    ] = None,
    frame: Annotated[
        list[str] | None, typer.Option(help="Name of a frame to map (repeatable)")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a file's kind, digests and counts, and how many bytes each of its parts takes.

    Reads token shards, predictions, labels, adaptations, updates, overlays, device folders,
    checkpoints, frames, manifests and annotation files, also if zstd has compressed them. A damaged
    file is refused, so inspect also verifies a file. Standard output gets one JSON object if it is
    not a terminal.

    Of token shards it also draws which tokens of each frame were kept, and their scores: over the
    frames with --images and -o, as text with --text. A frame that was sent as a picture lies beside
    its original. Maps take the place of earlier maps in their folder once all are drawn: after an
    error, as of a file that is cut short, the folder is as it was.

    Several files, or a folder of device folders, give a table of devices: group (the folder above
    the device's), sequence, digest, last contact, last gate (apply --if-better), bytes and
    refusals. The last four come from the lines of apply --json and sample --json, in files that
    end with .jsonl. What is damaged is named and counted, and stops nothing.

    Example: cdcca inspect uplink.tokens --images frames/ -o maps/
    """
    streams.set_quiet(quiet)
    from cdcca_cli.inspection.fleet_files import has_devices

    named = files or []
    draws = bool(images or output or text or first or frame)
    if images and not output:
        raise SettingError("images", "does nothing without `output`, the folder for maps")
    if text and output:
        raise SettingError("text", "prints maps, so it cannot be combined with `output`")
    if json and draws:
        raise SettingError("json", "describes a file, so it cannot be combined with maps of it")
    if len(named) > 1 or (named and has_devices(named[0])):
        if draws:
            raise UsageError("maps are of one file of shards")
        _fleet(named, json)
        return
    file = named[0] if named else None
    if draws:
        _maps(file, images, output, first, frame or [])
        return
    from cdcca_cli.inspection.look import look
    from cdcca_cli.inspection.summary import rows

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


def _maps(
    file: str | None,
    images: Path | None,
    output: Path | None,
    first: int | None,
    names: list[str],
) -> None:
    from cdcca_cli.inspection import map_folder
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.text import counted

    skipped = Skipped()
    with streams.binary_input(file) as source:
        name = streams.input_name(file)
        shards = map_folder.Wanted(first, names).of(
            map_folder.shards(source, name, skipped), skipped
        )
        if output is None:
            map_folder.print_texts(shards, skipped)
        else:
            map_folder.write(shards, output, map_folder.Originals(images), skipped, name)
    place = "" if output is None else f" in {output}"
    streams.summary(f"{counted(skipped.num_sound, 'map')}{place}{skipped}")
    skipped.refuse_if_all()
