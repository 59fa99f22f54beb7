"""`cdcca report`: one page to look at, from what rounds or a fleet leave."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Force, Output, Quiet
from cdcca_cli.reporting.settings import ReportSettings


def command(
    *,
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of rounds or devices, JSON lines of devices", show_default=False
        ),
    ],
    how: ReportSettings,
    json: Annotated[
        bool, typer.Option("--json", help="Write the page's data as one JSON object instead")
    ] = False,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make one HTML page of what loop, the plain shell loop or a fleet of devices left.

    Scores by round, bytes against JPEG and full weights, training curves, what the devices' gates
    said, the entropy of the stream, frames that got better and worse, token maps, settings and
    digests. The page stands alone: it loads nothing and runs no script. Predictions are scored, and
    frames are shown, where --references names the frames; damaged files are named and left out.

    Example: cdcca report rounds/ --references frames/heldout -o report.html
    """
    streams.set_quiet(quiet)
    from cdcca_cli.reporting import page
    from cdcca_cli.reporting.gather import gather
    from cdcca_cli.text import counted

    if not json:
        page.require()
    if output is not None:
        streams.check_output(output)
    found, bad = gather(folders, how)
    page.write(found, output, as_json=json, force=force)
    shown = {
        "round": sum(len(run["rounds"]) for run in found["runs"]),
        "device": 0 if found["fleet"] is None else found["fleet"]["num_devices"],
    }
    words = " and ".join(counted(number, name) for name, number in shown.items() if number)
    streams.summary(f"{words or 'nothing'} shown{bad}")
