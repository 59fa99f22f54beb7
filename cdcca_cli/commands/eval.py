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
        list[str] | None,
        typer.Option(help="A manifest, a folder with frames.jsonl, or an annotation file."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="aokvqa, vqa, caption, nocaps or manifest; that of the references."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="These instead of the task's, such as da,da_all or cider,meteor."),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="python or java, which tokenise captions alike.")
    ] = "python",
    against: Annotated[
        str | None, typer.Option(help="Other predictions: show the paired difference to them.")
    ] = None,
    answered_only: Annotated[
        bool,
        typer.Option(
            "--answered-only",
            help="Leave out asks without a prediction; otherwise they are wrong. Not with --round.",
        ),
    ] = False,
    duplicates: Annotated[
        str, typer.Option(help="refuse or first: a question answered twice, differently.")
    ] = "refuse",
    fail_under: Annotated[
        str | None,
        typer.Option(help="Marks: mc=50,cider=70,da.domain.fog=40; exit 3 if one is missed."),
    ] = None,
    round: Annotated[
        list[str] | None,
        typer.Option(help="[DOMAIN=]FILE, once a round: what each round did to each domain."),
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
    encoder_size: Annotated[
        str | None,
        typer.Option(help="Pixels such as 224 or 448x336: compare with --raw at this size too."),
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="A link such as 1gbit,1ms: model the time of transfer.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(help="Draw the report to a .png, .svg or .pdf file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of intervals and p-values.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object; off a terminal it is that anyway.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A file for the JSON object.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Score predictions as the benchmarks do, each metric with n and a 95 % interval.

    A-OKVQA (MC, DA), VQAv2, COCO captions and nocaps (BLEU, CIDEr, ROUGE-L) from their published
    files, or a manifest's own asks; also by domain and by kind of question. With --against the
    paired difference, its p-value and what changed. With --uplink, --downlink and --raw, what the
    link carried in bytes, against the frames as pixels, as stored, and coded.

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
