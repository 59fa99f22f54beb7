"""`cdcca export`: what a device holds, as files of llama.cpp, peft or transformers."""

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
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write")] = Path(
        "export"
    ),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write what a device holds as files of llama.cpp, peft or transformers, whole or not at all.

    To gguf: adapter.gguf has the LoRA; model.gguf is a copy of the base with the device's norms and
    biases, mmproj.gguf one with the LoRA of the connector in it. The base is compared with what
    init wrote of the checkpoint, so that files of another model, or with rows in another order, are
    refused. Each change that the runtime cannot take is named, and refused unless --drop names its
    group. export.json lists all files with their digests. Needs neither torch nor the checkpoint.

    Example: cdcca export device/ --base model-Q4_K_M.gguf --mmproj mmproj.gguf -o served/
    \f

    To peft: LoRA alone, which vLLM loads too. To transformers: a merged checkpoint, where torch is.

    Where torch and the checkpoint are, the export also records a probe: answers that --check URL
    compares with those of a llama-server that runs the files. An export that OUT holds already is
    not written again then. Elsewhere, --probe names what `--to probe` wrote beside a mirror.
    """
    streams.set_quiet(quiet)
    from cdcca_cli.export import targets
    from cdcca_cli.formats.device import Device

    folder = Device.open(device)
    made = targets.current(folder, output, how) if how.check else None
    if made is None:
        made = targets.export(folder, output, how)
        if start := targets.command(made, output):
            streams.message(f"start: {shlex.join(start)}")
    effect = None
    if how.check is not None:
        from cdcca_cli.export import checking

        effect = checking.of_export(folder, output, made, how.check)
        streams.message(f"{how.check}: {effect.summary()}")
        if effect.cannot_see:
            streams.message(effect.cannot_see)
    if json:
        streams.emit_json(made if effect is None else made | {"effect": effect.as_json()})
    streams.summary(f"{output}: {targets.summary(made)}")
    if effect is not None:
        effect.require(str(how.check))
