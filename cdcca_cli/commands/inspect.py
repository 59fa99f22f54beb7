"""`cdcca inspect`: what a file or folder holds."""

from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Json, Quiet


def command(
    file: Annotated[
        str | None, typer.Argument(help="File or folder; standard input if omitted or -")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a file's kind, digests and counts, and how many bytes each of its parts takes.

    Reads token shards, predictions, labels, adaptations, updates, overlays, device folders,
    checkpoints, frames, manifests and annotation files, also if zstd has compressed them. A damaged
    file is refused, so inspect also verifies a file. Standard output gets one JSON object if it is
    not a terminal.

    Example: cdcca sample frames/ -m device/ | tee uplink.tokens | cdcca inspect
    """
    from cdcca_cli.inspection.look import look
    from cdcca_cli.inspection.summary import rows

    streams.set_quiet(quiet)
    found = {"file": streams.input_name(file), **look(file).as_json()}
    if json or not streams.is_terminal("stdout"):
        streams.emit_json(found)
    else:
        streams.emit_facts(rows(found))
