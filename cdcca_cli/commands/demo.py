"""`cdcca demo`: the whole loop on the models and frames that ship with the package."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 3,
    export: Annotated[
        Path | None,
        typer.Option(help="Only copy the shipped frames to this new folder, to try things on."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder to keep every round's files in."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and training.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Watch a small model being kept good: rounds of the loop on the shipped pair and frames.

    The device adapts to a stream of target frames without any label, and is scored on others that
    are never sent. Nothing is downloaded.

    Example: cdcca demo --rounds 5 --json > curve.json
    """
    streams.set_quiet(quiet)
    from cdcca_cli.commands import settings
    from cdcca_cli.loop import demo

    if export is not None:
        demo.export(export)
        streams.message(f"{export}: the shipped frames are in it")
        return
    settings.runtime("cpu", "float32", threads)
    story = demo.run(rounds, seed=seed, keep=output)
    if json:
        streams.emit_json(story.as_json())
    else:
        streams.emit_table(story.title, story.columns, story.rows())
        for sentence in story.sentences():
            streams.emit(sentence)
