"""`cdcca compress`: an adaptation to an update, the downlink."""

from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    adaptation: Annotated[
        str | None,
        typer.Argument(help="The adaptation of distill.  [default: stdin]", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The mirror: the device folder that the adaptation was made from."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="The most the update may weigh, as a file: 800KB, 64KiB, 65536."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="As small as possible with at most this relative error of the change."),
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="Send these groups only: norm, bias, query, lora.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper: norm, bias and query in NF4, as the paper sends.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The update's file; - is stdout.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the usual file, where no -o is given.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Code what changed, against what the device holds, in as few bytes as asked for.

    Without --budget or --max-error every tensor that matters is sent in 4 bits (NF4). With one of
    them, each gets 0, 2, 4 or 8 bits, more where they take away the most error. Apply the update
    to the mirror too: the next one is taken against it.

    Example: cdcca compress adaptation.safetensors --base mirror/ --budget 800KB -o update.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli.amounts import parse_bytes
    from cdcca_cli.commands import settings
    from cdcca_cli.downlink import sender
    from cdcca_cli.formats.adaptation import read_adaptation
    from cdcca_cli.formats.update import write_update

    how = sender.settings_of(
        preset=preset,
        select=select,
        budget_bytes=None if budget is None else parse_bytes(budget, "--budget"),
        max_error=max_error,
    )
    with streams.binary_input(adaptation) as source:
        learnt = read_adaptation(source, where=streams.input_name(adaptation))
    made = sender.compress(learnt, settings.device(base, "student"), how)
    with streams.binary_output(output, "update.cdcca", force=force) as out:
        write_update(out, made.update)
    streams.message(made.summary())
