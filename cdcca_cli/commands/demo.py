"""`cdcca demo`: the whole loop on the shipped models and frames."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.options import Json, Only, Quiet, Seed


def command(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds")] = 3,
    export: Annotated[
        Path | None, typer.Option(help="New folder to copy the shipped frames to, and stop")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to keep the files of each round")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write of what the rounds did")
    ] = None,
    seed: Seed = 0,
    on: Annotated[Runtime, Only("demo", ("threads",))],
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run rounds of the loop on the shipped pair of models and the shipped frames.

    The device adapts to a stream of target frames without labels. It is scored on other target
    frames, which are never sent. Nothing is downloaded.

    Example: cdcca demo --rounds 5 --report demo.html
    """
    streams.set_quiet(quiet)
    from cdcca_cli.loop import frames

    if export is not None:
        frames.export(export)
        streams.summary(f"copied the shipped frames to {export}")
        return
    from cdcca_cli.loop import demo
    from cdcca_cli.loop.history import COLUMNS

    if report is not None:
        from cdcca_cli.reporting import page

        page.require()  # before the work
        streams.check_output(report)
    on.set_threads()
    with demo.folder(output) as folder:
        history = demo.run(rounds, folder, seed=seed)
        if json:
            streams.emit_json(history.as_json() | {"sentences": demo.sentences(history)})
        else:
            streams.emit_table("target frames that were never sent", COLUMNS, history.rows())
            for sentence in demo.sentences(history):
                streams.emit(sentence)
        if report is not None:
            from cdcca_cli.reporting import gather

            found, _ = gather.gather([folder], demo.report_settings(), title="cdcca demo")
            page.write(found, str(report))
