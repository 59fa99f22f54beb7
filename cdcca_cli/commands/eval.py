"""`cdcca eval`: predictions to scores, and what the link carried."""

from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Output, Quiet
from cdcca_cli.scoring.settings import EvaluationSettings


def command(
    *,
    predictions: Annotated[
        list[str] | None,
        typer.Argument(help="Prediction files  [default: stdin]", show_default=False),
    ] = None,
    how: EvaluationSettings,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on a terminal too")
    ] = False,
    output: Output = None,
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

    report = evaluate(how)
    report.deliver(output, as_json=json, plot=how.plot)
    report.require(how.fail_under or {})
