"""`cdcca doctor`: what works: this machine, a checkpoint, a pair."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.options import Json, Quiet


def command(
    *,
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder, hub id or device folder", show_default=False),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint to teach it, or the address of a llama-server that runs it",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(help="Export, or probe of a mirror, that the server is compared with"),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(help="Labelled frames, for the gain that the server has on them"),
    ] = None,
    on: Runtime,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what works on this machine, with a checkpoint, or with a student and its teacher.

    Alone: versions, CUDA, memory, and each optional part with what it is for and how to get it. Of
    a checkpoint: its parts, the tokens of a frame of 1080p and the bytes of each payload, memory to
    infer and to train; if it is a folder and fits, it is loaded, and stored tokens are compared
    with pixels. Of a student and a teacher: whether they share the vision tower and the vocabulary,
    and so which payloads and methods are open. Of a hub id only settings, headers and the vision
    tower's weights are fetched. The frame is made of noise. Memory is estimated, and what training
    adds to it is scaled by one model that was measured.

    Of a device folder and a llama-server: whether the server acts as the device was trained, by the
    probe of its export (cdcca export). Exit code 3 if not.

    Example: cdcca doctor device/ Salesforce/instructblip-vicuna-13b
    """
    streams.set_quiet(quiet)
    from cdcca_cli.doctor import report

    made = report.made(checkpoint, teacher, on, probe, frames)
    if json or not streams.is_terminal("stdout"):
        streams.emit_json(made.found)
    else:
        streams.emit_facts(made.rows)
    made.require()
