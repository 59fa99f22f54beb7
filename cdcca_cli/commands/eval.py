"""`cdcca eval`: predictions to scores, and the link's ledger."""

from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Quiet, Seed, choice


def command(
    predictions: Annotated[
        list[str] | None,
        typer.Argument(help="Prediction files  [default: stdin]", show_default=False),
    ] = None,
    references: Annotated[
        list[str] | None,
        typer.Option(
            help="Manifest, folder with frames.jsonl, or annotation file, with the labels"
        ),
    ] = None,
    task: Annotated[
        str | None,
        choice(
            ("aokvqa", "vqa", "caption", "nocaps", "manifest"),
            "Benchmark  [default: that of the references]",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics instead of the task's, such as da,da_all or cider,meteor"),
    ] = None,
    tokenizer: Annotated[
        str,
        choice(("python", "java"), "Tokenizer of captions; both give the same words"),
    ] = "python",
    against: Annotated[
        str | None, typer.Option(help="Other predictions to show the paired difference to")
    ] = None,
    answered_only: Annotated[
        bool,
        typer.Option(
            "--answered-only",
            help="Leave out questions without a prediction, which count as wrong otherwise",
        ),
    ] = False,
    duplicates: Annotated[
        str, typer.Option(help="refuse or first: a question answered twice, differently.")
    ] = "refuse",
    fail_under: Annotated[
        str | None,
        typer.Option(help="Lowest scores, such as mc=50,da.domain.fog=40; exit 3 if one is missed"),
    ] = None,
    round: Annotated[
        list[str] | None,
        typer.Option(
            help="Predictions after a round, [DOMAIN=]FILE (repeatable): the effect of each round "
            "on each domain"
        ),
    ] = None,
    uplink: Annotated[
        list[str] | None, typer.Option(help="Token shards to count the bytes of (repeatable)")
    ] = None,
    downlink: Annotated[
        list[str] | None, typer.Option(help="Updates to count the bytes of (repeatable)")
    ] = None,
    raw: Annotated[
        str | None, typer.Option(help="Frames that were sampled, to compare the bytes with")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder that the image names of --raw are relative to")
    ] = None,
    encoder_size: Annotated[
        str | None,
        typer.Option(help="Size to compare with --raw at too, in pixels: 224 or 448x336"),
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="Link to model the time of transfer on, such as 1gbit,1ms")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(help="File to draw the report to: .png, .svg or .pdf")
    ] = None,
    seed: Seed = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on a terminal too")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File to write the JSON object to")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score predictions as the benchmarks do, each metric with n and a 95 % interval.

    A-OKVQA (multiple choice MC, direct answer DA), VQAv2, COCO captions and nocaps (BLEU, CIDEr,
    ROUGE-L) from their published files, or the questions of a manifest; also by domain and by kind
    of question. With --against: the paired difference, its p-value and what changed. With --uplink,
    --downlink and --raw: the bytes that the link carried, against the frames as pixels, as stored,
    and coded.

    Example: cdcca infer frames/ -m device/ | cdcca eval --references frames/ --fail-under mc=50
    """
    streams.set_quiet(quiet)
    from cdcca_cli.scoring.evaluation import evaluate
    from cdcca_cli.scoring.settings import EvaluationInputs, EvaluationSettings
    from cdcca_cli.settings import value_of

    inputs = EvaluationInputs(
        predictions=tuple(predictions or ()),
        references=tuple(references or ()),
        against=against,
        round=tuple(round or ()),
        uplink=tuple(uplink or ()),
        downlink=tuple(downlink or ()),
        raw=raw,
        images=images,
    )
    texts = {"metrics": metrics, "fail_under": fail_under, "link": link}
    texts |= {"encoder_size": encoder_size}
    values = {
        name: value_of(EvaluationSettings, name, text)
        for name, text in texts.items()
        if text is not None
    }
    how = EvaluationSettings(
        task=task,
        tokenizer=tokenizer,
        answered_only=answered_only,
        duplicates=duplicates,
        plot=plot,
        seed=seed,
        **values,
    )
    report = evaluate(inputs, how)
    report.deliver(output, as_json=json, plot=plot)
    report.require(how.fail_under or {})
