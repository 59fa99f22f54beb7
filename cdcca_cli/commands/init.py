"""`cdcca init`: a device folder from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    device: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    checkpoint: Annotated[
        str,
        typer.Option(help="A checkpoint folder, a hub id, shipped:student or shipped:teacher."),
    ] = "shipped:student",
    groups: Annotated[
        str, typer.Option(help="What may be trained and sent: norm, bias, query, lora.")
    ] = "norm,bias,query,lora",
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA matrices.")] = 16,
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA's scale is alpha / rank.  [default: 2 x rank]")
    ] = None,
    qformer_layers: Annotated[
        int | None, typer.Option(min=1, help="Keep only the first N layers of the Q-Former.")
    ] = None,
    quantize: Annotated[
        str, typer.Option(help="Load the language model as: none, int8 or nf4.")
    ] = "none",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of LoRA's start; both sides need the same.")] = 0,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="Take only updates that this public key signed (repeatable); or a trust list."
        ),
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(min=1, help="How many of the trusted keys must sign.  [default: 1]"),
    ] = None,
    keep: Annotated[
        int, typer.Option(min=1, help="How many overlays before the current one stay.")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make a device folder: a reference to a frozen checkpoint and the first overlay.

    The checkpoint itself is never written. Run it with the same options on the device and in the
    cloud: both then hold the same overlay, and only changes travel. With --trust, apply takes only
    updates signed by so many of these keys (cdcca keygen) as --threshold says. A mirror that keeps
    more than one overlay can serve devices that missed some (compress --since).

    Example: cdcca init device --checkpoint Salesforce/instructblip-vicuna-7b --quantize nf4
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import keys

    # Before torch and the checkpoint: a key that cannot be read is said at once.
    trusted = keys.first_trust(trust or [], threshold)
    from cdcca_cli.models.initial import create_device

    made = create_device(
        device,
        checkpoint,
        groups=[group.strip() for group in groups.split(",") if group.strip()],
        rank=lora_rank,
        alpha=lora_alpha,
        qformer_layers=qformer_layers,
        quantize=quantize,
        revision=revision,
        seed=seed,
        trust=trusted,
        keep=keep,
        force=force,
    )
    streams.message(f"{device}: {made.summary()}")
    if json:
        streams.emit_json(made.as_json())
