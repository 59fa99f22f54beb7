"""`cdcca apply`: an update into a device folder."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.errors import UsageError


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
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bring a device folder to the state that an update leads to, wholly or not at all.

    Apply every update to the device and to its mirror in the cloud: both reach the same digest.
    The same update again changes nothing and is no error. A device that trusts keys takes only what
    enough of them have signed; a trust list, signed too, changes which keys these are. Needs
    neither torch nor the checkpoint.

    Example: cdcca apply device/ update.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import receiver
    from cdcca_cli.formats.device import Device

    if back and (update is not None or dry_run or unsigned):
        raise UsageError("--rollback takes no update, --dry-run or --unsigned")
    folder = Device.open(device)
    done: receiver.Applied | receiver.Rotated
    if back:
        done = receiver.rollback(folder)
    else:
        with streams.binary_input(update) as source:
            done = receiver.receive(
                folder,
                source,
                where=streams.input_name(update),
                dry_run=dry_run,
                unsigned=unsigned,
            )
    streams.message(f"{device}: {done.summary()}")
    if json:
        streams.emit_json({"device": str(device), **done.as_json()})
