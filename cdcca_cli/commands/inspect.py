"""`cdcca inspect`: what any of the files is."""

from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    file: Annotated[
        str | None, typer.Argument(help="A file or folder; none, or -, is stdin.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object; off a terminal it is that anyway.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Show what a file is: its kind, digests and counts, and what its bytes are spent on.

    Token shards, predictions, a teacher's labels, adaptations, updates, overlays, device folders,
    checkpoints, frames, manifests and annotation files, with or without zstd around them. A damaged
    file is refused, so this is also how a file is verified.

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
