"""`cdcca init`: a device folder from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.options import Json, Quiet, no_dash


def command(
    *,
    device: Annotated[Path, typer.Argument(help="Folder to make", show_default=False)],
    checkpoint: Annotated[
        str,
        typer.Option(help="Checkpoint folder, hub id, shipped:student or shipped:teacher"),
    ] = "shipped:student",
    how: InitSettings,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            help="Public key that must have signed updates (repeatable), or a trust list",
            callback=no_dash,
        ),
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(min=1, help="Number of trusted keys that must sign  [default: 1]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a device folder: a reference to a frozen checkpoint and the first overlay.

    The checkpoint itself is never written. Run it with the same options and seed on the device and
    in the cloud: both then hold the same overlay, and only changes travel. The last line says which
    groups which runtime takes (cdcca export). With --trust, apply
    takes only updates signed by --threshold of these keys (cdcca keygen). A mirror that keeps more
    than one overlay can serve devices that missed some (compress --since). A codebook in the
    checkpoint's folder, as the shipped student has one, comes with it.

    Example: cdcca init device --checkpoint Salesforce/instructblip-vicuna-7b --quantize nf4
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import keys

    # Before torch and the checkpoint, so that a key that cannot be read is refused at once.
    trusted = keys.first_trust(trust or [], threshold)
    from cdcca_cli.models.initial import create_device

    made = create_device(device, checkpoint, how, trust=trusted, force=force)
    from cdcca_cli.export import takes

    found = takes.of_device(made)
    if json:
        streams.emit_json(made.as_json() | {"takes": takes.as_json(found)})
    arrives = "; ".join(f"{one.runtime} takes {one}" for one in found)
    streams.summary(f"{device}: {made.summary()}; {arrives}")
