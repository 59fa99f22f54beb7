"""`cdcca apply`: an update into a device folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.errors import MadeWorse, UsageError

if TYPE_CHECKING:
    from cdcca_cli.acceptance import Accepted
    from cdcca_cli.downlink.receiver import Applied, Rotated


def command(
    device: Annotated[Path, typer.Argument(help="The device folder.", show_default=False)],
    update: Annotated[
        str | None,
        typer.Argument(
            help="The update of compress, or a list of trust.  [default: stdin]", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing.")
    ] = False,
    back: Annotated[
        bool, typer.Option("--rollback", help="Go back to the overlay before the current one.")
    ] = False,
    unsigned: Annotated[
        bool,
        typer.Option(
            "--unsigned", help="Take it without the signatures it lacks; the folder records that."
        ),
    ] = False,
    if_better: Annotated[
        Path | None,
        typer.Option(help="Labelled frames to measure on: refuse it (80) if they get worse."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="da, mc or cider.  [default: the first that the labels allow]"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Points by which the score may get worse.")
    ] = 0.0,
    images: Annotated[
        Path | None, typer.Option(help="The folder that image names of --if-better start from.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Asks answered at once.")] = 32,
    compute: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bring a device folder to the state that an update leads to, wholly or not at all.

    Apply every update to the device and to its mirror in the cloud: both reach the same digest.
    The same update again changes nothing and is no error. A device that trusts keys takes only what
    enough of them have signed; a trust list, signed too, changes which keys these are. Needs
    neither torch nor the checkpoint, but for --if-better: then the device's own model answers
    labelled frames without the update and with it. A trust list is not measured.

    Example: cdcca apply device/ update.cdcca --if-better probe/
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import receiver
    from cdcca_cli.formats.device import Device

    if back and (update is not None or dry_run or unsigned or if_better is not None):
        raise UsageError("--rollback takes no update, --dry-run, --unsigned or --if-better")
    receive: Callable[..., Applied | Rotated | Accepted] = receiver.receive
    if if_better is not None:
        from cdcca_cli import acceptance
        from cdcca_cli.commands import settings
        from cdcca_cli.scoring.settings import AcceptanceSettings

        on = settings.runtime(compute, dtype, threads)
        test = AcceptanceSettings(
            if_better, images, metric, tolerance, batch_size, on.compute, on.dtype
        )
        receive = partial(acceptance.receive, settings=test)
    elif metric is not None or tolerance or images is not None:
        raise UsageError("--metric, --tolerance and --images go with --if-better")
    folder = Device.open(device)
    done: Applied | Rotated | Accepted
    try:
        if back:
            done = receiver.rollback(folder)
        else:
            with streams.binary_input(update) as source:
                done = receive(
                    folder,
                    source,
                    where=streams.input_name(update),
                    dry_run=dry_run,
                    unsigned=unsigned,
                )
    except MadeWorse as refused:
        if json:
            streams.emit_json({"device": str(device), **refused.report})
        raise
    streams.message(f"{device}: {done.summary()}")
    if json:
        streams.emit_json({"device": str(device), **done.as_json()})
