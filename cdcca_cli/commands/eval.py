"""`cdcca eval`: predictions to scores, and the link's ledger."""

from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    predictions: Annotated[
        list[str] | None,
        typer.Argument(help="Prediction files; none, or -, is stdin.", show_default=False),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(help="A manifest, a folder with frames.jsonl, or an annotation file."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="vqa or caption: score only the asks of this task.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Other predictions: show the paired difference to them.")
    ] = None,
    answered_only: Annotated[
        bool,
        typer.Option(
            "--answered-only",
            help="Leave out asks without a prediction; otherwise they count as wrong.",
        ),
    ] = False,
    fail_under: Annotated[
        str | None, typer.Option(help="Marks such as mc=50,cider=70; exit 3 if one is missed.")
    ] = None,
    uplink: Annotated[
        list[str] | None, typer.Option(help="Token shards whose bytes to account for.")
    ] = None,
    downlink: Annotated[
        list[str] | None, typer.Option(help="Updates whose bytes to account for.")
    ] = None,
    raw: Annotated[
        str | None, typer.Option(help="The frames that were sampled, to compare bytes with.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="The folder that the image names of --raw start from.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object; off a terminal it is that anyway.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A file for the JSON object.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Score predictions: MC, DA, BLEU-4 and CIDEr, each with n and a 95 % interval.

    Also by domain and by kind of question. With --uplink, --downlink and --raw, what the link
    carried in bytes, against the frames as raw pixels, as stored, as JPEG and as WebP.

    Example: cdcca infer frames/ -m device/ | cdcca eval --references frames/ --fail-under mc=50
    """
    streams.set_quiet(quiet)
    from cdcca_cli.scoring.report import evaluate, read_marks

    marks = read_marks(fail_under)
    report = evaluate(
        predictions or [],
        references,
        task=task,
        against=against,
        answered_only=answered_only,
        uplink=uplink or [],
        downlink=downlink or [],
        raw=raw,
        images=images,
        seed=seed,
    )
    report.deliver(output, as_json=json)
    report.require(marks)
