"""`cdcca apply`: an update into a device folder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.downlink.settings import NotifySettings
from cdcca_cli.errors import CdccaError, UsageError
from cdcca_cli.options import Json, Quiet
from cdcca_cli.scoring.settings import AcceptanceSettings

if TYPE_CHECKING:
    from cdcca_cli.acceptance import Accepted
    from cdcca_cli.downlink.receiver import Applied, Carried, Rotated


def command(
    *,
    device: Annotated[Path, typer.Argument(help="Device folder", show_default=False)],
    update: Annotated[
        str | None,
        typer.Argument(help="Update, trust list or codebook  [default: stdin]", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and change nothing")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the overlay before the current one")
    ] = False,
    unsigned: Annotated[
        bool,
        typer.Option(
            "--unsigned", help="Accept missing signatures; the device folder records this"
        ),
    ] = False,
    how: AcceptanceSettings,
    telling: NotifySettings,
    on: Runtime,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Install an update in a device folder, completely or not at all.

    Apply every update to the device and to its mirror in the cloud: both reach the same digest.
    The same update again changes nothing and is not an error. A device that trusts keys takes only
    updates that enough of them have signed; a signed trust list changes these keys. A codebook of
    calibrate is signed and applied like an update, to the mirror too, and changes how sample codes
    tokens; --rollback leaves it. Needs neither torch nor the checkpoint, except for --if-better:
    then the device's own model answers labelled frames without and with the update. With
    --max-drift the frames need no labels: the update is refused if the model would move further
    than that from the one of sequence 0. Trust lists and codebooks are not tested this way.

    Example: cdcca apply device/ update.cdcca --if-better labelled/ --notify ./reload.sh
    \f

    --notify runs a command after an update or a rollback, such as one that makes a server load the
    new overlay. If it fails, the device goes back to the overlay before, and the command is run
    once more. A command that was cut off, or never begun because the power failed, is run by the
    next apply --notify. It reads CDCCA_DEVICE, CDCCA_SEQUENCE and CDCCA_DIGEST.

    --json prints one line, also of a refusal or fault, but not if the command line is wrong or a
    signal stops it: add it to a log, which inspect reads.
    """
    streams.set_quiet(quiet)
    from cdcca_cli.byte_streams import Measured
    from cdcca_cli.downlink import notify, receiver
    from cdcca_cli.formats import device_log
    from cdcca_cli.formats.device import Device

    if rollback and (update is not None or dry_run or unsigned or how.validation is not None):
        raise UsageError("`rollback` takes no update, `dry_run`, `unsigned` or `if_better`")
    receive: Callable[..., Applied | Rotated | Carried | Accepted] = receiver.receive
    if how.validation is not None:
        from cdcca_cli import acceptance

        on.set_threads()
        how = replace(how, compute=on.compute, dtype=on.dtype)
        receive = partial(acceptance.receive, settings=how)
    done: Applied | Rotated | Carried | Accepted
    file: Measured | None = None

    def emit(exit_code: int, **facts: object) -> None:
        read = file and {
            "name": streams.input_name(update),
            "bytes": file.num_bytes,
            "content": file.digest,
        }
        streams.emit_json(device_log.line("apply", device, exit_code, **facts, file=read))

    try:
        folder = Device.open(device)
        if rollback:
            done = receiver.rollback(folder, telling)
        else:
            if not dry_run:
                notify.settle(folder, telling)
            with streams.binary_input(update) as source:
                file = Measured(source)
                done = receive(
                    folder,
                    cast(BinaryIO, file),
                    where=streams.input_name(update),
                    dry_run=dry_run,
                    unsigned=unsigned,
                    telling=telling,
                )
    except CdccaError as error:
        if json and not isinstance(error, UsageError):
            emit(error.exit_code, **device_log.refusal(error))
        raise
    if json:
        emit(0, **done.as_json())
    streams.summary(f"{device}: {done.summary()}")
