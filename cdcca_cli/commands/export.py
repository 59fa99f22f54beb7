"""`cdcca export`: what a device holds, as files of another runtime."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.options import Json, Quiet


def command(
    *,
    device: Annotated[Path, typer.Argument(help="Device folder", show_default=False)],
    how: ExportSettings,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write")],
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write what the device holds for llama.cpp, peft or transformers, as a whole or not at all.

    To gguf: adapter.gguf has the LoRA; model.gguf is a copy of the base with the device's norms and
    biases, mmproj.gguf one with the LoRA of the connector in it. The base is compared with what
    init wrote of the checkpoint, so that files of another model, or with rows in another order, are
    refused. Each change that the runtime cannot take is named, and refused unless --drop names its
    group. export.json lists all files with their digests. Needs neither torch nor the checkpoint.

    Example: cdcca export device/ --base model-Q4_K_M.gguf --mmproj mmproj.gguf -o served/
    """
    streams.set_quiet(quiet)
    from cdcca_cli.export import targets
    from cdcca_cli.formats.device import Device

    made = targets.export(Device.open(device), output, how)
    if json:
        streams.emit_json(made)
    if start := targets.command(made, output):
        streams.message(f"start: {shlex.join(start)}")
    streams.summary(f"{output}: {targets.summary(made)}")
