"""`cdcca compress`: an adaptation to an update, the downlink."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.errors import UsageError


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
        typer.Option(help="The most the update may weigh, as a file: 200KB, 64KiB, 65536."),
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="The same in bits a parameter, whole file: 2.2.")
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(
            help="Coarser steps while the held-out loss grows by at most this.  [default: 1%]"
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="As small as possible with at most this relative error of the change."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="usq, nf4, ternary, sign or exact.  [default: usq]"),
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="Send these groups only: norm, bias, query, lora.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper: norm, bias and query in NF4, as the paper sends.")
    ] = None,
    since: Annotated[
        int | None,
        typer.Option(help="For a device that is still at this sequence; 0 is a new one.", min=0),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="When devices refuse it: 30d, 12h, or a day like 2027-01-31 (UTC)."),
    ] = None,
    sign: Annotated[
        list[Path] | None,
        typer.Option(help="Sign with this private key (repeatable).", envvar="CDCCA_SIGN"),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(help="Also write rate against loss: JSON here, a picture beside it (.png)."),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not load the model to measure the loss.")
    ] = False,
    compute: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The update's file; - is stdout.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the usual file, where no -o is given.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Code what changed, against what the device holds, in as few bytes as asked for.

    Without a wish, steps get coarser while the loss on the adaptation's held-out frames is at most
    1% larger; after --rate-aware training, the step is the one trained for. Apply the update to the
    mirror too: the next one is taken against it. With --codec exact, --since and no ADAPTATION, a
    device that missed some, or a new one (--since 0), comes to exactly where the mirror is.

    Example: cdcca compress adaptation.safetensors --base mirror/ --budget 200KB -o update.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli.commands import measuring, settings
    from cdcca_cli.downlink import keys as key_files
    from cdcca_cli.downlink import sender, signatures
    from cdcca_cli.downlink.settings import CompressSettings, parse_expiry
    from cdcca_cli.formats.adaptation import read_adaptation
    from cdcca_cli.formats.update import write_update
    from cdcca_cli.text import parse_bytes, parse_share

    keys = key_files.read_private_keys(sign or [], at_least=0)
    how = CompressSettings(
        preset=preset,
        select=None if select is None else tuple(part.strip() for part in select.split(",")),
        codec=codec,
        budget_bytes=None if budget is None else parse_bytes(budget, "--budget"),
        bits=bits,
        max_loss=None if max_loss is None else parse_share(max_loss, "--max-loss", 1.0),
        max_error=max_error,
        since=since,
        expires=None if expires is None else parse_expiry(expires),
        num_signatures=len(keys),
    )
    if curve is not None:
        measuring.check_curve(curve, adaptation, how.is_catch_up)
    runtime = settings.runtime(compute, dtype, threads)
    drawn = None
    if adaptation is None and how.is_catch_up:
        if streams.has_piped_data():
            raise UsageError(
                "an adaptation on standard input, which a catch-up would ignore: name it - to code "
                "it exactly against `since`, or take it away (< /dev/null) for the catch-up"
            )
        mirror = settings.device(base, "student")
        made = sender.catch_up(mirror, how, start=measuring.start_of(mirror))
    else:
        with streams.binary_input(adaptation) as source:
            learnt = read_adaptation(source, where=streams.input_name(adaptation))
        mirror = settings.device(base, "student")
        loss = None if no_measure else measuring.loss_of(learnt, mirror, runtime)
        choice = sender.choose(learnt, mirror, how, loss=loss, start=measuring.start_of(mirror))
        made = sender.finished(choice, choice.update())
        drawn = None if curve is None else sender.curve(choice, made)
    if curve is not None and drawn is not None:
        measuring.write_curve(curve, drawn)
    with streams.binary_output(output, "update.cdcca", force=force) as out:
        write_update(out, signatures.sign(made.update, keys))
    for line in (*made.notes, *key_files.missing(mirror.trust, keys), made.summary()):
        streams.message(line)
